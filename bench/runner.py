"""A runner's life in figures: load, first token, speed, memory, swap, guessing ahead.

Knows: the goals for weights of 140 M parameters and for the 1 B shape, both of random numbers. Does
not know how models are run. Everything goes through `llmrr serve`, as a user has it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from statistics import median

import msgspec

from . import machine, proc, synthetic
from .gateway import Gateway
from .local import Model, admin, ask, loading, run, runner_of, speed
from .report import Row, Section

CONTEXT = 2048
LONG = 1400
"""About as many tokens has the long prompt."""
WRITTEN = 400
"""Tokens of an answer whose text repeats itself."""
WAIT = 120.0


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    rounds = 2 if quick else 3
    zoo = Path(str(files("llm_runner_router"))) / "zoo"
    donor = zoo / "tiny-general.gguf"
    rows: list[Row] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as folder:
        path = Path(folder) / "140m.gguf"
        made = synthetic.write(path, donor, "Q4_K_M")
        small = Model("140M Q4_K_M", f"file:{path}", path, made.touched)
        steps: list[Callable[[], Sequence[Row]]] = [
            lambda: _load(small, rounds),
            lambda: _speed(small, rounds),
            lambda: _swap(small, rounds),
            lambda: _guess(Path(folder), donor, rounds),
        ]
        if not quick:
            steps.append(lambda: _large(Path(folder) / "1b.gguf", donor))
        for step in steps:
            try:
                rows += step()
            except (proc.BenchError, OSError) as exc:
                failures.append(str(exc))
    return Section("runner", tuple(rows), tuple(failures))


def _load(model: Model, rounds: int) -> list[Row]:
    return [
        msgspec.structs.replace(row, asked=500.0) if "warm" in row.what else row
        for row in loading(model, rounds)
    ]


def _speed(model: Model, rounds: int) -> list[Row]:
    rows = speed(model, rounds, machine.read_bandwidth(1))
    goals = {"decode": (100.0, "more"), "time to first token": (100.0, "less")}
    found: list[Row] = []
    for row in rows:
        found.append(row)
        what = row.what.rpartition(": ")[2]
        if what in goals:
            goal, better = goals[what]
            found.append(
                Row(f"{row.what}, idle cores", row.value, row.unit, goal, None, better)  # type: ignore[arg-type]  # "less" or "more", from the line above
            )
    return found


def _swap(model: Model, rounds: int) -> list[Row]:
    """Time to the first token of a long prompt, with the model unloaded for another in between."""
    times: dict[bool, list[float]] = {True: [], False: []}
    restored = 0
    words = "one word and then " * (LONG // 6)
    for kept in (True, False):
        with _swapping(model, kept) as gateway, proc.Loader() as loader:
            for i in range(rounds + 1):
                result = run(loader, ask(gateway.port, words, 1, timeout=WAIT), model.name)
                if i:
                    times[kept].append(result.first.p50)
                    restored = runner_of(gateway, model).tokens_restored if kept else restored
                admin(gateway, "load", {"model": "other"})
    ours, computed = (median(times[kept]) * 1e3 for kept in (True, False))
    note = f"both with the load; {restored // rounds} tokens restored;"
    note += f" {computed / ours:.1f} times as fast"
    name = f"{model.name}: first token of a long prompt after a swap"
    return [Row(name, ours, "ms", None, computed, "less", 0.2, note)]


def _swapping(model: Model, kept: bool) -> Gateway:
    group = {"models": [model.ref, "zoo:tiny-math"], "at_once": 1}
    engine: dict[str, object] = {"slots": 1, "context": CONTEXT, "groups": {"one": group}}
    if not kept:
        engine["saved_prompts"] = 0
    models = {"bench": model.ref, "other": "zoo:tiny-math"}
    return Gateway({"models": models, "engine": engine}, first=None)


def _guess(folder: Path, donor: Path, rounds: int) -> list[Row]:
    """Writing speed on a text that repeats itself, with and without guesses.

    The weights write nothing but the repetition, at the cost of any weights of that shape; the
    draft models differ from them at one token of 50 and at one of five.
    """
    cycle = synthetic.Cycle()
    path = folder / "cycle.gguf"
    synthetic.write(path, donor, "Q8_0", cycle=cycle)
    model = Model("140M Q8_0", f"file:{path}", path, 0)
    modes: dict[str, dict[str, object]] = {"off": {"speculate": "off"}}
    modes["n-grams"] = {"speculate": "ngram"}
    drafts: dict[str, str] = {}
    for every in (50, 5):
        draft = folder / f"draft-{every}.gguf"
        wrong = synthetic.Cycle(cycle.length, every)
        synthetic.write(draft, donor, "Q8_0", synthetic.SMALL, cycle=wrong)
        mode = f"a small model, wrong at 1 token of {every}"
        modes[mode], drafts[mode] = {"speculate": "draft"}, f"file:{draft}"
    speeds: dict[str, list[float]] = {mode: [] for mode in modes}
    notes: dict[str, str] = {}
    with ExitStack() as stack:
        loader = stack.enter_context(proc.Loader())
        gateways = {
            mode: stack.enter_context(_guessing(model, engine, drafts.get(mode)))
            for mode, engine in modes.items()
        }
        for i in range(rounds + 1):
            for mode, gateway in gateways.items():
                load = ask(gateway.port, f"Say {i}.", WRITTEN, timeout=WAIT)
                result = run(loader, load, model.name)
                if i:
                    tokens = result.completion_tokens / result.ok
                    speeds[mode].append(tokens / (result.latency.p50 - result.first.p50))
        for mode, gateway in gateways.items():
            found = runner_of(gateway, model)
            notes[mode] = f"{found.guessed_right} of {found.guessed} guesses right"
    plain = median(speeds.pop("off"))
    return [
        Row(
            f"{model.name}: decode of a repeating text, guesses by {mode}",
            median(found),
            "tok/s",
            None,
            plain,
            "more",
            note=f"{notes[mode]}; beside no guesses",
        )
        for mode, found in speeds.items()
    ]


def _guessing(model: Model, engine: dict[str, object], draft: str | None) -> Gateway:
    same = {
        "slots": 1,
        "context": CONTEXT,
        "spare": False,
        "threads": machine.cores(),
        "wait_policy": "short",
    }
    node: object = model.ref if draft is None else {"target": model.ref, "draft": draft}
    return Gateway({"models": {"bench": node}, "engine": same | engine}, first=None)


def _large(path: Path, donor: Path) -> list[Row]:
    """Memory of the 1 B shape at 4 bit while it answers, against its F16 checkpoint."""
    made = synthetic.write(path, donor, "Q4_K_M", synthetic.ONE_B)
    model = Model("1B Q4_K_M", f"file:{path}", path, made.touched)
    checkpoint = made.parameters * 2 / 2**20
    rows: list[Row] = []
    for kind in ("f16", "q8_0"):
        engine = {"slots": 1, "context": CONTEXT, "kv_type": kind, "spare": False}
        config = {"models": {"bench": model.ref}, "engine": engine}
        with Gateway(config, first=None) as gateway, proc.Loader() as loader:
            admin(gateway, "load", {"model": "bench"})
            result = run(loader, ask(gateway.port, "Say it.", 32, timeout=WAIT), model.name)
            taken = proc.pss(runner_of(gateway, model).pid or 0) / 2**20
        pace = result.completion_tokens / result.latency.p50
        note = f"beside the F16 checkpoint's size; context {CONTEXT}; {pace:.1f} tok/s"
        name = f"{model.name}: memory (PSS), keys and values {kind}"
        rows.append(Row(name, taken, "MiB", None, checkpoint, "less", 0.5, note))
    return rows
