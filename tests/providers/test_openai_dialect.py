"""OpenAI's dialect towards upstreams: requests written, events and bodies read, embeddings."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router.errors import (
    BadResponse,
    ContextTooLong,
    RateLimited,
    RunnerError,
    UpstreamError,
)
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.openai import (
    COMPLETIONS,
    parse_body,
    parse_embed,
    parse_event,
)
from llm_runner_router.providers.dialects.openai_request import build_embed, build_request
from llm_runner_router.surfaces import openai_chat, openai_completions
from llm_runner_router.types import (
    EmbedRequest,
    ImagePart,
    ImageURL,
    Message,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
    Wire,
)

from .upstream import USAGE, chunk, completion


def written(request: Request, quirks: Quirks | None = None) -> Any:
    return json.loads(build_request(request, "up-model", quirks or Quirks()).body)


def chat(**fields: Any) -> Request:
    body = {"model": "asked", "messages": [{"role": "user", "content": "hi"}], **fields}
    return openai_chat.decode(json.dumps(body).encode())


# ---------------------------------------------------------------- requests of the same dialect


def test_a_request_of_this_dialect_goes_out_as_it_came_but_for_the_model() -> None:
    fields = {"temperature": 0.10, "reasoning_effort": "low", "x_unknown": {"a": [1, None]}}
    request = chat(**fields)
    wire = build_request(request, "up-model")
    assert wire.path == "/chat/completions"
    assert json.loads(wire.body) == {
        "model": "up-model",
        "messages": [{"role": "user", "content": "hi"}],
        **fields,
    }


def test_values_keep_their_bytes() -> None:
    fields = {"x": Raw(b'{"b": 1,  "a":1.0}'), "messages": Raw(b"[ ]")}
    request = Request("a", (Message("user", "hi"),), wire=RequestWire("openai_chat", fields))
    sent = build_request(request, "up").body
    assert b'{"b": 1,  "a":1.0}' in sent
    assert b'"messages":[ ]' in sent
    escaped = b'{"model":"a","messages":[{"role":"user","content":"\\u00fc"}]}'
    assert b"\\u00fc" in build_request(openai_chat.decode(escaped), "up").body


def test_our_own_fields_stay_here() -> None:
    raw = {"fallbacks": Raw(b'["x"]'), "cache": Raw(b"true"), "messages": Raw(b"[]")}
    request = Request("a", (Message("user", "hi"),), wire=RequestWire("openai_chat", raw))
    assert written(request) == {"model": "up-model", "messages": []}


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": None}, {"include_usage": True}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": True}),
        (
            {"stream_options": {"include_usage": True, "more": 1}},
            {"include_usage": True, "more": 1},
        ),
    ],
)
def test_a_stream_always_asks_for_usage(given: dict[str, Any], sent: dict[str, Any]) -> None:
    body = written(chat(stream=True, **given))
    assert (body["stream"], body["stream_options"]) == (True, sent)
    without = written(chat(stream=True, **given), Quirks(stream_options=False))
    assert "stream_options" not in without


def test_an_answer_in_one_piece_is_asked_for_without_stream_fields() -> None:
    body = written(chat(stream=False, stream_options={"include_usage": True}))
    assert "stream" not in body
    assert "stream_options" not in body


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("wanted", ["max_tokens", "max_completion_tokens", None])
def test_the_limit_has_the_name_the_host_knows(name: str, wanted: Any) -> None:
    body = written(chat(**{name: 5}), Quirks(max_tokens=wanted))
    assert {k: v for k, v in body.items() if k.startswith("max")} == {wanted or name: 5}


def test_fields_a_host_refuses_are_dropped() -> None:
    assert "user" not in written(chat(user="me"), Quirks(drop=("user",)))


def test_completions_of_the_same_dialect() -> None:
    raw = b'{"model":"a","prompt":"Once","logprobs":2,"best_of":2,"stream":true}'
    wire = build_request(openai_completions.decode(raw), "up-model")
    assert wire.path == "/completions"
    assert json.loads(wire.body) == {
        "model": "up-model",
        "prompt": "Once",
        "logprobs": 2,
        "best_of": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# ---------------------------------------------------------------- requests of other dialects

FULL = Request(
    model="asked",
    messages=(
        Message("system", "Be brief."),
        Message("user", (TextPart("What"),), name="ann"),
        Message("user", (TextPart("this"), ImagePart(ImageURL("data:x", "low")))),
        Message("assistant", None, tool_calls=(ToolCall("t1", "add", '{"a":1}'),)),
        Message("tool", "2", tool_call_id="t1"),
    ),
    tools=(Tool("add", "Adds.", Raw(b'{"type":"object"}'), True), Tool("nothing")),
    tool_choice="function:add",
    parallel_tool_calls=False,
    response_format=ResponseFormat("json_schema", Raw(b'{"type":"object"}'), None, True),
    sampling=Sampling(
        temperature=0.0, max_tokens=9, stop=("x",), seed=1, n=2, logprobs=True, top_logprobs=3
    ),
    user="ann",
    extra={"thinking": Raw(b"{}")},
    wire=RequestWire("anthropic", {"thinking": Raw(b"{}")}),
)


def test_a_request_of_another_dialect_is_written_anew() -> None:
    function = {"name": "add", "arguments": '{"a":1}'}
    assert written(FULL) == {
        "model": "up-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What", "name": "ann"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "this"},
                    {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "t1"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "add",
                    "description": "Adds.",
                    "parameters": {"type": "object"},
                    "strict": True,
                },
            },
            {"type": "function", "function": {"name": "nothing"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "temperature": 0.0,
        "max_tokens": 9,
        "stop": ["x"],
        "seed": 1,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "user": "ann",
    }


def test_what_is_written_reads_back_as_it_was() -> None:
    """Our own surface reads what this dialect writes: one request, two directions."""
    again = openai_chat.decode(build_request(FULL, "asked").body)
    for name in ("tools", "tool_choice", "parallel_tool_calls", "sampling", "user"):
        assert getattr(again, name) == getattr(FULL, name), name
    assert [m.text for m in again.messages] == [m.text for m in FULL.messages]
    assert again.messages[3:] == FULL.messages[3:]


def test_extras_go_out_when_there_is_no_other_dialect() -> None:
    request = Request("a", prompt="Once", extra={"min_p": Raw(b"0.1"), "prompt": Raw(b'"no"')})
    assert written(request) == {"model": "up-model", "prompt": "Once", "min_p": 0.1}


def test_a_raw_completion() -> None:
    request = Request(
        "a",
        prompt="Once",
        suffix="end",
        echo=True,
        stream=True,
        sampling=Sampling(logprobs=True, top_logprobs=2, top_p=0.5),
    )
    assert written(request) == {
        "model": "up-model",
        "prompt": "Once",
        "suffix": "end",
        "echo": True,
        "logprobs": 2,
        "top_p": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# ---------------------------------------------------------------- events


def read(value: Any, dialect: str = "openai_chat") -> Any:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    (delta,) = parse_event(payload, dialect)
    assert delta.wire == Wire(dialect, "event", payload)
    return delta


def test_text() -> None:
    delta = read(chunk("hi", index=1, role="assistant"))
    assert (delta.text, delta.index, delta.role, delta.finish) == ("hi", 1, "assistant", None)
    assert read(chunk(None)).text == ""
    assert read(chunk(content=None)).text == ""


@pytest.mark.parametrize(
    ("said", "means"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("function_call", "tool_calls"),
        ("model_length", "length"),
        ("SAFETY", "content_filter"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        (None, None),
        ("", None),
    ],
)
def test_finish_reasons(said: str | None, means: str | None) -> None:
    assert read(chunk("", finish=said)).finish == means


@pytest.mark.parametrize("said", ["error", "abort", "insufficient_system_resource"])
def test_a_choice_that_failed_is_an_error(said: str) -> None:
    with pytest.raises(UpstreamError, match=said):
        read(chunk("", finish=said))


@pytest.mark.parametrize(
    "piece",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"reasoning": "hm", "reasoning_content": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
    ],
)
def test_reasoning(piece: dict[str, Any]) -> None:
    delta = read(chunk(**piece))
    assert (delta.reasoning, delta.text) == ("hm", "")


def test_content_in_parts() -> None:
    assert read(chunk(content=[{"type": "text", "text": "a"}, {"text": "b"}])).text == "ab"


def test_tool_calls() -> None:
    first = {"index": 1, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert read(chunk(tool_calls=[first])).tool_calls == (ToolCallDelta(1, "t1", "f", ""),)
    more = {"index": 1, "function": {"arguments": '{"a"'}}
    assert read(chunk(tool_calls=[more])).tool_calls == (ToolCallDelta(1, None, None, '{"a"'),)
    odd = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"id": "t2"}]
    assert read(chunk(tool_calls=odd)).tool_calls == (
        ToolCallDelta(0, None, "f", '{"a":1}'),
        ToolCallDelta(1, "t2", None, ""),
    )


def test_usage_logprobs_and_timings() -> None:
    usage = read(
        {
            "choices": [],
            "usage": {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2, "x": None},
            },
            "timings": {"predicted_per_second": 12.5},
        }
    )
    assert usage.usage == Usage(9, 5, 4, 2)
    assert bytes(usage.timings) == b'{"predicted_per_second": 12.5}'
    value = chunk("a")
    value["choices"][0]["logprobs"] = {"content": []}
    assert bytes(read(value).logprobs) == b'{"content": []}'
    value["choices"][0]["logprobs"] = None
    assert read(value).logprobs is None


@pytest.mark.parametrize(
    ("usage", "means"),
    [
        (
            {"prompt_tokens": 9, "completion_tokens": 5, "prompt_cache_hit_tokens": 3},
            Usage(9, 5, 3),
        ),
        ({"prompt_tokens": 9, "completion_tokens": None}, Usage(9, 0)),
        (  # xAI counts reasoning beside the completion
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 34,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(9, 25, 0, 20),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 25,
                "total_tokens": 34,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(9, 25, 0, 20),
        ),
    ],
)
def test_usages_of_other_hosts(usage: Any, means: Usage) -> None:
    assert read({"choices": [], "usage": usage}).usage == means
    assert read({"choices": [], "x_groq": {"usage": usage}, "usage": None}).usage == means


def test_several_choices_in_one_event() -> None:
    value = chunk("a")
    value["choices"].append({"index": 1, "delta": {"content": "b"}, "finish_reason": "stop"})
    value["usage"] = USAGE["usage"]
    payload = json.dumps(value).encode()
    first, second = parse_event(payload)
    assert (first.text, first.index, first.usage) == ("a", 0, None)
    assert (second.text, second.index, second.finish, second.usage) == ("b", 1, "stop", Usage(7, 3))
    assert (first.wire, second.wire) == (Wire("openai_chat", "event", payload), None)


def test_completion_events() -> None:
    delta = read({"choices": [{"text": "a", "index": 0, "finish_reason": None}]}, COMPLETIONS)
    assert delta.text == "a"


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"1", b"null", b'"x"', b"{}", b'{"id":1}', b'{"choices":[{"index":"x"}]}'],
)
def test_what_is_not_a_chunk(payload: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_event(payload)


@given(st.binary(max_size=60))
def test_garbage_never_gets_through_as_something_else(payload: bytes) -> None:
    with pytest.raises(RunnerError):
        parse_event(payload)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"error": {"message": "no", "type": "rate_limit_error", "code": None}}, RateLimited),
        ({"error": {"message": "no", "code": 429}}, RateLimited),
        ({"error": {"message": "no", "code": "503"}}, UpstreamError),
        ({"error": {"message": "no", "type": "exceed_context_size_error"}}, ContextTooLong),
        ({"error": "no"}, UpstreamError),
        ({"error": {"message": "no"}, **chunk("", finish="error")}, UpstreamError),
        ({"object": "error", "message": "no", "code": 500}, UpstreamError),
    ],
)
def test_errors_inside_a_stream(value: Any, kind: type[RunnerError]) -> None:
    with pytest.raises(kind, match="no"):
        parse_event(json.dumps(value).encode())


# ---------------------------------------------------------------- bodies


def test_a_whole_answer() -> None:
    body = completion("hi")
    (delta,) = parse_body(body)
    assert (delta.text, delta.finish, delta.usage) == ("hi", "stop", Usage(7, 3))
    assert delta.role == "assistant"
    assert delta.wire == Wire("openai_chat", "body", body)


def test_a_whole_answer_of_several_choices() -> None:
    value = json.loads(completion("a"))
    calls = [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    value["choices"].append({"index": 1, "message": message, "finish_reason": None})
    first, second = parse_body(json.dumps(value).encode())
    assert (first.usage, second.usage) == (None, Usage(7, 3))
    assert second.tool_calls == (ToolCallDelta(0, "t", "f", "{}"),)
    assert second.finish == "tool_calls"
    assert second.wire is None
    assert first.wire is not None


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"choices":[]}', b'{"choices":null}'])
def test_what_is_not_an_answer(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(body)


# ---------------------------------------------------------------- embeddings


def vectors(*found: Any, **more: Any) -> bytes:
    return json.dumps({"data": found, "usage": {"prompt_tokens": 4}, **more}).encode()


def test_embeddings_are_asked_for() -> None:
    wire = build_embed(EmbedRequest("a", ("x", (1, 2)), dimensions=8, user="u"), "up")
    assert wire.path == "/embeddings"
    assert json.loads(wire.body) == {
        "model": "up",
        "input": ["x", [1, 2]],
        "dimensions": 8,
        "user": "u",
    }


def test_embeddings_never_cost_less_than_nothing() -> None:
    body = b'{"data": [{"embedding": [1]}], "usage": {"prompt_tokens": -5, "total_tokens": -5}}'
    assert parse_embed(body, 1).usage.prompt_tokens == 0


def test_embeddings_in_either_encoding_and_any_order() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2.0)).decode()
    body = vectors({"index": 1, "embedding": [1, 0.25]}, {"index": 0, "embedding": packed})
    found = parse_embed(body, 2)
    assert found.vectors == ((0.5, -2.0), (1.0, 0.25))
    assert found.usage == Usage(4)


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"{}",
        vectors({"embedding": [1]}),
        vectors({"embedding": [1]}, {"embedding": [1, 2]}),
        vectors({"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}),
        vectors({"index": 0, "embedding": [1]}, {"index": 5, "embedding": [1]}),
        vectors({"embedding": "!!"}, {"embedding": "!!"}),
        vectors({"embedding": "AAA="}, {"embedding": "AAA="}),
    ],
)
def test_what_are_not_embeddings(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_embed(body, 2)
