"""Requests in the JSON of Bedrock's Converse API; every one is checked by AWS's own description."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.errors import BadRequest, RunnerError, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.bedrock_request import build_count, build_request
from llm_runner_router.types import (
    AudioPart,
    FileData,
    FilePart,
    ForeignPart,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    Part,
    Reasoning,
    RedactedPart,
    RefusalPart,
    Request,
    RequestWire,
    ResponseFormat,
    Sampling,
    TextPart,
    ThinkingPart,
    TokenizeRequest,
    Tool,
    ToolCall,
)

from .bedrock_upstream import MODEL, checked

HI = (Message("user", "hi"),)
NOVA = "us.amazon.nova-pro-v1:0"
LLAMA = "meta.llama3-1-8b-instruct-v1:0"
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))
PNG = base64.b64encode(b"\x89PNG").decode()
SCHEMA = Raw(b'{"type":"object","properties":{"a":{"type":"object"}}}')


def sent(request: Request, model: str = MODEL, **quirks: Any) -> tuple[Any, dict[str, str]]:
    receipt = Receipt()
    wire = build_request(request, model, Quirks(**quirks), receipt)
    assert wire.path.endswith("/converse-stream" if request.stream else "/converse")
    return checked(wire.body), {name: mark.fate for name, mark in receipt.marks.items()}


def blocks(*parts: Part, role: Any = "user", model: str = MODEL) -> tuple[Any, dict[str, str]]:
    """What becomes of a message's parts."""
    said = (Message("user", "hi"), Message("assistant", "yes"), Message(role, parts))
    if role == "assistant":
        said = (Message("user", "hi"), Message(role, parts), Message("user", "go on"))
    asked, fates = sent(Request("m", said), model)
    return asked["messages"][1 if role == "assistant" else 2]["content"], fates


def refused(request: Request, model: str = MODEL) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        build_request(request, model, Quirks(), Receipt())
    return caught.value


# ---------------------------------------------------------------- the conversation


def test_the_model_is_in_the_path() -> None:
    arn = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude"
    wire = build_request(Request("m", HI), arn, Quirks(), Receipt())
    quoted = arn.replace(":", "%3A").replace("/", "%2F")
    assert wire.path == f"/model/{quoted}/converse"
    streamed = msgspec.structs.replace(Request("m", HI), stream=True)
    assert build_request(streamed, arn, Quirks(), Receipt()).path.endswith("/converse-stream")


def test_turns_change_sides_and_begin_with_the_user() -> None:
    said = (
        Message("assistant", "first"),
        Message("user", "a"),
        Message("system", "S"),
        Message("user", (TextPart("b"), TextPart("  "))),
        Message("assistant", "c \n", name="n"),
    )
    asked, fates = sent(Request("m", said))
    assert asked["system"] == [{"text": "S"}]
    assert [(turn["role"], turn["content"]) for turn in asked["messages"]] == [
        ("user", [{"text": "."}]),
        ("assistant", [{"text": "first"}]),
        ("user", [{"text": "a"}, {"text": "b"}]),
        ("assistant", [{"text": "c"}]),
    ]
    assert fates == {
        "messages": "emulated",
        "messages[2]": "translated",
        "messages[4].name": "dropped",
        "messages[4].content": "translated",
    }
    asked, fates = sent(Request("m", (Message("system", "S"),)))
    assert asked == {"messages": [{"role": "user", "content": [{"text": "S"}]}]}


def test_calls_and_results() -> None:
    long = "call_" + "x" * 80
    said = (
        *HI,
        Message(
            "assistant", None, tool_calls=(ToolCall(long, "add", ""), ToolCall("b|", "add", "{}"))
        ),
        Message("tool", "1", tool_call_id=long),
        Message(
            "tool",
            (TextPart("no"), ImagePart(ImageURL(f"data:image/png;base64,{PNG}"))),
            tool_call_id="b|",
            is_error=True,
        ),
    )
    asked, fates = sent(Request("m", said, tools=(ADD,)))
    _, calls, results = asked["messages"]
    ids = [block["toolUse"]["toolUseId"] for block in calls["content"]]
    assert len(set(ids)) == 2
    assert [block["toolResult"]["toolUseId"] for block in results["content"]] == ids
    assert results["content"][1]["toolResult"]["status"] == "error"
    assert results["content"][1]["toolResult"]["content"] == [
        {"text": "no"},
        {"image": {"format": "png", "source": {"bytes": PNG}}},
    ]
    assert fates == {}
    asked, fates = sent(Request("m", said))
    assert [one["toolSpec"]["name"] for one in asked["toolConfig"]["tools"]] == ["add"]
    assert fates == {"tools": "emulated"}


