"""How many threads a runner gets and how they wait for each other. Pure.

Knows: the measurements below. Does not know: processes, files, how the facts were found.

llama.cpp's threads meet at a barrier many times per token. libgomp lets early ones spin there, by
default for long: best on idle cores, ruinous when another program needs the core. Decode tokens/s,
2-core EPYC VM, xllamacpp 2026.10.11549, Q8_0 weights:

    weights   cores      1 thread   2: spin   2: 10,000   2: 1,000   2: passive
      1 MB    ours           3276      3833        3867       3333          459
      4 MB    ours           1373      2367        2182       2038          489
     27 MB    ours            320       456         485        477          192
    176 MB    ours             64        87          88         78           49
      4 MB    shared          440       2.6         9.4        195          245
     27 MB    shared          322       5.2         9.6         89           42

("Ours": real-time priority; "shared": beside three training processes.) Prompts, in tokens/s, 4 MB,
ours: 1 thread 6,011, 2 spinning 11,339, 2 passive 11,109; shared: 1,249, 225 to 294, 1,922. So one
thread is never bad, spinning needs cores of its own, a short spin loses little either way, and
sleeping at barriers suits prompts only. With 10,000 turns of spinning a shared core is lost.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from llm_runner_router.config import Engine

from .devices import Machine

Wait = Literal["spin", "short", "passive"]

TINY = 16 * 1024 * 1024
"""Bytes of weights up to which one thread decodes: thousands of tokens per second keep another core
busy with relaying them, and threads that spin would take turns with that."""
SHARED = 0.35
"""Others use this share of a core: threads that spin would now take turns with them."""
CROWDED = 0.75
"""The least part of a core that must be free for one more thread to use it."""


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
    "short": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""libgomp's own default is to spin for some milliseconds; it needs no variable."""

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY")
"""Variables that would overrule the plan; a runner does not inherit them."""


def plan(model_bytes: int, machine: Machine, settings: Engine) -> CpuPlan:
    """Threads and wait policy for a model of `model_bytes`.

    1. A number of threads in the configuration is taken as it is.
    2. A tiny model decodes with one thread.
    3. Otherwise as many threads as cores are free of others' work, at least one.
    4. Prompts are computed by as many threads as there are cores.
    5. One thread meets nobody, so the way of waiting is for prompts only: passive. More spin where
       the cores are theirs alone, and spin for a short while where others are about or a quota
       counts spinning as use.
    """
    free = machine.cores if machine.busy < SHARED else _free(machine)
    threads = free if model_bytes > TINY else 1  # 2, 3
    batch = machine.cores  # 4
    if settings.threads is not None:  # 1
        threads = batch = settings.threads
    wait = settings.wait_policy
    if wait == "auto":
        wait = _wait(threads, machine)
    return CpuPlan(threads=threads, batch_threads=batch, wait=wait)


def _free(machine: Machine) -> int:
    """Cores left by others; a core that is free for the most part counts."""
    free = machine.allowed - machine.busy
    return max(1, min(machine.cores, int(free + 1 - CROWDED)))


def _wait(threads: int, machine: Machine) -> Wait:
    if threads == 1:
        return "passive"
    alone = machine.busy < SHARED and machine.quota is None and threads <= machine.cores
    return "spin" if alone else "short"


class Retune:
    """Says when a running plan is worth replacing: when the wish for another has lasted.

    Load comes in bursts, so gaining speed back can wait; but a plan that suits an idle machine is
    a hundred times too slow on a busy one, so leaving it is urgent.

    Args:
        patience: seconds a wish must last.
        urgency: the same where the running plan spins and the wish is to spin less.
    """

    def __init__(self, patience: float = 15.0, urgency: float = 3.0) -> None:
        self._patience = patience
        self._urgency = urgency
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
        urgent = running.wait == "spin" and wanted.wait != "spin"
        return now - since >= (self._urgency if urgent else self._patience)

    def forget(self, key: str) -> None:
        """The runner is gone or was replaced."""
        self._wishes.pop(key, None)
