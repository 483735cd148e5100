"""What a library user writes becomes a `Request`, or an error that says what is wrong where."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_runner_router.api_request import as_request
from llm_runner_router.errors import BadRequest
from llm_runner_router.types import Message, ToolCall

TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


def test_a_prompt_with_everything() -> None:
    request = as_request(
        "hi",
        "m",
        model="other",
        system="be short",
        temperature=0,
        max_tokens=5,
        stop="x",
        n=2,
        tools=[TOOL, TOOL["function"]],  # type: ignore[list-item]  # a bare function is taken too
        tool_choice="weather",
        response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
        fallbacks=("a", "b"),
        cache=True,
    )
    assert request.model == "other"
    assert request.messages == (Message("system", "be short"), Message("user", "hi"))
    assert (request.sampling.stop, request.sampling.n) == (("x",), 2)
    assert [tool.name for tool in request.tools] == ["weather", "weather"]
    assert request.tool_choice == "function:weather"
    assert request.response_format is not None
    assert msgspec.json.decode(request.response_format.schema or b"") == {"type": "object"}
    assert (request.fallbacks, request.cache) == (("a", "b"), True)


def test_messages_as_clients_dump_them() -> None:
    turn = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    request = as_request([{"role": "user", "content": "hi"}, turn, Message("tool", "1")], "m")
    assert request.messages[1].tool_calls == (ToolCall("c1", "f", "{}"),)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("x", {"temprature": 1}, "unknown option 'temprature'"),
        ("x", {"tools": ["a"]}, "tools[0]"),
        ("x", {"tools": "a"}, "'tools' must be a list"),
        ("x", {"response_format": "json"}, "response_format"),
        ("x", {"response_format": {"type": "json_schema"}}, "schema is missing"),
        ("x", {"stop": 5}, "stop"),
        ("x", {"fallbacks": "zoo:tiny-text"}, "fallbacks"),
        ("x", {"n": 0}, "n: Expected `int` >= 1"),
        ("x", {"n": 17}, "n: "),
        ("x", {"max_tokens": -1}, "max_tokens"),
        ("x", {"temperature": float("nan")}, "temperature"),
        ("x", {"tool_choice": "nobody"}, "names no tool"),
        ([], {}, "there are no messages"),
        (["hi"], {}, "messages[0]"),
        ([{"role": "boss", "content": "hi"}], {}, "messages[0].role"),
        ([{"role": "user", "content": "hi", "foo": 1}], {}, "foo"),
        ([{"role": "assistant", "tool_calls": [{}]}], {}, "messages[0].tool_calls[0]"),
        ({"role": "user"}, {}, "'messages' must be a list"),
    ],
)
def test_what_is_wrong_is_said(prompt: Any, options: Any, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        as_request(prompt, "m", **options)
    assert words in caught.value.message
