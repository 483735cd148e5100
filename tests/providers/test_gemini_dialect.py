"""Gemini's dialect as an upstream speaks it: chunks, bodies, vectors and errors in."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from llm_runner_router.deltas import Answer, collect
from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContextTooLong,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unsupported,
    UpstreamError,
    UpstreamRefused,
)
from llm_runner_router.providers import dialects
from llm_runner_router.providers.dialects.gemini import GeminiEvents, parse_body, parse_embed
from llm_runner_router.providers.dialects.gemini_errors import parse_error
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.types import (
    Delta,
    EmbedRequest,
    Message,
    Reasoning,
    Request,
    Sampling,
    ToolCall,
    Usage,
)

from .asking import a_call, ask, broken, target_for
from .gemini_upstream import CALLS, SIGNATURE, Gemini, chunk, status
from .upstream import Seen, event, reply

HOST = find("google")
ASK = Request("m", (Message("user", "hi"),), stream=True)
WHOLE = msgspec.structs.replace(ASK, stream=False)
COUNTED = Usage(8, 9, cached_tokens=3, reasoning_tokens=4)


def at(upstream: Any, **facts: Any) -> Any:
    """A target that asks `upstream` for `gemini-3-pro`."""
    return target_for(upstream, host=HOST, model="gemini-3-pro", **facts)


class Base:
    """`target_for` with Google's version in the URL."""

    def __init__(self, upstream: Gemini) -> None:
        self.upstream = upstream

    async def __call__(self, seen: Seen) -> None:
        seen.target = seen.target.replace("/v1/", "/v1beta/", 1)
        await self.upstream(seen)


# ---------------------------------------------------------------- streams


async def test_a_stream_over_the_wire() -> None:
    upstream = Gemini(*CALLS)
    asked = msgspec.structs.replace(ASK, reasoning=Reasoning("low", shown=True))
    async with at(Base(upstream)) as (target, _):
        answer = await ask(target, asked)
    choice = answer.choices[0]
    assert (choice.text, choice.reasoning) == ("Let me see. 日本", "hm")
    assert choice.tool_calls == (
        ToolCall("f1", "add", '{"a": 1}', signature=f"google:{SIGNATURE}"),
        ToolCall("f2", "sub", "{}"),
    )
    assert choice.finish == "tool_calls"
    assert answer.usage == COUNTED
    assert answer.origin is not None
    assert answer.origin.fidelity == {}
    assert upstream.asked[0].generation_config is not None
    assert upstream.asked[0].generation_config.thinking_config is not None


BYTES = b"".join(event(one).replace(b"\n", b"\r\n") for one in CALLS)


def reader_of(choices: int = 1) -> StreamReader:
    framing = dialects.find("gemini").framing()
    return StreamReader(GeminiEvents(), framing, choices, lambda payload: payload)


def read(data: bytes, choices: int = 1) -> tuple[list[Delta], RunnerError | None]:
    """What a reader makes of a stream that ends after `data`."""
    reader = StreamReader(
        GeminiEvents(), dialects.find("gemini").framing(), choices, lambda payload: payload
    )
    deltas = reader.feed(data) + reader.end()
    return deltas, reader.failure


async def added(deltas: list[Delta]) -> Answer:
    async def one_by_one() -> Any:
        for delta in deltas:
            yield delta

    return await collect(one_by_one())


async def test_a_stream_cut_at_any_byte_is_never_a_success() -> None:
    whole, failure = read(BYTES)
    assert failure is None
    expected = await added(whole)
    last = len(BYTES) - len(b"\r\n\r\n")  # the blank line is not missed, its event is complete
    for length in range(last):
        _, failure = read(BYTES[:length])
        assert isinstance(failure, StreamBroken), length
    for length in range(last, len(BYTES)):
        deltas, failure = read(BYTES[:length])
        assert failure is None
        assert await added(deltas) == expected


async def test_a_stream_cut_into_any_chunks_is_the_same() -> None:
    expected = await added(read(BYTES)[0])
    for size in (1, 2, 3, 7, 64):
        reader = StreamReader(
            GeminiEvents(), dialects.find("gemini").framing(), 1, lambda payload: payload
        )
        deltas = []
        for start in range(0, len(BYTES), size):
            deltas += reader.feed(BYTES[start : start + size])
        assert await added(deltas + reader.end()) == expected
        assert reader.failure is None


class Slow(GeminiEvents):
    """Reads nothing in the short way."""

    def _plain(self, candidate: Any, usage: Any, wire: Any) -> None:
        return None


def test_the_usual_case_is_read_as_any_other() -> None:
    fast, slow = GeminiEvents(), Slow()
    for one in (*CALLS, chunk({"text": "x"}), chunk(finish="MAX_TOKENS"), chunk({"thought": True})):
        payload = json.dumps(one).encode()
        assert fast.feed(payload) == slow.feed(payload)


