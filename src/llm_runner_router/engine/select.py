"""Which engine runs a model, and why not the others.

Knows: every engine's contract (`base.py`), which packages are installed. Does not know: processes,
requests. No inference library is imported to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import msgspec

from llm_runner_router import plugins
from llm_runner_router.errors import ConfigError, LoadFailed
from llm_runner_router.models.info import PARTS, LocalModel, ModelInfo

from . import devices
from .base import Engine, Purpose, Verdict

KIND = "engine"
"""The kind of plugin, and the folder of our own."""


def engine_names() -> tuple[str, ...]:
    """Every engine there is, installed or not: our pairs of files, and entry points."""
    ours = plugins.own(KIND)
    pairs = ours & plugins.own(f"{KIND}.runners")
    foreign = set(plugins.names(KIND)) - ours
    return tuple(sorted(pairs | foreign))


def load_engine(name: str) -> Engine:
    """The engine called `name`; what it needs may still be missing.

    Raises:
        ConfigError: there is no such engine.
    """
    names = engine_names()
    if name.replace("-", "_") not in names and name not in names:
        raise ConfigError(
            f"there is no engine called {name[:100]!r}", hint="engines are: " + ", ".join(names)
        )
    found: Engine = plugins.load(KIND, name)
    return found


class EngineSelector:
    """Ranks engines for a model.

    Args:
        machine: looks at the machine; default is the real one.
        engines: by name; default is every engine there is.
        installed: whether a top-level module could be imported.
    """

    def __init__(
        self,
        machine: Callable[[], devices.Machine] = devices.look,
        *,
        engines: Mapping[str, Engine] | None = None,
        installed: Callable[[str], bool] = lambda name: find_spec(name) is not None,
    ) -> None:
        self._machine = machine
        self._engines = engines
        self._installed = installed

    @property
    def engines(self) -> Mapping[str, Engine]:
        """Every engine by name."""
        if self._engines is None:
            self._engines = {name: load_engine(name) for name in engine_names()}
        return self._engines

    def rank(
        self,
        info: ModelInfo,
        machine: devices.Machine | None = None,
        purpose: Purpose = "chat",
    ) -> tuple[Verdict, ...]:
        """What every engine says of the model: first those that can run it, the best first.

        Then those that could if something were installed or if they were named, then the others.
        """
        machine = machine or self._machine()
        verdicts = [self._judge(one, info, machine, purpose) for one in self.engines.values()]
        return tuple(sorted(verdicts, key=lambda v: (not v.can or v.by_name, -v.score, v.engine)))

    def get_best(
        self,
        model: LocalModel | ModelInfo,
        machine: devices.Machine | None = None,
        purpose: Purpose = "chat",
    ) -> Engine:
        """The engine for `model`: the one it names, else the best that can run it.

        Raises:
            LoadFailed: none can, or the one it names cannot; says what each lacks.
            ConfigError: it names one that does not exist.
        """
        if isinstance(model, ModelInfo):
            return self._best(model, machine, purpose)
        if model.engine is None:
            return self._best(model.info, machine, purpose)
        return self._forced(model, model.engine, machine or self._machine(), purpose)

    def _best(self, info: ModelInfo, machine: devices.Machine | None, purpose: Purpose) -> Engine:
        verdicts = self.rank(info, machine, purpose)
        if verdicts and verdicts[0].can and not verdicts[0].by_name:
            return self.engines[verdicts[0].engine]
        reasons = "; ".join(f"{v.engine} {v.why}{_lacks(v)}" for v in verdicts)
        raise LoadFailed(
            f"no engine here runs this model ({info.format}, {info.architecture or 'unknown'}): "
            + (reasons or "there are none"),
            hint=next((v.hint for v in verdicts if v.hint), "`llmrr doctor` lists the engines"),
        )

    def _forced(
        self, model: LocalModel, name: str, machine: devices.Machine, purpose: Purpose
    ) -> Engine:
        engine = self.engines.get(name.replace("-", "_")) or self.engines.get(name)
        if engine is None:
            raise ConfigError(
                f"`{model.name}` wants the engine {name[:100]!r}, which does not exist",
                hint="engines are: " + ", ".join(self.engines),
            )
        verdict = self._judge(engine, model.info, machine, purpose)
        if not verdict.can:
            raise LoadFailed(
                f"the engine {name!r} does not run `{model.name}`: it {verdict.why}"
                + _lacks(verdict),
                hint=verdict.hint or "leave `engine` out, and the best that can is taken",
            )
        return engine

    def _judge(
        self, engine: Engine, info: ModelInfo, machine: devices.Machine, purpose: Purpose
    ) -> Verdict:
        """The engine's own verdict, with what is not installed and what it cannot do."""
        if info.part:
            return Verdict(engine.NAME, 0.0, f"runs models; this is {PARTS[info.part][0]}")
        verdict = engine.can_run(info, machine)
        if purpose == "embed" and verdict.score > 0 and "embed" not in engine.FEATURES:
            return Verdict(engine.NAME, 0.0, "gives no embeddings")
        if purpose == "rerank" and verdict.score > 0 and "rerank" not in engine.FEATURES:
            return Verdict(engine.NAME, 0.0, "does not rerank")
        missing = tuple(name for name in engine.NEEDS if not self._installed(name))
        if verdict.score <= 0 or not missing:
            return verdict
        extra = f"llm-runner-router[{engine.EXTRA}]" if engine.EXTRA else " ".join(missing)
        return msgspec.structs.replace(
            verdict, missing=missing, hint=verdict.hint or f"pip install '{extra}'"
        )


def _lacks(verdict: Verdict) -> str:
    return f", but {', '.join(verdict.missing)} is not installed" if verdict.missing else ""
