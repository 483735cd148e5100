"""What the machine offers right now: cores, quotas, memory, and how busy others keep it.

Knows: `/proc`, `/sys/fs/cgroup` (v1 and v2), CPU affinity, psutil for other systems. Does not know:
models, threads, what to do with the facts (`threads.py`, `fit.py`).

A container's CPU quota is a limit on time that affinity does not show, and any ancestor's limit
holds too, so the whole chain of groups is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from msgspec import Struct

_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""


class Machine(Struct, frozen=True):
    """One look at the machine. Memory in bytes, CPU in cores."""

    physical: int
    """Physical cores; two hyper-threads of one core count once."""
    allowed: int
    """Logical CPUs this process may use (affinity)."""
    quota: float | None
    """CPU time per time the control groups grant, in cores; None is no limit."""
    memory: int
    """Bytes there are: the machine's, or the group's limit if that is less."""
    available: int
    """Bytes that can be taken without swapping."""
    busy: float = 0.0
    """Cores that others keep busy, of the allowed ones."""

    @property
    def cores(self) -> int:
        """Cores worth running threads on: physical, allowed, and the quota rounded down.

        Down, because a thread over the quota stops all of them at every barrier (lilbee #660:
        7.65 cores of quota and more threads collapsed).
        """
        most = min(self.physical, self.allowed)
        if self.quota is not None:
            most = min(most, math.floor(self.quota))
        return max(1, most)


def look(*, root: Path = Path("/"), busy: float = 0.0) -> Machine:
    """The machine now.

    Args:
        root: where `/proc` and `/sys` lie; tests give a tree of their own.
        busy: what the `LoadMeter` says.
    """
    groups = _groups(root)
    memory = psutil.virtual_memory()
    limit, used = _memory_limit(groups)
    free = memory.available if limit is None else min(memory.available, max(0, limit - used))
    total = memory.total if limit is None else min(memory.total, limit)
    allowed = len(allowed_cpus())
    return Machine(
        physical=psutil.cpu_count(logical=False) or allowed,
        allowed=allowed,
        quota=cpu_quota(groups),
        memory=total,
        available=free,
        busy=busy,
    )


def allowed_cpus() -> frozenset[int]:
    """Indices of the logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


# ---------------------------------------------------------------- control groups


class Group(Struct, frozen=True):
    """A folder of a control group, with the version of its hierarchy."""

    version: int
    path: Path


def _groups(root: Path) -> tuple[Group, ...]:
    """The process's groups and all their ancestors that can be seen from here."""
    return tuple(_walk(root))


def _walk(root: Path) -> Iterator[Group]:
    text = _read(root / "proc/self/cgroup")
    base = root / "sys/fs/cgroup"
    for line in (text or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if not controllers:
            yield from _chain(2, base, inside)
            # A "hybrid" system mounts the second version below the first.
            yield from _chain(2, base / "unified", inside)
            continue
        for name in controllers.split(","):
            if name in ("cpu", "memory"):
                yield from _chain(1, base / controllers, inside)
                yield from _chain(1, base / name, inside)


def _chain(version: int, mount: Path, inside: str) -> Iterator[Group]:
    """`inside` and its ancestors below `mount`.

    Within a container the path may name a folder outside what is mounted; the mount's own root is
    then the container's group, and it is always in the chain.
    """
    parts = [part for part in inside.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        if folder.is_dir():
            yield Group(version, folder)


def cpu_quota(groups: Iterable[Group]) -> float | None:
    """The smallest CPU limit of all `groups`, in cores."""
    found = [quota for group in groups if (quota := _quota(group)) is not None]
    return min(found, default=None)


def _quota(group: Group) -> float | None:
    if group.version == 2:
        fields = (_read(group.path / "cpu.max") or "").split()
        if len(fields) != 2 or fields[0] == "max":
            return None
        quota, period = _integer(fields[0]), _integer(fields[1])
    else:
        quota = _integer(_read(group.path / "cpu.cfs_quota_us"))
        period = _integer(_read(group.path / "cpu.cfs_period_us"))
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def _memory_limit(groups: Iterable[Group]) -> tuple[int | None, int]:
    """The tightest memory limit in bytes, and what is used of it; page cache counts as free."""
    tightest: tuple[int, int] | None = None
    for group in groups:
        names = (
            ("memory.max", "memory.current", "inactive_file")
            if group.version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit = _integer(_read(group.path / names[0]))
        if limit is None or limit >= _UNLIMITED:
            continue
        if tightest is None or limit < tightest[0]:
            used = _integer(_read(group.path / names[1])) or 0
            tightest = limit, max(0, used - _stat(group.path / "memory.stat", names[2]))
    return tightest if tightest is not None else (None, 0)


def _stat(path: Path, key: str) -> int:
    for line in (_read(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return _integer(value) or 0
    return 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _integer(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


# ---------------------------------------------------------------- load


class CpuTimes(Struct, frozen=True):
    """CPU seconds used since start: by everybody on the allowed CPUs, and by each of ours."""

    all: float
    own: dict[int, float]


class LoadMeter:
    """How many cores are kept busy, and by whom, from the difference of two looks.

    Args:
        clock: monotonic seconds.
        read: gives the times; gets the ids of our runner processes.
    """

    def __init__(
        self, clock: Callable[[], float], read: Callable[[Iterable[int]], CpuTimes] | None = None
    ) -> None:
        self._clock = clock
        self._read = read or read_times
        self._last: tuple[float, CpuTimes] | None = None
        self.busy = first_guess()
        """Cores kept busy by others than the runners, as of the last sample."""
        self.usage: dict[int, float] = {}
        """Cores that each runner used, by process id."""

    @property
    def age(self) -> float:
        """Seconds since the last sample; infinite before the first."""
        return math.inf if self._last is None else self._clock() - self._last[0]

    def sample(self, own: Iterable[int]) -> float:
        """Look again and give `busy`; `own` are the runners.

        One look says nothing, so until the second `busy` is a guess.
        """
        now, times = self._clock(), self._read(own)
        if self._last is not None and now > self._last[0]:
            before, passed = self._last[1], now - self._last[0]
            self.usage = {
                pid: max(0.0, seconds - before.own.get(pid, 0.0)) / passed
                for pid, seconds in times.own.items()
            }
            self.busy = max(0.0, (times.all - before.all) / passed - sum(self.usage.values()))
        self._last = now, times
        return self.busy

    def others(self, pid: int | None) -> float:
        """Cores kept busy by everybody but the runner `pid`, our other runners included."""
        return self.busy + sum(cores for other, cores in self.usage.items() if other != pid)


def first_guess() -> float:
    """Cores kept busy, from the load average of the last minute: what is known before measuring.

    Wrongly taking an idle machine for busy costs a few per cent until the next look; the other
    way round, threads that spin against other work made a load of 0.2 s take 4 s.
    """
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


def read_times(own: Iterable[int]) -> CpuTimes:
    """CPU seconds so far. Time stolen by other virtual machines counts as busy."""
    allowed = allowed_cpus()
    total = 0.0
    for index, cpu in enumerate(psutil.cpu_times(percpu=True)):
        if index in allowed:
            total += sum(cpu) - cpu.idle - getattr(cpu, "iowait", 0.0)
            total -= getattr(cpu, "guest", 0.0) + getattr(cpu, "guest_nice", 0.0)  # in user too
    used: dict[int, float] = {}
    for pid in own:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        used[pid] = times.user + times.system
    return CpuTimes(all=total, own=used)
