"""What an answer looks like in the chunks and bodies of Gemini's API."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router.errors import (
    BadRequest,
    Overloaded,
    RateLimited,
    RunnerError,
    StreamBroken,
    UnknownModel,
)
from llm_runner_router.providers.dialects.gemini import GeminiEvents, parse_body
from llm_runner_router.surfaces import gemini, gemini_embed, gemini_write
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import a_request
from llm_runner_router.types import (
    Capabilities,
    Delta,
    Embeddings,
    EmbedRequest,
    Finish,
    ModelCard,
    Origin,
    Reasoning,
    ToolCallDelta,
    Usage,
    Wire,
)

USAGE = Usage(10, 4, cached_tokens=3, reasoning_tokens=1)
SIGNATURE = base64.b64encode(b"what google thought").decode()


async def _stream(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


async def written(
    deltas: Sequence[Delta], *, stream: bool = True, listed: bool = False, shown: bool = True
) -> list[bytes]:
    thinks = Reasoning(shown=shown)
    request = msgspec.structs.replace(a_request(), stream=stream, reasoning=thinks)
    encode = gemini.LIST.encode if listed else gemini.encode
    return [f async for f in encode(_stream(deltas), request, Reply("r-1", 1700000000))]


def chunks(frames: Sequence[bytes]) -> list[dict[str, Any]]:
    parts = b"".join(frames).split(b"\n\n")
    assert parts.pop() == b""
    assert all(part.startswith(b"data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts]


ANSWER = [
    Delta(role="assistant", origin=Origin("p/m1", "m1")),
    Delta(reasoning="hm"),
    Delta(signature="c2ln"),
    Delta(redacted="data"),
    Delta(text="Let "),
    Delta(text="me see."),
    Delta(tool_calls=(ToolCallDelta(0, "c0", "add", '{"a"', f"google:{SIGNATURE}"),)),
    Delta(tool_calls=(ToolCallDelta(1, None, "sub", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, None, None, ":1}"),)),
    Delta(finish="tool_calls"),
    Delta(usage=USAGE),
]
SEALED = base64.b64encode(b"llmrr:s:c2ln").decode()
HIDDEN = base64.b64encode(b"llmrr:r:data").decode()
CALLS = [
    {
        "functionCall": {"id": "c0", "name": "add", "args": {"a": 1}},
        "thoughtSignature": SIGNATURE,
    },
    {"functionCall": {"id": "call_1_0_1", "name": "sub", "args": {}}},
]
COUNTED = {
    "promptTokenCount": 10,
    "candidatesTokenCount": 3,
    "thoughtsTokenCount": 1,
    "cachedContentTokenCount": 3,
    "totalTokenCount": 14,
}


async def test_a_stream_has_calls_whole_and_at_its_end() -> None:
    found = chunks(await written(ANSWER))
    parts = [chunk["candidates"][0]["content"]["parts"] for chunk in found]
    assert parts == [
        [{"text": "hm", "thought": True}],
        [{"text": "", "thought": True, "thoughtSignature": SEALED}],
        [{"text": "", "thought": True, "thoughtSignature": HIDDEN}],
        [{"text": "Let "}],
        [{"text": "me see."}],
        CALLS,
    ]
    assert {chunk["modelVersion"] for chunk in found} == {"m1"}
    assert {chunk["responseId"] for chunk in found} == {"r-1"}
    assert found[-1]["candidates"][0]["finishReason"] == "STOP"
    assert found[-1]["usageMetadata"] == COUNTED
    assert all("finishReason" not in chunk["candidates"][0] for chunk in found[:-1])


async def test_the_same_as_one_list() -> None:
    frames = await written(ANSWER, listed=True)
    assert json.loads(b"".join(frames)) == chunks(await written(ANSWER))
    with pytest.raises(json.JSONDecodeError):
        json.loads(b"".join(frames[:-1]))
    told = b"".join(frames[:2]) + gemini.LIST.stream_error(StreamBroken("cut"))
    assert json.loads(told)[-1]["error"]["code"] == 502


async def test_a_whole_answer() -> None:
    (body,) = await written(ANSWER, stream=False)
    found = json.loads(body)
    (candidate,) = found["candidates"]
    assert candidate["content"]["parts"] == [
        {"text": "hm", "thought": True, "thoughtSignature": SEALED},
        {"text": "", "thought": True, "thoughtSignature": HIDDEN},
        {"text": "Let me see."},
        *CALLS,
    ]
    assert (candidate["finishReason"], found["usageMetadata"]) == ("STOP", COUNTED)


async def test_thoughts_are_for_who_asks_for_them() -> None:
    deltas = [Delta(reasoning="hm"), Delta(text="x", finish="stop")]
    for stream in (True, False):
        assert b"hm" not in b"".join(await written(deltas, stream=stream, shown=False))


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "STOP"), ("length", "MAX_TOKENS"), ("content_filter", "SAFETY"), ("error", "OTHER")],
)
async def test_why_it_stopped(finish: Finish, reason: str) -> None:
    deltas = [Delta(text="x"), Delta(finish=finish)]
    assert chunks(await written(deltas))[-1]["candidates"][0]["finishReason"] == reason
    (body,) = await written(deltas, stream=False)
    assert json.loads(body)["candidates"][0]["finishReason"] == reason


async def test_several_candidates_and_probabilities() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97]}
    told = Raw(json.dumps({"content": [{**token, "top_logprobs": [token]}]}).encode())
    deltas = [
        Delta(index=1, text="b"),
        Delta(index=0, text="a", logprobs=told),
        Delta(index=0, finish="stop"),
        Delta(index=1, finish="length"),
    ]
    first = {"token": "a", "logProbability": -0.5}
    result = {"chosenCandidates": [first], "topCandidates": [{"candidates": [first]}]}
    found = chunks(await written(deltas))
    assert found[1]["candidates"][0]["logprobsResult"] == result
    assert [c["finishReason"] for c in found[2]["candidates"]] == ["STOP", "MAX_TOKENS"]
    (body,) = await written(deltas, stream=False)
    candidates = json.loads(body)["candidates"]
    assert [c["index"] for c in candidates] == [0, 1]
    assert candidates[0]["logprobsResult"] == result
    with pytest.raises(StreamBroken):
        await written(deltas[:-1])


async def test_arguments_that_are_no_object_are_not_lost() -> None:
    call = ToolCallDelta(0, "c", "f", "[1,")
    (body,) = await written([Delta(tool_calls=(call,), finish="tool_calls")], stream=False)
    part = json.loads(body)["candidates"][0]["content"]["parts"][0]
    assert part["functionCall"]["args"] == {"arguments": "[1,"}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_broken_stream_is_no_answer(stream: bool, listed: bool) -> None:
    with pytest.raises(StreamBroken):
        await written([Delta(text="x")], stream=stream, listed=listed)


PAYLOADS = [
    b'{"candidates":[{"content":{"parts":[{"text":"x"}], "odd":1.0}}]}',
    b'{"candidates":[{"content":{"parts":[{"text":"a"},{"executableCode":{}},{"text":"b"}]}}]}',
    b'{"candidates":[{"finishReason":"STOP"}],\n"usageMetadata":{"promptTokenCount":1}}',
]


async def test_chunks_of_the_same_dialect_pass_untouched() -> None:
    reader = GeminiEvents()
    deltas = [delta for payload in PAYLOADS for delta in reader.feed(payload)]
    out = b"".join(await written(deltas))
    assert out == b"".join(b"data: %b\n\n" % p.replace(b"\n", b"\ndata: ") for p in PAYLOADS)
    listed = b"".join(await written(deltas, listed=True))
    assert listed == b"[" + b",\r\n".join(PAYLOADS) + b"\n]"
    whole = b'{"candidates":[{"content":{"parts":[{"text":"x"}]},"finishReason":"STOP"}],"odd" : 1}'
    assert await written(parse_body(whole), stream=False) == [whole]
    blocked = b'{"promptFeedback": {"blockReason":"SAFETY"}}'
    assert await written(parse_body(blocked), stream=False) == [blocked]
    assert b"".join(await written(GeminiEvents().feed(blocked))) == b"data: %b\n\n" % blocked
    with pytest.raises(StreamBroken):
        await written(deltas[:-1])


async def test_chunks_of_another_dialect_are_written_anew() -> None:
    foreign = Delta(text="x", finish="stop", wire=Wire("openai_chat", "event", b"{}"))
    assert chunks(await written([foreign]))[-1]["candidates"][0]["finishReason"] == "STOP"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("exc", "code", "status", "details"),
    [
        (BadRequest("no", param="contents"), 400, "INVALID_ARGUMENT", ["BadRequest"]),
        (UnknownModel("who?"), 404, "NOT_FOUND", ["ErrorInfo"]),
        (RateLimited("slow", retry_after=2), 429, "RESOURCE_EXHAUSTED", ["ErrorInfo", "RetryInfo"]),
        (Overloaded("full"), 503, "UNAVAILABLE", ["ErrorInfo"]),
        (RunnerError("odd"), 500, "INTERNAL", []),
        (StreamBroken("cut"), 502, "UNAVAILABLE", ["ErrorInfo"]),
    ],
)
def test_errors(exc: RunnerError, code: int, status: str, details: list[str]) -> None:
    told = json.loads(gemini.error(exc))["error"]
    assert (told["code"], told["message"], told["status"]) == (code, exc.message, status)
    kinds = [one["@type"].rpartition(".")[2] for one in told.get("details", [])]
    assert kinds == details
    assert gemini.stream_error(exc) == b"data: " + gemini.error(exc) + b"\n\n"
    with pytest.raises(RunnerError) as caught:
        GeminiEvents().feed(gemini.error(exc))
    assert caught.value.status in (code, 502)


# ---------------------------------------------------------------- models, vectors, tokens


def test_models() -> None:
    card = ModelCard("a/b", context=9, max_output=4, capabilities=Capabilities(embeddings=True))
    told = json.loads(gemini_write.models([card, ModelCard("c")], 0))["models"]
    assert told[0]["name"] == "models/a/b"
    assert (told[0]["inputTokenLimit"], told[0]["outputTokenLimit"]) == (9, 4)
    assert "embedContent" in told[0]["supportedGenerationMethods"]
    assert "inputTokenLimit" not in told[1]
    assert json.loads(gemini_write.model(card, 0)) == told[0]


def test_vectors_and_tokens() -> None:
    result = Embeddings(((1.0, 2.0),), Usage(3), Origin("t", "m"))
    asked = gemini_embed.Asked(EmbedRequest("m", ("a",)), many=False, titles=True)
    told = {"usageMetadata": {"promptTokenCount": 3}}
    assert json.loads(gemini_embed.encode(result, asked)) == {
        "embedding": {"values": [1.0, 2.0]},
        **told,
    }
    many = msgspec.structs.replace(asked, many=True, titles=False)
    assert json.loads(gemini_embed.encode(result, many)) == {
        "embeddings": [{"values": [1.0, 2.0]}],
        **told,
    }
    origin = gemini_embed.marked(result, asked).origin
    assert origin is not None
    assert origin.fidelity["title"].fate == "dropped"
    assert gemini_embed.marked(result, many) == result
    assert gemini.encode_count(7) == b'{"totalTokens":7}'


# ---------------------------------------------------------------- there and back

SIGNED = st.sampled_from([f"google:{SIGNATURE}", "c2ln"])
PIECES = st.one_of(
    st.text(min_size=1, max_size=5).map(lambda t: Delta(text=t)),
    st.text(min_size=1, max_size=5).map(lambda t: Delta(reasoning=t)),
    st.builds(lambda t, s: Delta(reasoning=t, signature=s), st.text(max_size=5), SIGNED),
    st.tuples(st.integers(0, 2), st.text(max_size=4)).map(
        lambda c: Delta(tool_calls=(ToolCallDelta(c[0], f"c{c[0]}", None, c[1]),))
    ),
)
HEAD = Delta(tool_calls=tuple(ToolCallDelta(k, f"c{k}", "f", '{"a":"') for k in range(3)))
TAIL = Delta(tool_calls=tuple(ToolCallDelta(k, None, None, '"}') for k in range(3)))


@given(st.lists(PIECES, max_size=12), st.booleans())
def test_reading_back_what_was_written(pieces: list[Delta], listed: bool) -> None:
    """Our reader of Gemini's chunks gets what our writer was given, in every order."""
    given = [HEAD, *pieces, TAIL, Delta(finish="stop", usage=USAGE)]
    frames = asyncio.run(written(given, listed=listed))
    events = json.loads(b"".join(frames)) if listed else chunks(frames)
    reader = GeminiEvents()
    back: list[Delta] = []
    for event in events:
        back += reader.feed(json.dumps(event).encode())
    for field in ("text", "reasoning"):
        want = "".join(getattr(delta, field) for delta in pieces)
        assert "".join(getattr(delta, field) for delta in back) == want
    signed = [delta.signature for delta in pieces if delta.signature]
    assert [_plain(delta.signature) for delta in back if delta.signature] == signed
    calls = [call for delta in back for call in delta.tool_calls]
    assert [(call.index, call.id, call.name) for call in calls] == [
        (k, f"c{k}", "f") for k in range(3)
    ]
    for call in calls:
        told = "".join(p.arguments for d in given for p in d.tool_calls if p.index == call.index)
        try:
            assert json.loads(call.arguments) == json.loads(told)
        except json.JSONDecodeError:
            assert json.loads(call.arguments) == {"arguments": told}
    assert back[-1].finish == "tool_calls"
    assert [delta.usage for delta in back if delta.usage] == [USAGE]


def _plain(signature: str) -> str:
    """A signature as its provider wrote it, or with Google's mark."""
    data = base64.b64decode(signature.removeprefix("google:"))
    mark = b"llmrr:s:"
    return data.removeprefix(mark).decode() if data.startswith(mark) else signature
