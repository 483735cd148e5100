"""What a chat request may look like, and what is said about one that may not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces.openai_chat import DIALECT, decode
from llm_runner_router.types import (
    ImagePart,
    Message,
    Reasoning,
    Request,
    TextPart,
    ToolCall,
)

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(**fields: Any) -> Request:
    return decode(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def refused(**fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value


def test_a_minimal_request() -> None:
    request = read()
    assert (request.model, request.messages) == ("m", (Message("user", "hi"),))
    assert not request.stream
    assert request.sampling.n == 1
    assert request.wire is not None
    assert request.wire.dialect == DIALECT


def test_a_full_request() -> None:
    request = read(
        messages=[
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "name": "ann",
                "content": [
                    {"type": "text", "text": "look: "},
                    {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
                    {"type": "text", "text": "what?"},
                ],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"a": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        stop=["a", "b"],
        seed=-1,
        n=2,
        logprobs=True,
        top_logprobs=3,
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        fallbacks=["x", "y"],
        cache=True,
        reasoning_effort="low",
        top_k=40,
        service_tier="flex",
        strict=True,
        verbosity="low",
    )
    assert request.messages[1].text == "look: what?"
    assert isinstance(request.messages[1].content, tuple)
    assert isinstance(request.messages[1].content[0], TextPart)
    assert isinstance(request.messages[1].content[1], ImagePart)
    assert request.messages[2].tool_calls == (ToolCall("c1", "add", '{"a": 1}'),)
    assert request.messages[3].tool_call_id == "c1"
    assert request.tools[0].name == "add"
    assert bytes(request.tools[0].parameters or b"") == b'{"type":"object"}'
    assert request.tool_choice == "function:add"
    assert request.parallel_tool_calls is False
    assert request.response_format is not None
    assert bytes(request.response_format.schema or b"") == b'{"a":1}'
    assert request.sampling.max_tokens == 7
    assert request.sampling.stop == ("a", "b")
    assert (request.sampling.seed, request.sampling.n) == (-1, 2)
    assert (request.sampling.logprobs, request.sampling.top_logprobs) == (True, 3)
    assert (request.stream, request.include_usage) == (True, True)
    assert request.fallbacks == ("x", "y")
    assert request.cache
    assert request.reasoning == Reasoning("low")
    assert (request.sampling.top_k, request.service_tier, request.strict) == (40, "flex", True)
    assert {name: bytes(raw) for name, raw in request.extra.items()} == {"verbosity": b'"low"'}
    assert request.wire is not None
    assert {"reasoning_effort", "top_k", "service_tier"} <= request.wire.fields.keys()
    assert "strict" not in request.wire.fields


def test_untouched_fields_are_kept_for_upstream_and_ours_are_not() -> None:
    body = (
        b'{"model":"m", "messages":[{"role":"user","content":"hi","x":1.0}], "odd" : 1e2,'
        b' "fallbacks":["z"], "cache":true}'
    )
    wire = decode(body).wire
    assert wire is not None
    assert set(wire.fields) == {"model", "messages", "odd"}
    assert bytes(wire.fields["odd"]) == b"1e2"
    assert bytes(wire.fields["messages"]) == b'[{"role":"user","content":"hi","x":1.0}]'


@pytest.mark.parametrize("null", ["temperature", "stop", "tools", "n", "stream", "user", "seed"])
def test_null_means_absent(null: str) -> None:
    assert read(**{null: None}).sampling == read().sampling


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "empty"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", "int"),
        ({"messages": [USER, {"role": "boss", "content": "x"}]}, "messages[1].role", "boss"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "int"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "messages[0].content[0].type",
            "video",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing",
        ),
        ({"messages": [{"role": "tool", "content": "2"}]}, "messages[0].tool_call_id", "missing"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"type": "magic", "function": {"name": "x"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].type",
            "magic",
        ),
        ({"model": ""}, "model", "empty"),
        ({"model": 3}, "model", "int"),
        ({"n": 0}, "n", "between 1 and 16"),
        ({"n": 17}, "n", "between 1 and 16"),
        ({"n": 1.5}, "n", "float"),
        ({"temperature": 2.1}, "temperature", "between 0 and 2"),
        ({"temperature": "hot"}, "temperature", "str"),
        ({"top_p": -0.1}, "top_p", "between 0 and 1"),
        ({"presence_penalty": 3}, "presence_penalty", "between -2 and 2"),
        ({"frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
        ({"seed": 2**70}, "seed", "between"),
        ({"stop": [""]}, "stop[0]", "empty"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop[0]", "int"),
        ({"max_tokens": 0}, "max_tokens", "must be 1 to"),
        ({"max_completion_tokens": -5}, "max_completion_tokens", "must be 1 to"),
        ({"max_tokens": 2**40}, "max_tokens", "must be 1 to"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "differ"),
        ({"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"tools": [{"type": "web"}]}, "tools[0].type", "web"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1].function", "missing"),
        (
            {"tools": [{"type": "function", "function": {"name": ""}}]},
            "tools[0].function.name",
            "missing",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "array",
        ),
        ({"tool_choice": "maybe"}, "tool_choice", "maybe"),
        ({"tool_choice": "required"}, "tool_choice", "without 'tools'"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name",
            "among the tools: add",
        ),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "function"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "missing",
        ),
        ({"fallbacks": ["a"] * 9}, "fallbacks", "up to 8"),
        ({"stream": "yes"}, "stream", "str"),
    ],
)
def test_a_mistake_is_named_with_its_path(fields: dict[str, Any], param: str, words: str) -> None:
    error = refused(**fields)
    assert error.param == param, error
    assert words in error.message
    assert error.status == 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "too early (byte 0)"),
        (b'{"model":"m",', "too early (byte 13)"),
        (b'{"model":"m","messages":[],"a":tru}', "byte 32"),
        (b'{"model":"m","messages":[]} x', "byte 29"),
        (b'{"model":"\xff","messages":[]}', "UTF-8"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b'{"model":"m","messages":[],"temperature":NaN}', "byte"),
    ],
)
def test_what_is_not_json_says_where(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body)
    assert words in caught.value.message
    assert caught.value.code == "invalid_json"


@pytest.mark.parametrize("body", [b"[1]", b"null", b'"x"', b"7"])
def test_json_that_is_no_object(body: bytes) -> None:
    with pytest.raises(BadRequest, match="expected `object`"):
        decode(body)


@given(
    roles=st.lists(st.sampled_from(["system", "developer", "user", "assistant"]), min_size=1),
    text=st.text(),
    temperature=st.none() | st.floats(0, 2),
    stop=st.lists(st.text(min_size=1), max_size=16),
    n=st.integers(1, 16),
)
def test_whatever_is_valid_comes_through(
    roles: list[str], text: str, temperature: float | None, stop: list[str], n: int
) -> None:
    request = read(
        messages=[{"role": role, "content": text} for role in roles],
        temperature=temperature,
        stop=stop,
        n=n,
    )
    assert [m.role for m in request.messages] == roles
    assert all(m.content == text for m in request.messages)
    assert request.sampling.temperature == temperature
    assert request.sampling.stop == tuple(stop)
    assert request.sampling.n == n


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["model", "messages", "role", "content", "type", "tools", "n", "stop"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode())
)
def test_nothing_but_a_bad_request_comes_of_garbage(body: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(decode(body), Request)
