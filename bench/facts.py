"""What a figure depends on: the machine, the system, the commit, and who else is busy.

Knows nothing that tells one machine from another of its kind: no host name, no path, no user.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil
from msgspec import Struct

from . import machine

_ROOT = Path(__file__).resolve().parent.parent


class Facts(Struct, frozen=True):
    """The circumstances of a run."""

    commit: str
    cpu: str
    cores: int
    """Logical cores that this process may use."""
    memory: int
    """Bytes."""
    system: str
    python: str
    load: float
    """Load average over one minute, at the start."""
    busy: float
    """Share of all cores that others used just before the start, 0…1."""

    def line(self) -> str:
        """One line of text."""
        return (
            f"{self.cpu} · {self.cores} cores · {self.memory / 2**30:.0f} GiB · {self.system} · "
            f"Python {self.python} · load {self.load:.1f}, {self.busy:.0%} of the cores busy with"
            " other work before the start"
        )


def gather() -> Facts:
    """Look around; takes a second, in which the load of others is measured."""
    return Facts(
        commit=_commit(),
        cpu=_cpu(),
        cores=machine.cores(),
        memory=psutil.virtual_memory().total,
        system=_system(),
        python=platform.python_version(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        busy=psutil.cpu_percent(1.0) / 100,
    )


def _commit() -> str:
    try:
        found = _git("rev-parse", "--short=9", "HEAD")
        return found + ("+" if _git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return "no commit"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=_ROOT, capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    if platform.system() == "Darwin":
        try:
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine()


def _system() -> str:
    if platform.system() != "Linux":
        return f"{platform.system()} {platform.release()}"
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        name = "Linux"
    return name
