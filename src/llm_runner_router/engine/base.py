"""What an engine is: the contract between the gateway and a way to run models.

Knows: the names every engine offers. Does not know: any engine, processes, HTTP.

An engine is two modules of one name. `engine/<name>.py` runs in the gateway: it says what the
engine can run and turns our values into an order; it imports no inference library. Its `RUNNER`,
by habit `engine/runners/<name>.py`, runs in a process of its own: its `serve(order, tell)` loads
the model and answers OpenAI's API on a loopback address. Engines of other packages are found by
the entry point group `llm_runner_router.engine`; see `docs/how-to/write-an-engine.md`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol

from msgspec import Struct

from llm_runner_router.models.formats.gguf_types import BITNET
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.types import Request

from .devices import Machine
from .fit import Placement, Wanted
from .threads import CpuPlan

Purpose = Literal["chat", "embed", "rerank"]
"""What a process is loaded for: answers, vectors, or scores of documents."""

Feature = Literal[
    "stop",
    "seed",
    "penalties",
    "logprobs",
    "json_schema",
    "grammar",
    "tools",
    "embed",
    "rerank",
    "lora",
    "prompt_cache",
    "batch",
    "one_process",
]
"""What an engine may do beside streaming an answer and stopping when its reader leaves, which all
must. `json_schema` and `grammar`: answers held to one; `tools`: calls written and forced;
`prompt_cache`: a prompt's common beginning is computed once; `batch`: several answers at a time in
one computation; `one_process`: a process that answers also embeds
and reranks, if the model can."""

WORDS: dict[Feature, str] = {
    "stop": "stop sequences",
    "seed": "seeds",
    "penalties": "penalties",
    "logprobs": "log-probabilities",
    "json_schema": "JSON schemas",
    "grammar": "grammars",
    "tools": "tool calls of the model's own choice",
    "embed": "embeddings",
    "rerank": "reranking",
    "lora": "LoRA adapters",
}
"""What a user may ask for, in words."""


def lacks(features: Collection[str]) -> tuple[str, ...]:
    """What users may ask for and an engine of these features refuses, in words."""
    return tuple(words for feature, words in WORDS.items() if feature not in features)


RUNNERS = "llm_runner_router.engine.runners"
"""The package of our own engines' child sides."""


FOREIGN = tuple(BITNET.values())
"""Types of BitNet's own fork of llama.cpp, under numbers that mean something else elsewhere."""


def foreign_type(info: ModelInfo) -> str:
    """A type among the weights that only BitNet's own program knows; empty for none."""
    return next((name for name in FOREIGN if name in info.types), "")


class Verdict(Struct, frozen=True):
    """Whether and how well an engine runs a model, and why."""

    engine: str
    score: float
    """0 is not at all, 1 is what the engine was made for."""
    why: str
    """A clause for people: `reads GGUF as it is`, `does not read ONNX`."""
    missing: tuple[str, ...] = ()
    """Python packages that must be installed for it."""
    hint: str = ""
    """What to type so that it can, if that is known."""
    by_name: bool = False
    """It is taken only for a model that names it (`engine:` in the configuration)."""

    @property
    def can(self) -> bool:
        """It would run here and now, if it were chosen."""
        return self.score > 0 and not self.missing


class Adapted(Struct, frozen=True):
    """A request as an engine wants it, and how to read the answer."""

    request: Request
    calls: bool = False
    """The text of the answer is one forced tool call."""
    bare_logprobs: bool = False
    """Alternatives to the tokens were not asked for."""
    starts: str = ""
    """Characters the answer may start with, white space aside; empty is any. A grammar that the
    engine could not compile is silently ignored by llama.cpp, which shows here."""


class Engine(Protocol):
    """A module (or an object) with these names; `check_engine` tells whether it keeps to them."""

    @property
    def NAME(self) -> str:
        """The engine's name: the file's, and what `engine:` in the configuration says."""
        ...

    @property
    def EXTRA(self) -> str | None:
        """The extra of our package that installs it; None if nothing is needed."""
        ...

    @property
    def NEEDS(self) -> tuple[str, ...]:
        """Top-level modules that its child side imports; looked for, never imported, here."""
        ...

    @property
    def FEATURES(self) -> frozenset[Feature]:
        """What it can do."""
        ...

    @property
    def RUNNER(self) -> str:
        """Full name of the module with `serve`, imported in the child only."""
        ...

    def can_run(self, info: ModelInfo, machine: Machine) -> Verdict:
        """Judge a model by its facts alone; whether the engine is installed is asked elsewhere."""
        ...

    def place(self, info: ModelInfo, wanted: Wanted) -> Placement:
        """Context, slots and memory for a model, by the terms that this engine's process has.

        `fit.settle` chooses context and slots by what is counted for them. A term that is not
        known is 0; with no `work` told, what was reserved stays reserved after the load.
        """
        ...

    def order(
        self, model: LocalModel, plan: CpuPlan, placement: Placement, api_key: str, purpose: Purpose
    ) -> dict[str, Any]:
        """What the child is told, as JSON; `env` in it is set before `serve` is called.

        `model.template`, if there is one, must be used in place of the file's own.
        """
        ...

    def adapt(self, request: Request, model: LocalModel) -> Adapted:
        """`request` for one choice, as this engine wants it.

        Raises:
            BadRequest: something in it that no engine could use, with its path.
            Unsupported: something this engine cannot do.
        """
        ...
