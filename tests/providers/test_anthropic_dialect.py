"""Anthropic's dialect as an upstream speaks it: requests out, events and bodies in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContextTooLong,
    RateLimited,
    RunnerError,
    Unsupported,
    UpstreamError,
    UpstreamRefused,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.anthropic import AnthropicEvents, parse_body
from llm_runner_router.providers.dialects.anthropic_request import build_request
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.hosts import find
from llm_runner_router.surfaces.anthropic import decode
from llm_runner_router.types import (
    AudioPart,
    FileData,
    FilePart,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    Reasoning,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    Usage,
)

from .asking import ask, target_for
from .upstream import CHUNKED, EVENTS, Seen, reply

HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))


def sent(request: Request, model: str = "claude-opus-4-8", **quirks: Any) -> tuple[Any, Receipt]:
    receipt = Receipt()
    wire = build_request(request, model, Quirks(**quirks), receipt)
    assert (wire.path, wire.dialect) == ("/messages", "anthropic_messages")
    return json.loads(wire.body), receipt


def fates(receipt: Receipt) -> dict[str, str]:
    return {name: mark.fate for name, mark in receipt.marks.items()}


def chat(*messages: Message, **fields: Any) -> Request:
    sampling = fields.pop("sampling", Sampling(max_tokens=50))
    return Request("asked", messages or HI, sampling=sampling, **fields)


# ---------------------------------------------------------------- the conversation


def test_a_conversation_with_tools() -> None:
    body, receipt = sent(
        chat(
            Message("system", "Be brief."),
            Message("user", (TextPart("look"), ImagePart(ImageURL("data:image/png;base64,AAAA")))),
            Message("assistant", "Hm.", tool_calls=(ToolCall("c1", "add", '{"a": 1}'),)),
            Message("tool", "3", tool_call_id="c1"),
            Message("tool", "no", tool_call_id="c2", is_error=True),
            Message("user", "and?"),
            tools=(ADD,),
            tool_choice="required",
            parallel_tool_calls=False,
        )
    )
    assert body["system"] == [{"type": "text", "text": "Be brief."}]
    user, assistant, results = body["messages"]
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    assert user["content"] == [
        {"type": "text", "text": "look"},
        {"type": "image", "source": source},
    ]
    assert assistant["content"][1] == {
        "type": "tool_use",
        "id": "c1",
        "name": "add",
        "input": {"a": 1},
    }
    assert [block["type"] for block in results["content"]] == ["tool_result"] * 2 + ["text"]
    assert results["content"][1]["is_error"] is True
    assert body["tools"] == [
        {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
    ]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert fates(receipt) == {}


def test_what_a_conversation_may_not_look_like_is_mended_and_told() -> None:
    body, receipt = sent(chat(Message("assistant", "Hello. "), Message("developer", "Be kind.")))
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
    ]
    assert body["system"] == [{"type": "text", "text": "Be kind."}]
    assert fates(receipt) == {
        "messages": "emulated",
        "messages[1]": "translated",
        "messages[1].content": "translated",
    }
    body, receipt = sent(chat(Message("system", "Say hi.")))
    assert body["messages"][0]["role"] == "user"
    assert "system" not in body


def test_documents() -> None:
    files = [
        FileData("data:application/pdf;base64,JVBE", filename="a.pdf"),
        FileData("data:text/plain;charset=utf-8,%C3%A4"),
        FileData(file_url="https://x/y.pdf"),
        FileData(file_id="f1"),
    ]
    parts = tuple(FilePart(file, citations=i == 0) for i, file in enumerate(files))
    body, _ = sent(chat(Message("user", parts)))
    assert body["messages"][0]["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            "title": "a.pdf",
            "citations": {"enabled": True},
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ä"}},
        {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "f1"}},
    ]


@pytest.mark.parametrize(
    ("request_", "kind", "param"),
    [
        (
            chat(Message("user", (AudioPart(InputAudio("AAAA", "wav")),))),
            Unsupported,
            "messages[0].content[0]",
        ),
        (chat(sampling=Sampling(n=2)), Unsupported, "n"),
        (chat(Message("function", "3", name="f")), Unsupported, "messages[0]"),
        (Request("m", prompt="a", suffix="b"), Unsupported, "suffix"),
        (
            chat(*HI, Message("assistant", None, tool_calls=(ToolCall("c", "f", "[1,"),))),
            BadRequest,
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            chat(Message("user", (ImagePart(ImageURL("data:image/png;base64,?")),))),
            BadRequest,
            "messages[0].content[0].image_url.url",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    request_: Request, kind: type[RunnerError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        sent(request_)
    assert caught.value.param == param


# ---------------------------------------------------------------- how to answer


def test_sampling_and_what_it_loses() -> None:
    draw = Sampling(
        temperature=1.5, top_p=0.9, top_k=3, stop=("x", "\n"), seed=1, presence_penalty=0.1,
        logprobs=True,
    )  # fmt: skip
    asked = chat(sampling=draw, user="u", extra={"verbosity": Raw(b'"low"')}, service_tier="flex")
    body, receipt = sent(asked, max_output=700)
    assert (body["temperature"], body["top_p"], body["top_k"]) == (1.0, 0.9, 3)
    assert (body["stop_sequences"], body["max_tokens"]) == (["x"], 700)
    assert body["metadata"] == {"user_id": "u"}
    assert fates(receipt) == {
        "max_tokens": "emulated",
        "temperature": "translated",
        "stop": "dropped",
        "seed": "dropped",
        "presence_penalty": "dropped",
        "logprobs": "dropped",
        "verbosity": "dropped",
        "service_tier": "dropped",
    }


def test_a_schema_is_closed() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "object"}}}
    asked = ResponseFormat("json_schema", Raw(json.dumps(inner).encode()))
    body, receipt = sent(chat(response_format=asked))
    schema = body["output_config"]["format"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["b"]["additionalProperties"] is False
    assert fates(receipt) == {"response_format": "translated"}
    values = {"enum": [{"type": "object"}], "default": {"type": "object"}}
    asked = ResponseFormat("json_schema", Raw(json.dumps(values).encode()))
    body, receipt = sent(chat(response_format=asked))
    assert body["output_config"]["format"]["schema"] == values, "values are no schemas"
    assert fates(receipt) == {}
    body, receipt = sent(chat(response_format=ResponseFormat("json_object")))
    assert "JSON" in body["system"][0]["text"]
    assert fates(receipt) == {"response_format": "emulated"}


@pytest.mark.parametrize(
    ("model", "wanted", "limit", "thinking", "effort"),
    [
        ("claude-opus-4-8", Reasoning("high"), 50, {"type": "adaptive"}, "high"),
        ("claude-opus-4-8", Reasoning("none"), 50, {"type": "disabled"}, None),
        (
            "claude-sonnet-4-5-20250929",
            Reasoning("medium"),
            20_000,
            {"type": "enabled", "budget_tokens": 8192},
            None,
        ),
        (
            "claude-3-7-sonnet-latest",
            Reasoning("high"),
            4000,
            {"type": "enabled", "budget_tokens": 3999},
            None,
        ),
        ("claude-sonnet-4-5", Reasoning("high"), 500, None, None),
        (
            "claude-sonnet-4-20250514",
            Reasoning(budget=2000, shown=True),
            9000,
            {"type": "enabled", "budget_tokens": 2000, "display": "summarized"},
            None,
        ),
    ],
)
def test_thinking(
    model: str, wanted: Reasoning, limit: int, thinking: Any, effort: str | None
) -> None:
    draw = Sampling(max_tokens=limit, temperature=0.3)
    body, receipt = sent(chat(sampling=draw, reasoning=wanted), model)
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == effort
    thinks = thinking is not None and thinking["type"] != "disabled"
    assert ("temperature" in body) != thinks
    assert (receipt.marks.get("temperature") is not None) == thinks


def test_a_model_that_must_call_does_not_think() -> None:
    asked = chat(tools=(ADD,), tool_choice="function:add", reasoning=Reasoning("high"))
    body, receipt = sent(asked)
    assert body["tool_choice"] == {"type": "tool", "name": "add"}
    assert "thinking" not in body
    assert not body.get("output_config")
    assert fates(receipt) == {"reasoning_effort": "dropped"}


def test_a_request_of_the_same_dialect_goes_out_as_it_came() -> None:
    came = {
        "model": "mine",
        "max_tokens": 5,
        "messages": [{"role": "user", "content": [{"type": "search_result", "odd": 1.50}]}],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "stream": True,
        "context_management": {"edits": []},
        "fallbacks": ["x"],
    }
    body, receipt = sent(decode(json.dumps(came).encode()), "claude-x")
    assert body == {k: v for k, v in came.items() if k != "fallbacks"} | {"model": "claude-x"}
    assert receipt.marks == {}


# ---------------------------------------------------------------- what comes back

STREAM: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1},
        },
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking"}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "hm"},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": "s"},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Ok."}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "t1", "name": "add", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
    },
    {"type": "content_block_stop", "index": 2},
    {"type": "news", "what": "an event of tomorrow"},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}},
    },
    {"type": "message_stop"},
]
HOST = find("anthropic")
ASK = msgspec.structs.replace(chat(), stream=True)


async def answer_stream(seen: Seen, events: list[dict[str, Any]]) -> None:
    await seen.head(200, CHUNKED + EVENTS)
    for one in events:
        data = f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode()
        await seen.chunk(data)


async def test_a_stream_over_the_wire() -> None:
    async def whole(seen: Seen) -> None:
        assert seen.headers["anthropic-version"] == "2023-06-01"
        assert "authorization" not in seen.headers
        assert seen.headers["x-api-key"].startswith("sk-canary")
        await answer_stream(seen, STREAM)
        await seen.end()

    async with target_for(whole, host=HOST, model="claude-x") as (target, upstream):
        answer = await ask(target, ASK)
        assert upstream.seen[0].target == "/v1/messages"
        assert upstream.seen[0].json["stream"] is True
    choice = answer.choices[0]
    assert (choice.text, choice.reasoning, choice.signature) == ("Ok.", "hm", "s")
    assert choice.tool_calls == (ToolCall("t1", "add", '{"a":1}'),)
    assert choice.finish == "tool_calls"
    assert answer.usage == Usage(8, 9, cached_tokens=3, reasoning_tokens=4)


@pytest.mark.parametrize("length", range(len(STREAM) - 2))
async def test_a_stream_cut_anywhere_is_broken(length: int) -> None:
    async def cut(seen: Seen) -> None:
        await answer_stream(seen, STREAM[:length])
        await seen.end()

    async with target_for(cut, host=HOST, model="claude-x") as (target, _):
        with pytest.raises(UpstreamError, match=r"ended|finish"):
            await ask(target, ASK)


async def test_an_error_inside_a_stream() -> None:
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}

    async def fails(seen: Seen) -> None:
        await answer_stream(seen, [*STREAM[:8], overloaded])
        await seen.end()

    async with target_for(fails, host=HOST, model="claude-x") as (target, _):
        with pytest.raises(UpstreamError, match="Overloaded"):
            await ask(target, ASK)


BODY = {
    "type": "message",
    "role": "assistant",
    "content": [
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "Ok", "citations": [{"type": "char_location"}]},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"q": 1}},
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}},
    ],
    "stop_reason": "stop_sequence",
    "stop_sequence": "END",
    "usage": {"input_tokens": 1, "output_tokens": 2, "cache_creation_input_tokens": 4},
}


async def test_a_whole_answer_over_the_wire() -> None:
    body = json.dumps(BODY).encode()
    async with target_for(reply(200, body), host=HOST, model="claude-x") as (target, _):
        answer = await ask(target, chat())
    choice = answer.choices[0]
    assert (choice.text, choice.redacted, choice.stopped_by) == ("Ok", ("d",), "END")
    assert [bytes(raw) for raw in choice.citations] == [b'{"type": "char_location"}']
    assert choice.tool_calls == (ToolCall("t1", "add", '{"a": 1}'),)
    assert answer.usage == Usage(5, 2, cache_write_tokens=4)
    assert answer.wire is not None
    assert answer.wire.data == body


@pytest.mark.parametrize("body", [b"{}", b"[]", b"{", b'{"content":5}', b"\xff"])
def test_a_body_that_is_no_message(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(body)


@pytest.mark.parametrize(
    "payload", [b"{}", b"[1]", b"{", b'{"type":5}', b'{"type":"content_block_start","index":-1,'
                b'"content_block":{"type":"text"}}']
)  # fmt: skip
def test_an_event_that_is_none(payload: bytes) -> None:
    reader = AnthropicEvents()
    with pytest.raises(BadResponse):
        reader.feed(payload)
    assert not reader.done


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (429, "rate_limit_error", "slow down", RateLimited),
        (529, "overloaded_error", "Overloaded", UpstreamError),
        (401, "authentication_error", "invalid x-api-key", UpstreamRefused),
        (400, "invalid_request_error", "prompt is too long: 9 tokens > 8 maximum", ContextTooLong),
        (400, "invalid_request_error", "max_tokens: required", BadRequest),
        (404, "not_found_error", "model: claude-x", UpstreamRefused),
    ],
)
async def test_errors(status: int, kind: str, message: str, expected: type[RunnerError]) -> None:
    body = {"type": "error", "error": {"type": kind, "message": message}}
    answer = reply(status, json.dumps(body).encode())
    async with target_for(answer, host=HOST, model="claude-x") as (target, _):
        with pytest.raises(expected, match=message.split(":", maxsplit=1)[0]):
            await ask(target, chat())
