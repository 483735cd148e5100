"""The routes of OpenAI's Responses API: asking, coming back, and answers made in the background.

Knows: what of a turn is kept for whom, runs that go on without a client. Does not know: how a
response is written (`responses.py`), where it is stored (`policy/stored.py`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest, NotFound, Overloaded, RunnerError, Unsupported
from llm_runner_router.policy.stored import Stored, items
from llm_runner_router.types import Call, Delta

from . import sse
from .base import Gateway, Reply
from .codec import parse
from .exchange import Exchange, answer_headers, now, readable
from .host import Handler, Host
from .responses import Codec, Turn, decode, decode_count, encode_count
from .responses_read import listed
from .responses_write import Told, failed, head

MAX_RUNS = 64
"""Answers that are made in the background at once."""
REPLAY_SECONDS = 300.0
"""How long the events of a finished run can still be read."""
MAX_REPLAY = 8 << 20
"""Bytes of events of one run that can be read again."""
MAX_REPLAYS = 64 << 20
"""The same of all finished runs; the oldest are forgotten first."""
PAGE = 20
MAX_PAGE = 100

_log = logging.getLogger(__name__)
_random = random.SystemRandom()  # whoever guesses an id still needs its owner's key


class _Shown(Struct, frozen=True):
    id: str = ""
    output: list[Raw] = []


_shown = msgspec.json.Decoder(_Shown)


class ResponseRoutes:
    """`/v1/responses` and what is below it.

    Args:
        gateway: what answers, and keeps.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self._runs: dict[tuple[str, str], _Run] = {}
        self.table: dict[str, dict[str, Handler]] = {
            "/responses": {"POST": self._create},
            "/responses/input_tokens": {"POST": self._count},
            "/responses/{response_id}": {"GET": self._get, "DELETE": self._delete},
            "/responses/{response_id}/cancel": {"POST": self._cancel},
            "/responses/{response_id}/input_items": {"GET": self._input_items},
        }

    async def aclose(self) -> None:
        """End what runs in the background."""
        going = [run for run in self._runs.values() if not run.task.done()]
        for run in going:
            run.stopped = True
            run.task.cancel()
        await asyncio.gather(*(run.task for run in going), return_exceptions=True)
        for run in self._runs.values():
            run.forget()
        self._runs.clear()

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path` (without `/v1`); None if it is not one of these."""
        found = self.table.get(path)
        if found is not None or not path.startswith("/responses/"):
            return found
        id, slash, last = path.removeprefix("/responses/").partition("/")
        return self.table.get(f"/responses/{{response_id}}{slash}{last}") if id else None

    # ------------------------------------------------------------ asking

    async def _create(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            turn = readable(exchange, decode, await self._host.body(exchange))
            if turn.previous is not None:
                past = await self._gateway.responses.history(caller, turn.previous)
                turn = turn.continued(_earlier(past))
            if turn.background:
                await self._start(exchange, caller, turn)
                return
            id = _new_id()
            keep = self._keeper(caller, turn) if turn.store else None
            codec = Codec(turn, id, keep)
            await self._host.answer(exchange, caller, codec, (turn.request,), id)

    async def _count(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            asked = readable(exchange, decode_count, await self._host.body(exchange))
            async with exchange.watching():
                tokens, counted = await self._gateway.count(asked)
                header = [(b"x-llmrr-counted", b"exactly" if counted else b"estimated")]
                await exchange.json(200, encode_count(tokens), header)

    def _keeper(self, caller: str, turn: Turn) -> Callable[[bytes], None]:
        def keep(body: bytes) -> None:
            try:
                id = _shown.decode(body).id
            except msgspec.DecodeError:
                _log.warning("an upstream's response object cannot be read, and is not kept")
                return
            self._put(caller, turn, id, body, running=False)

        return keep

    def _put(self, caller: str, turn: Turn, id: str, body: bytes, *, running: bool) -> None:
        given = msgspec.json.encode(turn.items)
        stored = Stored(id, turn.previous, body, given, running)
        try:
            self._gateway.responses.put(caller, stored)
        except RunnerError as exc:  # the answer is whole; only coming back to it will fail
            _log.warning("response %s is not kept: %s", id, exc)

    # ------------------------------------------------------------ in the background

    async def _start(self, exchange: Exchange, caller: str, turn: Turn) -> None:
        if not self._gateway.responses.enabled:
            raise Unsupported(
                "responses are not kept here, so none is made in the background",
                param="background",
                hint="turn `responses.enabled` on",
            )
        running = sum(not run.task.done() for run in self._runs.values())
        if running >= MAX_RUNS:
            raise Overloaded(f"{MAX_RUNS} responses are already made in the background")
        target = self._gateway.target(turn.request.model)  # an unknown one is refused at once
        call = self._host.call(exchange, caller, turn.request.user)
        id = _new_id()
        reply = Reply(id, now(), call.trace)
        run = _Run(id, turn, reply, self._keeper(caller, turn))
        self._put(caller, turn, id, run.snapshot("queued"), running=True)
        self._runs[caller, id] = run
        run.task = asyncio.create_task(run.go(target, call, self._host.told))
        run.task.add_done_callback(lambda _: self._finished(caller, run))
        if turn.request.stream:
            await self._replay(exchange, run, 0)
        else:
            await exchange.json(200, run.snapshot("queued"))

    def _finished(self, caller: str, run: _Run) -> None:
        if run.task.cancelled():
            run.keep_cancelled()

        def forget() -> None:
            self._runs.pop((caller, run.id), None)

        run.keep_for(REPLAY_SECONDS if run.frames else 0.0, forget)
        self._make_room()

    def _make_room(self) -> None:
        """Forget the oldest finished runs whose events take more than they may together."""
        finished = [(key, run) for key, run in self._runs.items() if run.task.done()]
        excess = sum(run.size for _, run in finished) - MAX_REPLAYS
        for key, run in finished:
            if excess <= 0:
                return
            excess -= run.size
            run.forget()
            del self._runs[key]

    async def _replay(self, exchange: Exchange, run: _Run, after: int) -> None:
        if run.overflown:
            raise BadRequest(
                "there were more events than are kept", hint="ask for the response without `stream`"
            )
        every = self._host.settings.keep_alive_comment
        voice = Codec(run.turn, run.id)
        async with exchange.watching(), aclosing(run.events(after)) as events:
            await exchange.start(200, sse.HEADERS + answer_headers(run.reply))
            await sse.stream(exchange, sse.PING, events, every, self._host.told, voice.stream_error)

    async def _cancel(self, exchange: Exchange, caller: str) -> None:
        exchange.asked = True
        id = _id(exchange)
        run = self._runs.get((caller, id))
        stored = await self._gateway.responses.get(caller, id)
        if run is None and b'"background":true' not in stored.body:
            raise BadRequest("only responses made with `background` can be cancelled")
        if run is not None and not run.task.done():
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
            stored = await self._gateway.responses.get(caller, id)
        await exchange.json(200, stored.body)

    # ------------------------------------------------------------ coming back

    async def _get(self, exchange: Exchange, caller: str) -> None:
        exchange.asked = True
        id = _id(exchange)
        query = _query(exchange)
        run = self._runs.get((caller, id))
        if query.get("stream") == "true":
            after = _number(query, "starting_after", -1, 0, 2**31) + 1
            if run is None or not run.turn.request.stream:
                raise BadRequest(
                    "its events are not kept",
                    param="stream",
                    hint="those of responses made with `background` and `stream` are, for a while",
                )
            await self._replay(exchange, run, after)
            return
        if run is not None and not run.task.done():
            await exchange.json(200, run.snapshot("in_progress"))
            return
        stored = await self._gateway.responses.get(caller, id)
        body = _abandoned(stored.body) if stored.running else stored.body
        await exchange.json(200, body)

    async def _delete(self, exchange: Exchange, caller: str) -> None:
        exchange.asked = True
        id = _id(exchange)
        run = self._runs.get((caller, id))
        if run is not None and not run.task.done():
            run.task.cancel()
            await asyncio.gather(run.task, return_exceptions=True)
        await self._gateway.responses.delete(caller, id)
        gone = {"id": id, "object": "response", "deleted": True}
        await exchange.json(200, msgspec.json.encode(gone))

    async def _input_items(self, exchange: Exchange, caller: str) -> None:
        exchange.asked = True
        id = _id(exchange)
        query = _query(exchange)
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest(f"'order' must be asc or desc, not {order[:20]!r}", param="order")
        size = _number(query, "limit", PAGE, 1, MAX_PAGE)
        past = await self._gateway.responses.history(caller, id)
        given = [*_earlier(past[:-1]), *items(past[-1].input)]
        data = listed(given, id)
        if order == "desc":
            data.reverse()
        if "after" in query:
            at = next((i for i, item in enumerate(data) if item["id"] == query["after"]), None)
            if at is None:
                raise NotFound("'after' names no item of this response", param="after")
            data = data[at + 1 :]
        page = data[:size]
        ids = [item["id"] for item in page] or [None]
        told = {"object": "list", "data": page, "first_id": ids[0], "last_id": ids[-1]}
        await exchange.json(200, msgspec.json.encode({**told, "has_more": len(data) > size}))


class _Run:
    """An answer that is made whether or not somebody listens."""

    task: asyncio.Task[None]

    def __init__(self, id: str, turn: Turn, reply: Reply, keep: Callable[[bytes], None]) -> None:
        self.id = id
        self.turn = turn
        self.reply = reply
        self.frames: list[bytes] = []
        self.overflown = False
        self.stopped = False
        """The server ends it, not its client."""
        self._keep = keep
        self.size = 0
        """Bytes of its events."""
        self._more = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def snapshot(self, status: str) -> bytes:
        """The response as far as it is known."""
        return msgspec.json.encode(self._head(status))

    def _head(self, status: str) -> dict[str, Any]:
        return head(Told(self.id, self.turn.fields), self.turn.request, self.reply, status)

    async def go(self, target: Any, call: Call, told: Callable[[Exception], RunnerError]) -> None:
        """Make the answer; what becomes of it is kept, whatever it is."""
        codec = Codec(self.turn, self.id, self._keep)
        try:
            async with target.open(self.turn.request, call) as deltas:
                frames: Any = codec.encode(_written(deltas), self.turn.request, self.reply)
                async with aclosing(frames):
                    async for frame in frames:
                        self._add(frame)
        except Exception as exc:  # nobody waits for it: the response itself must tell
            error = told(exc)
            if self.frames:
                self._add(codec.stream_error(error))
            else:
                self._keep(msgspec.json.encode(failed(self._head("failed"), error)))
                if self.turn.request.stream:
                    self._add(codec.stream_error(error))
        finally:
            self._more.set()

    def keep_cancelled(self) -> None:
        """It was ended before it was whole."""
        whole = self._head("cancelled")
        if self.stopped:
            failed(whole, RunnerError("the server was stopped while it was made"))
        self._keep(msgspec.json.encode(whole))

    def _add(self, frame: bytes) -> None:
        if not self.turn.request.stream or self.overflown:
            return
        self.size += len(frame)
        if self.size > MAX_REPLAY:
            self.overflown, self.size = True, 0
            self.frames.clear()
        else:
            self.frames += _events(frame)
        self._more.set()

    async def events(self, after: int) -> AsyncGenerator[bytes]:
        """The events from the one with that number on, as they come."""
        at = after
        while True:
            if self.overflown:
                raise BadRequest("there were more events than are kept")
            while at < len(self.frames):
                yield self.frames[at]
                at += 1
            if self.task.done():
                return
            self._more = asyncio.Event() if self._more.is_set() else self._more
            await self._more.wait()

    def keep_for(self, seconds: float, forget: Callable[[], None]) -> None:
        """Call `forget` after so long."""
        self._timer = asyncio.get_running_loop().call_later(seconds, forget)

    def forget(self) -> None:
        """No timer any more."""
        if self._timer is not None:
            self._timer.cancel()


async def _written(deltas: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    """`deltas` without the upstream's own bytes: the response has an id already, and it is ours."""
    async for delta in deltas:
        yield msgspec.structs.replace(delta, wire=None) if delta.wire is not None else delta


def _events(frame: bytes) -> list[bytes]:
    """The events of a frame, one each."""
    return [part + b"\n\n" for part in frame.split(b"\n\n") if part]


def _earlier(past: Sequence[Stored]) -> list[Raw]:
    """The items of earlier turns: what was put in, and what came out."""
    found: list[Raw] = []
    for stored in past:
        found += items(stored.input)
        found += (item for item in _shown.decode(stored.body).output if _is_whole(item))
    return found


class _Item(Struct, frozen=True):
    type: str = ""
    encrypted_content: str | None = None
    content: Raw = Raw(b"")


_item = msgspec.json.Decoder(_Item)


def _is_whole(raw: Raw) -> bool:
    """Whether an item means something to who has not made it.

    A thought of OpenAI's without its sealed content is a mere id there, which no other account
    and no other provider knows.
    """
    item = _item.decode(raw)
    has_words = bytes(item.content) not in (b"", b"null", b"[]")
    return item.type != "reasoning" or item.encrypted_content is not None or has_words


def _abandoned(body: bytes) -> bytes:
    """The response of a run whose process is gone."""
    whole: dict[str, Any] = msgspec.json.decode(body)
    return msgspec.json.encode(failed(whole, RunnerError("the server ended while it was made")))


def _new_id() -> str:
    return f"resp_{_random.getrandbits(128):032x}"


def _id(exchange: Exchange) -> str:
    return exchange.path.rstrip("/").partition("/responses/")[2].partition("/")[0]


def _query(exchange: Exchange) -> dict[str, str]:
    text = exchange.scope.get("query_string", b"").decode("ascii", "replace")
    return {name: values[-1] for name, values in parse_qs(text).items()}


_integer = msgspec.json.Decoder(int)


def _number(query: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    if name not in query:
        return default
    value = parse(_integer, query[name].encode(), name)
    if not low <= value <= high:
        raise BadRequest(f"{name!r} must be {low} to {high}, not {value}", param=name)
    return value
