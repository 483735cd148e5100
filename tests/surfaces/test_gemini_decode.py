"""Requests of Gemini's API: what they become, and what is wrong with bad ones."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.openai_request import build_request as build_openai
from llm_runner_router.surfaces import gemini_embed
from llm_runner_router.surfaces.gemini import decode, decode_count
from llm_runner_router.surfaces.gemini_schema import from_google
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
    Request,
    Sampling,
    TextPart,
    ThinkingPart,
    ToolCall,
)

HI = [{"role": "user", "parts": [{"text": "hi"}]}]
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "OBJECT"}}
SIGNATURE = base64.b64encode(b"what google thought").decode()


def read(**fields: Any) -> Request:
    return decode(json.dumps({"contents": HI, **fields}).encode(), "m", stream=False)


def said(*parts: dict[str, Any], role: str = "user") -> Message:
    (message,) = read(contents=[{"role": role, "parts": list(parts)}]).messages
    return message


def test_the_least_request() -> None:
    request = decode(b'{"contents":[{"parts":[{"text":"hi"}]}]}', "a/b:c", stream=True)
    assert (request.model, request.messages) == ("a/b:c", (Message("user", "hi"),))
    assert (request.stream, request.include_usage) == (True, True)


@pytest.mark.parametrize("body", [b"8{", b"8\xff{", b'"\xff"', b'{"contents": 1, "a": "\xff"}'])
def test_what_begins_with_a_wrong_type_may_be_no_json_at_all(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(body, "m", stream=False)


def test_nulls_ask_for_nothing() -> None:
    names = ("generationConfig", "systemInstruction", "tools", "toolConfig", "serviceTier")
    asked = read(contents=[{"parts": [{"text": "hi"}]}], **dict.fromkeys(names))
    assert asked.messages == (Message("user", "hi"),)
    assert asked.extra == {}


def test_a_full_request() -> None:
    config = {
        "temperature": 1.5,
        "topP": 0.9,
        "topK": 40.0,
        "maxOutputTokens": 9,
        "stopSequences": ["x"],
        "candidateCount": 2,
        "seed": 3,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"type": {"type": "STRING"}}},
        "responseLogprobs": True,
        "logprobs": 4,
        "thinkingConfig": {"thinkingLevel": "LOW", "includeThoughts": True},
        "speechConfig": {"a": 1},
        "responseModalities": ["TEXT"],
    }
    request = read(
        systemInstruction={"parts": [{"text": "Be brief."}]},
        tools=[{"functionDeclarations": [ADD]}, {"googleSearch": {}}],
        toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["add"]}},
        generationConfig=config,
        safetySettings=[{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        cachedContent="cachedContents/1",
        serviceTier="standard",
        labels={},
        model="models/other",
        fallbacks=["other"],
        strict=True,
    )
    assert request.messages == (Message("system", "Be brief."), Message("user", "hi"))
    assert request.sampling == Sampling(
        temperature=1.5,
        top_p=0.9,
        top_k=40,
        max_tokens=9,
        stop=("x",),
        n=2,
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logprobs=True,
        top_logprobs=4,
    )
    function, search = request.tools
    assert (function.name, function.description) == ("add", "Adds.")
    assert bytes(function.parameters or b"") == b'{"type":"object"}'
    assert search.kind == "googleSearch"
    assert request.tool_choice == "function:add"
    assert request.reasoning == Reasoning("low", None, shown=True)
    wanted = request.response_format
    assert wanted is not None
    assert json.loads(bytes(wanted.schema or b"")) == {
        "type": "object",
        "properties": {"type": {"type": "string"}},
    }
    assert (request.service_tier, request.strict, request.fallbacks) == (
        "default",
        True,
        ("other",),
    )
    assert set(request.extra) == {
        "safetySettings",
        "cachedContent",
        "generationConfig.speechConfig",
    }
    assert request.wire is not None
    assert not {"fallbacks", "strict"} & request.wire.fields.keys()


def test_names_in_snake_case_mean_the_same_and_the_clients_own_stay() -> None:
    body = {
        "system_instruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"parts": [{"inline_data": {"mime_type": "image/png", "data": "AAAA"}}]},
            {
                "role": "model",
                "parts": [{"function_call": {"name": "f", "args": {"my_key": {"a_b": 1}}}}],
            },
            {
                "parts": [
                    {"function_response": {"name": "f", "response": {"my_key": '"odd_one": 1'}}}
                ]
            },
        ],
        "generation_config": {
            "max_output_tokens": 5,
            "response_mime_type": "application/json",
            "response_schema": {"type": "OBJECT", "properties": {"a_b": {"any_of": []}}},
        },
        "tools": [
            {"function_declarations": [{"name": "f", "parameters": {"properties": {"x_y": {}}}}]}
        ],
    }
    request = decode(json.dumps(body).encode(), "m", stream=False)
    _, picture, call, answer = request.messages
    assert picture.content == (ImagePart(ImageURL("data:image/png;base64,AAAA")),)
    assert json.loads(call.tool_calls[0].arguments) == {"my_key": {"a_b": 1}}
    assert json.loads(answer.text) == {"my_key": '"odd_one": 1'}
    assert request.sampling.max_tokens == 5
    assert b"x_y" in bytes(request.tools[0].parameters or b"")
    assert request.response_format is not None
    assert b'"a_b":{"anyOf"' in bytes(request.response_format.schema or b"")


def test_one_thing_stands_for_a_list_of_one() -> None:
    """As in examples of Google's own guides."""
    body = {
        "system_instruction": {"parts": {"text": "You are a cat."}},
        "contents": {"parts": {"text": "Hello there"}},
        "tools": {"function_declarations": {**ADD, "parameters": {"properties": {"parts": {}}}}},
    }
    request = decode(json.dumps(body).encode(), "m", stream=False)
    system, user = Message("system", "You are a cat."), Message("user", "Hello there")
    assert request.messages == (system, user)
    assert bytes(request.tools[0].parameters or b"") == b'{"properties":{"parts":{}}}'
    count = {"generateContentRequest": {"contents": {"parts": {"text": "hi"}}}}
    assert decode_count(json.dumps(count).encode(), "m").messages == (Message("user", "hi"),)
    one = {"requests": {"content": {"parts": {"text": "a"}}}}
    assert embed(one, many=True).request.inputs == ("a",)


