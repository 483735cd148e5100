"""The checks of `llmrr doctor` that look at the machine and the engine.

Knows: `engine.devices` and `engine.threads` (what a runner would be started with now), and how to
ask the engine who it is without importing it here: a bad build ends a process.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from importlib.util import find_spec

from llm_runner_router.config import Config
from llm_runner_router.engine import devices
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.engine.threads import CpuPlan, plan
from llm_runner_router.units import format_size

from .doctor import Check

IMPORT_SECONDS = 60.0
"""How long the engine may take to be imported; a cold disk needs a few."""
SAMPLE_SECONDS = 0.2
"""Over which the load of others is measured."""
LITTLE_MEMORY = 256 * 1024 * 1024
"""Bytes below which not even the built-in models have room."""
SIZES = (("tiny", 1024 * 1024), ("large", 4 * 1024**3))
"""Bytes of weights for which the plan is told."""
CODE = "import xllamacpp as x; print(x.__version__, '|', x.get_system_info())"


def machine() -> Check:
    """Cores, quota, load and memory, as the engine sees them."""
    found = _look()
    quota = "no quota" if found.quota is None else f"a quota of {found.quota:g}"
    text = (
        f"{found.physical} cores, {found.allowed} allowed, {quota}, {found.busy:.1f} used by "
        f"others; {format_size(found.available)} of {format_size(found.memory)} free"
    )
    if found.available < LITTLE_MEMORY:
        return Check("machine", "fail", text, "end other programs, or raise the memory limit")
    if found.quota is not None and found.quota < 1:
        return Check("machine", "warning", text, "give it at least one core; decoding will be slow")
    return Check("machine", "ok", text)


def imported() -> Check:
    """The engine can be imported on this processor."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            capture_output=True,
            text=True,
            timeout=IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("engine", "fail", f"no answer within {IMPORT_SECONDS:.0f} s", REINSTALL)
    if done.returncode == 0:
        version, _, system = done.stdout.partition("|")
        features = " ".join(re.findall(r"(\w+) = 1", system))
        return Check("engine", "ok", f"xllamacpp {version.strip()}: {features}")
    lines = done.stderr.strip().splitlines()
    reason = lines[-1] if lines else f"it ended with {_exit(done.returncode)}"
    return Check("engine", "fail", f"xllamacpp cannot be imported: {reason}", REINSTALL)


def engines() -> Check:
    """Which other engines are installed, and how to get those that are not."""
    here, absent = [], []
    for name, engine in EngineSelector().engines.items():
        missing = [module for module in engine.NEEDS if find_spec(module) is None]
        if missing:
            extra = f"llm-runner-router[{engine.EXTRA}]" if engine.EXTRA else " ".join(missing)
            absent.append(f"{name} (pip install '{extra}')")
        else:
            here.append(name)
    more = "; there could be " + ", ".join(absent) if absent else ""
    return Check("engines", "ok", "there are " + ", ".join(here) + more)


REINSTALL = "reinstall llm-runner-router; remote models work without the engine"


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def threads(config: Config) -> Check:
    """What a runner would be started with now."""
    found = _look()
    plans = [f"{name} models: {_words(plan(size, found, config.engine))}" for name, size in SIZES]
    return Check("threads", "ok", "; ".join(plans))


def _words(chosen: CpuPlan) -> str:
    plural = "s" if chosen.threads != 1 else ""
    return f"{chosen.threads} thread{plural}, {chosen.batch_threads} for prompts, {chosen.wait}"


def _look() -> devices.Machine:
    meter = devices.LoadMeter(time.monotonic)
    meter.sample(())
    time.sleep(SAMPLE_SECONDS)
    return devices.look(busy=meter.sample(()))
