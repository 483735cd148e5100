"""The `adopted` engine: a server that somebody else wrote, started by us or already running.

Knows: the settings of `adopt:` in the configuration. Does not know: which server it is; anything
that speaks OpenAI's API will do (vLLM, SGLang, llama-server, Ollama, LM Studio). It is loaded,
queued for, watched and ended like every other runner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llm_runner_router.config import Adopt, Secret
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.types import ModelCard

from .adapting import adapt as adapt
from .base import RUNNERS, Feature, Purpose, Verdict
from .devices import Machine
from .fit import Memory, Placement, Wanted
from .threads import CpuPlan

NAME = "adopted"
NOWHERE = Path("-")
FORMAT = "adopted"
"""The format of a model that is no file of ours."""
EXTRA: str | None = None
NEEDS: tuple[str, ...] = ()
RUNNER = f"{RUNNERS}.adopted"
FEATURES: frozenset[Feature] = frozenset(("stop", "embed", "rerank", "one_process"))
"""What may be expected of any such server; most do more."""


def model(name: str, settings: Adopt, key: Secret | None, card: ModelCard) -> LocalModel:
    """An adopted server as a model.

    Args:
        name: the model's name in the configuration.
        key: what `settings.api_key` stands for.
    """
    info = ModelInfo(
        format=FORMAT, architecture="", context=card.context or 0, bytes=settings.memory or 0
    )
    options = {**msgspec.structs.asdict(settings), "api_key": key}
    return LocalModel(name=name, path=NOWHERE, info=info, card=card, engine=NAME, options=options)


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """Only what the configuration adopts."""
    if info.format != FORMAT:
        return Verdict(NAME, 0.0, "runs what `adopt` in the configuration says")
    return Verdict(NAME, 1.0, "is what `adopt` in the configuration says", by_name=True)


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """The memory that the configuration says; the server has its own context."""
    return Placement(info.context, wanted.slots, Memory(process=info.bytes))


def order(
    model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
) -> dict[str, Any]:
    """The settings, with the key in plain."""
    key = model.options["api_key"]
    return {**model.options, "api_key": None if key is None else key.reveal()}
