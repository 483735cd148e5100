"""What every `Target`, `Embedder` and `Reranker` must do, whatever it is made of.

Knows: the contract in `types.py`. Does not know: any real target. Every situation runs with the
garbage collector off, because it would close what a target forgot (a strategy that leaked passed
its tests for that reason), and ends with the same questions: is every inner target closed, does a
task still run, did anything warn?
"""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from msgspec import structs

from llm_runner_router.deltas import collect
from llm_runner_router.errors import BadRequest, ConnectFailed, RunnerError, StreamBroken
from llm_runner_router.types import (
    Call,
    Delta,
    Embedder,
    EmbedRequest,
    Request,
    Reranker,
    RerankRequest,
    Target,
)

from .fakes import FakeTarget, Gate, Script, Step, a_call, a_request, deltas_of

Fake = Callable[[str], FakeTarget]
MakeTarget = Callable[[Fake], Target]
"""Builds the target under test; every target inside it comes from the function it is given. A leaf
that has none inside ignores the function, and is checked where nothing must be scripted."""

READERS = 8
PATIENCE = 10.0
"""Seconds after which a situation counts as stuck."""


class ReaderError(Exception):
    """What a reader raises in its own block."""


class Scene:
    """One situation: the fakes it made, and how to open the target under test."""

    def __init__(self, make: MakeTarget, script: Script, enter: tuple[Step, ...] = ()) -> None:
        self.fakes: list[FakeTarget] = []
        self._script = script
        self._enter = enter
        self.target = make(self._fake)

    def _fake(self, name: str) -> FakeTarget:
        fake = FakeTarget(name, self._script, enter=self._enter)
        self.fakes.append(fake)
        return fake

    @asynccontextmanager
    async def open(self, request: Request | None = None) -> AsyncIterator[AsyncIterator[Delta]]:
        """Open the target, and after it look whether everything inside is closed."""
        async with self.target.open(request or a_request(), a_call()) as deltas:
            yield deltas
        self.check_closed()

    def check_closed(self) -> None:
        """Every inner target that was opened is closed again."""
        open_now = {fake.name: fake.running for fake in self.fakes if fake.running}
        assert not open_now, f"still open after leaving {self.target.name!r}: {open_now}"


# ---------------------------------------------------------------- the situations


async def _whole(make: MakeTarget) -> None:
    """A whole answer is read: it finishes, says who answered, and stays at its end."""
    scene = Scene(make, deltas_of("one two three"))
    async with scene.open() as deltas:
        answer = await collect(deltas)
        assert [d async for d in deltas] == [], "deltas came after the end"
    assert answer.choices, "the answer has no choices"
    assert all(c.finish is not None for c in answer.choices), f"a choice did not finish: {answer}"
    assert answer.origin is not None, "no delta says who answered (`Delta.origin`)"
    if scene.fakes:
        assert answer.text == "one two three", f"the text changed on its way: {answer.text!r}"


async def _left_unread(make: MakeTarget) -> None:
    """The reader leaves without reading anything."""
    async with Scene(make, deltas_of("one two three")).open():
        pass


async def _left_early(make: MakeTarget) -> None:
    """The reader leaves after the first delta, while the target has more to give."""
    async with Scene(make, [*deltas_of("one two", finish=None), Gate()]).open() as deltas:
        async for _ in deltas:
            break


async def _reader_fails(make: MakeTarget) -> None:
    """The reader's own error comes out as it is, and nobody else is asked because of it."""
    for error in (ReaderError("mine"), ConnectFailed("mine")):
        scene = Scene(make, [*deltas_of("one two", finish=None), Gate()])
        asked = -1
        caught: BaseException | None = None
        try:
            async with scene.open() as deltas:
                await anext(deltas)
                asked = sum(fake.opened for fake in scene.fakes)
                raise error
        except (ReaderError, RunnerError) as exc:
            caught = exc
        assert caught is error, f"the reader's error became {caught!r}"
        scene.check_closed()
        opened = sum(fake.opened for fake in scene.fakes)
        assert opened == asked, "another target was asked because the reader failed"


async def _cancelled_while_entering(make: MakeTarget) -> None:
    """The caller is cancelled while the target is still being entered."""
    gate = Gate()
    scene = Scene(make, deltas_of("never"), enter=(gate,))
    await _cancel(scene, gate, reads=0)


async def _cancelled_before_first(make: MakeTarget) -> None:
    """The caller is cancelled before the first delta."""
    gate = Gate()
    await _cancel(Scene(make, [gate, *deltas_of("never")]), gate, reads=0)


