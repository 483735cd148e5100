"""Makes a model ready for the engines of this machine: as it is, or converted and quantised.

Knows: which engine runs what (`select.py`), how models become others (`convert/`), what was made
already. Does not know: processes of engines, requests. The work itself runs in a process of its
own (`convert/job.py`); a result is kept in the data folder and found again after a restart.

Run now, get faster later: a model that an engine runs as it is answers at once, while the form
that was asked for (`quantization`) is made in the background; then `replaced` is told, and
requests move over. A model that no engine runs as it is is converted first, and requests wait.

A conversion takes every core and as much memory as it can use, so only `parallel` of them run at
the same time; the others wait, those first for which requests wait.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from llm_runner_router.errors import (
    EngineError,
    LoadFailed,
    RunnerError,
    Unavailable,
    Unsupported,
)
from llm_runner_router.home import find
from llm_runner_router.models.detect import describe
from llm_runner_router.models.info import LocalModel, templated

from . import devices, fit
from .adapters import Adapters
from .select import EngineSelector

TARGETS = ("gguf", "safetensors", "onnx-genai")
"""Kinds that engines run, the fastest first."""
WAIT_LEAST = 600.0
WAIT_FACTOR = 20.0
"""A conversion may take `WAIT_LEAST` seconds and this many times its own estimate."""
AGAIN = 300.0
"""Seconds after which a conversion that failed is tried again."""
PACKED = "packed-"
"""Begins the kind of a model in an archive, or in a file that is only compressed."""
DYNAMIC = "dynamic"
"""Asked for in place of a mix: the best that fits the memory and the speed of this machine."""
LEFT = 0.8
"""Share of the free memory that one model may take."""
PLAIN = frozenset({"F32", "F16", "BF16", "F64"})
"""Types of weights that quantising starts from; from Q8_0 too, which loses next to nothing."""
BLOCKS = frozenset({"gguf", "ggml"})
"""Formats whose weights keep their blocks on the way to GGUF."""

LOOK = 1.0
"""Seconds between two looks at all files of a model; at the file or folder itself every time."""
MOST_IDLE = 256
"""Finished conversions that are remembered, the latest; others are found in the data folder."""

Key = tuple[str, str, str]
"""Name, quantisation and engine: what was asked for."""
_log = logging.getLogger(__name__)


class Way(Struct, frozen=True):
    """How a model becomes what is wanted of it."""

    kind: str
    """The kind it becomes."""
    steps: tuple[str, ...]
    """What is done, in words, in order."""
    engine: str
    """Who runs the result."""
    mix: str = ""
    """The quantisation at the end; empty for none."""
    seconds: float = 0.0
    """Estimated."""


class Conversion(Struct, frozen=True):
    """A conversion as others see it."""

    model: str
    kind: str
    """What the model becomes."""
    state: Literal["waits", "runs"]
    """`waits`: as many run as may."""
    done: int = 0
    """Bytes of the step that runs, of `total`."""
    total: int = 0
    background: bool = False
    """Requests are answered meanwhile."""


class _Work:
    """A conversion that runs or has ended."""

    def __init__(self, stamp: str) -> None:
        self.stamp = stamp
        """Of the files it is made from; others under the same name are another model."""
        self.entry: tuple[int, ...] = ()
        """What the disk told of the file or folder itself when all of it was looked at."""
        self.look = 0.0
        """When all of it is looked at again."""
        self.task: asyncio.Task[LocalModel] | None = None
        self.shown: Conversion | None = None
        self.result: LocalModel | None = None
        self.failed: RunnerError | None = None
        self.again = 0.0


class _Turns:
    """Lets so many in at once, and those first for whom somebody waits."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._order = count()
        self._queue: list[tuple[bool, int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, *, background: bool) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        if self._free:
            self._free -= 1
        else:
            mine = asyncio.get_running_loop().create_future()
            heapq.heappush(self._queue, (background, next(self._order), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._next()
                raise
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        """Give a place that became free to whoever is next."""
        while self._queue:
            _, _, one = heapq.heappop(self._queue)
            if not one.done():
                one.set_result(None)
                return
        self._free += 1


class Preparer:
    """Single-flight conversions, owned by one event loop; `close` ends those that run.

    Args:
        engines: who runs what.
        clock: monotonic seconds.
        environ: where the data folder is read.
        replaced: told the model in its better form, when one was made in the background.
        parallel: conversions that run at the same time.
    """

    def __init__(
        self,
        engines: EngineSelector,
        *,
        clock: Callable[[], float],
        environ: Mapping[str, str] = os.environ,
        replaced: Callable[[LocalModel], None] = lambda model: None,
        parallel: int = 1,
    ) -> None:
        self._engines = engines
        self._clock = clock
        self._environ = environ
        self._replaced = replaced
        self._turns = _Turns(parallel)
        self._adapters = Adapters(clock=clock, environ=environ)
        self._work: dict[Key, _Work] = {}
        self._old: set[_Work] = set()
        """Those that still run though the files they read are not the model's any more."""
        self._closed = False

    async def ready(self, model: LocalModel) -> LocalModel:
        """`model` in the best form there is now; waits only where no engine runs it as it is.

        Raises:
            LoadFailed: no engine runs it, and it cannot become anything that one does.
            RunnerError: the conversion failed, or an adapter is not the model's; says why.
        """
        made = await self._form(model)
        return await self._adapters.ready(made) if made.adapters else made

    async def _form(self, model: LocalModel) -> LocalModel:
        """`model` with the best weights there are now; its adapters are as they were."""
        runs = self._runs(model)
        if runs and not _wants(model):
            return model
        work = self._find(model)
        if work.result is not None and work.result.path.exists():
            return work.result
        work.result = None  # somebody deleted it: it is made again
        if work.task is None and not self._closed:
            self._begin(work, model, background=runs)
        if runs:
            return model
        task = work.task
        if task is None:
            # Without its traceback: each raise would add to it.
            raise (work.failed or _closing(model)).with_traceback(None)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the conversion was ended, not whoever waits for it
                raise _closing(model) from None
            raise

    def way(self, model: LocalModel) -> Way:
        """How `model` would be made ready.

        Raises:
            LoadFailed: it cannot be; says why, for each kind that engines run.
        """
        return find_way(model, self._engines)

    def conversions(self) -> tuple[Conversion, ...]:
        """Those that run or wait, in the order in which they were asked for; for display."""
        works = (*self._old, *self._work.values())
        return tuple(w.shown for w in works if w.task is not None and w.shown is not None)

    def making(self, name: str) -> bool:
        """Whether a conversion of the model called `name` runs or waits; for display."""
        return any(one.model == name for one in self.conversions())

    async def sweep(self) -> None:
        """Delete what conversions left that were killed, with an earlier server for example."""
        home = find(self._environ)
        if not (home.path / "converted").is_dir():
            return  # most installations need not even import it
        from llm_runner_router.convert.cache import sweep

        await asyncio.to_thread(sweep, home)

    async def close(self) -> None:
        """End the conversions that run and start none; what they wrote is removed."""
        self._closed = True
        works = (*self._old, *self._work.values())
        tasks = [work.task for work in works if work.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ------------------------------------------------------------ inside

    def _find(self, model: LocalModel) -> _Work:
        """What is known of a conversion of the model as its files are now.

        Raises:
            ModelFileError: they are gone.
        """
        from llm_runner_router.convert.identity import stamp

        key, moment = _key(model), self._clock()
        known = self._work.pop(key, None)
        if known is None or known.entry != _entry(model.path) or moment >= known.look:
            now = stamp(model.path)
            if known is not None and known.stamp != now:
                if known.task is not None:  # somebody may wait for it
                    self._old.add(known)
                known = None
            known = known or _Work(now)
            known.entry, known.look = _entry(model.path), moment + LOOK
        work = self._work[key] = known  # the latest is the last
        idle = [k for k, w in self._work.items() if w.task is None and w is not work]
        for old in idle[: max(0, len(self._work) - MOST_IDLE)]:
            del self._work[old]
        return work

    def _runs(self, model: LocalModel) -> bool:
        if model.engine is not None:
            # Whoever names an engine wants to hear from it what is wrong.
            verdict = next(
                (v for v in self._engines.rank(model.info) if v.engine == model.engine), None
            )
            return verdict is None or verdict.can
        return any(v.can and not v.by_name for v in self._engines.rank(model.info))

    def _begin(self, work: _Work, model: LocalModel, *, background: bool) -> None:
        if work.failed is not None and self._clock() < work.again:
            return
        work.failed = None
        try:
            way = self.way(model)
        except RunnerError as exc:
            self._fail(work, model, exc, background=background)
            return
        work.shown = Conversion(model.name, way.kind, "waits", background=background)
        work.task = asyncio.create_task(
            self._make(work, model, way, background=background),
            name=f"conversion of {model.name}",
        )
        work.task.add_done_callback(lambda task: self._ended(work, model, task, background))

    async def _make(
        self, work: _Work, model: LocalModel, way: Way, *, background: bool
    ) -> LocalModel:
        async with self._turns.turn(background=background):
            work.shown = Conversion(model.name, way.kind, "runs", background=background)
            _log.info("%s: %s", model.name, ", ".join(way.steps))
            return await self._convert(work, model, way, background=background)

    async def _convert(
        self, work: _Work, model: LocalModel, way: Way, *, background: bool
    ) -> LocalModel:
        from llm_runner_router.convert.base import Options
        from llm_runner_router.convert.job import converting

        options = Options(quantize=way.mix) if way.mix else Options()
        seconds = WAIT_LEAST + WAIT_FACTOR * way.seconds
        shown = work.shown
        assert shown is not None, "whoever begins shows it"
        try:
            async with (
                asyncio.timeout(seconds),
                converting(
                    model.path,
                    way.kind,
                    options=options,
                    background=background,
                    budget=self._room(model),
                    environ=self._environ,
                ) as job,
            ):
                async for at in job.progress():
                    work.shown = msgspec.structs.replace(shown, done=at.done, total=at.total)
                path: Path = (await job.result()).path
        except TimeoutError:
            raise EngineError(
                f"converting `{model.name}` took more than {seconds:.0f} s",
                hint=f"convert it beforehand: `llmrr convert {model.path} --to {way.kind}`",
            ) from None
        made = msgspec.structs.replace(model, path=path, info=describe(path))
        return made if model.template is None else templated(made, model.template)

    def _room(self, model: LocalModel) -> int:
        """Bytes that weights may take: free memory less the cache and the buffers beside them."""
        tokens = min(model.info.context or fit.DEFAULT_CONTEXT, fit.LEAST_CONTEXT)
        beside = fit.kv_bytes(model.info, tokens) + fit.work_bytes(model.info, fit.UBATCH)
        return max(0, int(devices.look().available * LEFT) - beside - fit.PROCESS - fit.CODE)

    def _ended(
        self, work: _Work, model: LocalModel, task: asyncio.Task[LocalModel], background: bool
    ) -> None:
        work.task = work.shown = None
        outdated = work in self._old
        self._old.discard(work)
        if task.cancelled():
            return
        exc = task.exception()
        if exc is None:
            work.result = task.result()
            # With adapters, the next request brings it: they are made ready for it first.
            if background and not outdated and not work.result.adapters:
                self._replaced(work.result)
        elif isinstance(exc, RunnerError):
            self._fail(work, model, exc, background=background)
        else:
            _log.error("converting %s", model.name, exc_info=exc)
            self._fail(work, model, EngineError(f"{type(exc).__name__}: {exc}"), background=True)

    def _fail(self, work: _Work, model: LocalModel, exc: RunnerError, *, background: bool) -> None:
        work.failed, work.again = exc, self._clock() + AGAIN
        if background:  # it answers as it is; nobody waits for the news
            _log.warning("%s stays as it is: %s", model.name, exc.message)


def _closing(model: LocalModel) -> Unavailable:
    return Unavailable(f"`{model.name}` is not made ready any more: this is closing")


def find_way(model: LocalModel, engines: EngineSelector) -> Way:
    """The first kind of `TARGETS` that `model` can become and an engine then runs.

    Raises:
        LoadFailed: there is none; says why.
        Unsupported: the quantisation is not known, or the weights are quantised already.
    """
    from llm_runner_router.convert.run import kind_of, steps_for

    mix = _mix(model)
    have = kind_of(model.path)
    reasons: list[str] = []
    inner = have.removeprefix(PACKED)
    # What was packed runs as it would have unpacked, and is converted only where nothing does.
    first = (inner,) if inner != have else ()
    for want in ("gguf",) if mix else dict.fromkeys((*first, *TARGETS)):
        try:
            steps = () if want == have else steps_for(model.path, want, have=have)
        except RunnerError as exc:
            reasons.append(exc.message)
            continue
        become = msgspec.structs.replace(
            model.info,
            format=want.partition("-")[0],
            notes=(),
            # The types are those of the file there is: what is made has none that engines refuse.
            types=model.info.types if want == have else {},
        )
        if want == "onnx-genai":
            become = msgspec.structs.replace(become, notes=("onnxruntime-genai",))
        verdicts = [
            v
            for v in engines.rank(become)
            if v.can and (v.engine == model.engine if model.engine else not v.by_name)
        ]
        if not verdicts:
            reasons.append(f"as {want}, no engine here runs it")
            continue
        words = [f"{step.have} to {step.want}" for step in steps]
        seconds = sum(step.seconds for step in steps)
        if mix:
            words.append("quantise to " + ("what is best here" if mix == DYNAMIC else mix))
            seconds += model.info.parameters / 5e6
        return Way(want, tuple(words), verdicts[0].engine, mix, seconds)
    verdicts_now = "; ".join(f"{v.engine} {v.why}" for v in engines.rank(model.info))
    raise LoadFailed(
        f"nothing here runs `{model.name}` ({model.info.format}, {model.info.architecture}):"
        f" {verdicts_now}; and it cannot become what an engine runs: {'; '.join(reasons)}",
        hint=f"`llmrr inspect {model.path} --why` tells more",
    )


def _mix(model: LocalModel) -> str:
    """The mix that is wanted and not there yet; empty for none.

    Raises:
        Unsupported: it is not known, or quantising again would only lose.
    """
    wanted = model.quantization
    if not wanted:
        return ""
    if wanted == DYNAMIC:
        fine = PLAIN | {"Q8_0"}
        plain = model.info.format not in BLOCKS or _type(model) in fine
        return DYNAMIC if plain else ""
    from llm_runner_router.convert import mixes

    try:
        name = mixes.named(wanted).name
    except KeyError:
        raise Unsupported(
            f"there is no quantisation called {wanted[:50]!r}",
            param="quantization",
            hint="one of " + ", ".join(mixes.MIXES),
        ) from None
    if not _wants(model):
        return ""
    have = _type(model)
    if model.info.format in BLOCKS and have not in PLAIN and have != "Q8_0":
        raise Unsupported(
            f"`{model.name}` is quantised already ({have}); to make {name} of it would lose twice",
            param="quantization",
            hint="take the model in F16, BF16 or Q8_0",
        )
    return name


def _wants(model: LocalModel) -> bool:
    """Whether something else is asked for than the weights have."""
    if model.quantization == DYNAMIC:
        return bool(_mix(model))
    wanted = (model.quantization or "").upper()
    have = _type(model)
    return bool(wanted) and not (
        model.info.format in BLOCKS and (wanted == have or wanted.startswith(f"{have}_"))
    )


def _type(model: LocalModel) -> str:
    """The type of most weights; one from before GGUF by its name of today."""
    return model.info.quantisation.upper().partition("_V")[0]


def _entry(path: Path) -> tuple[int, ...]:
    try:
        at = path.stat()
    except OSError:
        return ()
    return at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino


def _key(model: LocalModel) -> Key:
    return model.name, model.quantization or "", model.engine or ""
