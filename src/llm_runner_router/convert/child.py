"""The process that converts: takes one order, reports how far it is, and leaves with its parent.

Started by `job.py` as `python -m llm_runner_router.convert.child REPORT`. Knows: the protocol.
Does not know: who wants the conversion.

    argv    REPORT   file descriptor for reports, one JSON object per line:
                     {"event": "progress", …}, then {"event": "done", "path", "have", "want",
                     "bytes"} or {"event": "failed", "error", "message", "hint", "param"}
    stdin   one line: the order; when it closes, the work is stopped and what it wrote removed
    stdout  goes to stderr
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.errors import RunnerError

from . import cache, run
from .base import Options

INTERVAL: Final = 0.1
"""Seconds between two reports of progress."""
GRACE: Final = 10.0
"""Seconds to clean up in after the parent is gone."""
DYNAMIC: Final = "dynamic"
"""In place of a mix: the best for the model on this machine."""
NICE: Final = 10
"""How far behind the gateway's own work it stands."""


class Order(Struct, frozen=True):
    """What to do."""

    source: str
    want: str
    target: str = ""
    """Empty: into the data folder, where a result of before is used again."""
    options: Options = Options()
    overwrite: bool = False
    home: str = ""
    background: bool = False
    """Give way to everything else on the machine."""
    budget: int = 0
    """Bytes that the weights may take, where `options.quantize` is `dynamic`."""


def main() -> None:
    """Take the order, do it, report."""
    report = int(sys.argv[1])
    # Ctrl-C in the terminal is for the parent, which then ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    with os.fdopen(os.dup(0), "rb", buffering=0) as orders:
        line = _line(orders)
        if not line:
            return
        stop = threading.Event()
        threading.Thread(target=_watch, args=(orders, stop), daemon=True).start()
        try:
            order = msgspec.json.decode(line, type=Order)
            if order.background and hasattr(os, "nice"):  # Windows has priority classes instead
                os.nice(NICE)
            _tell(report, {"event": "done", **_do(order, report, stop)})
        except BrokenPipeError:  # the parent is gone, and everything is removed
            return
        except Exception as exc:  # every reason is told, and the process ends
            _tell(report, {"event": "failed", **_told(exc)})


def _do(order: Order, report: int, stop: threading.Event) -> dict[str, Any]:
    source, last = Path(order.source), 0.0
    options = order.options
    if options.quantize == DYNAMIC:
        options = replace(options, quantize=_best(source, order.budget))
    if not options.quantize and not order.target and run.kind_of(source) == order.want:
        return {
            "path": str(source),
            "have": order.want,
            "want": order.want,
            "bytes": run.size_of(source),
        }

    def tell(progress: run.Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= INTERVAL or progress.done == progress.total:
            last = now
            _tell(report, {"event": "progress", **msgspec.to_builtins(progress)})

    def work(target: Path) -> run.Result:
        return run.convert(
            source,
            target,
            order.want,
            options=options,
            report=tell,
            cancelled=stop.is_set,
            overwrite=order.overwrite,
        )

    if order.target:
        return {
            **msgspec.to_builtins(work(Path(order.target)), builtin_types=(Path,), enc_hook=str)
        }
    from llm_runner_router.home import Home

    home = Home(Path(order.home))
    path = cache.cached(home, source, order.want, options, work, cancelled=stop.is_set)
    have = run.kind_of(source)
    return {"path": str(path), "have": have, "want": order.want, "bytes": run.size_of(path)}


def _best(source: Path, budget: int) -> str:
    """The mix that is best for the model on this machine; empty if it is best as it is."""
    from llm_runner_router.models.detect import describe

    from .dynamic import choose, read_bandwidth

    return choose(describe(source), budget, read_bandwidth(run.threads())).mix


def _told(exc: Exception) -> dict[str, Any]:
    if isinstance(exc, RunnerError):
        return {
            "error": type(exc).__name__,
            "message": exc.message,
            "hint": exc.hint or "",
            "param": exc.param or "",
        }
    import traceback

    traceback.print_exc()
    return {"error": "", "message": f"{type(exc).__name__}: {exc}", "hint": "", "param": ""}


def _line(orders: Any) -> bytes:
    """One line, unbuffered, so that the watcher sees the rest."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = orders.read(65536)
        if not piece:
            return b""
        line += piece
    return bytes(line)


def _watch(orders: Any, stop: threading.Event) -> None:
    """Wait until stdin closes, then stop the work; a converter that does not listen is left."""
    try:
        while orders.read(4096):
            pass
    finally:
        stop.set()
        time.sleep(GRACE)
        os._exit(1)


def _tell(report: int, message: dict[str, Any]) -> None:
    os.write(report, msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    main()