async def test_several_candidates_take_turns() -> None:
    stream = [
        chunk({"text": "a"}, index=0),
        chunk({"text": "b"}, index=1),
        chunk({"functionCall": {"name": "f"}}, index=1, finish="STOP"),
        chunk({"text": "A"}, index=0, finish="MAX_TOKENS"),
    ]
    deltas, failure = read(b"".join(map(event, stream)), choices=2)
    answer = await added(deltas)
    assert failure is None
    assert [(c.text, c.finish) for c in answer.choices] == [("aA", "length"), ("b", "tool_calls")]
    assert answer.choices[1].tool_calls == (ToolCall("", "f", "{}"),)
    _, failure = read(b"".join(map(event, stream[:-1])), choices=2)
    assert isinstance(failure, StreamBroken)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((reason, "content_filter") for reason in ("SAFETY", "RECITATION", "SPII", "BLOCKLIST")),
    ],
)
def test_reasons_to_finish(reason: str, finish: str) -> None:
    body = json.dumps(chunk({"text": "x"}, finish=reason)).encode()
    assert parse_body(body)[-1].finish == finish
    assert GeminiEvents().feed(body)[-1].finish == finish


@pytest.mark.parametrize("reason", ["OTHER", "MALFORMED_FUNCTION_CALL", "A_REASON_OF_TOMORROW"])
def test_a_model_that_gave_up_may_be_asked_again(reason: str) -> None:
    told = chunk(finish=reason)
    told["candidates"][0]["finishMessage"] = "print(1)"
    with pytest.raises(UpstreamError, match=r"gave up.*print\(1\)") as caught:
        parse_body(json.dumps(told).encode())
    assert caught.value.retryable
    _, failure = read(event(chunk({"text": "a"})) + event(told))
    assert isinstance(failure, UpstreamError)


async def test_a_prompt_that_is_refused_is_told_at_once() -> None:
    blocked = {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 4},
    }
    for asked in (ASK, WHOLE):
        async with at(Base(Gemini(blocked))) as (target, _):
            answer = await ask(target, asked)
        assert (answer.text, answer.choices[0].finish) == ("", "content_filter")
        assert answer.usage == Usage(4)


