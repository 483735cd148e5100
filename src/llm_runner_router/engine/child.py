"""The runner process: loads one model and serves it on a private address until its parent goes.

Started by `worker.py` as `python -m llm_runner_router.engine.child REPORT PARENT`. Knows: the
engine's Python module. Does not know: models, configuration, routing; it does what the order says.

    argv    REPORT   file descriptor for reports, one JSON object per line:
                     {"event": "ready"}, then {"event": "listening", "address", "unknown"}
                     or {"event": "failed", "error"}
            PARENT   process id of the parent
    stdin   one line: the order {"params": {…}}; then it stays open while the parent lives
    stdout  goes to stderr, where the engine logs

As few imports as possible: this is on the way of every cold load. Nothing else of the package may
be imported here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Report ready, take the order, serve."""
    report, parent = int(sys.argv[1]), int(sys.argv[2])
    # Ctrl-C in the terminal is for the parent, which then ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    os.dup2(2, 1)
    import xllamacpp

    _tell(report, {"event": "ready"})
    line = _read_line()
    if not line:
        return
    threading.Thread(target=_watch_parent, daemon=True).start()
    try:
        params, unknown = build_params(xllamacpp, json.loads(line)["params"])
        server = xllamacpp.Server(params)
        _tell(
            report, {"event": "listening", "address": server.listening_address, "unknown": unknown}
        )
    except Exception as exc:  # whatever the engine raises is reported, and the process ends
        _tell(report, {"event": "failed", "error": f"{type(exc).__name__}: {exc}"})
        # An orderly exit: the engine logs from a thread of its own, and what it has not written
        # yet is the reason.
        sys.exit(1)
    threading.Event().wait()


def build_params(module: Any, wanted: dict[str, Any]) -> tuple[Any, list[str]]:
    """The engine's parameters from dotted names; also those names it does not have.

    The engine's names change between monthly releases without notice, so each is checked. A value
    `{"enum": [TYPE, NAME]}` names a member of one of its enumerations; `{"set": […]}` is a set.
    """
    params = module.CommonParams()
    unknown: list[str] = []
    for name, value in wanted.items():
        *path, last = name.split(".")
        holder = params
        for step in path:
            holder = getattr(holder, step, None)
        if holder is None or not hasattr(holder, last):
            unknown.append(name)
            continue
        if isinstance(value, dict) and "enum" in value:
            kind, member = value["enum"]
            value = getattr(getattr(module, kind), member)
        elif isinstance(value, dict) and "set" in value:
            value = set(value["set"])
        setattr(holder, last, value)
    return params, unknown


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


def _watch_parent() -> None:
    """Wait until stdin closes, then leave at once; the kernel frees everything."""
    try:
        while os.read(0, 4096):
            pass
    finally:
        os._exit(0)


def _tell(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