# ---------------------------------------------------------------- the conversation


def test_every_kind_of_part() -> None:
    message = said(
        {"text": "look"},
        {"inlineData": {"mimeType": "image/png", "data": "-_8"}},
        {"inlineData": {"mimeType": "audio/mpeg; rate=1", "data": "AAAA"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
        {"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://x/y.png"}},
        {"fileData": {"mimeType": "application/pdf", "fileUri": "https://x/y.pdf"}},
        {"fileData": {"fileUri": "gs://a/b"}},
        {"fileData": {"fileUri": "https://www.youtube.com/watch?v=1"}},
        {"executableCode": {"language": "PYTHON", "code": "1"}},
        {"videoMetadata": {}},
    )
    assert message.content == (
        TextPart("look"),
        ImagePart(ImageURL("data:image/png;base64,+/8=")),
        AudioPart(InputAudio("AAAA", "mp3")),
        FilePart(FileData("data:application/pdf;base64,JVBE")),
        ForeignPart("video/mp4"),
        ImagePart(ImageURL("https://x/y.png")),
        FilePart(FileData(file_url="https://x/y.pdf")),
        ForeignPart("file at Google's"),
        ForeignPart("file at Google's"),
        ForeignPart("executable_code"),
        ForeignPart("part"),
    )


def test_what_a_model_said_in_pieces_is_one_turn() -> None:
    sealed = base64.urlsafe_b64encode(b"llmrr:s:c2ln").decode().rstrip("=")
    hidden = base64.b64encode(b"llmrr:r:data").decode()
    pieces = [
        {"text": "h", "thought": True},
        {"text": "m", "thought": True},
        {"text": "", "thought": True, "thoughtSignature": sealed},
        {"text": "", "thought": True, "thoughtSignature": hidden},
        {"text": "Let "},
        {"text": ""},
        {"text": "me see.", "thoughtSignature": SIGNATURE},
        {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": SIGNATURE},
    ]
    contents = [*HI, *({"role": "model", "parts": [one]} for one in pieces)]
    _, message = read(contents=contents).messages
    assert message == Message(
        "assistant",
        (
            ThinkingPart("hm", "c2ln"),
            RedactedPart("data"),
            TextPart("Let me see."),
            ThinkingPart("", f"google:{SIGNATURE}"),
        ),
        tool_calls=(ToolCall("call_1", "add", '{"a":1}', signature=f"google:{SIGNATURE}"),),
    )


def test_answers_find_their_calls_by_id_or_by_name_in_order() -> None:
    calls = [
        {"functionCall": {"name": "add", "args": {}}},
        {"functionCall": {"name": "add"}},
        {"functionCall": {"name": "sub", "id": "s1"}},
    ]
    answers = [
        {"functionResponse": {"name": "sub", "id": "s1", "response": {"output": "1"}}},
        {"functionResponse": {"name": "add", "response": {"error": "no"}}},
        {"text": "by the way"},
        {"functionResponse": {"name": "add", "id": "lost", "response": {"result": 2.50}}},
    ]
    contents = [*HI, {"role": "model", "parts": calls}, {"role": "user", "parts": answers}]
    assert read(contents=contents).messages[2:] == (
        Message("tool", "1", tool_call_id="s1"),
        Message("tool", "no", tool_call_id="call_1", is_error=True),
        Message("user", "by the way"),
        Message("tool", '{"result": 2.5}', tool_call_id="call_2"),
    )


def test_a_function_may_answer_pictures() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    answer = {"name": "f", "response": {"output": "see"}, "parts": [picture]}
    contents = [
        *HI,
        {"role": "model", "parts": [{"functionCall": {"name": "f"}}]},
        {"role": "function", "parts": [{"functionResponse": answer}]},
    ]
    assert read(contents=contents).messages[2].content == (
        TextPart("see"),
        ImagePart(ImageURL("data:image/png;base64,AAAA")),
    )


# ---------------------------------------------------------------- how to answer


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ({"thinkingBudget": 0}, Reasoning(budget=0, shown=False)),
        ({"thinkingBudget": -1, "includeThoughts": True}, Reasoning(shown=True)),
        ({"thinkingLevel": "XHIGH"}, Reasoning("xhigh", shown=False)),
        ({"thinkingLevel": "THINKING_LEVEL_UNSPECIFIED"}, Reasoning(shown=False)),
    ],
)
def test_how_much_to_think(told: dict[str, Any], meant: Reasoning) -> None:
    assert read(generationConfig={"thinkingConfig": told}).reasoning == meant


