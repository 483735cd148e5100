"""The composition root: a `Config` becomes everything that lives, and stops living together.

Knows: every concrete class, once. Does not know: wires (`surfaces/`), sockets (`server.py`).
An `App` is the `Gateway` that surfaces see and the engine room of the library.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from random import Random
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from msgspec import Struct

from . import __version__, home
from .app_deployments import deployments
from .app_leaves import AppLeaves
from .app_store import AppStore
from .app_tree import AUTOS, Entry, Tree, embedder_of, reranker_of
from .config import Config
from .engine.prepare import Conversion, Preparer
from .engine.residency import Residency, RunnerStatus
from .errors import RunnerError, Unsupported
from .home import Home
from .models.info import LocalModel
from .models.locks import FileLock
from .policy.auth import Keys, ensure_key
from .policy.cache import AnswerCache, Cache
from .policy.deadline import Deadline
from .policy.embed import GuardedEmbedder
from .policy.files import Files
from .policy.record import Record, RequestRecord
from .policy.rerank import GuardedReranker
from .policy.sink import FileSink, SinkState
from .policy.stored import Responses
from .providers.http import HttpClient
from .strategies.auto import Auto
from .strategies.choose import estimate_tokens
from .strategies.requested import RequestedFallbacks
from .strategies.stats import LiveStats, TargetStats
from .strategies.tasks import classify
from .surfaces.base import Deployment, Described, FileFacts
from .tokens.desk import TokenDesk
from .types import (
    Call,
    Counter,
    Decision,
    Embedder,
    ModelCard,
    Request,
    Reranker,
    Target,
    Tokenized,
    TokenizeRequest,
)

if TYPE_CHECKING:
    from .surfaces.batch_run import BatchRunner

COUNT_SECONDS = 5.0
"""How long a provider may take to count tokens before they are estimated."""


class Closable(Protocol):
    """Something that was opened in the name of an app."""

    async def aclose(self) -> None:
        """Stop its work; safe to repeat."""
        ...


class Status(Struct, frozen=True):
    """How the whole thing does, for `/llmrr/status` and dashboards."""

    version: str
    uptime: float
    """Seconds."""
    models: int
    record: SinkState
    targets: tuple[TargetStats, ...]
    broken: dict[str, str]
    """Configured names that cannot be used, and why."""
    conversions: tuple[Conversion, ...] = ()
    """Models that are being made ready, or wait for that."""


class App:
    """Everything of one configuration. `start` it, ask its targets, `close` it.

    Args:
        config: what to serve.
        local_files: whether a request may name a file on this machine (`./a.gguf`). The library
            allows it; a server does not, because its clients are elsewhere.
        environ: where keys of providers are read.
        clock: monotonic seconds.
        rng: the source of chance.
        answers: where answers are kept for equal requests; default is a cache of its own.
    """

    def __init__(
        self,
        config: Config,
        *,
        local_files: bool = False,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
        answers: AnswerCache | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.home: Home = home.find(environ)
        self.stats = LiveStats(clock)
        self.residency = Residency(
            config.engine, clock=clock, environ=environ, prompts=self.home.prompts
        )
        self._preparer = Preparer(
            self.residency.engines,
            clock=clock,
            environ=environ,
            replaced=self.residency.replace,
            parallel=config.engine.conversions,
        )
        self._client = HttpClient()
        self._environ = environ
        self._keys: Keys | None = None
        self._life = AsyncExitStack()
        self._state = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self.opened: WeakSet[Closable] = WeakSet()
        """Streams of the library that are closed before everything else is."""
        self._changing = asyncio.Lock()
        self._born = clock()
        folder = self.home.records if config.record.enabled else None
        self._sink = FileSink(folder, keep_days=config.record.keep_days)
        kept = config.responses
        self.responses = Responses(
            self.home.responses if kept.enabled else None, keep=kept.keep, limit=kept.limit
        )
        """What clients may come back to."""
        self.files = Files(self.home.files if config.files.enabled else None, config.files)
        """What clients put here."""
        self._batches: BatchRunner | None = None
        self._serves = not local_files
        self._shelf = AppStore(self.home, environ)
        self._answers = answers or AnswerCache(clock)
        self._fronts: dict[str, tuple[Target, Target]] = {}
        """By name: what is asked, and the same with everything around it."""
        self.tokens = TokenDesk(self.local)
        self._leaves = AppLeaves(
            config,
            residency=self.residency,
            prepare=self._preparer.ready,
            client=self._client,
            stats=self.stats,
            clock=clock,
            environ=environ,
            local_files=local_files,
        )
        self._tree = Tree(
            config,
            self._leaves,
            stats=self.stats,
            classify=classify,
            clock=clock,
            rng=rng or Random(),
        )

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Get ready to answer and load the pinned models; does nothing the second time.

        Raises:
            RunnerError: a pinned model cannot be loaded; everything is closed again then.
        """
        async with self._changing:
            if self._state == "open":
                self._check_loop()
                return
            if self._state == "closed":
                raise RunnerError("this router is closed", hint="make a new one")
            self._state = "open"
            self._loop = asyncio.get_running_loop()
            self._life.callback(self._sink.close)
            self._life.push_async_callback(self.responses.aclose)
            self._life.push_async_callback(self.files.aclose)
            self._life.push_async_callback(self.tokens.aclose)
            await self._life.enter_async_context(self._client)
            await self._life.enter_async_context(self.residency)
            self._life.push_async_callback(self._preparer.close)
            self._life.push_async_callback(self._close_batches)
        try:
            await self._preparer.sweep()
            await asyncio.gather(*(self.load(name, pin=True) for name in self.config.engine.pin))
            if self._serves and self.home.batches.exists():
                # A server goes on with what the one before has left; a program that uses the
                # library does not work for its clients.
                await self.batches.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop every runner, close every connection, write the last records. Safe to repeat."""
        for one in list(self.opened):
            with suppress(RunnerError):  # its reader is told; closing goes on
                await one.aclose()
        async with self._changing:
            self._state = "closed"
            await self._life.aclose()

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise RunnerError(
                "this router belongs to another event loop",
                hint="use it within one `asyncio.run`, or take `SyncLLMRouter`",
            )

    # ------------------------------------------------------------ Gateway

    @property
    def batches(self) -> BatchRunner:
        """Files of requests that are answered in their own time. See `Gateway`."""
        if self._batches is None:
            from .policy.batches import Batches  # only who uses them pays for it
            from .surfaces.batch_run import BatchRunner

            lock = FileLock(self.home.batches / "lock")
            store = Batches(self.home.batches, lock)
            longest = self.config.server.max_body
            self._batches = BatchRunner(self, store, self.config.batches, longest=longest)
        return self._batches

    async def _close_batches(self) -> None:
        if self._batches is not None:
            await self._batches.aclose()

    @property
    def admin(self) -> App:
        """The operator's side; see `surfaces.base.Admin`."""
        return self

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key in `headers`. See `Gateway`."""
        if self._keys is None:
            self._keys = Keys(ensure_key(self.home, self._environ))
        return self._keys.authenticate(headers)

    def target(self, model: str) -> Target:
        """What answers for `model`, with everything that must hold around it.

        Raises:
            UnknownModel: with the nearest names.
        """
        asked = self._tree.find(model).target
        inner, front = self._fronts.get(asked.name, (None, None))
        if front is None or inner is not asked:  # the tree makes it anew when its file is gone
            front = self._front(asked)
            if asked.name in self.config.models or asked.name in AUTOS:
                self._fronts[asked.name] = asked, front
        return front

    def _front(self, target: Target) -> Target:
        asked: Target = RequestedFallbacks(target, lambda name: self._tree.find(name).target)
        asked = Deadline(Cache(asked, self._answers), self.config.deadline, self.clock)
        return Record(asked, self._sink, self.clock, self.config.record.content)

    def embedder(self, model: str) -> Embedder:
        """What embeds for `model`.

        Raises:
            UnknownModel, Unsupported
        """
        found = embedder_of(self._tree.find(model))
        return GuardedEmbedder(found, self._sink, self.config.deadline, self.clock)

    def reranker(self, model: str) -> Reranker:
        """What reranks for `model`.

        Raises:
            UnknownModel, Unsupported
        """
        found = reranker_of(self._tree.find(model))
        return GuardedReranker(found, self._sink, self.config.deadline, self.clock)

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """The tokens of a text or a conversation for a local model, which is not loaded for it.

        Raises:
            UnknownModel, Unsupported, BadRequest, ModelFileError
        """
        return await self.tokens.tokenize(request)

    async def count(self, request: TokenizeRequest) -> tuple[int, bool]:
        """How many tokens a prompt has. See `Gateway`."""
        try:
            return len((await self.tokens.tokenize(request)).ids), True
        except Unsupported:
            told = await self._counted_elsewhere(request)
            if told is not None:
                return told, True
            asked = Request(
                request.model, request.messages, prompt=request.text, tools=request.tools
            )
            return estimate_tokens(asked), False

    async def _counted_elsewhere(self, request: TokenizeRequest) -> int | None:
        """What the model's provider says, if it is one that does, in time."""
        leaf = self._tree.find(request.model).embedder
        if not isinstance(leaf, Counter):
            return None
        try:
            async with asyncio.timeout(COUNT_SECONDS):
                return await leaf.count(request, self.start_call(timeout=COUNT_SECONDS))
        except (RunnerError, TimeoutError):
            return None

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """The text of token ids of a local model.

        Raises:
            UnknownModel, Unsupported, BadRequest, ModelFileError
        """
        return await self.tokens.detokenize(model, ids)

    def cards(self) -> Sequence[ModelCard]:
        """A card for every served name that can be used."""
        return [e.card for _, e in self._tree.entries() if isinstance(e, Entry)]

    def start_call(
        self,
        *,
        id: str | None = None,
        caller: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> Call:
        """A `Call` that starts now; `timeout` is what the client asked for, in seconds."""
        now = self.clock()
        return Call(
            id=id or uuid.uuid4().hex,
            started=now,
            deadline=None if timeout is None else now + timeout,
            caller=caller,
            session=session,
            traceparent=traceparent,
        )

    # ------------------------------------------------------------ Admin

    @property
    def shelf(self) -> AppStore:
        """The models on this machine."""
        return self._shelf

    def deployments(self) -> Sequence[Deployment]:
        """The single targets behind every listed name. See `Admin`."""
        now = self.clock()
        return deployments(self.config, self._tree, lambda n: self.stats.healthy(n, now))

    def described(self) -> Sequence[Described]:
        """Every served name that can be used, with what its file says."""
        entries = (entry for _, entry in self._tree.entries() if isinstance(entry, Entry))
        return [self._described(entry) for entry in entries]

    def _described(self, entry: Entry) -> Described:
        if entry.model is None:
            return Described(entry.card)
        digest = self._shelf.digest(entry.card.name)
        try:
            modified = entry.model.path.stat().st_mtime
        except OSError:
            modified = 0.0
        info = entry.model.info
        facts = {name: getattr(info, name) for name in FileFacts.__struct_fields__}
        return Described(entry.card, FileFacts(**facts), digest, modified)

    def keep(self, name: str, seconds: float | None) -> None:
        """Unload a local model when it was idle for `seconds`; None: as configured."""
        self.residency.keep(self.local(name).name, seconds)

    def ps(self) -> tuple[RunnerStatus, ...]:
        """The runners."""
        return self.residency.status()

    def status(self) -> Status:
        """How it does."""
        entries = dict(self._tree.entries())
        targets = {e.target.name for e in entries.values() if isinstance(e, Entry)}
        return Status(
            version=__version__,
            uptime=self.clock() - self._born,
            models=len(entries),
            record=self._sink.state(),
            targets=tuple(self.stats.snapshot(name) for name in sorted(targets)),
            broken={n: str(e) for n, e in entries.items() if isinstance(e, RunnerError)},
            conversions=self._preparer.conversions(),
        )

    def records(self, limit: int) -> Sequence[RequestRecord]:
        """The newest request records, newest first."""
        return self._sink.records(limit)

    def explain(self, request: Request) -> Decision | None:
        """What would answer and why, without asking anyone; None when nothing is chosen."""
        target = self._tree.find(request.model).target
        return target.decide(request) if isinstance(target, Auto) else None

    async def load(self, name: str, *, pin: bool = False) -> Any:
        """Load a local model and wait for it; its row of `ps`. `pin` keeps it loaded."""
        model = await self._preparer.ready(self.local(name))
        await self.residency.load(model, pin=pin)
        return next((row for row in self.ps() if row.name == model.name), None)

    async def stop(self, name: str) -> Any:
        """Unload a local model; whether it was loaded."""
        return {"model": name, "stopped": await self.residency.stop(self.local(name).name)}

    def local(self, name: str) -> LocalModel:
        """The local model behind `name`.

        Raises:
            UnknownModel, ModelFileError
            Unsupported: it does not run here.
        """
        entry = self._tree.find(name)
        if entry.model is None:
            what = "remote model" if entry.kind == "target" else entry.kind
            raise Unsupported(
                f"`{name}` does not run here: it is a {what}",
                hint="`llmrr ls` shows which models are local",
                param="model",
            )
        return entry.model
