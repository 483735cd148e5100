"""How many threads a runner gets and how they wait for each other. Pure.

Knows: the measurements below. Does not know: processes, files, how the facts were found.

llama.cpp's threads meet at a barrier many times per token. libgomp lets early ones spin there,
by default for long: best on idle cores, ruinous when another program needs the core. With one
thread there is no barrier and nothing to tune. `docs/concepts/runners.md` has the tables.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from llm_runner_router.config import Engine

from .devices import Machine

Wait = Literal["spin", "short", "passive"]

TINY = 48 * 1024 * 1024
"""Bytes of weights up to which one thread decodes fastest or within a few per cent of it."""
SHARED = 0.35
"""Others use this share of a core: threads that spin would now take turns with them."""
CROWDED = 0.75
"""Free cores below which one more thread costs more at the barrier than it computes."""


class CpuPlan(Struct, frozen=True):
    """What a runner is started with. `env` must be set before the engine is imported."""

    threads: int
    batch_threads: int
    wait: Wait

    @property
    def env(self) -> dict[str, str]:
        """The variables that make libgomp wait this way."""
        return ENV[self.wait]


ENV: dict[Wait, dict[str, str]] = {
    "spin": {},
    "short": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""libgomp's own default is to spin for some milliseconds; it needs no variable."""

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")
"""Variables that would overrule the plan; a runner does not inherit them."""


def plan(model_bytes: int, machine: Machine, settings: Engine) -> CpuPlan:
    """Threads and wait policy for a model of `model_bytes`.

    1. A number of threads in the configuration is taken as it is.
    2. A tiny model decodes with one thread: its barriers cost more than its arithmetic. Prompts
       are computed in large batches and get what is free.
    3. Otherwise as many threads as cores are free of others' work, at least one.
    4. Waiting: passive where a quota counts spinning as use or others need the cores, else spin;
       a short spin when there are fewer threads than cores.
    """
    free = machine.cores if machine.busy < SHARED else _free(machine)
    threads = free if model_bytes > TINY else 1
    batch = free
    if settings.threads is not None:
        threads = batch = settings.threads
    wait = settings.wait_policy
    if wait == "auto":
        wait = _wait(max(threads, batch), machine)
    return CpuPlan(threads=threads, batch_threads=batch, wait=wait)


def _free(machine: Machine) -> int:
    """Cores left by others; a core that is free for the most part counts."""
    free = machine.allowed - machine.busy
    whole = int(free + 1 - CROWDED)
    return max(1, min(machine.cores, whole))


def _wait(threads: int, machine: Machine) -> Wait:
    if machine.quota is not None or machine.busy >= SHARED:
        return "passive"
    return "spin" if threads <= machine.cores else "passive"


class Retune:
    """Says when a running plan is worth replacing: the wish must be the same for `patience` s.

    Load comes in bursts; a runner is replaced for a change that lasts, not for a compile job of
    some seconds.
    """

    def __init__(self, patience: float = 15.0) -> None:
        self._patience = patience
        self._wishes: dict[str, tuple[CpuPlan, float]] = {}

    def observe(self, key: str, running: CpuPlan, wanted: CpuPlan, now: float) -> bool:
        """Note what would be chosen now; True once that has been so for long enough."""
        if wanted == running:
            self._wishes.pop(key, None)
            return False
        wish, since = self._wishes.get(key, (None, now))
        if wish != wanted:
            self._wishes[key] = (wanted, now)
            return False
        return now - since >= self._patience

    def forget(self, key: str) -> None:
        """The runner is gone or was replaced."""
        self._wishes.pop(key, None)