@pytest.mark.parametrize(
    ("calling", "choice", "names", "strict"),
    [
        ({"mode": "AUTO"}, "auto", ["add", "sub"], None),
        ({"mode": "NONE"}, "none", ["add", "sub"], None),
        ({"mode": "ANY"}, "required", ["add", "sub"], None),
        ({"mode": "ANY", "allowedFunctionNames": ["sub"]}, "function:sub", ["add", "sub"], None),
        ({"mode": "ANY", "allowedFunctionNames": ["sub", "add"]}, "required", ["add", "sub"], None),
        ({"mode": "VALIDATED", "allowedFunctionNames": ["sub"]}, "auto", ["sub"], True),
        ({"mode": "MODE_UNSPECIFIED"}, None, ["add", "sub"], None),
        ({}, None, ["add", "sub"], None),
    ],
)
def test_which_tool(
    calling: dict[str, Any], choice: str | None, names: list[str], strict: bool | None
) -> None:
    sub = {"name": "sub", "parametersJsonSchema": {"type": "object"}}
    request = read(
        tools=[{"functionDeclarations": [ADD, sub]}],
        toolConfig={"functionCallingConfig": calling},
    )
    assert request.tool_choice == choice
    assert [tool.name for tool in request.tools] == names
    assert {tool.strict for tool in request.tools} == {strict}


@pytest.mark.parametrize(
    ("config", "meant"),
    [
        ({"responseMimeType": "application/json"}, "json_object"),
        ({"responseJsonSchema": {"type": "object"}}, "json_schema"),
        ({"responseMimeType": "text/plain"}, None),
        ({"responseMimeType": "text/x.enum", "responseSchema": {"type": "STRING"}}, None),
    ],
)
def test_the_form_of_the_answer(config: dict[str, Any], meant: str | None) -> None:
    request = read(generationConfig=config)
    assert (request.response_format and request.response_format.type) == meant
    enum = config.get("responseMimeType") == "text/x.enum"
    assert ("generationConfig.responseMimeType" in request.extra) == enum


def test_googles_schema_as_a_json_schema() -> None:
    theirs = {
        "type": "OBJECT",
        "propertyOrdering": ["a", "type"],
        "properties": {
            "a": {"type": "STRING", "format": "enum", "enum": ["x"], "nullable": True},
            "type": {"type": "ARRAY", "items": {"type": "NUMBER"}, "min_items": "2"},
            "b": {"any_of": [{"type": "STRING"}], "nullable": True, "example": 1},
        },
    }
    assert from_google(theirs) == {
        "type": "object",
        "properties": {
            "a": {"type": ["string", "null"], "enum": ["x", None]},
            "type": {"type": "array", "items": {"type": "number"}, "minItems": 2},
            "b": {"anyOf": [{"type": "string"}, {"type": "null"}], "examples": [1]},
        },
    }


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"contents": []}, "contents"),
    ({"contents": [{"role": "system", "parts": []}]}, "contents[0].role"),
    ({"contents": [{"parts": [{"text": 1}]}]}, "contents[0].parts[0].text"),
    (
        {"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {}}}]}]},
        "contents[0].parts[0].functionResponse",
    ),
    (
        {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "?"}}]}]},
        "contents[0].parts[0].inlineData.data",
    ),
    (
        {"contents": [{"parts": [{"fileData": {"mimeType": "image/png"}}]}]},
        "contents[0].parts[0].fileData.fileUri",
    ),
    (
        {"contents": [{"parts": [{"text": "", "thoughtSignature": "?"}]}]},
        "contents[0].parts[0].thoughtSignature",
    ),
    ({"generationConfig": {"temperature": 3}}, "generationConfig.temperature"),
    ({"generationConfig": {"topP": "a"}}, "generationConfig.topP"),
    ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
    ({"generationConfig": {"stopSequences": [""]}}, "generationConfig.stopSequences"),
    ({"generationConfig": {"responseJsonSchema": []}}, "generationConfig.responseJsonSchema"),
    ({"generationConfig": {"logprobs": 21}}, "generationConfig.logprobs"),
    (
        {"tools": [{"functionDeclarations": [{"name": ""}]}]},
        "tools[0].functionDeclarations[0].name",
    ),
    (
        {"tools": [{"functionDeclarations": [{**ADD, "parameters": 1}]}]},
        "tools[0].functionDeclarations[0].parameters",
    ),
    (
        {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}},
        "toolConfig.functionCallingConfig.mode",
    ),
    (
        {"toolConfig": {"functionCallingConfig": {"mode": "SOME"}}},
        "toolConfig.functionCallingConfig.mode",
    ),
    (
        {"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["x"]}}},
        "toolConfig.functionCallingConfig.allowedFunctionNames",
    ),
    ({"fallbacks": [""]}, "fallbacks"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), MISTAKES)