async def _cancelled_in_stream(make: MakeTarget) -> None:
    """The caller is cancelled while it waits for the second delta."""
    gate = Gate()
    script: list[Step] = [*deltas_of("one", finish=None), gate, *deltas_of("never")]
    await _cancel(Scene(make, script), gate, reads=1)


async def _cancel(scene: Scene, gate: Gate, reads: int) -> None:
    read = asyncio.Event()

    async def reader() -> None:
        async with scene.open() as deltas:
            for _ in range(reads):
                await anext(deltas)
            read.set()
            async for _ in deltas:
                pass

    task = asyncio.create_task(reader())
    if scene.fakes:
        await gate.reached.wait()
    if reads:
        await asyncio.wait(
            (task, waiting := asyncio.create_task(read.wait())),
            return_when=asyncio.FIRST_COMPLETED,
        )
        waiting.cancel()
    for _ in range(3):  # let the reader come to its wait
        await asyncio.sleep(0)
    task.cancel()
    result = (await asyncio.gather(task, return_exceptions=True))[0]
    if not scene.fakes and not isinstance(result, BaseException):
        return  # a leaf may have been done already
    assert isinstance(result, asyncio.CancelledError), f"cancelling gave {result!r}"
    scene.check_closed()


async def _many_at_once(make: MakeTarget) -> None:
    """Several callers at the same time get an answer each."""
    scene = Scene(make, deltas_of("one two three"))

    async def read() -> str:
        async with scene.target.open(a_request(), a_call()) as deltas:
            return (await collect(deltas)).text

    texts = await asyncio.gather(*(read() for _ in range(READERS)))
    if scene.fakes:
        assert texts == ["one two three"] * READERS, f"answers were mixed up: {texts}"
    scene.check_closed()


async def _fails_while_entering(make: MakeTarget) -> None:
    """Everything inside fails on entering: one `RunnerError` comes out."""
    await _fails(Scene(make, deltas_of("never"), enter=(ConnectFailed("down"),)), RunnerError)


async def _fails_before_first(make: MakeTarget) -> None:
    """Everything inside fails before its first delta: one `RunnerError` comes out."""
    await _fails(Scene(make, [ConnectFailed("down")]), RunnerError)


async def _ends_before_first(make: MakeTarget) -> None:
    """Everything inside ends without a delta; the empty stream is an error or stays empty."""
    scene = Scene(make, ())
    try:
        async with scene.open() as deltas:
            left = [delta async for delta in deltas]
        assert not (left and scene.fakes), f"deltas out of nothing: {left}"
    except StreamBroken:
        pass
    scene.check_closed()


async def _refuses(make: MakeTarget) -> None:
    """A request that is wrong everywhere stays wrong: no other status, no second opinion."""
    error = await _fails(Scene(make, [BadRequest("wrong", param="stop")]), BadRequest)
    assert error is None or error.param == "stop", "the path of the bad field was lost"


async def _fails(scene: Scene, kind: type[RunnerError]) -> RunnerError | None:
    if not scene.fakes:
        return None
    caught: RunnerError | None = None
    try:
        async with scene.open() as deltas:
            async for delta in deltas:
                raise AssertionError(f"a delta came from targets that all fail: {delta}")
    except RunnerError as exc:
        caught = exc
    assert isinstance(caught, kind), f"expected {kind.__name__}, got {caught!r}"
    scene.check_closed()
    return caught


async def _fails_in_stream(make: MakeTarget) -> None:
    """After the first delta a failure is told to the reader, and nobody else is asked."""
    scene = Scene(make, [*deltas_of("one", finish=None), StreamBroken("cut")])
    if not scene.fakes:
        return
    texts: list[str] = []
    asked = -1
    try:
        async with scene.open() as deltas:
            async for delta in deltas:
                texts.append(delta.text)
                if len(texts) == 1:
                    asked = sum(fake.opened for fake in scene.fakes)
    except RunnerError:
        pass
    else:
        raise AssertionError("a stream that broke ended as if it were whole")
    scene.check_closed()
    assert texts == ["one"], f"expected the one delta before the failure, got {texts}"
    opened = sum(fake.opened for fake in scene.fakes)
    assert opened == asked, "another target was asked after the first delta"


Situation = Callable[[MakeTarget], Awaitable[None]]

SITUATIONS: Mapping[str, Situation] = {
    check.__name__.lstrip("_"): check
    for check in (
        _whole,
        _left_unread,
        _left_early,
        _reader_fails,
        _cancelled_while_entering,
        _cancelled_before_first,
        _cancelled_in_stream,
        _many_at_once,
        _fails_while_entering,
        _fails_before_first,
        _ends_before_first,
        _refuses,
        _fails_in_stream,
    )
}
"""Every situation by name, for tests that want one case each."""


