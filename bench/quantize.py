"""Quantising a whole file against ggml's kernels and a plain file, same weights, same run.

Knows: that `llama-quantize` is those kernels and a file written, which is what we add too, besides
measuring every tensor's error. Does not know: `llama-quantize` itself, which no package brings.
Counted in CPU time of one thread, which other work on the machine hardly changes.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from llm_runner_router.convert import kernels
from llm_runner_router.convert.quantize import quantize
from llm_runner_router.models.formats import gguf

from . import synthetic
from .report import Row, Section

MIXES = ("Q8_0", "Q4_0", "Q4_K_M", "Q3_K_M")
GOAL = 0.8
ROUNDS = 2
LOOK_SECONDS = 0.005


def measure(*, quick: bool = False) -> Section:
    """Speed of each mix, and the memory it takes."""
    donor = Path(str(files("llm_runner_router"))) / "zoo" / "tiny-general.gguf"
    shape = synthetic.Shape(layers=2 if quick else 6)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as folder:
        source, target = Path(folder) / "a.gguf", Path(folder) / "b.gguf"
        synthetic.write(source, donor, "F16", shape)
        size = source.stat().st_size / (1 << 20)
        for mix in MIXES[:2] if quick else MIXES:
            report = quantize(source, target, mix)  # builds ggml's tables, fills the page cache
            kinds = {made.name: made.after for made in report.tensors}
            ours, alone = [], []
            for _ in range(1 if quick else ROUNDS):
                ours.append(_cpu(lambda mix=mix: quantize(source, target, mix)))
                alone.append(_cpu(lambda kinds=kinds: _kernels(source, target, kinds)))
            rows.append(
                Row(f"F16 to {mix}", size / min(ours), "MiB/s", asked_ratio=GOAL,
                    direct=size / min(alone), better="more",
                    note="CPU time of one thread; ours with every tensor's error")
            )  # fmt: skip
        rows.append(
            Row("memory, anonymous, above the start", _peak(source, target), "MiB",
                note=f"2 threads, a file of {size:.0f} MiB")
        )  # fmt: skip
    return Section("quantize", tuple(rows))


def _cpu(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def _kernels(source: Path, target: Path, kinds: dict[str, str]) -> None:
    """ggml's two calls on every share of rows and the results written, nothing else."""
    with gguf.open_checkpoint(source) as model, target.open("wb") as out:
        for name, weight in model.weights.items():
            if kinds[name] == weight.dtype:
                continue
            rows, cols = weight.shape
            blocks = np.frombuffer(model.read(name), np.uint8).reshape(rows, -1)
            for part in kernels.spans(rows, cols):
                count = part.stop - part.start
                plain = np.empty((count, cols), np.float32)
                made = np.empty((count, kernels.row_bytes(kinds[name], cols)), np.uint8)
                kernels.dequantize_into(weight.dtype, blocks[part], plain)
                kernels.quantize_into(kinds[name], plain, made)
                out.write(made)
        os.fsync(out.fileno())


def _peak(source: Path, target: Path) -> float | None:
    """Most MiB of anonymous memory above the start; None where /proc does not say."""
    start = _anonymous()
    if start is None:
        return None
    most, done = [start], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            most.append(_anonymous() or 0.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        quantize(source, target, "Q4_0", threads=2)
    finally:
        done.set()
        watcher.join()
    return max(most) - start


def _anonymous() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return int(found[0]) / 1024 if found else None
