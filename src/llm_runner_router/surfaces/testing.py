"""A `Gateway` for tests: targets by name, one key, nothing else. Public, like `..testing`."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from llm_runner_router import config
from llm_runner_router.errors import BadRequest, NotFound, UnknownModel
from llm_runner_router.policy.auth import Key, Keys
from llm_runner_router.policy.files import Files
from llm_runner_router.policy.stored import Responses
from llm_runner_router.types import (
    Call,
    Decision,
    Embedder,
    ModelCard,
    Request,
    Reranker,
    Target,
    Tokenized,
    TokenizeRequest,
    Trace,
)

from .base import BatchDesk, Deployment, Described, Watch

T = TypeVar("T")

KEY = "llmrr-key-for-tests"


class FakeRow(Struct, omit_defaults=True):
    """A row of `ps`; see `base.Loaded`."""

    name: str
    memory: int | None = None
    reserved: int = 0
    context: int = 0
    expires_in: float | None = None


class FakeShelf:
    """A store of models for tests, in memory.

    Attributes:
        names: what it has.
        pulls: what was pulled.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.pulls: list[str] = []

    def has(self, name: str) -> bool:
        """See `Shelf`."""
        return name in self.names

    async def pull(self, name: str, watch: Watch) -> str:
        """See `Shelf`: two files of ten bytes; one called `broken` breaks off."""
        self.pulls.append(name)
        watch.say("pulling manifest")
        for file in ("sha256:aa", "sha256:bb"):
            watch.begin(file, 10, 0)
            watch.advance(file, 4)
            if "broken" in name:
                raise NotFound(f"{name} is not there")
            watch.advance(file, 6)
            watch.end(file)
        watch.say("success")
        self.names.add(name)
        return name

    async def copy(self, source: str, destination: str) -> None:
        """See `Shelf`."""
        self.names.add(destination)

    async def delete(self, name: str) -> None:
        """See `Shelf`."""
        self.names.remove(name)


class FakeGateway:
    """Serves `targets`, `embedders` and `rerankers` to whoever shows `key`.

    Attributes:
        asked: what the operator's routes asked for, in order, as `verb:name`.
        started, closed: how often; so that it can stand for a whole service.
        batches: set by who wants them.
    """

    batches: BatchDesk

    def __init__(
        self,
        targets: Mapping[str, Target] = {},
        embedders: Mapping[str, Embedder] = {},
        *,
        rerankers: Mapping[str, Reranker] = {},
        key: str = KEY,
        clock: Callable[[], float] = time.monotonic,
        decisions: Sequence[Decision] = (),
        notes: Mapping[str, str] = {},
        responses: Path | None = None,
    ) -> None:
        self.targets = dict(targets)
        self.embedders = dict(embedders)
        self.rerankers = dict(rerankers)
        self.clock = clock
        self.calls: list[Call] = []
        self.asked: list[str] = []
        self.started = 0
        self.closed = 0
        self._keys = Keys(Key(key, name="test", source="a test"))
        self._decisions = decisions
        self._notes = notes
        self._shelf = FakeShelf()
        self.responses = Responses(responses, keep=3600, limit=1 << 20)
        self.files = Files(None, config.Files())

    # ------------------------------------------------------------ Gateway

    @property
    def admin(self) -> FakeGateway:
        """Itself: it is its own operator's side."""
        return self

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """See `Gateway`."""
        return self._keys.authenticate(headers)

    def target(self, model: str) -> Target:
        """See `Gateway`."""
        return self._found(self.targets, model)

    def embedder(self, model: str) -> Embedder:
        """See `Gateway`."""
        return self._found(self.embedders, model)

    def reranker(self, model: str) -> Reranker:
        """See `Gateway`."""
        return self._found(self.rerankers, model)

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """See `Gateway`: every byte is a token; `around` begins with 256, called `<s>`."""
        self.target(request.model)
        text = request.text
        if text is None:
            text = "".join(f"{m.role}: {m.text}\n" for m in request.messages)
        data = text.encode("utf-8", "replace")
        ids = (*((256,) if request.around else ()), *data)
        pieces = tuple(b"<s>" if id == 256 else bytes((id,)) for id in ids)
        return Tokenized(request.model, ids, pieces, context=512)

    async def count(self, request: TokenizeRequest) -> tuple[int, bool]:
        """See `Gateway`."""
        return len((await self.tokenize(request)).ids), True

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """See `Gateway`."""
        self.target(model)
        wrong = next((id for id in ids if not 0 <= id <= 256), None)
        if wrong is not None:
            raise BadRequest(f"{wrong} is no token", param="tokens")
        return b"".join(b"<s>" if i == 256 else bytes((i,)) for i in ids).decode("utf-8", "replace")

    def cards(self) -> Sequence[ModelCard]:
        """See `Gateway`."""
        names = (*self.targets, *self.embedders, *self.rerankers)
        return [ModelCard(name, local=True) for name in names]

    def start_call(
        self,
        *,
        id: str | None = None,
        caller: str | None = None,
        session: str | None = None,
        timeout: float | None = None,
        traceparent: str | None = None,
    ) -> Call:
        """See `Gateway`."""
        now = self.clock()
        trace = Trace()
        trace.decisions.extend(self._decisions)
        trace.notes.update(self._notes)
        call = Call(
            id=id or "call",
            started=now,
            deadline=None if timeout is None else now + timeout,
            caller=caller,
            session=session,
            traceparent=traceparent,
            trace=trace,
        )
        self.calls.append(call)
        return call

    # ------------------------------------------------------------ Admin

    def ps(self) -> Any:
        """See `Admin`."""
        return [FakeRow(name) for name in self.targets]

    def status(self) -> Any:
        """See `Admin`."""
        return {"calls": len(self.calls)}

    def records(self, limit: int) -> Sequence[Any]:
        """See `Admin`."""
        return [{"id": call.id} for call in reversed(self.calls)][:limit]

    def explain(self, request: Request) -> Decision | None:
        """See `Admin`."""
        self.target(request.model)
        text = request.messages[-1].text
        return Decision("fake", request.model, f"it was asked {text!r}")

    async def load(self, name: str) -> Any:
        """See `Admin`."""
        self.target(name)
        self.asked.append(f"load:{name}")
        return {"loaded": name}

    @property
    def shelf(self) -> FakeShelf:
        """See `Admin`."""
        return self._shelf

    def deployments(self) -> Sequence[Deployment]:
        """See `Admin`: each stands for itself."""
        return [Deployment(c.name, c.name, f"fake/{c.name}", c) for c in self.cards()]

    def described(self) -> Sequence[Described]:
        """See `Admin`."""
        return [Described(card) for card in self.cards()]

    def keep(self, name: str, seconds: float | None) -> None:
        """See `Admin`."""
        self.target(name)
        self.asked.append(f"keep:{name}:{seconds}")

    async def stop(self, name: str) -> Any:
        """See `Admin`."""
        self.target(name)
        self.asked.append(f"stop:{name}")
        return {"stopped": name}

    # ------------------------------------------------------------ Service

    async def start(self) -> None:
        """See `server.Service`."""
        self.started += 1

    async def close(self) -> None:
        """See `server.Service`."""
        self.closed += 1

    def _found(self, named: Mapping[str, T], model: str) -> T:
        found = named.get(model)
        if found is None:
            near = difflib.get_close_matches(model, named, n=1)
            raise UnknownModel(
                f"there is no model {model!r}",
                hint=f"did you mean {near[0]!r}?" if near else None,
                param="model",
            )
        return found