# ---------------------------------------------------------------- running them


async def check_target(make: MakeTarget) -> None:
    """Put the target that `make` builds into every situation.

    Raises:
        AssertionError: it does not do what the contract of `Target` says.
    """
    for name in SITUATIONS:
        await check_situation(name, make)


async def check_situation(name: str, make: MakeTarget) -> None:
    """One of `SITUATIONS`, with what must hold after each.

    Raises:
        AssertionError: with the situation's name and what went wrong.
    """
    situation = SITUATIONS[name]
    try:
        async with _nothing_left(), asyncio.timeout(PATIENCE):
            await situation(make)
    except TimeoutError as exc:
        raise AssertionError(f"{name}: stuck ({situation.__doc__})") from exc
    except AssertionError as exc:
        exc.add_note(f"situation {name}: {situation.__doc__}")
        raise


@asynccontextmanager
async def _nothing_left() -> AsyncIterator[None]:
    """With the collector off: no task more than before, no warning, no lost exception."""
    before = asyncio.all_tasks()
    with _no_collection(), _complaints() as complaints:
        yield
        await asyncio.sleep(0)
        left = [task for task in asyncio.all_tasks() - before if not task.done()]
        assert not left, f"tasks were left running: {left}"
    assert not complaints, f"there were complaints: {complaints}"


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Warnings (a coroutine nobody awaited), unraisable errors, and what the loop would log."""
    said: list[str] = []
    loop = asyncio.get_running_loop()
    handler, hook = loop.get_exception_handler(), sys.unraisablehook

    def on_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        said.append(f"{context.get('message')}: {context.get('exception')!r}")

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        said.append(f"{args.err_msg or 'unraisable'}: {args.exc_value!r}")

    loop.set_exception_handler(on_loop)
    sys.unraisablehook = on_unraisable
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said.extend(str(warning.message) for warning in caught)
    finally:
        sys.unraisablehook = hook
        loop.set_exception_handler(handler)


# ---------------------------------------------------------------- embedders


async def check_embedder(embedder: Embedder, call: Call | None = None) -> None:
    """What every `Embedder` must do.

    Raises:
        AssertionError: it does not do what the contract of `Embedder` says.
    """
    call = call or a_call()
    texts = ("a small cat", "a large dog", "a small cat")
    async with _nothing_left():
        result = await embedder.embed(EmbedRequest(model=embedder.name, inputs=texts), call)
        assert len(result.vectors) == len(texts), "one vector per input, in order"
        lengths = {len(vector) for vector in result.vectors}
        assert len(lengths) == 1, f"vectors of different lengths: {lengths}"
        assert lengths != {0}, "the vectors are empty"
        first, second, third = result.vectors
        assert _near(first, third), "equal texts have different vectors"
        assert not _near(first, second), "different texts have equal vectors"
        assert result.usage.prompt_tokens > 0, "the usage was not told"
        one = await embedder.embed(EmbedRequest(model=embedder.name, inputs=texts[1:2]), call)
        assert _near(one.vectors[0], second), "a vector depends on its neighbours"


def _near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(abs(x - y) <= 1e-3 * max(1.0, abs(x)) for x, y in zip(a, b, strict=True))


# ---------------------------------------------------------------- rerankers


async def check_reranker(reranker: Reranker, call: Call | None = None) -> None:
    """What every `Reranker` must do.

    Raises:
        AssertionError: it does not do what the contract of `Reranker` says.
    """
    call = call or a_call()
    documents = ("a small cat", "a large dog sat", "a small cat", "rain")
    request = RerankRequest(reranker.name, "the small cat", documents)
    async with _nothing_left():
        result = await reranker.rerank(request, call)
        places = [one.index for one in result.results]
        assert sorted(places) == [0, 1, 2, 3], "every document once"
        scores = [one.score for one in result.results]
        assert scores == sorted(scores, reverse=True), "the best is not the first"
        of = {one.index: one.score for one in result.results}
        assert _near((of[0],), (of[2],)), "equal documents have different scores"
        assert len({round(score, 6) for score in scores}) > 1, "all scores are equal"
        assert result.usage.prompt_tokens > 0, "the usage was not told"
        two = await reranker.rerank(structs.replace(request, top_n=2), call)
        assert len(two.results) == 2, "`top_n` was not kept"
        one = await reranker.rerank(structs.replace(request, documents=documents[1:2]), call)
        assert _near((one.results[0].score,), (of[1],)), "a score depends on its neighbours"