OVERLOADED = {"error": {"code": 503, "message": "Overloaded", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    "told",
    [
        event(OVERLOADED),
        json.dumps(OVERLOADED, indent=2).encode() + b"\n",
        json.dumps([OVERLOADED], indent=2).encode(),
    ],
)
async def test_an_error_inside_a_stream(told: bytes) -> None:
    async def fails(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(event(CALLS[1]))
        await seen.chunk(told[:9])
        await seen.chunk(told[9:])
        await seen.end()

    async with at(fails) as (target, _):
        error = await broken(target, ASK)
    assert isinstance(error, UpstreamError)
    assert error.upstream_status == 503
    assert "Overloaded" in error.message


@pytest.mark.parametrize("told", [b"{" * 99_000 + b"\n}", b"{\n" * 2000, b"[]\n", b"{\n"])
async def test_bare_lines_that_are_no_error_break_a_stream(told: bytes) -> None:
    async def fails(seen: Seen) -> None:
        await seen.head()
        await seen.chunk(event(CALLS[1]) + told)
        await seen.end()

    async with at(fails) as (target, _):
        assert isinstance(await broken(target, ASK), StreamBroken)


def test_a_chunk_that_is_none_changes_nothing() -> None:
    events = GeminiEvents()
    bad = [
        b"{",
        b"[]",
        b"{}",
        b'{"candidates":[{"index":-1}]}',
        b'{"candidates":[{"content":{"parts":[{"text":1}]}}]}',
    ]
    for payload in bad:
        with pytest.raises(BadResponse):
            events.feed(payload)
    (first,) = events.feed(json.dumps(chunk({"text": "x"})).encode())
    assert first.role == "assistant"
    (usage,) = events.feed(b'{"usageMetadata":{"promptTokenCount":-1,"candidatesTokenCount":2}}')
    assert usage.usage == Usage(0, 2)


# ---------------------------------------------------------------- bodies


async def test_a_whole_answer() -> None:
    told = chunk({"text": "hm", "thought": True}, {"text": "Ok", "thoughtSignature": SIGNATURE})
    told["candidates"][0]["citationMetadata"] = {"citationSources": [{"uri": "https://x"}]}
    told["candidates"][0]["logprobsResult"] = {
        "chosenCandidates": [{"token": "Ok", "tokenId": 7, "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "Ok", "logProbability": -0.5}]}],
    }
    async with at(Base(Gemini(told))) as (target, _):
        answer = await ask(target, WHOLE)
    choice = answer.choices[0]
    assert (choice.text, choice.reasoning, choice.finish) == ("Ok", "hm", "stop")
    assert choice.signature == f"google:{SIGNATURE}"
    assert [json.loads(bytes(one)) for one in choice.citations] == [{"uri": "https://x"}]
    token = {"token": "Ok", "logprob": -0.5, "bytes": [79, 107]}
    assert json.loads(bytes(choice.logprobs[0])) == {
        "content": [{**token, "top_logprobs": [token]}],
        "refusal": None,
    }
    assert answer.wire is not None
    assert json.loads(answer.wire.data) == told


async def test_a_list_of_chunks_is_an_answer_too() -> None:
    async with at(reply(200, json.dumps(CALLS).encode())) as (target, _):
        answer = await ask(target, ASK)
    assert answer.text == "Let me see. 日本"
    assert answer.wire is None
    with pytest.raises(BadResponse, match="finish"):
        parse_body(json.dumps(CALLS[:-1]).encode())
    with pytest.raises(BadResponse):
        parse_body(b"[")


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"candidates":[]}', b'{"responseId":"r"}'])
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(body)


# ---------------------------------------------------------------- errors

RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
FIELD = {
    "@type": "type.googleapis.com/google.rpc.BadRequest",
    "fieldViolations": [{"field": "generation_config.seed", "description": "no"}],
}


@pytest.mark.parametrize(
    ("body", "kind", "facts"),
    [
        (
            status(429, "RESOURCE_EXHAUSTED", "Quota exceeded", RETRY),
            RateLimited,
            {"retry_after": 34.5},
        ),
        (status(400, "INVALID_ARGUMENT", "API key not valid.", KEY), UpstreamRefused, {}),
        (status(403, "PERMISSION_DENIED", "No."), UpstreamRefused, {}),
        (status(404, "NOT_FOUND", "models/x is not found"), UpstreamRefused, {}),
        (
            status(400, "INVALID_ARGUMENT", "Invalid value", FIELD),
            BadRequest,
            {"param": "generation_config.seed"},
        ),
        (
            status(
                400,
                "INVALID_ARGUMENT",
                "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            ),
            ContextTooLong,
            {},
        ),
        (
            status(400, "FAILED_PRECONDITION", "User location is not supported."),
            UpstreamRefused,
            {"upstream_status": 400},
        ),
        (status(503, "UNAVAILABLE", "The model is overloaded.", RETRY), UpstreamError, {}),
        (b"oops", UpstreamError, {}),
        (b"[" + status(500, "INTERNAL", "x", {"@type": 1}, RETRY) + b"]", UpstreamError, {}),
    ],
)
def test_errors(body: bytes, kind: type[RunnerError], facts: dict[str, Any]) -> None:
    try:
        value = json.loads(body)
        code = (value[0] if isinstance(value, list) else value)["error"]["code"]
    except ValueError:
        code = 502
    error = parse_error(code, lambda name: None, body, now=0.0)
    assert type(error) is kind
    assert {name: getattr(error, name) for name in facts} == facts


async def test_an_error_over_the_wire_tells_no_key() -> None:
    async def refuses(seen: Seen) -> None:
        key = seen.headers["x-goog-api-key"]
        await reply(400, status(400, "INVALID_ARGUMENT", f"API key {key} not valid.", KEY))(seen)

    async with at(refuses) as (target, _):
        error = await broken(target, ASK)
    assert isinstance(error, UpstreamRefused)
    assert "***" in error.message
    assert "canary" not in str(error)


# ---------------------------------------------------------------- embeddings


async def test_vectors() -> None:
    upstream = Gemini()
    async with at(Base(upstream)) as (target, _):
        found = await target.embed(EmbedRequest("m", ("a", "b"), task="CLUSTERING"), a_call())
    assert found.vectors == ((0.0, 0.5), (1.0, 0.5))
    assert found.usage == Usage(5)
    assert found.origin is not None
    assert found.origin.fidelity == {}
    assert upstream.embeds[0].requests[0].task_type == "CLUSTERING"


async def test_a_host_of_another_dialect_does_not_know_what_vectors_are_for() -> None:
    body = b'{"data":[{"index":0,"embedding":[1.0]}]}'
    async with target_for(reply(200, body)) as (target, _):
        found = await target.embed(EmbedRequest("m", ("a",), task="CLUSTERING"), a_call())
    assert found.origin is not None
    assert found.origin.fidelity["taskType"].fate == "dropped"


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"x", "not embeddings"),
        (b'{"embeddings":[{"values":[1]}]}', "1 embeddings for 2"),
        (b'{"embeddings":[{"values":[1]},{"values":[1,2]}]}', "unequal"),
    ],
)
def test_what_is_no_vectors(body: bytes, match: str) -> None:
    with pytest.raises(BadResponse, match=match):
        parse_embed(body, 2)


async def test_what_a_strict_client_may_not_lose_is_refused_before_anything_is_sent() -> None:
    asked = msgspec.structs.replace(
        ASK, sampling=Sampling(stop=tuple("abcdef")), strict=True, user="u"
    )
    async with at(Base(Gemini(*CALLS))) as (target, upstream):
        error = await broken(target, asked)
        assert upstream.seen == []
    assert isinstance(error, Unsupported)
    assert error.param == "stop"
