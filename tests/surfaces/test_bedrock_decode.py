"""Requests of Bedrock's Converse API: what is wrong with one is said with its place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces.bedrock import decode, decode_count
from llm_runner_router.types import FilePart, ForeignPart, Message, RedactedPart, Request, TextPart

HELLO: Any = [{"role": "user", "content": [{"text": "hello"}]}]
SPEC: Any = {"toolSpec": {"name": "add", "inputSchema": {"json": {"type": "object"}}}}


def read(**fields: Any) -> Request:
    return decode(json.dumps({"messages": HELLO, **fields}).encode(), "m", stream=False)


def said(*blocks: Any, role: str = "user") -> Message:
    asked = read(messages=[{"role": role, "content": list(blocks)}])
    return asked.messages[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": []}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": 1}]}]}, "messages[0].content[0].text"),
        ({"system": [{"text": 1}]}, "system[0].text"),
        ({"inferenceConfig": {"maxTokens": 0}}, "inferenceConfig.maxTokens"),
        ({"inferenceConfig": {"temperature": 1.5}}, "inferenceConfig.temperature"),
        ({"inferenceConfig": {"topP": -1}}, "inferenceConfig.topP"),
        ({"inferenceConfig": {"stopSequences": [""]}}, "inferenceConfig.stopSequences"),
        ({"inferenceConfig": {"stopSequences": ["x"] * 17}}, "inferenceConfig.stopSequences"),
        ({"toolConfig": {}}, "toolConfig.tools"),
        (
            {"toolConfig": {"tools": [{"toolSpec": {"name": "a"}}]}},
            "toolConfig.tools[0].toolSpec.inputSchema",
        ),
        (
            {"toolConfig": {"tools": [SPEC], "toolChoice": {"tool": {"name": "sub"}}}},
            "toolConfig.toolChoice.tool.name",
        ),
        (
            {"outputConfig": {"textFormat": {"type": "xml", "structure": {}}}},
            "outputConfig.textFormat.type",
        ),
        (
            {"outputConfig": {"textFormat": {"type": "json_schema", "structure": {}}}},
            "outputConfig.textFormat.structure.jsonSchema",
        ),
        (
            {
                "outputConfig": {
                    "textFormat": {
                        "type": "json_schema",
                        "structure": {"jsonSchema": {"schema": "[]"}},
                    }
                }
            },
            "outputConfig.textFormat.structure.jsonSchema.schema",
        ),
        (
            {"additionalModelRequestFields": {"top_k": "many"}},
            "additionalModelRequestFields.top_k",
        ),
        (
            {"additionalModelRequestFields": {"inferenceConfig": {"topK": True}}},
            "additionalModelRequestFields.inferenceConfig.topK",
        ),
        (
            {"additionalModelRequestFields": {"thinking": "hard"}},
            "additionalModelRequestFields.thinking",
        ),
        (
            {"additionalModelRequestFields": {"thinking": {"type": "enabled"}}},
            "additionalModelRequestFields.thinking.budget_tokens",
        ),
        (
            {
                "additionalModelRequestFields": {
                    "thinking": {"type": "enabled", "budget_tokens": "x"}
                }
            },
            "additionalModelRequestFields.thinking.budget_tokens",
        ),
        ({"fallbacks": ["x"] * 9}, "fallbacks"),
    ],
)
def test_wrong_requests(fields: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param
    assert param.rpartition(".")[2].partition("[")[0] in caught.value.message


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"image": {"format": "png", "source": {}}}, "image.source.bytes"),
        ({"image": {"source": {"bytes": "aGk="}}}, "image.format"),
        ({"document": {"name": "a", "format": "exe", "source": {"bytes": "aGk="}}},
         "document.format"),
        ({"audio": {"format": "wav", "source": {}}}, "audio.source.bytes"),
        ({"toolResult": {"toolUseId": "", "content": []}}, "toolResult.toolUseId"),
        ({"reasoningContent": {}}, "reasoningContent.redactedContent"),
        ({"reasoningContent": {"redactedContent": "%"}}, "reasoningContent.redactedContent"),
    ],
)  # fmt: skip
def test_wrong_blocks(block: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        said(block)
    assert caught.value.param == f"messages[0].content[0].{param}"


@pytest.mark.parametrize("value", ["[]", "1", '"x"', "null"])
def test_the_input_of_a_call_is_an_object(value: str) -> None:
    use = {"toolUseId": "t", "name": "add", "input": json.loads(value)}
    with pytest.raises(BadRequest) as caught:
        said({"toolUse": use}, role="assistant")
    assert caught.value.param == "messages[0].content[0].toolUse.input"


def test_no_body_fails_in_an_unexpected_way() -> None:
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"messages":1}'):
        for read_it in (
            lambda data: decode(data, "m", stream=True),
            lambda data: decode_count(data, "m"),
        ):
            with pytest.raises(BadRequest):
                read_it(body)
    with pytest.raises(BadRequest):
        decode(b'{"messages":[]}', "", stream=False)
    with pytest.raises(BadRequest) as caught:
        decode_count(b'{"input":{"invokeModel":{"body":""}}}', "m")
    assert caught.value.param == "input.converse"


def test_blocks_without_a_name_here() -> None:
    message = said(
        {"video": {"format": "mp4", "source": {"bytes": "aGk="}}},
        {"citationsContent": {"content": [{"text": "so"}, {"text": " it is"}]}},
        {"document": {"name": "d", "source": {"content": [{"text": "x"}]}}},
        {"document": {"name": "d", "format": "md", "source": {"s3Location": {"uri": "s3://b/d.md"}}}},
    )  # fmt: skip
    assert isinstance(message.content, tuple)
    video, words, pieces, there = message.content
    assert isinstance(video, ForeignPart)
    assert words == TextPart("so it is")
    assert isinstance(pieces, ForeignPart)
    assert isinstance(there, FilePart)
    assert (there.file.file_url, there.file.filename) == ("s3://b/d.md", "d.md")


def test_what_the_service_did_itself_is_no_call() -> None:
    use = {"toolUseId": "s", "name": "search", "input": {}, "type": "server_tool_use"}
    message = said({"toolUse": use}, {"text": "found"}, role="assistant")
    assert message.tool_calls == ()
    assert isinstance(message.content, tuple)
    assert isinstance(message.content[0], ForeignPart)


def test_marks_of_the_cache_stand_behind_what_they_mark() -> None:
    point = {"cachePoint": {"type": "default"}}
    use = {"toolUse": {"toolUseId": "t", "name": "add", "input": {}}}
    asked = read(
        messages=[
            {"role": "user", "content": [point, {"text": "a"}, point]},
            {"role": "assistant", "content": [{"text": "b"}, use, point]},
        ],
        toolConfig={"tools": [point, SPEC, point, {"systemTool": {"name": "web"}}]},
    )
    mark = {"type": "ephemeral"}
    assert asked.messages[0].content == (TextPart("a", mark),)
    assert asked.messages[1].content == "b"
    assert asked.messages[1].tool_calls[0].cache_control == mark
    assert [(tool.name, tool.cache_control, tool.kind) for tool in asked.tools] == [
        ("add", mark, None),
        ("web", None, "web"),
    ]


def test_thoughts_that_only_their_provider_reads() -> None:
    hidden = said({"reasoningContent": {"redactedContent": "aGk="}}, role="assistant").content
    assert hidden == (RedactedPart("aGk="),)


def test_what_has_no_name_in_a_request() -> None:
    asked = read(
        guardrailConfig={"guardrailIdentifier": "g", "guardrailVersion": "1"},
        requestMetadata={"user_id": "u", "team": "t"},
        additionalModelRequestFields={"top_k": 3, "min_p": 1},
        additionalModelResponseFieldPaths=["/x"],
    )
    assert asked.extra.keys() == {
        "guardrailConfig",
        "requestMetadata",
        "additionalModelRequestFields.min_p",
        "additionalModelResponseFieldPaths",
    }
    assert (asked.user, asked.sampling.top_k) == ("u", 3)
    assert read(additionalModelResponseFieldPaths=["/stop_sequence"]).extra == {}
