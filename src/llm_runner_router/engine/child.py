"""The runner process: loads one model and serves it on a private address until its parent goes.

Started by `worker.py` as `python -m llm_runner_router.engine.child REPORT PARENT RUNNER`. Knows:
how to live and die with the parent. Does not know: engines, models, configuration, routing; `serve`
of the module RUNNER does what the order says.

    argv    REPORT   file descriptor for reports, one JSON object per line:
                     {"event": "ready"}, then {"event": "listening", "address", "unknown"}
                     or {"event": "failed", "error"}
            PARENT   process id of the parent
            RUNNER   full name of the engine's module with `serve(order, tell)`; a function
                     `leave()` in it is called before the process ends with its parent, or
                     because `serve` raised
    stdin   one line: the order; then it stays open while the parent lives
    stdout  goes to stderr, where the engine logs

As few imports as possible: this is on the way of every cold load. Nothing else of the package may
be imported here. An engine whose threads are set by its environment imports it in `serve`: the
order's `env` is set by then.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Report ready, take the order, serve."""
    report, parent = int(sys.argv[1]), int(sys.argv[2])
    # Ctrl-C in the terminal is for the parent, which then ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    os.dup2(2, 1)
    runner = importlib.import_module(sys.argv[3])
    _tell(report, {"event": "ready"})
    line = _read_line()
    if not line:
        return
    leave = getattr(runner, "leave", None)
    threading.Thread(target=_watch_parent, args=(leave,), daemon=True).start()
    try:
        order = json.loads(line)
        os.environ.update(order.get("env", {}))
        runner.serve(order, lambda message: _tell(report, message))
    except Exception as exc:  # whatever the engine raises is reported, and the process ends
        _tell(report, {"event": "failed", "error": f"{type(exc).__name__}: {exc}"})
        # An orderly exit, after the engine was asked to leave: it may log from a thread of its own,
        # and what it has not written yet is the reason.
        try:
            if leave is not None:
                leave()
        finally:
            sys.exit(1)


def _die_with(parent: int) -> None:
    """Let the kernel kill us when the parent is gone; where it cannot, the closing stdin does."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def _read_line() -> bytes:
    """One line from stdin, unbuffered, so that the watcher sees the rest."""
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return b""
        line += piece
    return bytes(line)


def _watch_parent(leave: Callable[[], None] | None) -> None:
    """Wait until stdin closes, then leave at once; the kernel frees everything."""
    try:
        while os.read(0, 4096):
            pass
        if leave is not None:
            leave()
    finally:
        os._exit(0)


def _tell(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
