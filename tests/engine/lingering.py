"""Child sides of an engine that misbehave: `serve` of each order's `way`.

litter   makes a temporary file, then waits
orphan   starts a process that keeps the log's pipe, then dies
flood    reports without end
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Misbehave."""
    match order["way"]:
        case "litter":
            with open(tempfile.mkstemp(prefix="litter-")[0], "wb", closefd=True) as file:
                file.write(b"x")
            tell({"event": "listening", "address": tempfile.gettempdir()})
            threading.Event().wait()
        case "orphan":
            code = "import sys; sys.stdin.read()"
            subprocess.Popen(
                [sys.executable, "-c", code], stdin=os.open(order["fifo"], os.O_RDONLY)
            )
            tell({"event": "listening", "address": "nowhere"})
            os.kill(os.getpid(), signal.SIGKILL)
        case "flood":
            while True:
                tell({"event": "noise"})
