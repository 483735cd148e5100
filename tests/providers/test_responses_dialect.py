"""OpenAI's Responses API as an upstream speaks it: requests out, events and bodies in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw
from openai import AsyncOpenAI

from llm_runner_router.config import Server
from llm_runner_router.deltas import Collector
from llm_runner_router.errors import (
    BadResponse,
    ContextTooLong,
    RunnerError,
    StreamBroken,
    Unsupported,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.responses import ResponsesEvents, parse_body
from llm_runner_router.providers.dialects.responses_request import build_request
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.server import serve
from llm_runner_router.surfaces.responses import decode
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.types import (
    AudioPart,
    Delta,
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    Reasoning,
    RedactedPart,
    RefusalPart,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    Usage,
)

from .asking import ask, target_for
from .upstream import Seen, reply

HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))
MINE = "rs_" + "0" * 32 + "_0"


def sent(request: Request, **quirks: Any) -> tuple[Any, Receipt]:
    receipt = Receipt()
    wire = build_request(request, "gpt-5", Quirks(**quirks), receipt)
    assert (wire.path, wire.dialect) == ("/responses", "openai_responses")
    return json.loads(wire.body), receipt


def fates(receipt: Receipt) -> dict[str, str]:
    return {name: mark.fate for name, mark in receipt.marks.items()}


# ---------------------------------------------------------------- requests


def test_the_least_request() -> None:
    body, receipt = sent(Request("m", HI))
    assert body == {
        "model": "gpt-5",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
        ],
        "store": False,
        "include": ["reasoning.encrypted_content"],
    }
    assert not receipt.marks


def test_a_full_request() -> None:
    body, receipt = sent(
        Request(
            "m",
            HI,
            tools=(ADD, Tool("web", kind="web_search")),
            tool_choice="function:add",
            parallel_tool_calls=False,
            response_format=ResponseFormat("json_schema", Raw(b'{"type":"object"}'), strict=True),
            sampling=Sampling(0.5, 0.9, 4, ("x",), seed=1, logprobs=True, top_logprobs=2, top_k=3),
            reasoning=Reasoning("low"),
            service_tier="flex",
            user="u",
            stream=True,
        )
    )
    assert body["tools"] == [
        {
            "type": "function",
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object"},
            "strict": False,
        }
    ]
    assert body["tool_choice"] == {"type": "function", "name": "add"}
    schema = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    assert body["text"] == {"format": schema}
    assert (body["max_output_tokens"], body["temperature"], body["top_p"]) == (16, 0.5, 0.9)
    assert (body["top_logprobs"], body["parallel_tool_calls"]) == (2, False)
    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert (body["service_tier"], body["user"], body["stream"]) == ("flex", "u", True)
    assert fates(receipt) == {
        "max_tokens": "translated",
        "seed": "dropped",
        "stop": "dropped",
        "tools[1]": "dropped",
        "top_k": "dropped",
    }


def test_a_conversation_with_everything_in_it() -> None:
    body, receipt = sent(
        Request(
            "m",
            (
                Message("system", "Be kind."),
                Message(
                    "user",
                    (
                        TextPart("look", {"type": "ephemeral"}),
                        ImagePart(ImageURL("https://x/y.png", "low")),
                        FilePart(FileData("data:application/pdf;base64,JVBE")),
                        FilePart(FileData(file_url="https://x/y.pdf")),
                        AudioPart(InputAudio("AAAA", "wav")),
                    ),
                ),
                Message(
                    "assistant",
                    (
                        ThinkingPart("mine", "openai:sealed"),
                        ThinkingPart("another's", "sig"),
                        RedactedPart("x"),
                        TextPart("I see."),
                        RefusalPart("But no."),
                        ForeignPart("search"),
                    ),
                    tool_calls=(ToolCall("c1", "add", ""),),
                ),
                Message("tool", (TextPart("3"),), tool_call_id="c1", is_error=True),
            ),
        )
    )
    kinds = [item["type"] for item in body["input"]]
    assert kinds == [
        "message",
        "message",
        "reasoning",
        "message",
        "function_call",
        "function_call_output",
    ]
    user = body["input"][1]["content"]
    assert [part["type"] for part in user] == [
        "input_text",
        "input_image",
        "input_file",
        "input_file",
        "input_audio",
    ]
    assert user[1] == {"type": "input_image", "image_url": "https://x/y.png", "detail": "low"}
    assert user[2]["filename"] == "document"
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": "sealed"}
    assert body["input"][2] == sealed
    said = body["input"][3]["content"]
    assert said == [
        {"type": "output_text", "text": "I see."},
        {"type": "refusal", "refusal": "But no."},
    ]
    assert body["input"][4]["arguments"] == "{}"
    assert body["input"][5]["output"] == [{"type": "input_text", "text": "3"}]
    assert fates(receipt) == {
        "messages[1].content[0].cache_control": "emulated",
        "messages[2].content[1]": "dropped",
        "messages[2].content[2]": "dropped",
        "messages[2].content[5]": "dropped",
        "messages[3].is_error": "dropped",
    }


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request("m", HI, sampling=Sampling(n=2)), "n"),
        (Request("m", prompt="x", suffix="y"), "suffix"),
        (Request("m", (Message("function", "3", name="add"),)), "messages[0]"),
    ],
)
def test_what_cannot_be_said_is_refused(request_: Request, param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        sent(request_)
    assert caught.value.param == param


def test_a_clients_own_words_go_out_as_they_came() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items: list[dict[str, Any]] = [
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "theirs"},
        {"type": "reasoning", "id": MINE, "summary": []},
        {"type": "reasoning", "id": "rs_2", "encrypted_content": "llmrr.signed.x", "summary": []},
        {**call, "id": MINE.replace("rs", "fc"), "llmrr_signature": "s"},
        {"role": "user", "content": "go on", "phase": "x"},
    ]
    asked = {"model": "m", "input": items, "prompt_cache_key": "k", "stream": True, "strict": True}
    body, _ = sent(decode(json.dumps(asked).encode()).request)
    assert body["prompt_cache_key"] == "k"
    assert "strict" not in body
    assert body["input"] == [items[0], call, items[4]]


# ---------------------------------------------------------------- answers

CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": ""}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "sealed"}
USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 8,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 17,
}
STREAM: list[dict[str, Any]] = [
    {"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}},
    {"type": "response.in_progress", "response": {"id": "resp_1"}},
    {"type": "response.output_item.added", "output_index": 0, "item": THOUGHT},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "Hm."},
    {"type": "response.reasoning_summary_part.added", "output_index": 0, "summary_index": 1},
    {"type": "response.reasoning_summary_text.delta", "output_index": 0, "delta": "Yes."},
    {"type": "response.output_item.done", "output_index": 0, "item": THOUGHT},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "Grüß "},
    {"type": "response.output_text.delta", "output_index": 1, "delta": "Gott."},
    {"type": "response.output_item.added", "output_index": 2, "item": CALL},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": '{"a":'},
    {"type": "response.function_call_arguments.delta", "output_index": 2, "delta": "1}"},
    {"type": "response.output_item.done", "output_index": 2, "item": {**CALL, "arguments": "x"}},
    {"type": "response.output_item.added", "output_index": 3, "item": {**CALL, "call_id": "c2"}},
    {"type": "response.output_item.done", "output_index": 3, "item": {**CALL, "arguments": "{}"}},
    {"type": "response.a_new_kind", "what": 1},
    {"type": "response.completed", "response": {"status": "completed", "usage": USAGE}},
]


def encoded(events: Sequence[dict[str, Any]]) -> bytes:
    found = [json.dumps(event, ensure_ascii=False).encode() for event in events]
    kinds = [event["type"].encode() for event in events]
    pairs = zip(kinds, found, strict=True)
    return b"".join(b"event: " + k + b"\ndata: " + d + b"\n\n" for k, d in pairs)


def reader() -> StreamReader:
    return StreamReader(ResponsesEvents(), SSEParser(), 1, lambda data: data)


def read(*chunks: bytes) -> list[Delta]:
    found = reader()
    deltas = [delta for chunk in chunks for delta in found.feed(chunk)]
    deltas += found.end()
    if found.failure is not None:
        raise found.failure
    return deltas


def test_a_stream_says_all_of_it() -> None:
    collector = Collector()
    for delta in read(encoded(STREAM)):
        collector.add(delta)
    answer = collector.answer()
    choice = answer.choices[0]
    assert (choice.text, choice.finish) == ("Grüß Gott.", "tool_calls")
    assert (choice.reasoning, choice.signature) == ("Hm.\n\nYes.", "openai:sealed")
    assert [(c.id, c.arguments) for c in choice.tool_calls] == [("c1", '{"a":1}'), ("c2", "{}")]
    assert answer.usage == Usage(9, 8, 4, 3)


def test_a_stream_cut_anywhere_is_no_success() -> None:
    data = encoded(STREAM)
    for at in range(len(data) - 2):  # the last line is whole without the blank one after it
        with pytest.raises(StreamBroken):
            read(data[:at])
    assert read(data[: len(data) // 2], data[len(data) // 2 :])[-1].finish == "tool_calls"


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"type": "error", "code": "server_error", "message": "no"}, RunnerError),
        (
            {
                "type": "response.failed",
                "response": {"error": {"code": "context_length_exceeded", "message": "long"}},
            },
            ContextTooLong,
        ),
        ({"type": "response.failed", "response": {}}, RunnerError),
        ({"type": "error", "error": {"message": "no", "type": "server_error"}}, RunnerError),
    ],
)
def test_a_failure_is_one(event: dict[str, Any], kind: type[RunnerError]) -> None:
    with pytest.raises(kind):
        read(encoded([STREAM[0], event]))


@pytest.mark.parametrize(
    ("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "content_filter")]
)
def test_an_answer_that_is_cut_short_says_why(reason: str, finish: str) -> None:
    response = {"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []}
    end = {"type": "response.incomplete", "response": response}
    assert read(encoded([STREAM[0], end]))[-1].finish == finish
    assert parse_body(json.dumps(response).encode())[-1].finish == finish


def test_a_whole_answer() -> None:
    said = {"type": "output_text", "text": "Hello.", "annotations": [{"type": "url_citation"}]}
    body = {
        "status": "completed",
        "output": [
            {**THOUGHT, "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "message", "content": [said, {"type": "refusal", "refusal": "No."}]},
            {**CALL, "arguments": "{}"},
            {"type": "web_search_call", "id": "ws_1"},
        ],
        "usage": USAGE,
    }
    collector = Collector()
    for delta in parse_body(json.dumps(body).encode()):
        collector.add(delta)
    choice = collector.answer().choices[0]
    assert (choice.text, choice.refusal, choice.reasoning) == ("Hello.", "No.", "Hm.")
    assert (choice.signature, choice.finish) == ("openai:sealed", "tool_calls")
    assert len(choice.citations) == 1
    assert collector.answer().usage == Usage(9, 8, 4, 3)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"output":[],"status":"queued"}', b'{"output":3}']
)
def test_what_is_no_answer_is_none(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(body)
    with pytest.raises(RunnerError, match="invalid"):
        parse_body(b'{"error":{"message":"invalid","type":"invalid_request_error"}}')


async def test_through_the_wire() -> None:
    async def answer(seen: Seen) -> None:
        assert seen.target == "/v1/responses"
        assert seen.json["store"] is False
        await seen.head()
        await seen.chunk(encoded(STREAM))
        await seen.end()

    host = find("openai-responses")
    assert host is not None
    async with target_for(answer, host=host) as (target, _):
        found = await ask(target)
    assert found.choices[0].finish == "tool_calls"
    assert found.text == "Grüß Gott."


async def test_bytes_pass_when_both_sides_speak_it(tmp_path: Path) -> None:
    said = {"type": "output_text", "text": "Hello.", "annotations": [], "odd": 1}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [said]}
    whole = {"id": "resp_theirs", "object": "response", "status": "completed", "output": [item]}
    bodies: list[Any] = []

    async def upstream(seen: Seen) -> None:
        bodies.append(seen.json)
        if seen.json.get("stream"):
            await seen.head()
            end = {"type": "response.completed", "sequence_number": 1, "response": whole}
            delta = {"type": "response.output_text.delta", "delta": "Hello.", "odd": 2}
            for event in (delta, end):
                await seen.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            await seen.end()
        else:
            await reply(200, json.dumps(whole).encode())(seen)

    host = find("openai-responses")
    assert host is not None
    async with target_for(upstream, host=host) as (target, _):
        served = FakeGateway({"m": target}, responses=tmp_path / "r.sqlite")
        async with (
            serve(served, Server(port=0, drain=0)) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as api,
        ):
            raw = await api.responses.with_raw_response.create(model="m", input="hello")
            assert json.loads(raw.content) == whole
            assert raw.headers["x-llmrr-fidelity"] == "honoured"
            stream = await api.responses.create(
                model="m", input="and?", previous_response_id="resp_theirs", stream=True
            )
            events = [event async for event in stream]
            again = await api.responses.retrieve("resp_theirs")
        await served.responses.aclose()
    assert [event.type for event in events] == ["response.output_text.delta", "response.completed"]
    assert events[0].model_extra == {"odd": 2}
    assert again.output_text == "Hello."
    asked = bodies[1]
    assert "previous_response_id" not in asked
    assert [one.get("content") for one in asked["input"]] == ["hello", [said], "and?"]
