"""A runner's endpoint over a socket, with the mock in the place of a model."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import msgspec
import pytest

from llm_runner_router.engine.runners.api import Api
from llm_runner_router.engine.runners.http import HttpServer
from llm_runner_router.engine.runners.mock import MockModel
from llm_runner_router.engine.runners.session import Order

KEY = "key"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}},
                       "required": ["a"], "additionalProperties": False},
    },
}  # fmt: skip


class Client:
    """The least HTTP client."""

    def __init__(self, address: str) -> None:
        self._port = int(address.rpartition(":")[2])

    async def send(
        self, method: str, path: str, value: Any = None, key: str | None = KEY
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        body = value if isinstance(value, bytes) else msgspec.json.encode(value)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        head += f"authorization: Bearer {key}\r\n" if key else ""
        writer.write(head.encode() + b"connection: keep-alive\r\n\r\n" + body)
        return reader, writer

    async def ask(
        self, path: str, value: Any, *, method: str = "POST", key: str | None = KEY
    ) -> tuple[int, Any]:
        reader, writer = await self.send(method, path, value, key)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split()[1])
        if "chunked" in head:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            lines = [line[6:] for line in body.split(b"\n\n") if line]
            ended = lines[-1] == b"[DONE]"
            found: Any = [msgspec.json.decode(line) for line in lines[: -1 if ended else None]]
            found.append(ended)
        else:
            length = int(head.lower().split("content-length: ")[1].split()[0])
            found = msgspec.json.decode(await reader.readexactly(length))
        writer.close()
        await writer.wait_closed()
        return status, found


@asynccontextmanager
async def served(
    *, slots: int = 2, context: int = 200, **options: object
) -> AsyncIterator[tuple[Client, Api]]:
    order = Order("", "m", KEY, slots, context, 1, 1, "chat", dict(options))
    api = Api(MockModel(dict(options)), order)
    server = HttpServer(api.routes(), KEY)
    try:
        yield Client(await server.listen()), api
    finally:
        await server.close()
        api.close()
        await asyncio.sleep(0)


def chat(text: str = "hello", **more: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


async def test_an_answer_in_one_body() -> None:
    async with served(text="four words are here") as (client, _):
        status, body = await client.ask("/v1/chat/completions", chat())
    assert status == 200
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "mock: four words are here"}
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["completion_tokens"] == len("mock: four words are here") + 1, "the end counts"
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert body["timings"]["predicted_n"] == usage["completion_tokens"]


async def test_a_stream_is_the_same_answer() -> None:
    async with served(text="four words") as (client, _):
        asked = chat(stream=True, stream_options={"include_usage": True})
        _, (*events, done) = await client.ask("/v1/chat/completions", asked)
    assert done
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])
    assert text == "mock: four words"
    assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "stop"
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == len(text) + 1
    assert all(set(e) >= {"id", "object", "created", "model"} for e in events)


async def test_a_completion() -> None:
    async with served(text="1 2 3 4") as (client, _):
        _, body = await client.ask("/v1/completions", {"prompt": "x", "stop": " 3"})
        assert body["choices"][0]["text"] == "mock: 1 2"
        assert body["choices"][0]["finish_reason"] == "stop"
        _, body = await client.ask("/v1/completions", {"prompt": "x", "max_tokens": 3})
        assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (
            "moc", "length")  # fmt: skip
        _, (*events, _) = await client.ask("/v1/completions", {"prompt": "x", "stream": True})
        assert "".join(e["choices"][0]["text"] for e in events) == "mock: 1 2 3 4"


async def test_characters_of_several_tokens_come_whole() -> None:
    async with served(text="añ€😀") as (client, _):
        _, (*events, _) = await client.ask("/v1/chat/completions", chat(stream=True))
        texts = [c["delta"].get("content") or "" for e in events for c in e["choices"]]
        assert texts[-5:] == ["a", "ñ", "€", "😀", ""]
        _, body = await client.ask("/v1/chat/completions", chat(max_tokens=len("mock: añ") + 3))
        assert body["choices"][0]["message"]["content"] == "mock: añ\ufffd"


async def test_log_probabilities() -> None:
    async with served(text="ab") as (client, _):
        asked = chat(logprobs=True, top_logprobs=2)
        _, body = await client.ask("/v1/chat/completions", asked)
        told = body["choices"][0]["logprobs"]["content"]
        assert "".join(one["token"] for one in told) == "mock: ab"
        assert all(-0.1 < one["logprob"] <= 0 for one in told)
        assert [len(one["top_logprobs"]) for one in told] == [2] * len(told)
        assert told[0]["top_logprobs"][0]["token"] == "m"
        _, body = await client.ask("/v1/chat/completions", chat(logprobs=True))
        assert body["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_a_schema_holds_the_answer() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with served(text="no JSON at all") as (client, _):
        asked = chat(response_format=form, max_tokens=60, logit_bias={str(ord("}")): 20})
        _, body = await client.ask("/v1/chat/completions", asked)
        assert body["choices"][0]["finish_reason"] == "stop"
        jsonschema.validate(msgspec.json.decode(body["choices"][0]["message"]["content"]), schema)
        status, body = await client.ask(
            "/v1/chat/completions", chat(grammar='root ::= "yes" | "no"')
        )
        assert body["choices"][0]["message"]["content"] in ("yes", "no")
        status, body = await client.ask("/v1/chat/completions", chat(grammar="root ::= ("))
        assert (status, body["error"]["param"]) == (400, "grammar")


async def test_tools_are_called() -> None:
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    async with served(text=call) as (client, _):
        _, body = await client.ask("/v1/chat/completions", chat(tools=[TOOL]))
        (choice,) = body["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "mock: "
        (made,) = choice["message"]["tool_calls"]
        assert made["function"] == {"name": "add", "arguments": '{"a": 1}'}
        _, body = await client.ask("/v1/chat/completions", chat(tools=[TOOL], tool_choice="none"))
        assert body["choices"][0]["message"]["content"] == f"mock: {call}"


async def test_a_call_is_forced() -> None:
    async with served(text="never a call") as (client, _):
        asked = chat(
            tools=[TOOL], tool_choice="required", stream=True, logit_bias={str(ord("}")): 20}
        )
        _, (*events, _) = await client.ask("/v1/chat/completions", asked)
    deltas = [c["delta"] for e in events for c in e["choices"]]
    calls = [call for d in deltas for call in d.get("tool_calls", ())]
    assert calls[0]["function"]["name"] == "add"
    arguments = "".join(call["function"].get("arguments", "") for call in calls)
    assert isinstance(msgspec.json.decode(arguments)["a"], int)
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", chat(temperature="hot"), "temperature"),
        ("/v1/chat/completions", chat(n=2), "n"),
        ("/v1/chat/completions", chat(tool_choice="required"), "tool_choice"),
        ("/v1/chat/completions", chat(lora=[{"id": 0}]), "lora"),
        ("/v1/chat/completions", chat(response_format={"type": "xml"}), "response_format.type"),
        ("/v1/chat/completions",
         {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0]"),
        ("/v1/chat/completions", chat(stop=["a"] * 65), "stop"),
        ("/v1/chat/completions", chat(stop=["a", "b" * 1025]), "stop[1]"),
        ("/v1/chat/completions", chat(chat_template_kwargs={"messages": []}),
         "chat_template_kwargs.messages"),
        ("/v1/chat/completions", chat(chat_template_kwargs={"tools": []}),
         "chat_template_kwargs.tools"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "prompt"),
        ("/v1/completions", {"prompt": [999]}, "prompt"),
        ("/v1/embeddings", {"input": ["a", 1]}, "input[1]"),
        ("/v1/embeddings", {"input": "x" * 300}, "input[0]"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(path: str, body: Any, param: str) -> None:
    async with served() as (client, _):
        status, answer = await client.ask(path, body)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]


@pytest.mark.parametrize("name", ["self", "args", "kwargs", "template", "extra", "context"])
async def test_variables_of_the_template_may_have_any_name(name: str) -> None:
    async with served(text="a") as (client, _):
        asked = chat(chat_template_kwargs={name: "x", "enable_thinking": True})
        status, body = await client.ask("/v1/chat/completions", asked)
        assert (status, body["choices"][0]["message"]["content"]) == (200, "mock: a")


async def test_other_refusals() -> None:
    async with served() as (client, _):
        status, body = await client.ask("/v1/chat/completions", chat("x" * 300))
        assert (status, body["error"]["type"]) == (400, "exceed_context_size_error")
        assert body["error"]["n_ctx"] == 200
        assert (await client.ask("/v1/chat/completions", b"{"))[0] == 400
        assert (await client.ask("/v1/nothing", {}))[0] == 404
        assert (await client.ask("/v1/models", None, method="GET", key="other"))[0] == 401
        assert (await client.ask("/v1/models", None, method="GET", key=None))[0] == 401
        assert (await client.ask("/health", None, method="GET", key=None))[0] == 200


async def test_the_context_ends_an_answer() -> None:
    async with served(context=60, text="x" * 500) as (client, _):
        _, body = await client.ask("/v1/chat/completions", chat())
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 60


async def test_a_failure_inside_a_stream_is_told_and_the_next_answer_is_whole() -> None:
    async with served(fail_at=4, slots=1) as (client, _):
        _, (*events, done) = await client.ask("/v1/chat/completions", chat(stream=True))
        assert not done
        assert "the script of the mock" in events[-1]["error"]["message"]
        _, body = await client.ask("/v1/chat/completions", chat(max_tokens=3))
        assert body["choices"][0]["message"]["content"] == "moc"


async def test_the_common_beginning_is_kept() -> None:
    async with served(slots=1) as (client, _):
        _, first = await client.ask("/v1/completions", {"prompt": "a common beginning, one"})
        _, second = await client.ask("/v1/completions", {"prompt": "a common beginning, two"})
        _, third = await client.ask("/v1/completions", {"prompt": "a common beginning, two"})
    cached = [b["usage"]["prompt_tokens_details"]["cached_tokens"] for b in (first, second, third)]
    assert cached == [0, len("a common beginning, "), len("a common beginning, two")]
    assert second["choices"] == third["choices"]
    assert first["choices"] != second["choices"]


async def test_who_leaves_frees_the_slot_and_others_take_turns() -> None:
    async with served(slots=1, context=100_000, text="x" * 90_000) as (client, _):
        for _ in range(3):
            reader, writer = await client.send(
                "POST", "/v1/chat/completions", chat("x", stream=True)
            )
            await reader.readuntil(b"mock"[:1])
            writer.transport.abort()
        status, body = await client.ask("/v1/chat/completions", chat(max_tokens=4))
        assert (status, body["usage"]["completion_tokens"]) == (200, 4)
    async with served(slots=2, context=100_000, text="x" * 90_000) as (client, _):
        reader, writer = await client.send("POST", "/v1/chat/completions", chat(stream=True))
        await reader.readuntil(b"data")
        status, body = await client.ask("/v1/chat/completions", chat(max_tokens=4))
        assert status == 200, "a long answer does not keep a short one waiting"
        writer.transport.abort()


async def test_embeddings_and_ranks() -> None:
    async with served() as (client, _):
        _, body = await client.ask("/v1/embeddings", {"input": ["abc", "xyz", "abc"]})
        one, other, same = (row["embedding"] for row in body["data"])
        assert one == same != other
        assert sum(x * x for x in one) == pytest.approx(1.0, abs=1e-5)
        asked = {"input": "abc", "encoding_format": "base64"}
        _, coded = await client.ask("/v1/embeddings", asked)
        raw = base64.b64decode(coded["data"][0]["embedding"])
        assert list(struct.unpack(f"<{len(one)}f", raw)) == one
        documents = ["a dog", "red fish", "fish"]
        query = {"query": "red fish", "documents": documents, "top_n": 2}
        _, ranked = await client.ask("/v1/rerank", query)
        assert [r["index"] for r in ranked["results"]] == [1, 2]


@pytest.mark.parametrize("wrong", [[1, 2, -1], [[1], [1, 100000]]])
async def test_what_is_no_token_is_neither_embedded_nor_written(wrong: Any) -> None:
    async with served() as (client, _):
        status, body = await client.ask("/v1/embeddings", {"input": wrong})
        assert (status, body["error"]["param"][:5]) == (400, "input")
        assert "no token" in body["error"]["message"]
        tokens = wrong[-1] if isinstance(wrong[-1], list) else wrong
        status, body = await client.ask("/detokenize", {"tokens": tokens})
        assert (status, body["error"]["param"]) == (400, "tokens")


async def test_tokens() -> None:
    async with served() as (client, _):
        _, body = await client.ask("/tokenize", {"content": "hé"})
        assert body == {"tokens": list("hé".encode())}
        _, back = await client.ask("/detokenize", body)
        assert back == {"content": "hé"}
