"""Local inference through `llmrr serve`, beside the same engine without us, in turns.

Knows: which loads to put on both and how to sum up. Does not know how models are run. Two models:
`zoo:tiny-general` as a user has it, and one of random weights that is bound by memory bandwidth.
"""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
from msgspec import Struct

from . import machine, proc, synthetic
from .gateway import KEY, Gateway
from .load import Load, Result
from .report import Row, Section

SLOTS = 2
CONTEXT = 1024
TOKENS = 96
"""Tokens of one answer."""
STARTS = 4
"""How often both sides are started anew for one ratio."""
PROMPT = 300
"""About as many tokens has the prompt that is measured for reading speed."""
WAITS = {
    "spin": {},
    "short": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""A runner's way of waiting to the variables that the engine alone then gets too."""
LOAD_SECONDS = 120.0
BUSY_TOKENS = 12
"""On a busy machine the engine's default may give less than one token a second."""
BUSY_SECONDS = 30.0


class Model(Struct, frozen=True):
    """A model under test."""

    name: str
    ref: str
    path: Path
    touched: int
    """Bytes of weights that one decoded token reads; 0 if it is not known."""


class Runner(Struct, frozen=True):
    """What `llmrr ps` says of a runner."""

    name: str
    pid: int | None = None
    threads: int | None = None
    batch_threads: int | None = None
    wait_policy: str | None = None
    memory: int = 0
    peak: int | None = None
    predicted: int = 0
    predicted_prompts: int = 0
    predicted_peak: int = 0
    guessed: int = 0
    guessed_right: int = 0
    tokens_restored: int = 0


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    rounds = 2 if quick else 5
    rows: list[Row] = []
    failures: list[str] = []
    cores = machine.cores()
    with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as folder:
        models = _models(Path(folder), quick)
        bandwidth = max(machine.read_bandwidth(n) for n in {1, cores})
        rows.append(Row("memory read bandwidth", bandwidth / 1e9, "GB/s", better="more"))
        steps: list[Callable[[], Sequence[Row]]] = [lambda: loading(models[0], rounds)]
        steps += [_step(speed, model, rounds, bandwidth) for model in models]
        steps += [_step(_busy, models[1], min(rounds, 3), cores)]
        for step in steps:
            try:
                rows += step()
            except (proc.BenchError, OSError) as exc:
                failures.append(str(exc))
    return Section("local", tuple(rows), tuple(failures))


def _step(what: Callable[..., Sequence[Row]], *args: object) -> Callable[[], Sequence[Row]]:
    return lambda: what(*args)


def _models(folder: Path, quick: bool) -> list[Model]:
    zoo = Path(str(files("llm_runner_router"))) / "zoo" / "tiny-general.gguf"
    if not zoo.exists():
        raise proc.BenchError("the zoo has no tiny-general.gguf")
    models = [Model("tiny-general", "zoo:tiny-general", zoo, 0)]
    kinds: tuple[synthetic.Quant, ...] = ("Q8_0",) if quick else ("Q8_0", "Q4_0")
    for kind in kinds:
        path = folder / f"random-140m-{kind.lower()}.gguf"
        made = synthetic.write(path, zoo, kind)
        models.append(Model(f"140M {kind}", f"file:{path}", path, made.touched))
    return models


# ---------------------------------------------------------------- both sides


def _config(model: Model, engine: dict[str, object]) -> dict[str, object]:
    return {
        "models": {"bench": model.ref},
        "engine": {"slots": SLOTS, "context": CONTEXT} | engine,
    }


class Alone:
    """The engine in a process of its own; without `like` it has its default settings."""

    def __init__(self, model: Model, like: Runner | None) -> None:
        args = [str(model.path), str(SLOTS), str(CONTEXT)]
        env = {}
        if like is not None and like.threads is not None:
            args += [str(like.threads), str(like.batch_threads or like.threads)]
            env = WAITS.get(like.wait_policy or "spin", {})
        self.child = proc.Child(proc.python("bench.engine_alone", *args), env=env, name="engine")
        try:
            self.port = int(json.loads(self.child.read(LOAD_SECONDS))["port"])
        except (proc.BenchError, ValueError):
            self.child.stop()
            raise
        self.load_time = time.perf_counter() - self.child.began

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.stop()


def _start(model: Model, **engine: object) -> Gateway:
    return Gateway(_config(model, engine), first=None)


def admin(gateway: Gateway, path: str, body: object | None = None) -> Any:
    """What the gateway's own interface answers."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{gateway.port}/llmrr/{path}"
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=LOAD_SECONDS) as response:
        return json.loads(response.read())


def runner_of(gateway: Gateway, model: Model) -> Runner:
    """The process of `model`, as `llmrr ps` shows it."""
    found = msgspec.convert(admin(gateway, "ps"), list[Runner], strict=False)
    for runner in found:
        if runner.pid and (runner.name == model.ref or len(found) == 1):
            return runner
    raise proc.BenchError(f"`llmrr ps` shows no runner of {model.name}: {found}")


def ask(port: int, prompt: str, tokens: int, *, timeout: float = 60.0, key: str = KEY) -> Load:
    """One streamed answer of exactly `tokens` tokens by the model `bench`."""
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"authorization": f"Bearer {key}"}
    return Load(port, json.dumps(body), stream=True, timeout=timeout, headers=headers)


class Speeds(Struct):
    """Of one side, over the rounds: seconds, and tokens per second."""

    first: list[float] = []
    prefill: list[float] = []
    decode: list[float] = []
    memory: list[int] = []
    """Bytes, a sample per round."""

    def short(self, result: Result) -> None:
        """A short question with a long answer.

        The whole time counts, from the question to the last byte: a tiny model writes faster
        than a busy machine wakes the gateway, whose pieces then come together, late or not.
        """
        self.first.append(result.first.p50)
        self.decode.append(result.completion_tokens / result.ok / result.latency.p50)

    def long(self, result: Result) -> None:
        """A long question with an answer of one token."""
        self.prefill.append(result.prompt_tokens / result.ok / result.first.p50)


def run(loader: proc.Loader, load: Load, what: str) -> Result:
    """Run it; every answer must be there.

    Raises:
        BenchError: one was not.
    """
    result = loader.run(load)
    if not result.ok or result.errors:
        raise proc.BenchError(f"{what}: {result.errors}")
    return result


# ---------------------------------------------------------------- what is measured


def loading(model: Model, rounds: int) -> list[Row]:
    """Load times with and without a spare, beside a fresh process of the engine alone."""
    times: dict[bool, list[float]] = {True: [], False: []}
    alone: list[float] = []
    with _start(model) as with_spare, _start(model, spare=False) as without:
        for _ in range(rounds):
            for gateway, spare in ((with_spare, True), (without, False)):
                admin(gateway, "stop", {"model": "bench"}) if times[spare] else None
                _settle(gateway, 1 if spare else 0)
                began = time.perf_counter()
                admin(gateway, "load", {"model": "bench"})
                times[spare].append(time.perf_counter() - began)
            with Alone(model, None) as engine:
                alone.append(engine.load_time)
    direct = median(alone) * 1e3
    name = f"load {model.name}"
    note = "alone: a fresh process with the engine's default settings"
    return [
        Row(f"{name}, warm spare", median(times[True]) * 1e3, "ms", 300, direct, note=note),
        Row(f"{name}, no spare", median(times[False]) * 1e3, "ms", None, direct),
    ]


def _settle(gateway: Gateway, children: int) -> None:
    """Wait until the spare runner is there and has nothing left to do."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = psutil.Process(gateway.pid).children(recursive=True)
        if len(found) == children:
            before = sum(proc.cpu_seconds(child.pid) for child in found)
            time.sleep(0.3)
            if sum(proc.cpu_seconds(child.pid) for child in found) - before < 0.003:
                return
        time.sleep(0.05)


def speed(model: Model, rounds: int, bandwidth: float) -> list[Row]:
    """Writing, reading, first token and memory, beside the engine alone.

    A process keeps the pages that it got, and with them a speed of its own: the same settings
    differ by some percent from one process to the next, and by less from answer to answer. So both
    sides are started anew `STARTS` times, and their order changes from round to round.
    """
    ours, theirs = Speeds(), Speeds()
    with _start(model) as gateway:
        admin(gateway, "load", {"model": "bench"})
        plan = runner_of(gateway, model)
    fixed: dict[str, object] = {}
    if plan.threads == plan.batch_threads:
        # The engine beside it counts as load by others; both sides must keep to one plan.
        fixed = {"threads": plan.threads, "wait_policy": plan.wait_policy}
    used: set[str] = set()
    for start in range(STARTS):
        used.add(_beside(model, rounds, fixed, start, ours, theirs))
    note = "; ".join(sorted(used))
    rows = [_pair(f"{model.name}: decode", ours.decode, theirs.decode, "tok/s", 0.97, note)]
    rows.append(_pair(f"{model.name}: prefill", ours.prefill, theirs.prefill, "tok/s", None, ""))
    first, alone = (median(s.first) * 1e3 for s in (ours, theirs))
    rows.append(Row(f"{model.name}: time to first token", first, "ms", None, alone))
    most, alone = (max(s.memory) / 2**20 for s in (ours, theirs))
    rows.append(Row(f"{model.name}: peak memory (PSS)", most, "MiB", None, alone))
    if model.touched:
        share = median(ours.decode) * model.touched / bandwidth * 100
        alone = median(theirs.decode) * model.touched / bandwidth * 100
        rows.append(Row(f"{model.name}: share of bandwidth", share, "%", None, alone, "more"))
    return rows


def _beside(
    model: Model,
    rounds: int,
    fixed: dict[str, object],
    start: int,
    ours: Speeds,
    theirs: Speeds,
) -> str:
    """One process of each side, `rounds` times; says with which settings."""
    with ExitStack() as stack:
        gateway = stack.enter_context(_start(model, **fixed))
        loader = stack.enter_context(proc.Loader())
        admin(gateway, "load", {"model": "bench"})
        runner = runner_of(gateway, model)
        engine = stack.enter_context(Alone(model, runner))
        sides = [(gateway.port, ours, "gateway"), (engine.port, theirs, "engine alone")]
        for i in range(rounds + 1):
            for port, speeds, who in sides if (i + start) % 2 else sides[::-1]:
                short = run(loader, ask(port, f"Say {i}.", TOKENS), f"{model.name}, {who}")
                words = f"{i} " + "one word and then " * (PROMPT // 4)
                long = run(loader, ask(port, words, 1), f"{model.name}, {who}")
                if i:  # the first round warms up
                    speeds.short(short)
                    speeds.long(long)
            # Between answers the engine gives nothing back, so the largest sample is the peak.
            again = runner_of(gateway, model)
            ours.memory.append(proc.pss(again.pid or 0))
            theirs.memory.append(proc.pss(engine.child.pid))
    note = f"{runner.threads} threads, {runner.wait_policy}"
    if (again.threads, again.wait_policy) != (runner.threads, runner.wait_policy):
        note += f", later {again.threads}, {again.wait_policy}: not the same settings"
    return note


def _pair(
    what: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    unit: str,
    goal: float | None,
    note: str,
) -> Row:
    return Row(what, median(ours), unit, None, median(theirs), "more", goal, note)


def _busy(model: Model, rounds: int, cores: int) -> list[Row]:
    """All cores taken by others: our plan against the engine's own default."""
    ours, theirs = Speeds(), Speeds()
    note = ""
    with ExitStack() as stack:
        stack.enter_context(machine.busy(cores))
        gateway = stack.enter_context(_start(model))
        loader = stack.enter_context(proc.Loader())
        time.sleep(3)  # the load has to be there for some time to count as load
        admin(gateway, "load", {"model": "bench"})
        runner = runner_of(gateway, model)
        engine = stack.enter_context(Alone(model, None))
        for i in range(rounds):
            load = ask(gateway.port, f"Say {i}.", BUSY_TOKENS, timeout=BUSY_SECONDS)
            ours.short(run(loader, load, f"{model.name} on a busy machine, gateway"))
            load = msgspec.structs.replace(load, port=engine.port)
            result = loader.run(load)
            if result.ok:
                theirs.short(result)
            else:  # then at most this fast, which is kind to it
                theirs.decode.append(BUSY_TOKENS / BUSY_SECONDS)
                note = f"; the default gave less than {BUSY_TOKENS} tokens in {BUSY_SECONDS:.0f} s"
    note = f"{cores} busy loops; ours {runner.threads} threads, {runner.wait_policy}{note}"
    name = f"{model.name}: decode, all cores busy"
    return [_pair(name, ours.decode, theirs.decode, "tok/s", 5.0, note)]
