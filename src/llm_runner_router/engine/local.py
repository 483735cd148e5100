"""A local model as a `Target`: it leases a slot of a runner, asks it, and reads the answer.

Knows: leases, how engines want requests (`base.py`), what a dead runner means. Does not know: HTTP
or any dialect; `connect` gives a target for a runner's private address.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import msgspec
from msgspec import Raw

from llm_runner_router.deltas import prime
from llm_runner_router.errors import (
    ConnectFailed,
    ContextTooLong,
    RunnerError,
    Unsupported,
    UpstreamError,
)
from llm_runner_router.fidelity import Receipt
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import (
    Call,
    Delta,
    Embedder,
    Embeddings,
    EmbedRequest,
    Origin,
    Outlook,
    Price,
    Ranked,
    Ranking,
    Request,
    Reranker,
    RerankRequest,
    Target,
    Usage,
)

from . import llamacpp, lora, speculate
from .adapting import native, spliced
from .base import Adapted
from .calls import CallReader
from .fanout import choices
from .live import GONE, Endpoint, Lease
from .prefixes import Marks
from .residency import Residency

TRIES = 3
"""Requests sent for one answer, until one of them has begun to be answered."""
RANKED = 64
"""Documents that are scored under one lease. Between two, others who wait get their turn."""
BRIEFLY = 0.2
"""Seconds to wait for the news that a process died, where another try follows anyway."""


class Connected(Target, Embedder, Reranker, Protocol):
    """What `connect` gives: something that asks one runner."""


class LocalTarget:
    """One local model.

    Args:
        name: the target's name, for example `zoo:tiny-math`.
        model: the file.
        residency: who loads it.
        connect: makes a target for a runner's address.
        prepare: makes the model ready for an engine (`Preparer.ready`); None takes it as it is.
        price: what it costs; None is nothing.
        adapter: the LoRA adapter of the model that every request is for; empty: each says itself.
    """

    def __init__(
        self,
        name: str,
        model: LocalModel,
        residency: Residency,
        connect: Callable[[Endpoint], Connected],
        price: Price | None = None,
        prepare: Callable[[LocalModel], Awaitable[LocalModel]] | None = None,
        adapter: str = "",
    ) -> None:
        self._name = name
        self._model = model
        self._residency = residency
        self._connect = connect
        self._prepare = prepare
        self._adapter = adapter
        answers = f"{model.name}+{adapter}" if adapter else model.name
        self._origin = Origin(target=name, model=answers, local=True, price=price)
        self._connected: tuple[Endpoint, Connected] | None = None

    @property
    def name(self) -> str:
        """The target's name, unique in an app."""
        return self._name

    def __repr__(self) -> str:
        return f"LocalTarget({self._name!r}, {str(self._model.path)!r})"

    def outlook(self, request: Request) -> Outlook | None:
        """What is known of `request` here before it is sent, without asking the runner."""
        return self._residency.outlook(self._model, self._marks(request))

    # ------------------------------------------------------------ answering

    @asynccontextmanager
    async def open(self, request: Request, call: Call) -> AsyncIterator[AsyncIterator[Delta]]:
        """Answer `request`; the slot is free again when the manager is left.

        Raises:
            ContextTooLong: the prompt does not fit the context; nothing is cut off.
            RunnerCrashed: the process died; before the first delta it is tried again.
            RunnerError: as `Residency.lease`, or what the engine says.
        """
        receipt, asked = Receipt(), request
        with _Named(self._name):
            request = native(request, self._model, receipt)
            receipt.check(request)
            if self._adapter:
                request = lora.chosen(request, self._adapter, self._name, self._model.name)
        if request.sampling.n > 1:
            opened = choices(lambda one: self._open(one, asked, call, receipt), request)
        else:
            opened = self._open(request, asked, call, receipt)
        async with opened as deltas:
            yield deltas

    @asynccontextmanager
    async def _open(
        self, request: Request, asked: Request, call: Call, receipt: Receipt
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """Answer `request` for one choice; `asked` is what the client sent."""
        for left in reversed(range(TRIES)):
            async with AsyncExitStack() as stack:
                with _Named(self._name):
                    # Asked anew for each try: a lease of the form that one began with would bring
                    # that back, where a better one has replaced it meanwhile.
                    model = await self._ready()
                    engine = self._residency.engine(model)
                    lora.check(request, model, engine)
                    adapted = engine.adapt(request, model)
                    lease = await stack.enter_async_context(
                        self._residency.lease(model, "chat", call)
                    )
                    if lease.engine is not engine:  # a better form of it takes over just now
                        engine, adapted = lease.engine, lease.engine.adapt(request, lease.model)
                    if lease.model.adapters:
                        turn = lease.turn(lora.scales(request, lease.model))
                        await stack.enter_async_context(turn)
                    remote = self._remote(lease.endpoint)
                    sent = self._sent(lease, adapted.request, asked)
                    try:
                        deltas = await prime(
                            await stack.enter_async_context(remote.open(sent, call))
                        )
                    except UpstreamError as exc:
                        await _may_try_again(lease, exc, left)
                        continue
                    lease.begun()
                    origin = msgspec.structs.replace(self._origin, expected=lease.expected)
                yield _Answer(deltas, lease, _Reader(request, adapted, origin, receipt), self._name)
                return

    def _sent(self, lease: Lease, request: Request, asked: Request) -> Request:
        """`request` with the slot it goes to; the runner is told to have it."""
        if not lease.keeps:
            return request
        slot = lease.sent(self._marks(asked))
        return request if slot is None else spliced(request, {"id_slot": Raw(b"%d" % slot)})

    def _marks(self, asked: Request) -> Marks | None:
        # Adapters that a name stands for are not in the request, so their prompts are told apart.
        return self._residency.marker.marks(asked, f"{self._model.name}\0{self._adapter}")

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """Embed every input of `request`, in a runner of its own for this purpose.

        Raises:
            ContextTooLong: an input is longer than the context.
            Unsupported: `dimensions` is not what the model gives.
            RunnerError: as `open`.
        """
        with _Named(self._name):
            for left in reversed(range(TRIES)):
                model = await self._ready()
                async with self._residency.lease(model, "embed", call) as lease:
                    try:
                        found = await self._remote(lease.endpoint).embed(request, call)
                    except UpstreamError as exc:
                        if "too large to process" in exc.message:
                            raise ContextTooLong(exc.message, param="input") from exc
                        await _may_try_again(lease, exc, left)
                        continue
                    lease.finished()
                    return self._checked(found, request)
        raise AssertionError("the loop returns or raises")

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """Order the documents of `request`, in a runner of its own if the engine wants one.

        Raises:
            ContextTooLong: a document with the query is longer than the context; names it.
            Unsupported: the model was not made for it.
            RunnerError: as `open`.
        """
        ranked: list[Ranked] = []
        tokens = 0
        with _Named(self._name):
            model = await self._ready()
            engine = self._residency.engine(model, "rerank")
            if engine.NAME == llamacpp.NAME and model.info.task != "rerank":
                # It would take any model, and call its first number a score.
                raise Unsupported(
                    f"`{self._name}` does not rerank: its `pooling_type` is not `rank`",
                    hint="take a model that was made to score a query and a document",
                    param="model",
                )
            for start in range(0, len(request.documents), RANKED):
                part = await self._scored(request, start, call)
                ranked += [Ranked(one.index + start, one.score) for one in part.results]
                tokens += part.usage.prompt_tokens
        ranked.sort(key=lambda one: (-one.score, one.index))
        return Ranking(tuple(ranked[: request.top_n]), Usage(tokens), self._origin)

    async def _scored(self, request: RerankRequest, start: int, call: Call) -> Ranking:
        """The documents of `request` from `start` on, as many as one lease may score."""
        documents = request.documents[start : start + RANKED]
        part = msgspec.structs.replace(request, documents=documents, top_n=None)
        for left in reversed(range(TRIES)):
            model = await self._ready()
            async with self._residency.lease(model, "rerank", call) as lease:
                try:
                    found = await self._remote(lease.endpoint).rerank(part, call)
                except ContextTooLong as exc:
                    exc.param = _moved(exc.param, start)
                    raise
                except UpstreamError as exc:
                    if "too large to process" in exc.message:
                        raise ContextTooLong(exc.message, param="documents") from exc
                    await _may_try_again(lease, exc, left)
                    continue
                lease.finished()
                return found
        raise AssertionError("the loop returns or raises")

    async def _ready(self) -> LocalModel:
        return self._model if self._prepare is None else await self._prepare(self._model)

    def _checked(self, found: Embeddings, request: EmbedRequest) -> Embeddings:
        wanted, given = request.dimensions, len(found.vectors[0]) if found.vectors else 0
        if wanted is not None and wanted != given:
            raise Unsupported(
                f"`{self._name}` gives vectors of {given} numbers, not {wanted}",
                param="dimensions",
            )
        lost = found.origin.fidelity if found.origin is not None else {}
        origin = msgspec.structs.replace(self._origin, fidelity=lost)
        return msgspec.structs.replace(found, origin=origin)

    def _remote(self, endpoint: Endpoint) -> Connected:
        """The target for this address; the last one is kept, as it seldom changes."""
        if self._connected is None or self._connected[0] != endpoint:
            self._connected = endpoint, self._connect(endpoint)
        return self._connected[1]


def _moved(param: str | None, start: int) -> str:
    """`documents[3]` of a part that began at `start`, as the whole request counts."""
    found = re.fullmatch(r"documents\[(\d+)\]", param or "")
    return f"documents[{int(found[1]) + start}]" if found else "documents"


async def _may_try_again(lease: Lease, exc: UpstreamError, left: int) -> None:
    """Return if nothing was answered yet and another try may go better; else raise.

    A dead runner is replaced by the next lease. A connection that failed beside a live one was
    most likely a kept one that the engine closed in the same moment.
    """
    unanswered = isinstance(exc, ConnectFailed)
    crash = await lease.died(BRIEFLY if unanswered and left else GONE)
    if left and (unanswered or crash is not None):
        return
    if crash is not None:
        raise crash from exc
    raise exc


class _Named:
    """Puts the target's name on errors that pass."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, RunnerError) and exc.target is None:
            exc.target = self._name


class _Answer:
    """The deltas of one answer, read by `_Reader`; a broken stream of a dead runner says so."""

    def __init__(
        self, deltas: AsyncIterator[Delta], lease: Lease, reader: _Reader, name: str
    ) -> None:
        self._deltas = deltas
        self._lease = lease
        self._reader = reader
        self._name = name

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            self._lease.finished()
            raise
        except UpstreamError as exc:
            crash = await self._lease.died()
            if crash is None:
                raise
            crash.target = self._name
            raise crash from exc
        if delta.usage is not None:
            self._lease.told(delta.usage)
        told = None if delta.timings is None else speculate.read(delta.timings)
        if told is not None:
            self._lease.timed(told)
        with _Named(self._name):
            return self._reader.read(delta)


class _Reader:
    """Turns this engine's deltas into what the client asked for. Pure."""

    def __init__(
        self, request: Request, adapted: Adapted, origin: Origin, receipt: Receipt
    ) -> None:
        self._origin: Origin | None = origin
        self._receipt = receipt
        self._echo = request.prompt if request.echo and request.prompt else ""
        self._calls = CallReader(f"call_{secrets.token_hex(12)}") if adapted.calls else None
        self._starts = adapted.starts
        # The engine writes a completion's logprobs the way chats have them.
        self._own_words = bool(request.prompt is not None and request.sampling.logprobs)
        self._bare = adapted.bare_logprobs

    def read(self, delta: Delta) -> Delta:
        """`delta` as the client shall see it.

        Raises:
            Unsupported: the engine did not keep to the schema.
        """
        changes: dict[str, object] = {}
        if self._origin is not None:
            marks = delta.origin.fidelity if delta.origin is not None else {}
            if marks or self._receipt.marks:
                marks = self._receipt.marks | marks
                self._origin = msgspec.structs.replace(self._origin, fidelity=marks)
            changes["origin"], self._origin = self._origin, None
        if self._starts and delta.text.strip():
            self._check(delta.text.lstrip()[0])
        if self._echo:
            changes |= {"text": self._echo + delta.text, "wire": None}
            self._echo = ""
        if self._calls is not None:
            changes |= {"tool_calls": self._calls.feed(delta.text), "text": "", "wire": None}
            if delta.finish == "stop" and self._calls.complete:
                changes["finish"] = "tool_calls"
        if self._own_words or self._bare:
            # Of every delta: after one with its bytes, those without would be taken for its parts.
            changes["wire"] = None
        if self._bare and delta.logprobs is not None:
            changes["logprobs"] = _without_alternatives(delta.logprobs)
        return msgspec.structs.replace(delta, **changes) if changes else delta

    def _check(self, first: str) -> None:
        starts, self._starts = self._starts, ""
        if first not in starts:
            raise Unsupported(
                "the engine cannot hold the answer to this JSON Schema",
                hint="simplify the schema: patterns and formats are the usual cause",
                param="response_format",
            )


def _without_alternatives(logprobs: msgspec.Raw) -> msgspec.Raw:
    """The same tokens, each with an empty list of alternatives, as OpenAI gives them."""
    found = msgspec.json.decode(logprobs)
    for token in found.get("content") or ():
        token["top_logprobs"] = []
    return msgspec.Raw(msgspec.json.encode(found))
