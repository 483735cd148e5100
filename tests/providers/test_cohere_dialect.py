"""Cohere's v2 API as an upstream speaks it: events, bodies and errors in, and targets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from llm_runner_router.config import Secret
from llm_runner_router.deltas import Choice, Collector
from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContentFiltered,
    ContextTooLong,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unsupported,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.providers.dialects.cohere import (
    CohereEvents,
    parse_body,
    parse_embed,
    parse_error,
)
from llm_runner_router.providers.hosts import Host, find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.types import (
    Delta,
    EmbedRequest,
    Message,
    Request,
    RerankRequest,
    Tool,
    ToolCall,
    Usage,
)

from .asking import a_call, ask
from .cohere_upstream import (
    CALLED,
    CALLS,
    CITATION,
    SAID,
    WHOLE,
    Cohere,
    answer,
    block,
    call,
    end,
    framed,
    message,
    start,
)
from .upstream import Answer, Upstream, reply

NO_HEADERS: dict[str, str] = {}
HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object"}'))
SUB = Tool("sub")


# ---------------------------------------------------------------- answers


def added(deltas: Sequence[Delta]) -> Choice:
    collector = Collector()
    for delta in deltas:
        collector.add(delta)
    (choice,) = collector.answer().choices
    return choice


def read(events: Sequence[dict[str, Any]]) -> list[Delta]:
    reader = CohereEvents()
    return [delta for one in events for delta in reader.feed(json.dumps(one).encode())]


@pytest.mark.parametrize(
    "deltas", [read(CALLS), list(parse_body(json.dumps(CALLED).encode()))], ids=("stream", "body")
)
def test_thoughts_a_plan_and_calls(deltas: list[Delta]) -> None:
    choice = added(deltas)
    assert (choice.reasoning, choice.text, choice.finish) == (
        "hm",
        "Let me see. 日本",
        "tool_calls",
    )
    assert choice.tool_calls == (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "sub", "{}"))
    assert deltas[-1].usage == Usage(8, 5, cached_tokens=3)
    assert deltas[0].role == "assistant"
    assert deltas[0].wire is not None


def test_calls_in_lists_and_with_odd_indices() -> None:
    listed = json.loads(json.dumps([*call(3, "c1", "add", "{}"), *call(7, "c2", "sub", "{}")]))
    for one in listed:
        if "delta" in one:
            told = one["delta"]["message"]
            told["tool_calls"] = [told["tool_calls"]]
    found = added(read([start(), *listed, end("TOOL_CALL")])).tool_calls
    assert [(one.id, one.arguments) for one in found] == [("c1", "{}"), ("c2", "{}")]


def test_citations_and_probabilities() -> None:
    text = block(0, "text", "Let", " it")
    text[1]["logprobs"] = {"text": "Let", "token_ids": [1, 2], "logprobs": [-0.5, -0.25]}
    cited = {"type": "citation-start", "index": 0, "delta": {"message": {"citations": CITATION}}}
    deltas = read([start(), *text, cited, {"type": "citation-end", "index": 0}, end()])
    choice = added(deltas)
    (told,) = choice.logprobs
    (one,) = json.loads(bytes(told))["content"]
    assert (one["token"], one["logprob"], one["bytes"]) == ("Let", -0.75, list(b"Let"))
    assert [json.loads(bytes(citation)) for citation in choice.citations] == [CITATION]
    body = answer(content=[{"type": "text", "text": "Let"}], citations=[CITATION, CITATION])
    body["logprobs"] = [{"text": "Let", "token_ids": [1], "logprobs": [-0.5]}]
    choice = added(parse_body(json.dumps(body).encode()))
    assert len(choice.citations) == 2
    assert json.loads(bytes(choice.logprobs[0]))["content"][0]["logprob"] == -0.5


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("COMPLETE", "stop"),
        ("STOP_SEQUENCE", "stop"),
        ("MAX_TOKENS", "length"),
        ("TOOL_CALL", "tool_calls"),
        ("ERROR_TOXIC", "content_filter"),
    ],
)
def test_reasons_to_finish(reason: str, finish: str) -> None:
    assert read([start(), end(reason)])[-1].finish == finish
    assert parse_body(json.dumps(answer(reason)).encode())[-1].finish == finish


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("ERROR", UpstreamError), ("TIMEOUT", UpstreamTimeout), ("NEW", UpstreamError)],
)
def test_reasons_that_are_failures(reason: str, kind: type[RunnerError]) -> None:
    with pytest.raises(kind):
        parse_body(json.dumps(answer(reason)).encode())
    with pytest.raises(kind, match="the words"):
        read([start(), end(reason, error="the words")])
    with pytest.raises(UpstreamError, match="the words"):
        read([start(), end("COMPLETE", error="the words")])


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"type":"tool-call-delta","index":0,"delta":{}}',
        b'{"type":"tool-call-start","index":99999,"delta":{"message":{"tool_calls":{"id":"a"}}}}',
        b'{"type":"tool-call-start","index":0,"delta":{"message":{}}}',
        b'{"type":"content-delta","delta":{"message":{"content":3}}}',
    ],
)
def test_what_is_no_event(payload: bytes) -> None:
    with pytest.raises(BadResponse):
        CohereEvents().feed(payload)


def test_events_nobody_knows_pass() -> None:
    (delta,) = CohereEvents().feed(b'{"type":"tomorrow","x":1}')
    assert delta.wire is not None
    assert CohereEvents().feed(b"[DONE]") == ()
    with pytest.raises(UpstreamError, match="internal"):
        CohereEvents().feed(b'{"message":"internal"}')


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"{}", b'{"message":null}', b'{"message":{"content":1}}']
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(body)


@pytest.mark.parametrize("events", [CALLS, SAID])
def test_a_stream_cut_at_every_byte_is_never_whole(events: tuple[dict[str, Any], ...]) -> None:
    data = b"".join(framed(one) for one in events)
    whole = added(read(events))
    for cut in range(len(data)):
        reader = StreamReader(CohereEvents(), SSEParser(), 1, lambda data: data)
        deltas = [*reader.feed(data[:cut]), *reader.end()]
        if reader.failure is None:
            assert cut >= len(data) - 2, "only the line feeds of the last event may be missing"
            assert added(deltas) == whole
        else:
            assert isinstance(reader.failure, StreamBroken)
    # A last event without a reason is no end either.
    reader = StreamReader(CohereEvents(), SSEParser(), 1, lambda data: data)
    reader.feed(b"".join(framed(one) for one in (*events[:-1], end(None))))
    reader.end()
    assert isinstance(reader.failure, StreamBroken)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "invalid request: message must not be empty in a turn", BadRequest),
        (
            400,
            "too many tokens: total number of tokens in the prompt cannot exceed",
            ContextTooLong,
        ),
        (401, "invalid api token", UpstreamRefused),
        (402, "please add or update your payment method", UpstreamRefused),
        (404, "model 'x' not found", UpstreamRefused),
        (429, "trial key limit: 10 calls per minute", RateLimited),
        (498, "a word that is denied", ContentFiltered),
        (499, "request cancelled", UpstreamError),
        (500, "internal server error", UpstreamError),
        (503, "unavailable", UpstreamError),
        (504, "timeout", UpstreamTimeout),
    ],
)
def test_errors(status: int, text: str, kind: type[RunnerError]) -> None:
    headers = {"retry-after": "7"}
    error = parse_error(status, headers.get, message(text), now=0.0)
    assert type(error) is kind
    assert text in error.message
    assert error.retry_after == (7 if status in (429, 499, 500, 503, 504) else None)
    assert error.retryable == (status in (429, 499, 500, 503, 504))


def test_errors_that_name_a_field() -> None:
    text = "unknown field: parameter 'strict' is not a valid field. For proper usage, …"
    error = parse_error(422, NO_HEADERS.get, message(text), now=0.0)
    assert isinstance(error, BadRequest)
    assert error.param == "strict"
    text = "too many tokens: max tokens must be less than or equal to 4096, the maximum output"
    error = parse_error(400, NO_HEADERS.get, message(text), now=0.0)
    assert (type(error), error.param) == (BadRequest, "max_tokens")
    assert "without a message" in parse_error(400, NO_HEADERS.get, b"", now=0.0).message


# ---------------------------------------------------------------- through a target


def host(name: str = "cohere") -> Host:
    found = find(name)
    assert found is not None
    assert found.key_env == "CO_API_KEY"
    return found


@asynccontextmanager
async def at(answer: Answer) -> AsyncIterator[RemoteTarget]:
    """A target at an upstream that answers so."""
    async with Upstream(answer) as upstream, HttpClient() as client:
        yield RemoteTarget(
            name="cohere/c",
            base_url=f"{upstream.url}/v2",
            model="c",
            client=client,
            api_key=Secret("cohere-canary-7f3a"),
            host=host(),
        )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_target_answers(stream: bool) -> None:
    upstream = Cohere(*CALLS, body=CALLED)
    async with at(upstream) as target:
        found = await ask(target, Request("m", HI, tools=(ADD, SUB), stream=stream))
    assert [one.id for one in found.choices[0].tool_calls] == ["c1", "c2"]
    assert found.usage == Usage(8, 5, cached_tokens=3)


async def test_vectors_in_several_requests() -> None:
    upstream = Cohere()
    texts = tuple(f"t{i}" for i in range(200))
    async with at(upstream) as target:
        found = await target.embed(EmbedRequest("m", texts, 256, "ann"), a_call())
        query = await target.embed(EmbedRequest("m", ("a",), task="RETRIEVAL_QUERY"), a_call())
        other = await target.embed(EmbedRequest("m", ("a",), task="SEMANTIC_SIMILARITY"), a_call())
        with pytest.raises(Unsupported, match="texts, not tokens") as caught:
            await target.embed(EmbedRequest("m", ("a", (1, 2))), a_call())
    assert caught.value.param == "input[1]"
    assert [len(one.texts) for one in upstream.embeds] == [96, 96, 8, 1, 1]
    assert [vector[0] for vector in found.vectors] == [float(i) for i in range(200)]
    assert found.usage.prompt_tokens == 15
    first = upstream.embeds[0]
    assert (first.input_type, first.truncate, first.output_dimension) == (
        "search_document",
        "NONE",
        256,
    )
    assert found.origin is not None
    fates = {name: mark.fate for name, mark in found.origin.fidelity.items()}
    assert fates == {"taskType": "emulated", "user": "dropped"}
    assert [one.input_type for one in upstream.embeds[3:]] == ["search_query", "clustering"]
    assert query.origin is not None
    assert query.origin.fidelity == {}
    assert other.origin is not None
    assert other.origin.fidelity["taskType"].fate == "translated"


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (b"{", 1),
        (b"{}", 1),
        (b'{"embeddings":{"float":[[1]]}}', 2),
        (b'{"embeddings":{"float":[[1],[1,2]]}}', 2),
    ],
)
def test_what_are_no_vectors(body: bytes, count: int) -> None:
    with pytest.raises(BadResponse):
        parse_embed(body, count)
    with pytest.raises(UpstreamError, match="gone"):
        parse_embed(b'{"message":"gone"}', 1)


async def test_a_ranking() -> None:
    upstream = Cohere()
    async with at(upstream) as target:
        found = await target.rerank(RerankRequest("m", "q", ("a", "b", "c"), 2), a_call())
    assert [one.index for one in found.results] == [2, 1]
    assert upstream.reranks[0].top_n == 2


async def test_a_refusal_names_the_target_and_no_key() -> None:
    async with at(reply(401, message("invalid api token"))) as target:
        with pytest.raises(UpstreamRefused, match="cohere/c: invalid api token"):
            await ask(target)


async def test_the_body_of_an_answer_passes_untouched() -> None:
    upstream = Cohere(*SAID, body=WHOLE)
    async with at(upstream) as target:
        found = await ask(target, Request("m", HI))
    assert found.wire is not None
    assert json.loads(found.wire.data) == WHOLE
    assert found.text == "It is 3."
