"""What `import llm_runner_router` costs: modules, memory and time, beside a bare interpreter.

Knows: two child interpreters, alternated. Does not know what is in the package.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

import msgspec
from msgspec import Struct

from .proc import BenchError
from .report import Row, Section

ROUNDS = 9
_CODE = """
import sys, time
before = time.perf_counter()
{line}
took = time.perf_counter() - before
modules = len(sys.modules)
try:
    lines = open("/proc/self/status").read().splitlines()
    memory = next(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmRSS"))
except OSError:
    import resource
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print('{{"seconds": %r, "modules": %d, "memory": %d}}' % (took, modules, memory))
"""


class Import(Struct, frozen=True):
    """One interpreter's figures; memory is resident bytes."""

    seconds: float
    modules: int
    memory: int


def once(line: str) -> Import:
    """Run one line in a fresh interpreter.

    Raises:
        BenchError: the line failed; its traceback is in the text.
    """
    command = [sys.executable, "-c", _CODE.format(line=line)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    if done.returncode != 0:
        raise BenchError(f"`{line}` failed: {done.stderr.decode(errors='replace')[-400:]}")
    return msgspec.json.decode(done.stdout, type=Import)


def measure(*, quick: bool = False) -> Section:
    """Import the package and import nothing, in turns."""
    bare: list[Import] = []
    ours: list[Import] = []
    used: list[Import] = []
    for _ in range(3 if quick else ROUNDS):
        bare.append(once("pass"))
        ours.append(once("import llm_runner_router"))
        used.append(once("from llm_runner_router import LLMRouter"))
    rows: list[Row] = []
    for name, figures, goals in (
        ("import llm_runner_router", ours, (250.0, 30.0)),
        ("… import LLMRouter", used, (None, None)),
    ):
        modules = median(f.modules for f in figures)
        nothing = median(f.modules for f in bare)
        rows.append(Row(f"{name}: modules", modules, "", goals[0], direct=nothing))
        memory, least = median(f.memory for f in figures), median(f.memory for f in bare)
        rows.append(Row(f"{name}: resident", memory / 1e6, "MB", goals[1], direct=least / 1e6))
        rows.append(Row(f"{name}: time", median(f.seconds for f in figures) * 1e3, "ms"))
    return Section("import", tuple(rows))
