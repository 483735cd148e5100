"""Requests to Gemini's API: what they become, and what is said of what is lost."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.errors import BadRequest, RunnerError, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.gemini_request import build_embed, build_request
from llm_runner_router.providers.dialects.gemini_schema import overlooked, to_google
from llm_runner_router.types import (
    AudioPart,
    EmbedRequest,
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
)

from .gemini_upstream import SIGNATURE, EmbedAll, checked

HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))
MODEL = "gemini-3-pro"


def sent(request: Request, model: str = MODEL, **quirks: Any) -> tuple[Any, dict[str, str]]:
    """The body, which the strict API takes, and what became of what."""
    receipt = Receipt()
    wire = build_request(request, model, Quirks(**quirks), receipt)
    assert (wire.path, wire.dialect) == (f"/models/{model}:generateContent", "gemini_generate")
    checked(wire.body, model)
    return json.loads(wire.body), {name: mark.fate for name, mark in receipt.marks.items()}


def chat(*messages: Message, **fields: Any) -> Request:
    return Request("asked", messages or HI, **fields)


# ---------------------------------------------------------------- the conversation


def test_a_conversation_with_tools() -> None:
    body, fates = sent(
        chat(
            Message("system", "Be brief."),
            Message("user", (TextPart("look"), ImagePart(ImageURL("data:image/png;base64,AAAA")))),
            Message(
                "assistant",
                "Hm.",
                tool_calls=(
                    ToolCall("c1", "add", '{"a": 1}', signature=f"google:{SIGNATURE}"),
                    ToolCall("c2", "add", ""),
                ),
            ),
            Message("tool", "3", tool_call_id="c1"),
            Message("tool", "no", tool_call_id="c2", is_error=True),
            Message("user", "and?"),
            tools=(ADD,),
            tool_choice="required",
        )
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    user, model, results, more = body["contents"]
    assert user["parts"][1] == {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    assert model == {
        "role": "model",
        "parts": [
            {"text": "Hm."},
            {
                "functionCall": {"id": "c1", "name": "add", "args": {"a": 1}},
                "thoughtSignature": SIGNATURE,
            },
            {"functionCall": {"id": "c2", "name": "add", "args": {}}},
        ],
    }
    answers = [part["functionResponse"]["response"] for part in results["parts"]]
    assert answers == [{"output": "3"}, {"error": "no"}]
    assert more == {"role": "user", "parts": [{"text": "and?"}]}
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {
                    "name": "add",
                    "description": "Adds.",
                    "parametersJsonSchema": {"type": "object"},
                }
            ]
        }
    ]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert fates == {}


CALL = Message("assistant", None, tool_calls=(ToolCall("c", "add", "{}"),))


def test_calls_of_another_model_say_so_where_a_signature_is_wanted() -> None:
    body, fates = sent(chat(*HI, CALL))
    assert body["contents"][1]["parts"][0]["thoughtSignature"] == "skip_thought_signature_validator"
    assert fates == {"messages[1].tool_calls": "emulated"}
    body, fates = sent(chat(*HI, CALL), "gemini-2.5-flash")
    assert "thoughtSignature" not in body["contents"][1]["parts"][0]
    assert fates == {}


def test_a_signature_that_came_back_on_a_thought_is_put_on_the_call() -> None:
    thought = ThinkingPart("hm", f"google:{SIGNATURE}")
    turn = Message("assistant", (thought, TextPart("x")), tool_calls=CALL.tool_calls)
    body, fates = sent(chat(*HI, turn))
    assert body["contents"][1]["parts"] == [
        {"text": "x"},
        {"functionCall": {"id": "c", "name": "add", "args": {}}, "thoughtSignature": SIGNATURE},
    ]
    assert fates == {}


def test_thoughts_are_shown_to_who_had_them() -> None:
    parts = (
        ThinkingPart("mine", f"google:{SIGNATURE}"),
        ThinkingPart("", f"google:{SIGNATURE}"),
        ThinkingPart("another's", "c2ln"),
        ThinkingPart("nobody's"),
        RedactedPart("x"),
        RefusalPart("No."),
        ForeignPart("search"),
    )
    body, fates = sent(chat(*HI, Message("assistant", parts)))
    assert body["contents"][1]["parts"] == [
        {"text": "mine", "thought": True, "thoughtSignature": SIGNATURE},
        {"text": "", "thoughtSignature": SIGNATURE},
        {"text": "No."},
    ]
    at = "messages[1].content"
    assert fates == {
        **{f"{at}[{k}]": "dropped" for k in (2, 3, 4, 6)},
        f"{at}[5]": "translated",
    }


def test_what_a_conversation_may_not_look_like_is_mended_and_told() -> None:
    late = Message("developer", "Be kind.")
    body, fates = sent(chat(CALL, Message("tool", '{"a":1}', tool_call_id="c"), late))
    assert [c["role"] for c in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][2]["parts"][0]["functionResponse"]["response"] == {"a": 1}
    assert fates == {
        "messages": "emulated",
        "messages[0].tool_calls": "emulated",
        "messages[2]": "translated",
    }
    body, fates = sent(chat(Message("system", "Say hi.")))
    assert (body["contents"][0]["role"], "systemInstruction" in body) == ("user", False)
    named = Message("user", "hi", name="Bo")
    assert sent(chat(named, Message("assistant", ""), named))[1].keys() == {
        "messages[0].name",
        "messages[2].name",
    }


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("3", {"output": "3"}),
        ("[1]", {"output": "[1]"}),
        ('{"b": 1.50}', {"b": 1.5}),
        ('{"output": "x"}', {"output": '{"output": "x"}'}),
        ('{"error": 1}', {"output": '{"error": 1}'}),
    ],
)
def test_what_a_function_answers_is_an_object(text: str, response: Any) -> None:
    body, _ = sent(chat(*HI, CALL, Message("tool", text, tool_call_id="c")))
    assert body["contents"][2]["parts"][0]["functionResponse"]["response"] == response


def test_pictures_of_a_function_go_into_its_answer_or_after_it() -> None:
    parts = (TextPart("see"), ImagePart(ImageURL("data:image/png;base64,AAAA")))
    asked = chat(*HI, CALL, Message("tool", parts, tool_call_id="c"))
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    body, fates = sent(asked)
    assert body["contents"][2]["parts"][0]["functionResponse"]["parts"] == [picture]
    body, fates = sent(asked, "gemini-2.5-flash")
    assert body["contents"][2]["parts"][1] == picture
    assert fates == {"messages[2].content": "translated"}


def test_sound_pictures_and_documents() -> None:
    parts = (
        AudioPart(InputAudio("AAAA", "mp3")),
        ImagePart(ImageURL("https://x/y.png?z", "high")),
        FilePart(FileData("data:application/pdf;base64,JVBE", filename="a.pdf"), citations=True),
        FilePart(FileData(file_url="https://x/y.pdf")),
        FilePart(FileData(file_id="files/abc"), {"type": "ephemeral"}),
        TextPart(""),
    )
    body, fates = sent(chat(Message("user", parts)))
    uri = "https://generativelanguage.googleapis.com/v1beta/files/abc"
    assert body["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/png", "fileUri": "https://x/y.png?z"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
        {"fileData": {"mimeType": "application/pdf", "fileUri": "https://x/y.pdf"}},
        {"fileData": {"fileUri": uri}},
    ]
    at = "messages[0].content"
    assert fates == {
        f"{at}[1].image_url.detail": "dropped",
        f"{at}[2].citations": "dropped",
        f"{at}[2].file.filename": "dropped",
        f"{at}[4].cache_control": "emulated",
    }


@pytest.mark.parametrize(
    ("request_", "kind", "param"),
    [
        (Request("m", prompt="a", suffix="b"), Unsupported, "suffix"),
        (
            chat(*HI, Message("assistant", None, tool_calls=(ToolCall("c", "f", "[1,"),))),
            BadRequest,
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            chat(Message("user", (FilePart(FileData(file_id="file-1")),))),
            Unsupported,
            "messages[0].content[0].file.file_id",
        ),
        (
            chat(Message("user", (AudioPart(InputAudio("?", "wav")),))),
            BadRequest,
            "messages[0].content[0].input_audio.data",
        ),
        (
            chat(*HI, Message("tool", "3", tool_call_id="c9")),
            BadRequest,
            "messages[1].tool_call_id",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    request_: Request, kind: type[RunnerError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        sent(request_)
    assert caught.value.param == param


# ---------------------------------------------------------------- how to answer


def test_sampling_and_what_it_loses() -> None:
    draw = Sampling(
        temperature=1.5,
        top_p=0.9,
        top_k=3,
        max_tokens=50,
        stop=tuple("abcdef"),
        seed=2**40 + 7,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        n=2,
        logprobs=True,
        top_logprobs=4,
    )
    extra = {"verbosity": Raw(b'"low"'), "cached_content": Raw(b'"cachedContents/1"')}
    body, fates = sent(chat(sampling=draw, user="u", extra=extra, service_tier="default"))
    assert body["generationConfig"] == {
        "temperature": 1.5,
        "topP": 0.9,
        "topK": 3,
        "maxOutputTokens": 50,
        "stopSequences": list("abcde"),
        "seed": 7,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 4,
    }
    assert (body["cachedContent"], body["serviceTier"]) == ("cachedContents/1", "standard")
    assert fates == {
        "stop": "dropped",
        "seed": "translated",
        "user": "dropped",
        "verbosity": "dropped",
    }
    body, fates = sent(Request("m", prompt="hi", echo=True, service_tier="scale"))
    assert body["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]
    assert fates == {"prompt": "emulated", "echo": "dropped", "service_tier": "dropped"}


@pytest.mark.parametrize(
    ("choice", "strict", "config"),
    [
        (None, None, None),
        ("auto", None, {"mode": "AUTO"}),
        ("none", True, {"mode": "NONE"}),
        ("function:add", None, {"mode": "ANY", "allowedFunctionNames": ["add"]}),
        (None, True, {"mode": "VALIDATED"}),
    ],
)
def test_which_tool(choice: str | None, strict: bool | None, config: Any) -> None:
    tool = Tool("add", None, ADD.parameters, strict)
    body, fates = sent(chat(tools=(tool,), tool_choice=choice, parallel_tool_calls=False))
    assert body.get("toolConfig") == (config and {"functionCallingConfig": config})
    assert fates == {"parallel_tool_calls": "dropped"}


SCHEMA = {
    "type": "object",
    "properties": {
        "format": {"type": ["string", "null"], "pattern": "a+"},
        "who": {"$ref": "#/$defs/who"},
        "n": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]},
        "kind": {"const": "x"},
        "when": {"type": "string", "format": "date-time"},
        "mail": {"type": "string", "format": "email"},
        "many": {"type": ["string", "integer"]},
    },
    "required": ["who"],
    "additionalProperties": False,
    "$defs": {"who": {"type": "string", "enum": ["a", "b"]}, "me": {"$ref": "#/$defs/me"}},
}


def test_a_schema_goes_as_it_is_and_what_is_not_looked_at_is_told() -> None:
    asked = ResponseFormat("json_schema", Raw(json.dumps(SCHEMA).encode()))
    body, fates = sent(chat(response_format=asked))
    assert body["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": SCHEMA,
    }
    assert fates == {"response_format": "translated"}
    assert overlooked(SCHEMA) == {"pattern", "exclusiveMinimum"}
    body, fates = sent(chat(response_format=ResponseFormat("json_object")))
    assert body["generationConfig"] == {"responseMimeType": "application/json"}
    assert fates == {}


def test_a_schema_in_googles_own_words() -> None:
    raw = Raw(json.dumps(SCHEMA).encode())
    tool = Tool("add", "Adds.", raw)
    asked = chat(tools=(tool,), response_format=ResponseFormat("json_schema", raw))
    body, fates = sent(asked, json_schema=False)
    written = body["generationConfig"]["responseSchema"]
    assert body["tools"][0]["functionDeclarations"][0]["parameters"] == written
    assert written == {
        "type": "OBJECT",
        "properties": {
            "format": {"type": "STRING", "nullable": True, "pattern": "a+"},
            "who": {"type": "STRING", "enum": ["a", "b"]},
            "n": {"type": "INTEGER", "nullable": True},
            "kind": {"type": "STRING", "enum": ["x"]},
            "when": {"type": "STRING", "format": "date-time"},
            "mail": {"type": "STRING"},
            "many": {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]},
        },
        "required": ["who"],
    }
    assert fates == dict.fromkeys(("tools[0].function.parameters", "response_format"), "translated")


def test_a_function_without_parameters_in_googles_own_words() -> None:
    tools = (Tool("now", None, Raw(b'{"type":"object","properties":{}}')),)
    body, fates = sent(chat(tools=tools), json_schema=False)
    assert body["tools"] == [{"functionDeclarations": [{"name": "now"}]}]
    assert fates == {}


def test_a_schema_that_leads_to_itself_ends() -> None:
    receipt = Receipt()
    tree: dict[str, Any] = {"properties": {"next": {"$ref": "#"}}}
    to_google(Raw(json.dumps(tree).encode()), "p", receipt)
    assert "itself" in receipt.marks["p"].how
    many: dict[str, Any] = {"properties": {name: {"$ref": "#"} for name in "abc"}}
    to_google(Raw(json.dumps(many).encode()), "p", receipt)  # in three to the 64th steps
    lost: dict[str, Any] = {"$ref": "#/$defs/none"}
    assert to_google(Raw(json.dumps(lost).encode()), "p", receipt) == {}


@pytest.mark.parametrize(
    ("model", "wanted", "config", "fate"),
    [
        ("gemini-3-pro", Reasoning("high"), {"thinkingLevel": "HIGH"}, None),
        ("gemini-3-pro", Reasoning("max"), {"thinkingLevel": "XHIGH"}, "translated"),
        ("gemini-3-pro", Reasoning("none"), {"thinkingLevel": "LOW"}, "translated"),
        ("gemini-3-flash", Reasoning("none"), {"thinkingLevel": "MINIMAL"}, "translated"),
        (
            "gemini-3-pro",
            Reasoning(budget=2000),
            {"thinkingBudget": 2000, "includeThoughts": True},
            None,
        ),
        ("gemini-3-pro", Reasoning(shown=True), {"includeThoughts": True}, None),
        ("gemini-3-pro", Reasoning(shown=False), None, None),
        ("gemini-2.5-flash", Reasoning("medium"), {"thinkingBudget": 8192}, "translated"),
        ("gemini-2.5-flash", Reasoning("none"), {"thinkingBudget": 0}, None),
        ("gemini-2.5-pro", Reasoning("none"), {"thinkingBudget": 128}, "translated"),
        (
            "gemini-2.5-flash-lite",
            Reasoning(budget=100, shown=False),
            {"thinkingBudget": 512},
            "translated",
        ),
        ("gemini-2.0-flash", Reasoning("high"), None, "dropped"),
        ("gemini-2.0-flash", Reasoning("none"), None, None),
    ],
)
def test_thinking(model: str, wanted: Reasoning, config: Any, fate: str | None) -> None:
    body, fates = sent(chat(reasoning=wanted), model)
    assert body.get("generationConfig", {}).get("thinkingConfig") == config
    assert fates.get("reasoning_effort") == fate


def test_a_host_may_refuse_a_field() -> None:
    asked = chat(sampling=Sampling(seed=1), service_tier="flex")
    body, fates = sent(asked, drop=("seed", "serviceTier"))
    assert body.keys() == {"contents", "generationConfig"}
    assert fates == {"seed": "dropped", "serviceTier": "dropped"}


def test_names_of_models() -> None:
    for model, path in (
        ("models/gemini-x", "/models/gemini-x"),
        ("tunedModels/mine", "/tunedModels/mine"),
        ("a b?c", "/models/a%20b%3Fc"),
    ):
        wire = build_request(Request("m", HI, stream=True), model, Quirks(), Receipt())
        assert wire.path == f"{path}:streamGenerateContent?alt=sse"


def test_texts_to_embed() -> None:
    wire = build_embed(EmbedRequest("m", ("a", "b"), 2, task="RETRIEVAL_QUERY"), "e")
    assert wire.path == "/models/e:batchEmbedContents"
    asked = msgspec.json.decode(wire.body, type=EmbedAll)
    assert [one.content.parts[0].text for one in asked.requests] == ["a", "b"]
    assert asked.requests[0].task_type == "RETRIEVAL_QUERY"
    assert asked.requests[1].output_dimensionality == 2
    with pytest.raises(Unsupported) as caught:
        build_embed(EmbedRequest("m", ("a", (1, 2))), "e")
    assert caught.value.param == "input[1]"


def test_signatures_are_base64_of_the_mark() -> None:
    """The mark of other providers' signatures is found without decoding them."""
    assert base64.b64encode(b"llmrr:anything").startswith(base64.b64encode(b"llmrr:"))
