"""Requests in Cohere's JSON, read by a strict server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from llm_runner_router.errors import (
    BadRequest,
    RunnerError,
    Unsupported,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.cohere_request import build_request
from llm_runner_router.types import (
    AudioPart,
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
    RequestWire,
    ResponseFormat,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)

from .cohere_upstream import (
    checked,
)

HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))
SUB = Tool("sub")
SCHEMA = Raw(b'{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}')


def sent(request: Request, **quirks: Any) -> tuple[Any, dict[str, str]]:
    """What goes out, read by a strict server, and what became of the parameters."""
    receipt = Receipt()
    wire = build_request(request, "command-a", Quirks(**quirks), receipt)
    assert (wire.path, wire.dialect) == ("/chat", "cohere_chat")
    checked(wire.body)
    return json.loads(wire.body), {name: mark.fate for name, mark in receipt.marks.items()}


def test_the_least_request() -> None:
    body, fates = sent(Request("m", HI))
    assert body == {
        "model": "command-a",
        "stream": False,
        "messages": [{"role": "user", "content": "hi"}],
    }
    assert not fates


def test_a_full_request() -> None:
    body, fates = sent(
        Request(
            "m",
            HI,
            tools=(ADD, SUB, Tool("web", kind="web_search")),
            tool_choice="required",
            parallel_tool_calls=False,
            sampling=Sampling(
                0.5, 0.9, 4, ("x",), 7, 0.25, 0.5, logprobs=True, top_logprobs=2, top_k=3
            ),
            reasoning=Reasoning(budget=100, shown=True),
            service_tier="flex",
            user="u",
            stream=True,
        )
    )
    assert body["tools"] == [
        {
            "type": "function",
            "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}},
        },
        {
            "type": "function",
            "function": {"name": "sub", "parameters": {"type": "object", "properties": {}}},
        },
    ]
    del body["tools"], body["messages"]
    assert body == {
        "model": "command-a",
        "stream": True,
        "tool_choice": "REQUIRED",
        "temperature": 0.5,
        "p": 0.9,
        "k": 3,
        "max_tokens": 4,
        "stop_sequences": ["x"],
        "seed": 7,
        "presence_penalty": 0.25,
        "frequency_penalty": 0.5,
        "logprobs": True,
        "thinking": {"type": "enabled", "token_budget": 100},
    }
    assert fates == dict.fromkeys(
        ("parallel_tool_calls", "service_tier", "tools[2]", "top_logprobs", "user"), "dropped"
    )


def test_what_has_a_limit_there_is_brought_within() -> None:
    body, fates = sent(
        Request(
            "m",
            HI,
            sampling=Sampling(
                2.0, 1.0, None, tuple("abcdefg"), -1, -2.0, 2.0, top_k=1000, logprobs=True
            ),
        )
    )
    assert (body["temperature"], body["p"], body["k"]) == (2.0, 0.99, 500)
    assert body["frequency_penalty"] == 1
    assert "presence_penalty" not in body
    assert body["stop_sequences"] == ["a", "b", "c", "d", "e"]
    assert body["seed"] == 2**63 - 1
    moved = ("frequency_penalty", "presence_penalty", "seed", "top_k", "top_p")
    assert fates == {**dict.fromkeys(moved, "translated"), "stop": "dropped"}
    body, fates = sent(
        Request("m", HI, sampling=Sampling(presence_penalty=0.0, frequency_penalty=0.0))
    )
    assert not {"presence_penalty", "frequency_penalty"} & set(body)
    assert not fates


def test_a_conversation_with_everything_in_it() -> None:
    picture = ImagePart(ImageURL("https://x/y.png", "low"))
    body, fates = sent(
        Request(
            "m",
            (
                Message("system", "Be kind."),
                Message("developer", (TextPart("Be brief.", {"type": "ephemeral"}),)),
                Message("user", (TextPart("look"), picture, ForeignPart("search")), name="Ann"),
                Message(
                    "assistant",
                    (
                        ThinkingPart("unsigned"),
                        ThinkingPart("theirs", "google:abc"),
                        RedactedPart("xyz"),
                        TextPart("I add."),
                    ),
                    tool_calls=(ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "sub", "")),
                ),
                Message("tool", "3", tool_call_id="c1", is_error=True),
                Message("tool", (TextPart("4"), picture), tool_call_id="c2"),
                Message("assistant", (ThinkingPart("so", ""), RefusalPart("No."))),
                Message("system", "Now be loud."),
                Message("user", "and?"),
                Message("assistant", "Well"),
                Message("assistant", (RedactedPart("gone"),)),
            ),
        )
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assert body["messages"] == [
        {"role": "system", "content": "Be kind.\n\nBe brief.\n\nNow be loud."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
            ],
        },
        {
            "role": "assistant",
            "tool_plan": "I add.",
            "content": [{"type": "thinking", "thinking": "unsigned"}],
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "tool", "tool_call_id": "c2", "content": "4"},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "No."}],
        },
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "Well"},
    ]
    assert fates == {
        "messages[1]": "translated",
        "messages[1].content[0].cache_control": "emulated",
        "messages[2].name": "dropped",
        "messages[2].content[2]": "dropped",
        "messages[3].content[1]": "dropped",
        "messages[3].content[2]": "dropped",
        "messages[4].is_error": "dropped",
        "messages[5].content[1]": "dropped",
        "messages[6].content[1]": "translated",
        "messages[7]": "translated",
        "messages[10].content[0]": "dropped",
    }


def test_the_system_alone_is_asked_by_the_user() -> None:
    body, fates = sent(Request("m", (Message("system", "Say hi."),)))
    assert body["messages"] == [{"role": "user", "content": "Say hi."}]
    assert fates == {"messages": "emulated"}
    body, fates = sent(Request("m", prompt="Once"))
    assert body["messages"] == [{"role": "user", "content": "Once"}]
    assert fates == {"prompt": "emulated"}


def test_documents_are_texts() -> None:
    text = FileData("data:text/plain;base64,aGVsbG8=", filename="a.txt")
    body, fates = sent(
        Request(
            "m", (Message("user", (FilePart(text), FilePart(text, citations=True), TextPart("?"))),)
        )
    )
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "hello"},
        {"type": "text", "text": "?"},
    ]
    assert body["documents"] == [{"id": "0", "data": {"title": "a.txt", "text": "hello"}}]
    assert set(fates.values()) == {"translated"}


@pytest.mark.parametrize(
    ("file", "kind", "word"),
    [
        (FileData("data:application/pdf;base64,JVBE"), Unsupported, "application/pdf"),
        (FileData(file_url="https://x/y.pdf"), Unsupported, "text alone"),
        (FileData(), BadRequest, "without data"),
        (FileData("data:text/plain;base64,!"), BadRequest, "base64"),
    ],
)
def test_other_documents_are_refused(file: FileData, kind: type[RunnerError], word: str) -> None:
    with pytest.raises(kind, match=word) as caught:
        sent(Request("m", (Message("user", (FilePart(file),)),)))
    assert (caught.value.param or "").startswith("messages[0].content[0].file")


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request("m", HI, sampling=Sampling(n=2)), "n"),
        (Request("m", prompt="a", suffix="b"), "suffix"),
        (
            Request("m", (Message("user", (AudioPart(InputAudio("AAAA", "wav")),)),)),
            "messages[0].content[0]",
        ),
        (Request("m", (*HI, Message("function", "3", name="add"))), "messages[1]"),
        (
            Request("m", HI, tools=(ADD,), response_format=ResponseFormat("json_object")),
            "response_format",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(request_: Request, param: str) -> None:
    with pytest.raises(Unsupported) as caught:
        sent(request_)
    assert caught.value.param == param


def test_forms_of_the_answer() -> None:
    wanted = ResponseFormat("json_schema", SCHEMA, "answer", True)
    body, _ = sent(Request("m", HI, response_format=wanted))
    assert body["response_format"] == {
        "type": "json_object",
        "json_schema": json.loads(bytes(SCHEMA)),
    }
    body, fates = sent(Request("m", HI, tools=(ADD,), tool_choice="none", response_format=wanted))
    assert "tools" not in body
    assert "tool_choice" not in body
    assert not fates
    body, _ = sent(Request("m", HI, response_format=ResponseFormat("json_object")))
    assert body["response_format"] == {"type": "json_object"}
    body, _ = sent(Request("m", HI, response_format=ResponseFormat("text")))
    assert "response_format" not in body


def test_a_choice_of_tools() -> None:
    body, fates = sent(Request("m", HI, tools=(ADD, SUB), tool_choice="function:sub"))
    assert [tool["function"]["name"] for tool in body["tools"]] == ["sub"]
    assert body["tool_choice"] == "REQUIRED"
    assert fates == {"tool_choice": "emulated"}
    body, fates = sent(Request("m", HI, tools=(ADD,), tool_choice="auto"))
    assert "tool_choice" not in body
    assert not fates
    strict = Tool("sub", strict=True)
    body, fates = sent(Request("m", HI, tools=(ADD, strict)))
    assert body["strict_tools"] is True
    assert fates == {"strict_tools": "translated"}
    assert sent(Request("m", HI, tools=(strict,)))[1] == {}
    with pytest.raises(BadRequest, match="not among"):
        sent(Request("m", HI, tools=(ADD,), tool_choice="function:no"))


@pytest.mark.parametrize(
    ("wanted", "told", "fates"),
    [
        (Reasoning("none"), {"type": "disabled"}, {}),
        (Reasoning(budget=0), {"type": "disabled"}, {}),
        (Reasoning(), {"type": "enabled"}, {}),
        (
            Reasoning("low"),
            {"type": "enabled", "token_budget": 2048},
            {"reasoning_effort": "translated"},
        ),
        (Reasoning("high"), {"type": "enabled"}, {}),
        (Reasoning("max"), {"type": "enabled"}, {"reasoning_effort": "translated"}),
        (Reasoning(budget=9, shown=False), {"type": "enabled", "token_budget": 9}, {}),
    ],
)
def test_thinking(wanted: Reasoning, told: dict[str, Any], fates: dict[str, str]) -> None:
    body, found = sent(Request("m", HI, reasoning=wanted))
    assert (body["thinking"], found) == (told, fates)


def test_fields_of_another_dialect() -> None:
    other = RequestWire("openai_chat", {})
    extra = {"safety_mode": Raw(b'"STRICT"'), "logit_bias": Raw(b"{}")}
    body, fates = sent(Request("m", HI, extra=extra, wire=other))
    assert body["safety_mode"] == "STRICT"
    assert fates == {"logit_bias": "dropped"}


def test_a_request_of_the_same_dialect_is_spliced() -> None:
    said = Raw(b'[{"role":"user","content":"hi",  "odd":1.50}]')
    fields = {"messages": said, "tomorrow": Raw(b'{"a":1}'), "model": Raw(b'"m"')}
    request = Request("m", HI, wire=RequestWire("cohere_chat", fields), stream=True)
    receipt = Receipt()
    wire = build_request(request, "up", Quirks(drop=("tomorrow",)), receipt)
    assert bytes(said) in wire.body
    assert json.loads(wire.body).keys() == {"messages", "model", "stream"}
    assert receipt.marks["tomorrow"].fate == "dropped"
