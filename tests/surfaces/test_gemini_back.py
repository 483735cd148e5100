"""Requests written for Gemini's API and read back are what they were."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.gemini_request import build_request
from llm_runner_router.surfaces.gemini import decode
from llm_runner_router.types import (
    AudioPart,
    FileData,
    FilePart,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    Part,
    Reasoning,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)

TEXT = st.text(min_size=1, max_size=6)
SIGNED = st.binary(min_size=1, max_size=9).map(lambda b: f"google:{base64.b64encode(b).decode()}")
MEDIA: st.SearchStrategy[Part] = st.sampled_from(
    [
        ImagePart(ImageURL("data:image/png;base64,AAAA")),
        ImagePart(ImageURL("https://x/y.png")),
        AudioPart(InputAudio("AAAA", "wav")),
        FilePart(FileData("data:application/pdf;base64,JVBE")),
        FilePart(FileData(file_url="https://x/y.pdf")),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=3).map(
    lambda value: msgspec.json.encode(value).decode()
)
USER = st.one_of(
    TEXT.map(lambda text: Message("user", text)),
    st.lists(TEXT.map(TextPart) | MEDIA, min_size=2, max_size=4).map(
        lambda parts: Message("user", tuple(parts))
    ),
)


@st.composite
def model_turns(draw: st.DrawFn) -> list[Message]:
    """What the model says, with the answers to the functions it calls."""
    content: list[Part] = []
    if draw(st.booleans()):
        content.append(ThinkingPart(draw(TEXT), draw(SIGNED)))
    content.append(TextPart(draw(TEXT)))
    names = draw(st.lists(st.sampled_from(["add", "sub"]), max_size=3))
    # One call of a turn at least carries the signature, else its thought would.
    calls = tuple(
        ToolCall(
            f"id{draw(st.integers(0, 10**9))}-{k}", name, draw(OBJECTS), signature=draw(SIGNED)
        )
        for k, name in enumerate(names)
    )
    lone = content[0] if len(content) == 1 else None
    said: Any = lone.text if isinstance(lone, TextPart) else tuple(content)
    turn = Message("assistant", said, tool_calls=calls)
    answers = [
        Message("tool", draw(OBJECTS | TEXT), tool_call_id=call.id, is_error=draw(st.booleans()))
        for call in calls
    ]
    return [turn, *answers, draw(USER)]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Anything that Gemini's API can say as it is."""
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    messages.append(draw(USER))
    for turn in draw(st.lists(model_turns(), max_size=3)):
        messages += turn
    number = st.none() | st.floats(0, 1)
    tools = tuple(
        Tool(name, "d", Raw(b'{"type":"object","properties":{"a":{"type":"string"}}}'))
        for name in ("add", "sub")
    )
    choices = ["auto", "none", "required", "function:add"]
    return Request(
        "m",
        tuple(messages),
        tools=tools,
        tool_choice=draw(st.none() | st.sampled_from(choices)),
        response_format=draw(
            st.none()
            | st.just(ResponseFormat("json_object"))
            | st.just(ResponseFormat("json_schema", Raw(b'{"type":"object"}'), strict=True))
        ),
        sampling=Sampling(
            temperature=draw(number),
            top_p=draw(number),
            top_k=draw(st.none() | st.integers(0, 99)),
            max_tokens=draw(st.none() | st.integers(1, 999)),
            stop=tuple(draw(st.lists(TEXT, max_size=5))),
            seed=draw(st.none() | st.integers(-(2**31), 2**31 - 1)),
            presence_penalty=draw(number),
            frequency_penalty=draw(number),
            n=draw(st.integers(1, 8)),
        ),
        include_usage=True,
        reasoning=draw(
            st.none()
            | st.builds(
                Reasoning,
                st.sampled_from(["minimal", "low", "medium", "high", "xhigh"]),
                st.none(),
                st.booleans(),
            )
            | st.builds(Reasoning, st.none(), st.integers(1, 999), st.booleans())
        ),
        service_tier=draw(st.none() | st.sampled_from(["default", "flex", "priority"])),
    )


@given(requests())
def test_what_was_written_is_read_back(request: Request) -> None:
    """The dialect's own request, read by the surface, is the request that it was made from."""
    receipt = Receipt()
    wire = build_request(request, "gemini-3-pro", Quirks(), receipt)
    assert receipt.marks == {}
    back = decode(wire.body, "m", stream=False)
    assert msgspec.structs.replace(back, wire=None) == request
