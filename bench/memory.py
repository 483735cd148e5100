"""What a model was expected to take, and what its process takes when all slots are full.

Knows: which models to load and how to fill their slots. Does not know how the estimate is made
(`engine/fit.py`). The estimate is an upper bound, so it should be a little above what is measured.
"""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path

from . import proc, synthetic
from .gateway import KEY, Gateway
from .load import Load
from .local import Model, admin, run, runner_of
from .report import Row, Section

ZOO = ("tiny-math", "tiny-text", "tiny-chat", "tiny-general")
SLOTS = 2
CONTEXT = 512
"""Tokens per slot for the models of random weights; the zoo's keep their own."""
NEAR = 0.10
LARGE = 400 << 20
"""Bytes of a file from which on the slots are filled once only."""
FILL_SECONDS = 300.0


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    zoo = Path(str(files("llm_runner_router"))) / "zoo"
    rows: list[Row] = []
    failures: list[str] = []
    made: list[tuple[str, synthetic.Quant, synthetic.Shape]] = [
        ("140M", "Q4_K_M", synthetic.Shape())
    ]
    if not quick:
        made += [("140M", kind, synthetic.Shape()) for kind in ("Q8_0", "F16")]
        made += [("1B", kind, synthetic.ONE_B) for kind in ("Q4_K_M", "Q8_0")]
    with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as folder:
        for name in ZOO:
            model = Model(name, f"zoo:{name}", zoo / f"{name}.gguf", 0)
            _try(model, {"slots": SLOTS}, rows, failures)
        for title, kind, shape in made:
            path = Path(folder) / "model.gguf"
            synthetic.write(path, zoo / "tiny-general.gguf", kind, shape)
            model = Model(f"{title} {kind}", f"file:{path}", path, 0)
            _try(model, {"slots": SLOTS, "context": CONTEXT}, rows, failures)
    return Section("memory", tuple(rows), tuple(failures))


def _try(model: Model, engine: dict[str, object], rows: list[Row], failures: list[str]) -> None:
    try:
        rows.append(_row(model, engine))
    except (proc.BenchError, OSError) as exc:
        failures.append(f"{model.name}: {exc}")


def _row(model: Model, engine: dict[str, object]) -> Row:
    config = {"models": {"bench": model.ref}, "engine": engine}
    with Gateway(config, first=None) as gateway, proc.Loader() as loader:
        admin(gateway, "load", {"model": "bench"})
        # What goes to another slot is kept in memory, up to a bound; large models take long.
        for i in range(3 if model.path.stat().st_size < LARGE else 1):
            run(loader, _fill(gateway.port, i, 150 if "context" not in engine else 75), model.name)
        found = runner_of(gateway, model)
        taken = proc.pss(found.pid or 0)
    off = found.predicted / taken - 1
    near = "yes" if abs(off) <= NEAR else "NO"
    note = f"predicted {found.predicted / 2**20:.0f} MiB, {off:+.1%}; within {NEAR:.0%}: {near}"
    return Row(f"{model.name}: memory (PSS)", taken / 2**20, "MiB", note=note)


def _fill(port: int, round: int, repeats: int) -> Load:
    """As many prompts as slots at once, nearly as long as the context."""
    words = f"###### {round} " + "one word and then " * repeats
    body = {
        "model": "bench",
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 16,
        "temperature": 0,
        "ignore_eos": True,
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
