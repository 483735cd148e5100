"""Reads models of Apple's MLX: safetensors whose matrices are packed, with scales beside them.

Knows: the `quantization` block of `config.json` and what it says of the shapes. Does not know: how
safetensors are read (`safetensors.py`), what the numbers mean.

`X.weight` holds integers of `bits` bits packed into `U32`; `X.scales` and `X.biases` hold one
number per `group_size` of them: a weight is integer · scale + bias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from . import safetensors
from ._files import Bad, Opened, naming, read_object
from ._parts import Part, all_sources, all_weights

BITS: Final = (2, 3, 4, 5, 6, 8)


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is safetensors with MLX's block in the configuration beside them."""
    if not safetensors.sniff(path, head):
        return False
    try:
        config = read_object((path if path.is_dir() else path.parent) / "config.json")
    except (Bad, OSError):
        return False  # told by `describe` of safetensors
    return _block(config) is not None


def describe(path: Path) -> ModelInfo:
    """The facts, with the weights counted that are packed.

    Raises:
        ModelFileError: something is missing or not sound.
    """
    with naming(path):
        return _load(path)[1]


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors as they lie in the files: packed, with scales and biases beside them.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        parts, info, config = _load(path)
    return Opened(path, info, config, all_weights(parts), all_sources(parts))


def _block(config: dict[str, Any]) -> dict[str, Any] | None:
    block = config.get("quantization")
    return block if isinstance(block, dict) and {"bits", "group_size"} <= block.keys() else None


def _load(path: Path) -> tuple[list[Part], ModelInfo, dict[str, Any]]:
    parts, info, config = safetensors.load(path)
    block = _block(config)
    if block is None:
        raise Bad("its `config.json` has no `quantization` with `bits` and `group_size`")
    bits, group = block["bits"], block["group_size"]
    if bits not in BITS or type(group) is not int or group not in (16, 32, 64, 128):
        raise Bad(f"it is quantised to {str(bits)[:20]} bits in groups of {str(group)[:20]}")
    weights = all_weights(parts)
    parameters = sum(_counted(weight, weights, block, bits) for weight in weights.values())
    notes = (
        *info.notes,
        f"quantised for MLX to {bits} bits in groups of {group}; elsewhere it runs after"
        " `llmrr convert`, which unpacks it",
    )
    fields = {"format": "mlx", "quantisation": f"MLX {bits} bit", "parameters": parameters}
    return parts, msgspec.structs.replace(info, notes=notes, **fields), config


def _counted(weight: Weight, weights: dict[str, Weight], block: dict[str, Any], bits: int) -> int:
    """Weights that a tensor stands for; none for scales and biases."""
    stem, _, last = weight.name.rpartition(".")
    packed = weights.get(f"{stem}.weight")
    if last in ("scales", "biases") and packed is not None and packed.dtype == "U32":
        return 0
    number = 1
    for length in weight.shape:
        number *= length
    if weight.dtype != "U32" or f"{stem}.scales" not in weights:
        return number
    own = block.get(stem)  # a layer may have its own number of bits
    if isinstance(own, dict) and own.get("bits") in BITS:
        bits = own["bits"]
    return number * 32 // bits
