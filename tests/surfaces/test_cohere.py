"""Cohere's v2 chat, vectors and rankings: what is read, what is refused, what is written."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.errors import (
    BadRequest,
    RunnerError,
    StreamBroken,
    Unsupported,
    UpstreamTimeout,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.cohere import CohereEvents
from llm_runner_router.providers.dialects.cohere_request import build_request
from llm_runner_router.providers.dialects.openai import OpenAIEvents
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.surfaces import cohere, cohere_others, cohere_write
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import a_request, check_surface
from llm_runner_router.types import (
    Capabilities,
    Delta,
    Message,
    ModelCard,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Wire,
)

HI = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [HI], **fields}).encode()


def reply() -> Reply:
    return Reply("r-1", 1700000000)


async def test_it_is_a_surface() -> None:
    await check_surface(cohere, [body(), body(tools=[TOOL]), body(stream=True)], reply)


def test_what_cohere_can_say_survives_reading_and_writing() -> None:
    """Decoded and written anew, without the client's own bytes."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    picture = {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}}
    said = {
        "model": "m",
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
            {
                "role": "assistant",
                "tool_plan": "I add.",
                "content": [{"type": "thinking", "thinking": "hm"}],
                "tool_calls": [call],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "and?"},
        ],
        "tools": [TOOL],
        "strict_tools": True,
        "tool_choice": "REQUIRED",
        "max_tokens": 9,
        "temperature": 0.5,
        "p": 0.9,
        "k": 4,
        "seed": 3,
        "stop_sequences": ["x"],
        "frequency_penalty": 0.25,
        "presence_penalty": 0.5,
        "logprobs": True,
        "thinking": {"type": "enabled", "token_budget": 64},
        "safety_mode": "STRICT",
        "citation_options": {"mode": "FAST"},
        "priority": 2,
    }
    request = cohere.decode(json.dumps(said).encode())
    assert request.wire is not None
    receipt = Receipt()
    written = build_request(msgspec.structs.replace(request, wire=None), "m", Quirks(), receipt)
    assert json.loads(written.body) == said
    assert receipt.marks == {}
    form = {"type": "json_object", "json_schema": {"type": "object"}}
    request = cohere.decode(body(response_format=form, thinking={"type": "disabled"}))
    written = build_request(msgspec.structs.replace(request, wire=None), "m", Quirks(), receipt)
    assert json.loads(written.body) == json.loads(
        body(response_format=form, thinking={"type": "disabled"}, stream=False)
    )


def test_a_plan_and_a_text_of_one_turn() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add"}}
    turn = {"role": "assistant", "tool_plan": "I add. ", "content": "So.", "tool_calls": [call]}
    request = cohere.decode(body(messages=[HI, turn]))
    calls = (ToolCall("c1", "add", "{}"),)
    assert request.messages[1] == Message("assistant", "I add. So.", tool_calls=calls)


def test_documents_without_a_turn_of_the_users() -> None:
    system = {"role": "system", "content": "Be kind."}
    request = cohere.decode(body(messages=[system], documents=[{"data": "a text"}]))
    assert request.messages[1] == Message("user", (TextPart("Document 0:\na text\n\n"),))


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, set()),
        ({"citation_options": {"mode": "OFF"}}, set()),
        ({"citation_options": {"mode": "FAST"}}, {"citation_options"}),
        ({"citation_options": None}, set()),
        ({"documents": ["a"]}, {"citation_options"}),
        ({"documents": ["a"], "citation_options": {"mode": "OFF"}}, set()),
        ({"safety_mode": "CONTEXTUAL", "priority": 0}, set()),
        ({"safety_mode": "OFF", "priority": 1}, {"safety_mode", "priority"}),
        ({"tomorrow": 1, "strict": False, "cache": True, "fallbacks": ["b"]}, {"tomorrow"}),
    ],
)
def test_what_others_cannot_do(fields: dict[str, Any], extra: set[str]) -> None:
    request = cohere.decode(body(**fields))
    assert set(request.extra) == extra
    assert request.wire is not None
    # The gateway's own fields go nowhere.
    assert set(request.wire.fields) & {"strict", "cache", "fallbacks"} == set()