def test_pictures_sound_and_documents() -> None:
    found, fates = blocks(
        ImagePart(ImageURL(f"data:image/jpg;base64,{PNG}", "low")),
        ImagePart(ImageURL("s3://bucket/a.webp")),
        AudioPart(InputAudio(PNG, "wav")),
        FilePart(
            FileData(f"data:application/pdf;base64,{PNG}", filename="My_report (1).pdf"),
            citations=True,
        ),
        FilePart(FileData("data:text/plain,hello")),
        FilePart(FileData(f"data:application/octet-stream;base64,{PNG}", filename="a.md")),
        FilePart(FileData(file_url="s3://bucket/b.docx")),
    )
    assert [next(iter(block.values())) for block in found] == [
        {"format": "jpeg", "source": {"bytes": PNG}},
        {"format": "webp", "source": {"s3Location": {"uri": "s3://bucket/a.webp"}}},
        {"format": "wav", "source": {"bytes": PNG}},
        {
            "format": "pdf",
            "name": "My report (1)",
            "source": {"bytes": PNG},
            "citations": {"enabled": True},
        },
        {"format": "txt", "name": "document 2 4", "source": {"bytes": "aGVsbG8="}},
        {"format": "md", "name": "a", "source": {"bytes": PNG}},
        {
            "format": "docx",
            "name": "document 2 6",
            "source": {"s3Location": {"uri": "s3://bucket/b.docx"}},
        },
    ]
    assert fates == {"messages[2].content[0].image_url.detail": "dropped"}


@pytest.mark.parametrize(
    "part",
    [
        ImagePart(ImageURL("https://example.com/a.png")),
        ImagePart(ImageURL(f"data:image/tiff;base64,{PNG}")),
        FilePart(FileData(file_url="https://example.com/a.pdf")),
        FilePart(FileData(file_id="f-1")),
        FilePart(FileData(f"data:application/zip;base64,{PNG}")),
        AudioPart(InputAudio(PNG, "midi")),
    ],
)
def test_what_cannot_be_shown(part: Part) -> None:
    found = refused(Request("m", (Message("user", (part,)),)))
    assert isinstance(found, Unsupported)
    assert (found.param or "").startswith("messages[0].content[0]")


@pytest.mark.parametrize(
    "part",
    [
        ImagePart(ImageURL("data:image/png;base64,%%%")),
        ImagePart(ImageURL("s3://bucket/picture")),
        FilePart(FileData()),
    ],
)
def test_what_is_broken(part: Part) -> None:
    assert type(refused(Request("m", (Message("user", (part,)),)))) is BadRequest


def test_pictures_stay_where_they_may_be() -> None:
    picture = ImagePart(ImageURL(f"data:image/png;base64,{PNG}"))
    said = (Message("system", (picture,)), *HI)
    assert isinstance(refused(Request("m", said)), Unsupported)
    odd = (*HI, Message("tool", (AudioPart(InputAudio(PNG, "wav")),), tool_call_id="t"))
    assert isinstance(refused(Request("m", odd)), Unsupported)
    assert isinstance(refused(Request("m", (*HI, Message("function", "1", "f")))), Unsupported)
    bad = (*HI, Message("assistant", None, tool_calls=(ToolCall("t", "f", "[]"),)))
    assert refused(Request("m", bad)).param == "messages[1].tool_calls[0].function.arguments"


def test_thoughts() -> None:
    parts = (
        ThinkingPart("mine", "c2ln"),
        ThinkingPart("google's", "google:x"),
        ThinkingPart("nobody's"),
        RedactedPart("aGlk"),
        RedactedPart("openai:gAAA"),
        RefusalPart("no"),
        ForeignPart("search"),
        TextPart("so"),
    )
    found, fates = blocks(*parts, role="assistant")
    assert found == [
        {"reasoningContent": {"reasoningText": {"text": "mine", "signature": "c2ln"}}},
        {"reasoningContent": {"redactedContent": "aGlk"}},
        {"text": "no"},
        {"text": "so"},
    ]
    dropped = [int(name[-2]) for name, fate in fates.items() if fate == "dropped"]
    assert dropped == [1, 2, 4, 6]
    found, _ = blocks(ThinkingPart("hm"), TextPart("so"), role="assistant", model=LLAMA)
    assert found[0] == {"reasoningContent": {"reasoningText": {"text": "hm"}}}


