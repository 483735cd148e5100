"""What each engine said that a model would take in memory, beside what its process takes.

Knows: which models to load on which engines, and how to fill their slots. Does not know how the
estimates are made (`place` of the engines). Three questions per model: how far is the estimate off
with every slot filled once; how far at the top of the load; and does the process stay within what
it may take at most, after prompts that push others out of their slots?

The engines' constants were measured with the zoo's models and those of 140 M random weights; the
others (60 M, 1 B) have shapes that nothing was fitted to.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from msgspec import Struct

from . import machine, proc, synthetic
from .gateway import KEY, Gateway, command
from .load import Load
from .local import Model, Runner, admin, run, runner_of
from .report import Row, Section

SLOTS = 2
CONTEXT = 512
"""Tokens per slot."""
REPEATS = 75
"""So many times four words fill a slot nearly."""
NEAR = 10.0
"""Percent that an estimate may be off."""
ROUNDS = 3
"""How often all slots are filled with other prompts for the last question."""
FILL_SECONDS = 300.0
SIXTY_M = synthetic.Shape(width=512, layers=16, hidden=1792, heads=8, kv_heads=2)
"""A shape of other proportions than those that the constants were measured with."""
ZOO = ("tiny-math", "tiny-text", "tiny-chat", "tiny-general")
HUB = proc.ROOT / "zoo" / "models"


class Case(Struct, frozen=True):
    """A model on an engine."""

    title: str
    engine: str
    kind: str
    """Which form of the model: a type of GGUF, `hf`, or `onnx-` and the type of its weights."""
    options: dict[str, Any] = {}
    rounds: int = ROUNDS


FITTED = (
    Case("140M Q4_K_M", "llamacpp", "Q4_K_M"),
    Case("140M", "torch", "hf"),
    Case("140M", "mistralrs", "hf"),
    Case("140M, isq q4k", "mistralrs", "hf", {"isq": "q4k"}),
    Case("140M Q8_0", "onnx", "onnx-q8_0"),
    Case("140M Q8_0", "onnx_genai", "onnx-q8_0"),
)
MORE = (
    Case("140M Q8_0", "llamacpp", "Q8_0"),
    Case("140M F16", "llamacpp", "F16"),
    Case("140M, bfloat16", "torch", "hf", {"dtype": "bfloat16"}),
    Case("140M, isq q8_0", "mistralrs", "hf", {"isq": "q8_0"}),
    Case("140M Q8_0", "mistralrs", "Q8_0"),
    Case("140M F16", "onnx", "onnx-f16"),
    Case("140M F16", "onnx_genai", "onnx-f16"),
)
OTHERS = (
    Case("60M Q8_0", "llamacpp", "Q8_0"),
    Case("60M Q4_K_M", "llamacpp", "Q4_K_M"),
    Case("60M", "torch", "hf"),
    Case("60M", "mistralrs", "hf"),
    # With q4k two answers at a time fail in this shape (mistralrs 0.9.5: tensor not contiguous).
    Case("60M, isq q8_0", "mistralrs", "hf", {"isq": "q8_0"}),
    Case("60M Q4_K_M", "mistralrs", "Q4_K_M"),
    Case("60M Q8_0", "onnx", "onnx-q8_0"),
    Case("60M Q4_0", "onnx_genai", "onnx-q4_0"),
)
LARGE = (
    Case("1B Q4_K_M", "llamacpp", "Q4_K_M", rounds=1),
    Case("1B Q8_0", "llamacpp", "Q8_0", rounds=1),
    Case("1B Q4_0", "onnx_genai", "onnx-q4_0", rounds=1),
)


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    rows: list[Row] = []
    failures: list[str] = []
    zoo = Path(str(files("llm_runner_router"))) / "zoo"
    names = ZOO[-1:] if quick else ZOO
    tiny = [(Case(name, "llamacpp", "Q8_0"), zoo / f"{name}.gguf") for name in names]
    tiny += [(Case("tiny-general", e, "hf"), HUB / "tiny-general") for e in ("torch", "mistralrs")]
    for case, path in tiny:
        _try(case, path, rows, failures)
    groups: list[tuple[tuple[Case, ...], synthetic.Shape]] = [(FITTED, synthetic.Shape())]
    if not quick:
        groups[0] = (FITTED + MORE, synthetic.Shape())
        groups += [(OTHERS, SIXTY_M), (LARGE, synthetic.ONE_B)]
    for cases, shape in groups:
        with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as folder:
            forms = Forms(Path(folder), zoo / "tiny-general.gguf", shape)
            for case in cases:
                try:
                    path = forms.path(case.kind)
                except (proc.BenchError, OSError) as exc:
                    failures.append(f"{case.title} on {case.engine}: {exc}")
                    continue
                _try(case, path, rows, failures)
    return Section("memory", tuple(rows), tuple(failures))


class Forms:
    """The forms of one model of random weights, each made when it is first asked for.

    Args:
        folder: where they go.
        donor: a GGUF file whose tokenizer they get.
        shape: the model's.
    """

    def __init__(self, folder: Path, donor: Path, shape: synthetic.Shape) -> None:
        self._folder = folder
        self._donor = donor
        self._shape = shape

    def path(self, kind: str) -> Path:
        """The model in the form `kind` (`Case.kind`).

        Raises:
            BenchError: it cannot be made.
        """
        path = self._folder / kind
        if kind.startswith("onnx-"):
            if not path.exists():
                _convert(self.path("hf"), path, "onnx-genai", kind.removeprefix("onnx-"))
        elif kind == "hf":
            if not path.exists():
                _convert(self.path("F16"), path, "safetensors", "f16")
        else:
            path = path.with_suffix(".gguf")
            if not path.exists():
                synthetic.write(path, self._donor, kind, self._shape)  # type: ignore[arg-type]  # a type it knows, from the tables above
        return path


def _convert(source: Path, target: Path, kind: str, type: str) -> None:
    words = [*command(), "convert", str(source), str(target), "--to", kind, "--type", type]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise proc.BenchError(f"{' '.join(words[-5:])}: {done.stderr[-500:]}")


def _try(case: Case, path: Path, rows: list[Row], failures: list[str]) -> None:
    try:
        rows.extend(_rows(case, path))
    except (proc.BenchError, OSError) as exc:
        failures.append(f"{case.title} on {case.engine}: {exc}")


def _rows(case: Case, path: Path) -> Sequence[Row]:
    model = Model(case.title, f"file:{path}", path, 0)
    node = {"target": model.ref, "engine": case.engine, "options": case.options}
    # Nothing that would start another process while this one is looked at.
    engine = {
        "slots": SLOTS,
        "context": CONTEXT,
        "threads": machine.cores(),
        "wait_policy": "passive",
        "speculate": "off",
        "spare": False,
    }
    with Gateway({"models": {"bench": node}, "engine": engine}, first=None) as gateway:
        admin(gateway, "load", {"model": "bench"})
        loaded = runner_of(gateway, model)
        with proc.Loader() as loader:
            run(loader, _fill(gateway.port, 0), case.title)
            served = runner_of(gateway, model)
            for i in range(case.rounds):
                run(loader, _fill(gateway.port, 1 + i), case.title)
        last = runner_of(gateway, model)
    if len({loaded.pid, served.pid, last.pid}) > 1:
        raise proc.BenchError("its process was replaced while it was looked at")
    return _told(f"{case.title} on {case.engine}", loaded, served, last)


def _told(name: str, loaded: Runner, served: Runner, last: Runner) -> list[Row]:
    """Three rows: slots full, the top of the load, the most."""
    rows = [_off(f"{name}: slots full", served.predicted, served.memory)]
    if loaded.peak:
        rows.append(_off(f"{name}: top of the load", loaded.predicted_peak, loaded.peak))
    most = last.predicted + last.predicted_prompts
    note = f"{last.memory / 2**20:.0f} MiB of {most / 2**20:.0f}, other prompts kept"
    share = 100 * last.memory / most
    return [*rows, Row(f"{name}: of the most", share, "%", 100 + NEAR, note=note)]


def _off(what: str, predicted: int, taken: int) -> Row:
    off = 100 * (predicted / taken - 1)
    note = f"{off:+.1f} %: predicted {predicted / 2**20:.0f} MiB, measured {taken / 2**20:.0f}"
    return Row(f"{what}, off by", abs(off), "%", NEAR, note=note)


def _fill(port: int, round: int) -> Load:
    """As many prompts as slots at once, nearly as long as the context."""
    words = f"###### {round} " + "one word and then " * REPEATS
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 16,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Load(
        port,
        json.dumps(body),
        connections=SLOTS,
        requests=SLOTS,
        stream=True,
        timeout=FILL_SECONDS,
        headers={"authorization": f"Bearer {KEY}"},
    )