def message(role: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [HI, {"role": role, **fields}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"model": ""}, "model"),
        (message("robot", content="a"), "messages[1].role"),
        (message("user"), "messages[1].content"),
        (message("user", content=[]), "messages[1].content"),
        (message("user", content=[{"type": "text"}]), "messages[1].content[0].text"),
        (message("user", content=[{"type": "image_url"}]), "messages[1].content[0].image_url"),
        (message("tool", content="a"), "messages[1].tool_call_id"),
        (message("tool", tool_call_id="c"), "messages[1].content"),
        (
            message("tool", tool_call_id="c", content=[{"type": "document"}]),
            "messages[1].content[0].document",
        ),
        (message("assistant"), "messages[1].content"),
        (message("assistant", tool_calls=[{"id": "c"}]), "messages[1].tool_calls[0].function"),
        (
            message("assistant", tool_calls=[{"id": "c", "function": {}}]),
            "messages[1].tool_calls[0].function.name",
        ),
        ({"tools": [{"type": "code"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tool_choice": "REQUIRED"}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "token_budget": 0}}, "thinking.token_budget"),
        ({"temperature": -1}, "temperature"),
        ({"p": 2}, "p"),
        ({"k": 501}, "k"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"fallbacks": [""]}, "fallbacks"),
        ({"documents": [{"id": "a"}]}, "documents[0].data"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        cohere.decode(body(**fields))
    assert caught.value.param == param


# ---------------------------------------------------------------- vectors and rankings


def embed(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input_type": "search_query", **fields}).encode()


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({}, BadRequest, "texts"),
        ({"texts": []}, BadRequest, "texts"),
        ({"texts": ["a", ""]}, BadRequest, "texts[1]"),
        ({"texts": ["a"] * 2049}, BadRequest, "texts"),
        ({"texts": ["a"], "inputs": [{"content": []}]}, BadRequest, "inputs"),
        ({"inputs": [{"content": []}]}, BadRequest, "inputs[0]"),
        (
            {"inputs": [{"content": [{"type": "image_url"}]}]},
            Unsupported,
            "inputs[0].content[0]",
        ),
        ({"texts": ["a"], "images": ["x"]}, Unsupported, "images"),
        ({"texts": ["a"], "input_type": "no"}, BadRequest, "input_type"),
        ({"texts": ["a"], "embedding_types": ["float", "int8"]}, Unsupported, "embedding_types[1]"),
        ({"texts": ["a"], "output_dimension": 0}, BadRequest, "output_dimension"),
    ],
)
def test_mistakes_about_vectors(fields: dict[str, Any], kind: type[BadRequest], param: str) -> None:
    with pytest.raises(kind) as caught:
        cohere_others.decode_embed(embed(**fields))
    assert caught.value.param == param


def test_what_nobody_here_does_about_vectors_and_rankings() -> None:
    asked = cohere_others.decode_embed(
        embed(texts=["a"], truncate="START", max_tokens=3, priority=1)
    )
    assert set(asked.lost) == {"truncate", "max_tokens", "priority"}
    assert cohere_others.decode_embed(embed(texts=["a"], truncate="NONE", priority=0)).lost == {}
    fields = {"model": "m", "query": "q", "documents": ["a"], "max_tokens_per_doc": 9}
    given = json.dumps({**fields, "priority": 3, "relevant_spans": {"mode": "disabled"}})
    assert set(cohere_others.decode_rerank(given.encode()).lost) == {
        "max_tokens_per_doc",
        "priority",
    }
    with pytest.raises(BadRequest) as caught:
        cohere_others.decode_rerank(b'{"model":"m","query":"","documents":["a"]}')
    assert caught.value.param == "query"


# ---------------------------------------------------------------- answers


async def stream(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


async def written(deltas: Sequence[Delta]) -> list[dict[str, Any]]:
    request = msgspec.structs.replace(a_request(), stream=True)
    data = b"".join([frame async for frame in cohere.encode(stream(deltas), request, reply())])
    found = []
    for part in data.decode().split("\n\n")[:-1]:
        name, _, payload = part.partition("\n")
        found.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def outline(events: list[dict[str, Any]]) -> list[tuple[str, int | None, str]]:
    """Kind, index and arguments of the events between the first and the last."""
    found = []
    for one in events[1:-1]:
        calls = one.get("delta", {}).get("message", {}).get("tool_calls", {})
        found.append((one["type"], one.get("index"), calls.get("function", {}).get("arguments")))
    return [(kind, index, arguments or "") for kind, index, arguments in found]


async def test_calls_that_their_upstream_writes_in_turns() -> None:
    found = await written(
        [
            Delta(text="So."),
            Delta(tool_calls=(ToolCallDelta(0, "a", "f"), ToolCallDelta(1, "b", "g"))),
            Delta(tool_calls=(ToolCallDelta(0, arguments="{"), ToolCallDelta(1, arguments="[]"))),
            Delta(text="Well."),
            Delta(tool_calls=(ToolCallDelta(0, arguments="}"),)),
            Delta(finish="tool_calls"),
        ]
    )
    assert outline(found) == [
        ("content-start", 0, ""),
        ("content-delta", 0, ""),
        ("content-end", 0, ""),
        ("tool-call-start", 0, ""),
        ("tool-call-delta", 0, "{"),
        ("content-start", 1, ""),
        ("content-delta", 1, ""),
        ("tool-call-delta", 0, "}"),
        ("content-end", 1, ""),
        ("tool-call-end", 0, ""),
        ("tool-call-start", 1, ""),
        ("tool-call-delta", 1, "[]"),
        ("tool-call-end", 1, ""),
    ]


async def test_calls_one_after_the_other_are_not_held_back() -> None:
    found = await written(
        [
            Delta(tool_calls=(ToolCallDelta(0, "a", "f", "{}"),)),
            Delta(tool_calls=(ToolCallDelta(1, "b", "g", "{}"),)),
            Delta(text="So."),
            Delta(finish="tool_calls"),
        ]
    )
    kinds = [kind for kind, _, _ in outline(found)]
    called = ["tool-call-start", "tool-call-delta", "tool-call-end"]
    assert kinds == [*called, *called, "content-start", "content-delta", "content-end"]


async def test_a_stream_without_a_finish_does_not_end() -> None:
    data = b'{"type":"content-delta"}'
    for delta in (Delta(text="a"), Delta(text="a", wire=Wire("cohere_chat", "event", data))):
        with pytest.raises(StreamBroken):
            await written([delta])


OPENAI = b"".join(
    b"data: %b\n\n" % data
    for data in (
        b'{"choices":[{"index":0,"delta":{"role":"assistant","content":"It is \xe6\x97\xa5"}}]}',
        b'{"choices":[{"index":0,"delta":{"content":" 3."},"finish_reason":"stop"}]}',
        b"[DONE]",
    )
)
COHERE = b"".join(
    b"event: %b\ndata: %b\n\n" % (data[9:].partition(b'"')[0], data)
    for data in (
        b'{"type":"message-start","id":"m1","delta":{"message":{"role":"assistant"}}}',
        b'{"type":"content-start","index":0,"delta":{"message":{"content":{"type":"text"}}}}',
        b'{"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"It is 3."}}}}',
        b'{"type":"content-end","index":0}',
        b'{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"tokens":{}}}}',
    )
)


@pytest.mark.parametrize(("events", "data"), [(OpenAIEvents, OPENAI), (CohereEvents, COHERE)])
async def test_an_upstream_cut_at_every_byte_is_never_told_as_whole(
    events: Any, data: bytes
) -> None:
    request = msgspec.structs.replace(a_request(), stream=True)
    whole = 0
    for cut in range(len(data) + 1):
        dialect = ("openai_chat",) if events is OpenAIEvents else ()
        reader = StreamReader(events(*dialect), SSEParser(), 1, lambda data: data)
        deltas = [*reader.feed(data[:cut]), *reader.end()]

        async def answer(
            deltas: list[Delta] = deltas, failure: RunnerError | None = reader.failure
        ) -> AsyncIterator[Delta]:
            for delta in deltas:
                yield delta
            if failure is not None:
                raise failure

        sent = []
        broken = False
        try:
            async for frame in cohere.encode(answer(), request, reply()):
                sent.append(frame)
        except StreamBroken:
            broken = True
        assert broken == (reader.failure is not None)
        assert broken == (b"message-end" not in b"".join(sent))
        whole += not broken
    # The line feeds after the last event may be missing, and OpenAI's `[DONE]`.
    assert whole == (3 if events is CohereEvents else len(b"data: [DONE]\n\n") + 3)


async def test_a_relayed_event_of_several_lines() -> None:
    data = b'{"type":\n"message-end"}'
    request = msgspec.structs.replace(a_request(), stream=True)
    delta = Delta(finish="stop", wire=Wire("cohere_chat", "event", data))
    more = Delta(text="a")  # belongs to the event before it
    frames = [one async for one in cohere.encode(stream([delta, more]), request, reply())]
    assert b"".join(frames) == b'event: message-end\ndata: {"type":\ndata: "message-end"}\n\n'


def test_models_and_what_they_can() -> None:
    both = ModelCard("a", True, context=512, capabilities=Capabilities(tools=True, embeddings=True))
    remote = ModelCard("b", capabilities=Capabilities(embeddings=True))
    found = json.loads(cohere_write.models([both, remote], 0))["models"]
    assert [one["endpoints"] for one in found] == [["chat", "embed"], ["embed"]]
    assert (found[0]["context_length"], found[0]["features"]) == (512, ["tools"])
    assert json.loads(cohere_write.model(ModelCard("c"), 0))["endpoints"] == ["chat"]


def test_errors() -> None:
    late = UpstreamTimeout("late", hint="wait")
    assert json.loads(cohere.error(late)) == {"message": "late (hint: wait)"}
    told = json.loads(cohere.stream_error(late).split(b"data: ")[1])
    assert told["delta"] == {"error": "late (hint: wait)", "finish_reason": "TIMEOUT"}


async def test_probabilities_without_tokens_are_none() -> None:
    nothing = Raw(b'{"content":null}')
    found = await written([Delta(text="a", logprobs=nothing), Delta(finish="stop")])
    assert all("logprobs" not in one for one in found)
