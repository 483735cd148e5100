"""TensorFlow.js to safetensors: the weights under their names, whole numbers again.

Knows: that quantised weights come restored from the reader, and which files go along. Does not
know: graphs; a model whose `config.json` and tokenizer lie beside `model.json` goes on to GGUF,
another one keeps its topology for who can use it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from llm_runner_router.models.checkpoint import Checkpoint
from llm_runner_router.plugins import load

from . import companions
from .base import Options, Tick, converts
from .torch_files import write_safetensors

TOPOLOGY: Final = "tfjs_topology.json"
"""What `model.json` said besides the weights."""


@converts("tfjs", "safetensors", grow=4.2, speed=100e6)
def to_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A `model.json` with its shards as the folder `target`.

    Raises:
        ModelFileError: the source cannot be used.
        Unsupported: a weight has a type that safetensors lacks.
        Cancelled: `tick` raised it.
    """
    opened: Checkpoint = load("models.formats", "tfjs").open_checkpoint(source)
    with opened as checkpoint:
        write_safetensors(checkpoint, target, tick)
        companions.copy(source, target)
        if not (target / "config.json").exists():
            (target / TOPOLOGY).write_bytes(msgspec.json.encode(dict(checkpoint.config)))