def test_mistakes_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"contents":null}', b"\xff"])
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(BadRequest):
        decode(body, "m", stream=False)


NAMES = st.sampled_from(
    "contents parts role text thought thoughtSignature inlineData mimeType data functionCall name"
    " args functionResponse response id tools functionDeclarations parameters type properties"
    " nullable enum anyOf items toolConfig functionCallingConfig mode generationConfig"
    " responseSchema response_schema thinkingConfig thinkingLevel systemInstruction".split()
)
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, "user", "ANY", "a"])
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(NAMES, ANYTHING, max_size=5))
@example({"nullable": True, "anyOf": 1})
@example({"nullable": True, "type": "STRING", "enum": 1})
def test_any_schema_can_be_read(schema: dict[str, Any]) -> None:
    assert isinstance(from_google(schema), dict)


@given(st.dictionaries(NAMES, ANYTHING, max_size=5), st.booleans())
def test_whatever_comes_is_read_or_refused(body: dict[str, Any], filled: bool) -> None:
    if filled:
        body = {**body, "contents": HI}
    for schema in (body, {"generationConfig": {"responseSchema": body}, "contents": HI}):
        with contextlib.suppress(BadRequest):
            decode(json.dumps(schema).encode(), "m", stream=False)


def test_to_count() -> None:
    whole = {"contents": HI, "tools": [{"functionDeclarations": [ADD]}]}
    inner = {"generateContentRequest": {"model": "models/m", **whole}}
    assert decode_count(json.dumps(inner).encode(), "m") == decode_count(
        json.dumps(whole).encode(), "m"
    )
    assert decode_count(json.dumps(whole).encode(), "m").tools[0].name == "add"


def test_extras_are_noted_by_who_has_none_of_them() -> None:
    request = read(safetySettings=[{"category": "c", "threshold": "t"}])
    receipt = Receipt()
    build_openai(request, "gpt", Quirks(), receipt)
    assert receipt.marks["safetySettings"].fate == "dropped"


# ---------------------------------------------------------------- embeddings


def embed(body: Any, *, many: bool = False) -> gemini_embed.Asked:
    return gemini_embed.decode(json.dumps(body).encode(), "e", many=many)


def test_texts_to_embed() -> None:
    one = {"content": {"parts": [{"text": "a"}, {"text": "b"}]}, "task_type": "CLUSTERING"}
    asked = embed({**one, "output_dimensionality": 8, "title": "t"})
    assert (asked.request.inputs, asked.request.task) == (("a\nb",), "CLUSTERING")
    assert (asked.request.dimensions, asked.many, asked.titles) == (8, False, True)
    assert embed({"requests": [one, one]}, many=True).request.inputs == ("a\nb", "a\nb")


@pytest.mark.parametrize(
    ("requests", "param", "kind"),
    [
        ([], "requests", BadRequest),
        ([{"content": {"parts": []}}], "requests[0].content", BadRequest),
        (
            [{"content": {"parts": [{"inlineData": {}}]}}],
            "requests[0].content.parts[0]",
            Unsupported,
        ),
        (
            [
                {"content": {"parts": [{"text": "a"}]}},
                {"content": {"parts": [{"text": "a"}]}, "taskType": "CLUSTERING"},
            ],
            "requests[1].taskType",
            BadRequest,
        ),
        (
            [{"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 0}],
            "outputDimensionality",
            BadRequest,
        ),
    ],
)
def test_what_cannot_be_embedded(requests: Any, param: str, kind: type[BadRequest]) -> None:
    with pytest.raises(kind) as caught:
        embed({"requests": requests}, many=True)
    assert caught.value.param == param
