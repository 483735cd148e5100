"""`RemoteTarget` against a raw upstream: answers, failures with names and without keys, limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llm_runner_router.config import Secret
from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ConfigError,
    ConnectFailed,
    ContextTooLong,
    DeadlineExceeded,
    RateLimited,
    RunnerError,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.providers import remote
from llm_runner_router.providers.hosts import Host, find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.surfaces import openai_chat
from llm_runner_router.testing import SITUATIONS, check_embedder, check_reranker, check_situation
from llm_runner_router.types import (
    Embedder,
    EmbedRequest,
    Price,
    Request,
    Reranker,
    RerankRequest,
    Target,
    Usage,
)

from .asking import (
    ASK,
    ASK_WHOLE,
    KEY,
    SHORT,
    a_call,
    ask,
    broken,
    faulty,
    hang,
    head_then_hang,
    target_for,
)
from .upstream import (
    WHOLE,
    Seen,
    Upstream,
    as_asked,
    chunk,
    closed_port,
    completion,
    elsewhere,
    event,
    reply,
    stream,
)
from .upstream import (
    Answer as Reply,
)


async def note(target: Target, texts: list[str]) -> None:
    """Read a stream and keep the texts that came before it failed."""
    async with target.open(ASK, a_call()) as deltas:
        async for delta in deltas:
            texts.append(delta.text)


# ---------------------------------------------------------------- answers


async def test_a_streamed_answer() -> None:
    price = Price(1.0, 2.0)
    async with target_for(stream(), price=price) as (target, upstream):
        async with target.open(ASK, a_call()) as opened:
            deltas = [delta async for delta in opened]
            assert [d async for d in opened] == []
        answer = await ask(target)
        assert upstream.connections == 1, "the connection was not kept"
    assert answer.text == "one two three"
    assert answer.usage == Usage(7, 3)
    assert [d.origin is not None for d in deltas] == [True] + [False] * (len(deltas) - 1)
    origin = deltas[0].origin
    assert origin is not None
    assert (origin.target, origin.model, origin.price, origin.local) == ("up/m", "m", price, False)
    (seen, _) = upstream.seen
    assert seen.target == "/v1/chat/completions"
    assert seen.json["model"] == "m"
    assert seen.json["stream_options"] == {"include_usage": True}
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert seen.headers["accept"] == "text/event-stream"
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["x-request-id"] == "req-1"
    assert "traceparent" not in seen.headers


async def test_events_are_relayed_byte_for_byte() -> None:
    payload = b'{"choices": [ {"index":0,"delta":{"content":"\\u00fc"}} ], "odd": 1e2}'
    last = json.dumps(chunk(finish="stop")).encode()
    events = [event(payload), event(last), event(b"[DONE]")]
    async with target_for(stream(events)) as (target, _):
        async with target.open(ASK, a_call()) as deltas:
            wires = [d.wire async for d in deltas]
    assert [w.data for w in wires if w] == [payload, last]
    assert {w.dialect for w in wires if w} == {"openai_chat"}


async def test_a_whole_answer() -> None:
    async with target_for(reply(200, completion())) as (target, upstream):
        answer = await ask(target, ASK_WHOLE)
        await ask(target, ASK_WHOLE)
        assert upstream.connections == 1
    assert (answer.text, answer.usage) == ("one two three", Usage(7, 3))
    assert answer.origin is not None
    assert answer.wire is not None
    assert answer.wire.data == completion()
    assert "stream" not in upstream.seen[0].json
    assert upstream.seen[0].headers["accept"] == "application/json"


async def test_an_upstream_that_does_not_stream() -> None:
    async with target_for(reply(200, completion())) as (target, _):
        assert (await ask(target)).text == "one two three"


async def test_events_may_be_cut_anywhere_by_the_network() -> None:
    data = b"".join([*WHOLE[:1], event(chunk("größe 😀")), *WHOLE[4:]])

    async def answer(seen: Seen) -> None:
        await seen.head()
        for i in range(0, len(data), 3):
            await seen.chunk(data[i : i + 3])
        await seen.end()

    async with target_for(answer) as (target, _):
        assert (await ask(target)).text == "größe 😀"


async def test_a_completion() -> None:
    events = [
        event({"choices": [{"index": 0, "text": "upon", "finish_reason": None}]}),
        event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
        event(b"[DONE]"),
    ]
    async with target_for(stream(events)) as (target, upstream):
        answer = await ask(target, Request("a", prompt="Once", stream=True))
    assert (answer.text, answer.choices[0].finish) == ("upon", "length")
    assert upstream.seen[0].target == "/v1/completions"


async def test_the_surface_encodes_what_came_untouched() -> None:
    """From client's bytes to client's bytes: what the upstream sent is what the client gets."""
    body = b'{"model":"x","messages":[{"role":"user","content":"hi"}],"stream":true,"odd":[1]}'
    request = openai_chat.decode(body)
    async with target_for(stream()) as (target, upstream):
        async with target.open(request, a_call()) as deltas:
            texts = [d.wire.data async for d in deltas if d.wire]
    assert [event(data) for data in texts] == WHOLE[:-1]
    assert upstream.seen[0].json["odd"] == [1]


async def test_trace_and_request_id_are_passed_on() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with target_for(stream()) as (target, upstream):
        await ask(target, call=a_call(traceparent=trace))
        await ask(target, call=a_call(id="a b\r\nX-Evil: 1", traceparent="evil\r\nX: 1"))
    assert upstream.seen[0].headers["traceparent"] == trace
    assert "x-request-id" not in upstream.seen[1].headers
    assert "traceparent" not in upstream.seen[1].headers


async def test_azure_deployments() -> None:
    async with target_for(stream(), host=find("azure"), model="my gpt") as (target, upstream):
        await ask(target)
    (seen,) = upstream.seen
    assert seen.target == (
        "/v1/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
    )
    assert seen.headers["api-key"] == KEY
    assert "authorization" not in seen.headers


async def test_a_query_in_the_base_url_stays_behind_the_path() -> None:
    async with Upstream(stream()) as upstream, HttpClient() as client:
        url = f"{upstream.url}/v1/?api-version=x"
        target = RemoteTarget(name="t", base_url=url, model="m", client=client)
        await ask(target)
        assert upstream.seen[0].target == "/v1/chat/completions?api-version=x"
        assert "authorization" not in upstream.seen[0].headers


async def test_headers_of_the_configuration() -> None:
    headers = {"X-Team": "a", "User-Agent": "mine", "Content-Length": "1", "Host": "evil"}
    async with target_for(stream(), headers=headers) as (target, upstream):
        await ask(target)
    seen = upstream.seen[0].headers
    assert (seen["x-team"], seen["user-agent"]) == ("a", "mine")
    assert seen["host"] == f"127.0.0.1:{upstream.port}"


@pytest.mark.parametrize(
    "facts",
    [
        {"base_url": ""},
        {"base_url": None, "host": Host("mine")},
        {"api_key": Secret("a\r\nb")},
        {"api_key": Secret("schlüssel")},
        {"headers": {"X-A": "a\r\nb"}},
        {"headers": {"X A": "a"}},
    ],
)
async def test_what_cannot_be_sent_is_refused_at_once(facts: dict[str, Any]) -> None:
    client = HttpClient()
    given: dict[str, Any] = {"name": "t", "base_url": "http://127.0.0.1/v1", "model": "m"}
    with pytest.raises(ConfigError):
        RemoteTarget(**{**given, "client": client, **facts})


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("request_", [ASK, ASK_WHOLE])
@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (429, b'{"error":{"message":"slow down"}}', b"retry-after: 2\r\n", RateLimited),
        (400, b'{"error":{"message":"x","code":"context_length_exceeded"}}', b"", ContextTooLong),
        (400, b'{"error":{"message":"bad n","param":"n"}}', b"", BadRequest),
        (401, b"no", b"", UpstreamRefused),
        (404, b"no", b"", UpstreamRefused),
        (500, b"oops", b"", UpstreamError),
        (200, b"<html>hi</html>", b"content-type: text/html\r\n", BadResponse),
        (
            200,
            b'{"error":{"message":"busy"}}',
            b"content-type: application/json\r\n",
            UpstreamError,
        ),
    ],
)
async def test_refusals(
    request_: Request, status: int, body: bytes, headers: bytes, kind: type[RunnerError]
) -> None:
    async with target_for(reply(status, body, headers)) as (target, upstream):
        error = await broken(target, request_)
        assert type(error) is kind, repr(error)
        assert error.target == "up/m"
        if kind is RateLimited:
            assert error.retry_after == 2.0
            assert isinstance(error, UpstreamError)
            assert error.upstream_status == 429
            assert str(error) == "up/m: slow down"
        if type(error) is BadRequest:
            assert (str(error), error.param) == ("bad n", "n"), "the client's own mistake"
        assert upstream.connections == 1
        upstream.answer = stream()
        assert (await ask(target)).text == "one two three"


async def test_nobody_listens() -> None:
    async with closed_port() as port, HttpClient() as client:
        url = f"http://127.0.0.1:{port}/v1"
        error = await broken(RemoteTarget(name="up/m", base_url=url, model="m", client=client))
        assert isinstance(error, ConnectFailed)
        assert "up/m" in str(error)


@pytest.mark.parametrize(
    ("then", "kind"),
    [
        ("end", StreamBroken),
        ("close", StreamBroken),
        ("reset", StreamBroken),
        ("hang", UpstreamTimeout),
    ],
)
async def test_a_stream_that_breaks_off_tells_what_came_and_raises(
    then: str, kind: type[RunnerError]
) -> None:
    async with target_for(faulty(WHOLE[:3], then), timeouts=SHORT) as (target, upstream):
        texts: list[str] = []
        with pytest.raises(kind) as caught:
            await note(target, texts)
        assert "".join(texts) == "one two"
        assert caught.value.target == "up/m"
        upstream.answer = stream()
        assert (await ask(target)).text == "one two three", "the target did not recover"


@pytest.mark.parametrize("then", ["end", "close", "reset", "hang"])
async def test_a_finished_stream_without_done_is_whole(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "AFTER_FINISH", 0.1)
    async with target_for(faulty(WHOLE[:-1], then)) as (target, _):
        answer = await ask(target)
        assert (answer.text, answer.usage) == ("one two three", Usage(7, 3))


async def test_nothing_is_waited_for_after_done() -> None:
    async with target_for(faulty(WHOLE, "hang")) as (target, _):
        async with asyncio.timeout(10):
            assert (await ask(target)).text == "one two three"


async def test_a_cut_at_every_event_never_passes_for_whole() -> None:
    async with target_for(stream()) as (target, upstream):
        for length in range(5):
            upstream.answer = faulty(WHOLE[:length], "close")
            assert isinstance(await broken(target), StreamBroken), f"cut after {length} events"


async def test_one_bad_event_is_skipped() -> None:
    events = [*WHOLE[:2], event(b"{oops"), *WHOLE[2:]]
    async with target_for(stream(events)) as (target, _):
        assert (await ask(target)).text == "one two three"


async def test_an_error_inside_the_stream() -> None:
    error = event({"error": {"message": "engine died", "type": "server_error"}})
    async with target_for(stream([*WHOLE[:2], error])) as (target, _):
        texts: list[str] = []
        with pytest.raises(UpstreamError, match="up/m: engine died"):
            await note(target, texts)
        assert texts == ["", "one"]


async def test_a_wrong_length() -> None:
    async def answer(seen: Seen) -> None:
        await seen.head(200, b"content-length: 5000\r\ncontent-type: application/json\r\n")
        await seen.send(completion())
        seen.close()

    async with target_for(answer) as (target, _):
        assert isinstance(await broken(target, ASK_WHOLE), StreamBroken)


def comments(events: list[bytes]) -> Reply:
    """`events`, then nothing but comments."""

    async def answer(seen: Seen) -> None:
        await seen.head()
        for data in events:
            await seen.chunk(data)
        for _ in range(500):
            await seen.chunk(b": still there\n\n")
            await asyncio.sleep(0.02)

    return answer


async def test_comments_are_no_first_token() -> None:
    async with target_for(comments([]), timeouts=SHORT) as (target, _):
        error = await broken(target)
    assert isinstance(error, UpstreamTimeout)
    assert "only comments" in error.message


async def test_a_runner_of_ours_may_comment_while_it_prepares() -> None:
    call = a_call(deadline=asyncio.get_running_loop().time() + 0.4)
    async with target_for(comments([]), timeouts=SHORT, local=True) as (target, _):
        assert isinstance(await broken(target, ASK, call), DeadlineExceeded)


async def test_comments_after_the_finish_do_not_hold_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "AFTER_FINISH", 0.1)
    async with target_for(comments(WHOLE[:-1])) as (target, _):
        assert (await ask(target)).text == "one two three"


@pytest.mark.parametrize("index", [-3, 128])
async def test_a_choice_nobody_asked_for(index: int) -> None:
    odd = event({"choices": [{"index": index, "delta": {"content": "x"}}]})
    async with target_for(stream([odd] * 3)) as (target, _):
        assert isinstance(await broken(target), BadResponse)


async def test_counts_are_never_below_zero() -> None:
    details = {"cached_tokens": 9}
    usage = {"prompt_tokens": -5, "completion_tokens": 3, "prompt_tokens_details": details}
    events = [*WHOLE[:-2], event({"choices": [], "usage": usage}), WHOLE[-1]]
    async with target_for(stream(events)) as (target, _):
        assert (await ask(target)).usage == Usage(0, 3, 0, 0)


async def test_an_endless_event(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(seen: Seen) -> None:
        await seen.head()
        for _ in range(200):
            await seen.chunk(b"x" * 65536)
        await seen.end()

    async with target_for(answer) as (target, _):
        error = await broken(target)
    assert isinstance(error, BadResponse)
    assert "longer than" in str(error)


async def test_a_huge_error_body_is_not_read_whole() -> None:
    body = b'{"error": {"message": "' + b"x" * 1_000_000
    async with target_for(reply(500, body)) as (target, _):
        error = await broken(target)
    assert isinstance(error, UpstreamError)
    assert len(error.message) < 2000


# ---------------------------------------------------------------- limits and leaving


@pytest.mark.parametrize("answer", [hang, head_then_hang])
async def test_silence_before_the_first_token(answer: Reply) -> None:
    async with target_for(answer, timeouts=SHORT) as (target, _):
        error = await broken(target)
        assert isinstance(error, UpstreamTimeout)
        assert error.elsewhere


@pytest.mark.parametrize("request_", [ASK, ASK_WHOLE])
@pytest.mark.parametrize("answer", [hang, head_then_hang, faulty(WHOLE[:2], "hang")])
async def test_the_deadline(answer: Reply, request_: Request) -> None:
    async with target_for(answer) as (target, _):
        deadline = asyncio.get_running_loop().time() + 0.1
        error = await broken(target, request_, a_call(deadline=deadline))
        assert isinstance(error, DeadlineExceeded)
        assert error.target == "up/m"


@pytest.mark.parametrize("answer", [hang, head_then_hang, faulty(WHOLE[:2], "hang")])
@pytest.mark.parametrize("request_", [ASK, ASK_WHOLE])
async def test_cancelling_reaches_the_upstream_at_once(answer: Reply, request_: Request) -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def noted(seen: Seen) -> None:
        begun.set()
        await answer(seen)
        gone.set()

    async with target_for(noted) as (target, _):
        task = asyncio.create_task(ask(target, request_))
        await begun.wait()
        await asyncio.sleep(0.02)  # into whichever wait it is
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 1)


async def test_leaving_early_reaches_the_upstream_at_once() -> None:
    gone = asyncio.Event()

    async def answer(seen: Seen) -> None:
        await faulty(WHOLE[:2], "hang")(seen)
        gone.set()

    async with target_for(answer) as (target, _):
        async with target.open(ASK, a_call()) as deltas:
            async for _ in deltas:
                break
        await asyncio.wait_for(gone.wait(), 1)


@pytest.mark.parametrize("name", sorted(SITUATIONS))
async def test_it_is_a_target(name: str) -> None:
    with elsewhere(as_asked) as url:
        async with HttpClient() as client:
            target = RemoteTarget(name="up/m", base_url=url, model="m", client=client)
            assert isinstance(target, Target)
            await check_situation(name, lambda _: target)


# ---------------------------------------------------------------- embeddings


def embedding(texts: list[Any]) -> bytes:
    data = [
        {"index": i, "embedding": [float(len(str(t))), float(sum(map(ord, str(t)))), 1.0]}
        for i, t in enumerate(texts)
    ]
    return json.dumps({"data": data, "usage": {"prompt_tokens": len(texts)}}).encode()


async def embed_answer(seen: Seen) -> None:
    await reply(200, embedding(seen.json["input"]))(seen)


async def test_it_is_an_embedder() -> None:
    with elsewhere(embed_answer) as url:
        async with HttpClient() as client:
            target = RemoteTarget(name="up/m", base_url=url, model="m", client=client)
            assert isinstance(target, Embedder)
            await check_embedder(target)


async def test_embeddings_say_who_made_them() -> None:
    async with target_for(embed_answer) as (target, upstream):
        found = await target.embed(EmbedRequest("asked", ("a",)), a_call())
    assert found.origin is not None
    assert found.origin.target == "up/m"
    assert upstream.seen[0].target == "/v1/embeddings"
    assert upstream.seen[0].json["model"] == "m"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(429, b"{}"), RateLimited),
        (reply(200, b"{}"), BadResponse),
        (reply(200, b'{"error":{"message":"busy"}}'), UpstreamError),
        (hang, DeadlineExceeded),
    ],
)
async def test_embedding_failures(answer: Reply, kind: type[RunnerError]) -> None:
    async with target_for(answer) as (target, _):
        call = a_call(deadline=asyncio.get_running_loop().time() + 0.5)
        with pytest.raises(kind) as caught:
            await target.embed(EmbedRequest("asked", ("a",)), call)
        assert caught.value.target == "up/m"


# ---------------------------------------------------------------- rankings


def ranking(asked: dict[str, Any], name: str = "results") -> dict[str, Any]:
    words = set(asked["query"].split())
    scores = [float(len(words & set(text.split()))) + 0.5 for text in asked["documents"]]
    rows = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
    return {name: sorted(rows, key=lambda row: -row["relevance_score"])[: asked["top_n"]]}


async def jina(seen: Seen) -> None:
    usage = {"usage": {"total_tokens": 9}}
    await reply(200, json.dumps(ranking(seen.json) | usage).encode())(seen)


async def cohere(seen: Seen) -> None:
    meta = {"meta": {"tokens": {"input_tokens": 9}, "billed_units": {"search_units": 1}}}
    await reply(200, json.dumps({"id": "x", **ranking(seen.json), **meta}).encode())(seen)


async def voyage(seen: Seen) -> None:
    usage = {"usage": {"total_tokens": 9}}
    await reply(200, json.dumps(ranking(seen.json, "data") | usage).encode())(seen)


@pytest.mark.parametrize("answer", [jina, cohere, voyage])
async def test_it_is_a_reranker(answer: Reply) -> None:
    with elsewhere(answer) as url:
        async with HttpClient() as client:
            target = RemoteTarget(name="up/m", base_url=url, model="m", client=client)
            assert isinstance(target, Reranker)
            await check_reranker(target)


async def test_rankings_say_who_made_them() -> None:
    async with target_for(jina) as (target, upstream):
        found = await target.rerank(RerankRequest("asked", "b", ("a", "b", "c"), 2), a_call())
    assert found.origin is not None
    assert found.origin.target == "up/m"
    assert (found.usage.prompt_tokens, found.results[0].index) == (9, 1)
    (seen,) = upstream.seen
    assert seen.target == "/v1/rerank"
    assert seen.json == {"model": "m", "query": "b", "documents": ["a", "b", "c"], "top_n": 2}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "not a ranking"),
        (b"{}", "0 results where 2"),
        (b'{"results":[{"index":0,"relevance_score":1},{"index":0,"relevance_score":1}]}', "other"),
        (b'{"results":[{"index":0,"relevance_score":1},{"index":2,"relevance_score":1}]}', "other"),
        (b'{"error":{"message":"busy"}}', "busy"),
    ],
)
async def test_ranking_failures(body: bytes, words: str) -> None:
    async with target_for(reply(200, body)) as (target, _):
        with pytest.raises(UpstreamError, match=words) as caught:
            await target.rerank(RerankRequest("asked", "q", ("a", "b")), a_call())
        assert caught.value.target == "up/m"


# ---------------------------------------------------------------- the key
