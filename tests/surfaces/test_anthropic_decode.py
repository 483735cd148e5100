"""Anthropic's messages as requests: what they become, and what is wrong with bad ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces.anthropic import decode, decode_count
from llm_runner_router.types import (
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    Message,
    Reasoning,
    RedactedPart,
    Request,
    TextPart,
    ThinkingPart,
    ToolCall,
)

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
MARK = {"type": "ephemeral", "ttl": "1h"}


def read(**fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    return decode(json.dumps(body).encode())


def said(*content: dict[str, Any], role: str = "user") -> tuple[Message, ...]:
    return read(messages=[{"role": role, "content": list(content)}]).messages


def test_the_least_request() -> None:
    request = read()
    assert request.messages == (Message("user", "hi"),)
    assert (request.sampling.max_tokens, request.stream, request.wire is not None) == (
        9,
        False,
        True,
    )


def test_a_full_request() -> None:
    request = read(
        system=[{"type": "text", "text": "Be brief.", "cache_control": MARK}],
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        stop_sequences=["x"],
        tools=[{**TOOL, "strict": True, "cache_control": MARK}],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        fallbacks=["other"],
        strict=True,
        inference_geo="eu",
    )
    assert request.messages[0] == Message("system", (TextPart("Be brief.", MARK),))
    draw = request.sampling
    assert (draw.temperature, draw.top_p, draw.top_k, draw.stop) == (0.5, 0.9, 4, ("x",))
    tool = request.tools[0]
    assert (tool.name, tool.description, tool.strict) == ("add", "Adds.", True)
    assert tool.cache_control == MARK
    assert bytes(tool.parameters or b"") == b'{"type":"object"}'
    assert (request.tool_choice, request.parallel_tool_calls) == ("function:add", False)
    assert request.reasoning == Reasoning(budget=2048)
    assert request.response_format is not None
    assert request.response_format.type == "json_schema"
    assert (request.user, request.service_tier, request.strict) == ("u", "default", True)
    assert request.fallbacks == ("other",)
    assert set(request.extra) == {"inference_geo"}
    assert request.wire is not None
    assert request.wire.dialect == "anthropic_messages"
    assert not {"fallbacks", "strict"} & request.wire.fields.keys()


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ({"thinking": {"type": "disabled"}}, Reasoning("none")),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, Reasoning(shown=False)),
        ({"output_config": {"effort": "high"}}, Reasoning("high")),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, Reasoning("low")),
        ({}, None),
    ],
)
def test_how_much_to_think(told: dict[str, Any], meant: Reasoning | None) -> None:
    assert read(**told).reasoning == meant


def test_every_kind_of_block() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    (message,) = said(
        {"type": "text", "text": ""},
        {"type": "image", "source": source},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "document", "source": pdf, "title": "t", "citations": {"enabled": True}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ä b"}},
        {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "f1"}},
        {"type": "document", "source": {"type": "content", "content": []}},
        {"type": "search_result", "source": {"type": "x"}, "title": "t"},
    )
    assert message.content == (
        TextPart(""),
        ImagePart(ImageURL("data:image/png;base64,AAAA")),
        ImagePart(ImageURL("https://x/y.png")),
        FilePart(FileData("data:application/pdf;base64,JVBE", filename="t"), citations=True),
        FilePart(FileData("data:text/plain;charset=utf-8,%C3%A4%20b")),
        FilePart(FileData(file_url="https://x/y.pdf")),
        FilePart(FileData(file_id="f1")),
        ForeignPart("document of content"),
        ForeignPart("search_result"),
    )


def test_thoughts_and_calls_of_the_assistant() -> None:
    (message,) = said(
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 1}, "cache_control": MARK},
        {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
        role="assistant",
    )
    assert message.content == (ThinkingPart("hm", "s"), RedactedPart("d"), TextPart("Let me see."))
    assert message.tool_calls == (
        ToolCall("t1", "add", '{"a":1}', MARK),
        ToolCall("t2", "add", "{}"),
    )


def test_results_of_tools_are_messages_of_their_own() -> None:
    messages = said(
        {"type": "tool_result", "tool_use_id": "t1", "content": "3"},
        {
            "type": "tool_result",
            "tool_use_id": "t2",
            "is_error": True,
            "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "way"}],
        },
        {"type": "text", "text": "and now?"},
        {"type": "tool_result", "tool_use_id": "t3"},
    )
    assert messages == (
        Message("tool", "3", tool_call_id="t1"),
        Message("tool", (TextPart("no"), TextPart("way")), tool_call_id="t2", is_error=True),
        Message("user", "and now?"),
        Message("tool", "", tool_call_id="t3"),
    )


def test_a_tool_of_the_providers_keeps_its_kind() -> None:
    request = read(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}])
    assert (request.tools[0].name, request.tools[0].kind) == ("web_search", "web_search_20250305")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].source",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param, str(caught.value)


def test_counting_needs_no_limit() -> None:
    body = {"model": "m", "messages": HI, "system": "Be brief.", "tools": [TOOL]}
    asked = decode_count(json.dumps(body).encode())
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.tools[0].name == "add"
