"""LLM-Runner-Router: run local models of any format and route among them and remote providers.

The public names are imported on first use, so that `import llm_runner_router` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "LLMRouter": "api",
    "Model": "api",
    "SyncLLMRouter": "sync",
    "SyncModel": "sync",
    "Request": "types",
    "Message": "types",
    "Delta": "types",
    "Usage": "types",
    "Target": "types",
    "Call": "types",
    "ModelCard": "types",
    "Answer": "deltas",
    "Config": "config",
    "RunnerError": "errors",
    "EngineSelector": "engine.select",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from .api import LLMRouter as LLMRouter
    from .api import Model as Model
    from .config import Config as Config
    from .deltas import Answer as Answer
    from .engine.select import EngineSelector as EngineSelector
    from .errors import RunnerError as RunnerError
    from .sync import SyncLLMRouter as SyncLLMRouter
    from .sync import SyncModel as SyncModel
    from .types import Call as Call
    from .types import Delta as Delta
    from .types import Message as Message
    from .types import ModelCard as ModelCard
    from .types import Request as Request
    from .types import Target as Target
    from .types import Usage as Usage


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