def test_marks_of_the_cache() -> None:
    short, long = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
    said = (
        Message("system", (TextPart("S", long),)),
        Message("user", (TextPart("a", short), TextPart("b"))),
        Message("assistant", None, tool_calls=(ToolCall("t", "add", "{}", short),)),
        Message("tool", "1", tool_call_id="t", cache_control=short),
    )
    tool = msgspec.structs.replace(ADD, cache_control=short)
    asked, _ = sent(Request("m", said, tools=(tool,)))
    point = {"cachePoint": {"type": "default"}}
    assert asked["system"] == [{"text": "S"}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
    assert asked["messages"][0]["content"] == [{"text": "a"}, point, {"text": "b"}]
    assert asked["messages"][1]["content"][1] == point
    assert asked["messages"][2]["content"][1] == point
    assert asked["toolConfig"]["tools"][1] == point


# ---------------------------------------------------------------- how it is to answer


def test_sampling() -> None:
    draw = Sampling(
        temperature=1.5, top_p=0.5, max_tokens=9, stop=("x", " "), seed=1, presence_penalty=1,
        frequency_penalty=1, logprobs=True,
    )  # fmt: skip
    asked, fates = sent(Request("m", HI, sampling=draw), LLAMA)
    assert asked["inferenceConfig"] == {
        "maxTokens": 9,
        "temperature": 1.0,
        "topP": 0.5,
        "stopSequences": ["x"],
    }
    assert fates == {
        "temperature": "translated",
        "stop": "dropped",
        "seed": "dropped",
        "presence_penalty": "dropped",
        "frequency_penalty": "dropped",
        "logprobs": "dropped",
    }


@pytest.mark.parametrize(
    ("model", "more"),
    [(MODEL, {"top_k": 7}), (NOVA, {"inferenceConfig": {"topK": 7}}), (LLAMA, None)],
)
def test_top_k_is_the_models_own(model: str, more: Any) -> None:
    asked, fates = sent(Request("m", HI, sampling=Sampling(top_k=7)), model)
    assert asked.get("additionalModelRequestFields") == more
    assert fates == ({} if more else {"top_k": "dropped"})


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, None),
        ("auto", {"auto": {}}),
        ("required", {"any": {}}),
        ("function:add", {"tool": {"name": "add"}}),
    ],
)
def test_tools(choice: str | None, told: Any) -> None:
    tools = (ADD, Tool("sub", strict=True), Tool("web", kind="web_search"))
    asked, fates = sent(
        Request("m", HI, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    )
    assert asked["toolConfig"]["tools"] == [
        {
            "toolSpec": {
                "name": "add",
                "description": "Adds.",
                "inputSchema": {"json": {"type": "object"}},
            }
        },
        {
            "toolSpec": {
                "name": "sub",
                "inputSchema": {"json": {"type": "object", "properties": {}}},
                "strict": True,
            }
        },
    ]
    assert asked["toolConfig"].get("toolChoice") == told
    assert fates == {"tools[2]": "dropped", "parallel_tool_calls": "dropped"}


def test_no_tool_may_be_called() -> None:
    asked, fates = sent(Request("m", HI, tools=(ADD,), tool_choice="none"))
    assert "toolConfig" not in asked
    assert fates == {"tool_choice": "emulated"}
    said = (
        *HI,
        Message("assistant", None, tool_calls=(ToolCall("t", "add", "{}"),)),
        Message("tool", "1", tool_call_id="t"),
    )
    asked, fates = sent(Request("m", said, tools=(ADD,), tool_choice="none"))
    assert "toolChoice" not in asked["toolConfig"]
    assert fates == {"tool_choice": "dropped"}


def test_structured_output() -> None:
    wanted = ResponseFormat("json_schema", SCHEMA, "shape")
    asked, fates = sent(Request("m", HI, response_format=wanted))
    form = asked["outputConfig"]["textFormat"]
    assert form["type"] == "json_schema"
    told = form["structure"]["jsonSchema"]
    assert told["name"] == "shape"
    schema = msgspec.json.decode(told["schema"])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["a"]["additionalProperties"] is False
    assert fates == {"response_format": "translated"}
    asked, fates = sent(Request("m", HI, response_format=ResponseFormat("json_object")))
    assert "JSON" in asked["system"][0]["text"]
    assert fates == {"response_format": "emulated"}
    asked, fates = sent(Request("m", HI, response_format=ResponseFormat("text")))
    assert (asked.keys(), fates) == ({"messages"}, {})


NEW = "us.anthropic.claude-opus-4-7-v1:0"


@pytest.mark.parametrize(
    ("model", "wanted", "more", "effort", "limit"),
    [
        (MODEL, Reasoning("low"), {"type": "enabled", "budget_tokens": 2048}, None, 4096),
        (MODEL, Reasoning(budget=1500), {"type": "enabled", "budget_tokens": 1500}, None, 4096),
        (MODEL, Reasoning("none"), {"type": "disabled"}, None, None),
        (NEW, Reasoning("high"), {"type": "adaptive"}, "high", None),
        (NOVA, Reasoning("minimal"), None, "low", None),
        (NOVA, Reasoning("none"), None, None, None),
        (LLAMA, Reasoning(budget=9), None, None, None),
    ],
)
def test_thinking(model: str, wanted: Reasoning, more: Any, effort: Any, limit: Any) -> None:
    asked, _ = sent(Request("m", HI, reasoning=wanted), model)
    assert asked.get("additionalModelRequestFields", {}).get("thinking") == more
    assert asked.get("outputConfig", {}).get("effort") == effort
    assert asked.get("inferenceConfig", {}).get("maxTokens") == limit


def test_what_does_not_go_with_thinking() -> None:
    draw = Sampling(temperature=0.5, top_k=3, max_tokens=9000, top_p=0.9)
    asked, fates = sent(Request("m", HI, sampling=draw, reasoning=Reasoning("low")))
    assert asked["inferenceConfig"] == {"maxTokens": 9000, "topP": 0.9}
    assert asked["additionalModelRequestFields"].keys() == {"thinking"}
    assert fates["temperature"] == fates["top_k"] == "dropped"
    forced = Request(
        "m", HI, tools=(ADD,), tool_choice="required", reasoning=Reasoning("low"), sampling=draw
    )
    asked, fates = sent(forced)
    assert asked["additionalModelRequestFields"] == {"top_k": 3}
    assert asked["inferenceConfig"]["temperature"] == 0.5
    assert fates == {"reasoning_effort": "dropped"}


def test_the_rest() -> None:
    asked, fates = sent(
        Request("m", HI, user="u-1", service_tier="flex", extra={"min_p": Raw(b"1")})
    )
    assert asked["requestMetadata"] == {"user_id": "u-1"}
    assert asked["serviceTier"] == {"type": "flex"}
    assert fates == {"user": "translated", "min_p": "dropped"}
    asked, fates = sent(Request("m", HI, user="ü", service_tier="scale"))
    assert asked.keys() == {"messages"}
    assert fates == {"user": "dropped", "service_tier": "dropped"}
    asked, fates = sent(Request("m", prompt="Once"))
    assert fates == {"prompt": "emulated"}
    for request in (Request("m", HI, sampling=Sampling(n=2)), Request("m", prompt="a", suffix="b")):
        assert isinstance(refused(request), Unsupported)


def test_a_host_that_refuses_a_field() -> None:
    asked, fates = sent(Request("m", HI, user="u"), drop=("requestMetadata",))
    assert asked.keys() == {"messages"}
    assert fates["requestMetadata"] == "dropped"


def test_tokens() -> None:
    receipt = Receipt()
    wire = build_count(TokenizeRequest("m", messages=HI, tools=(ADD,)), MODEL, receipt)
    assert wire.path.endswith("/count-tokens")
    asked = checked(wire.body, "CountTokens")
    assert asked["input"]["converse"].keys() == {"messages", "toolConfig"}


# ---------------------------------------------------------------- the same dialect


def test_the_clients_own_bytes() -> None:
    fields = {
        "messages": Raw(b'[{"role":"user", "content":[{"text":"hi"}]}]'),
        "guardrailConfig": Raw(b'{"guardrailIdentifier": "abc", "guardrailVersion": "1"}'),
        "fallbacks": Raw(b'["x"]'),
    }
    asked = Request("m", HI, wire=RequestWire("bedrock_converse", fields))
    wire = build_request(asked, MODEL, Quirks(), Receipt())
    assert wire.body == b'{"messages":%b,"guardrailConfig":%b}' % (
        bytes(fields["messages"]),
        bytes(fields["guardrailConfig"]),
    )


def test_thoughts_that_others_signed_are_left_out() -> None:
    def thought(signature: str) -> Any:
        return {"reasoningContent": {"reasoningText": {"text": "hm", "signature": signature}}}

    def sealed(data: bytes) -> Any:
        return {"reasoningContent": {"redactedContent": base64.b64encode(data).decode()}}

    said = [
        {"role": "user", "content": [{"text": "hi"}]},
        {"role": "assistant", "content": [thought("google:x"), sealed(b"openai:gAAA")]},
        {"role": "user", "content": [{"text": "again"}]},
        {"role": "assistant", "content": [thought("c2ln"), sealed(b"its own")]},
    ]
    fields = {"messages": Raw(msgspec.json.encode(said))}
    wire = build_request(
        Request("m", HI, wire=RequestWire("bedrock_converse", fields)), MODEL, Quirks(), Receipt()
    )
    turns = msgspec.json.decode(wire.body)["messages"]
    both = {"role": "user", "content": [{"text": "hi"}, {"text": "again"}]}
    assert turns == [both, said[3]]
    checked(wire.body)
    for last in (sealed(b"openai:gAAA"), thought("google:x")):
        said[3] = {"role": "assistant", "content": [{"text": "so"}, last]}
        fields = {"messages": Raw(msgspec.json.encode(said[2:]))}
        asked = Request("m", HI, wire=RequestWire("bedrock_converse", fields))
        body = build_request(asked, MODEL, Quirks(), Receipt()).body
        assert msgspec.json.decode(body)["messages"][1]["content"] == [{"text": "so"}]
