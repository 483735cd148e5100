"""`llmrr pull` beside `curl`: the same file from the same server, one after the other.

Knows: that a pull also hashes the file, writes a journal, and waits until all is on the disk, while
`curl` does none of it; `curl`, then `sha256sum`, then `sync` of that file is the same work by
others' means. Does not know: the Hub (`files.py` stands in for it). Whole processes are measured,
from start to end, with the CPU time of each as the kernel counts it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median

import msgspec
from msgspec import Struct

from . import proc
from .files import REPO
from .report import Row, Section

GOAL = 0.9
MIB = 1 << 20
SIZE, SIZE_QUICK = 512 * MIB, 128 * MIB
ROUNDS, ROUNDS_QUICK = 7, 3
GIGABIT = 1e9 / 8 * 0.94
"""Bytes per second of a network of 1 Gbit/s, less the heads of its packets."""
FILE = "model-Q8_0.gguf"


class Took(Struct, frozen=True):
    """What one process cost."""

    wall: float
    cpu: float
    """Seconds, of it and of its children."""


def measure(*, quick: bool = False) -> Section:
    """As fast as it goes, and at the pace of a network."""
    if shutil.which("curl") is None:
        return Section("download", (), ("`curl` is not installed",))
    rows: list[Row] = []
    size = SIZE_QUICK if quick else SIZE
    rounds = ROUNDS_QUICK if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="llmrr-bench-") as name:
        folder = Path(name)
        (folder / "served").mkdir()
        _write(folder / "served" / FILE, size)
        rows += _compare(folder, size, rounds, 0.0, "no limit")
        rows += _compare(folder, size, 2 if quick else 3, GIGABIT, "1 Gbit/s")
    return Section("download", tuple(rows))


def _compare(folder: Path, size: int, rounds: int, rate: float, what: str) -> list[Row]:
    command = proc.python("bench.files", str(folder / "served"), "--rate", str(rate))
    with proc.Child(command, name="file server") as server:
        port = int(msgspec.json.decode(server.read(proc.START_SECONDS))["port"])
        took: dict[str, list[Took]] = {"pull": [], "curl": [], "same": []}
        for number in range(rounds + 1):
            for way in took:
                one = _once(way, folder, port, size)
                if number:  # the first time warms caches
                    took[way].append(one)
    speed = {way: size / MIB / median(t.wall for t in ones) for way, ones in took.items()}
    cpu = {way: median(t.cpu for t in ones) / (size / (1 << 30)) for way, ones in took.items()}
    spread = [size / MIB / t.wall for t in took["pull"]]
    note = f"{size // MIB} MiB; {min(spread):.0f}…{max(spread):.0f}"
    return [
        Row(f"{what}: pull, against curl", speed["pull"], "MiB/s", asked_ratio=GOAL,
            direct=speed["curl"], better="more", note=note),
        Row("… against curl, sha256sum and sync", speed["pull"], "MiB/s", direct=speed["same"],
            better="more", note="the same work"),
        Row("… CPU time per GiB, against curl", cpu["pull"], "s", direct=cpu["curl"],
            note="with the start of Python and the hash"),
        Row("… CPU time per GiB, against the same work", cpu["pull"], "s", direct=cpu["same"]),
    ]  # fmt: skip


def _once(way: str, folder: Path, port: int, size: int) -> Took:
    """One download into an empty folder, which is removed; the disk is idle before and after."""
    target = folder / "target"
    target.mkdir()
    url = f"http://127.0.0.1:{port}/{REPO}/resolve/main/{FILE}"
    curl = ["curl", "-sS", "--fail", "-o", str(target / FILE), url]
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(target / "hf"),
           "LLMRR_HOME": str(target / "home"), "NO_PROXY": "127.0.0.1"}  # fmt: skip
    env.pop("HF_HUB_CACHE", None)
    try:
        if way == "pull":
            took = _run(
                [sys.executable, "-m", "llm_runner_router", "pull", "-q", f"hf:{REPO}"], env
            )
        elif way == "curl":
            took = _run(curl, env)
        else:
            script = '"$@" && sha256sum "$0" && sync "$0"'
            took = _run(["sh", "-c", script, str(target / FILE), *curl], env)
        sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
        if size not in sizes:
            raise proc.BenchError(f"{way} brought no file of {size} bytes")
        return took
    finally:
        shutil.rmtree(target)
        os.sync()


def _run(command: Sequence[str], env: Mapping[str, str]) -> Took:
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=env
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read()[-500:].decode(errors="replace").strip()
            raise proc.BenchError(f"{command[0]} ended with {process.returncode}: {words}")
    return Took(wall, used.ru_utime + used.ru_stime)


def _write(path: Path, size: int) -> None:
    """A file that no compression makes smaller."""
    block = Random(1).randbytes(16 * MIB)
    with path.open("wb") as file:
        for at in range(0, size, len(block)):
            shift = at // len(block) * 4099 % len(block)
            file.write(block[shift:] + block[:shift])
