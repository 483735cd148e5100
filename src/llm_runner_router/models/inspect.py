"""What a model file holds, class by class, and why it was taken for what it is.

Knows: how tensors are named in the formats here. Does not know: engines, memory, tokenizers; who
shows the facts (`cli/inspect.py`) asks those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct

from .checkpoint import Weight
from .detect import detect, trail
from .info import ModelInfo

CLASSES: Final = ("embedding", "attention", "mlp", "experts", "norm", "output", "other")
"""Classes of tensors, in the order a token meets them."""
_RULES: Final[tuple[tuple[str, re.Pattern[str]], ...]] = (
    ("norm", re.compile(r"norm|\bln_?\w*\.|layernorm", re.IGNORECASE)),
    ("experts", re.compile(r"_exps\b|\bexperts\b|shared_expert|_shexp\b|block_sparse_moe")),
    ("output", re.compile(r"^(model\.)?(lm_head|output|embed_out|cls|classifier|score)\b")),
    (
        "embedding",
        re.compile(
            r"embed|_embd|\bwte\b|\bwpe\b|token_types?\b|rope_(freqs|factors)",
            re.IGNORECASE,
        ),
    ),
    (
        "attention",
        re.compile(
            r"attn|attention|self_attn|\b(q|k|v|o|qkv)_proj|\bw[qkvo]\b|query|\bc_attn\b",
            re.IGNORECASE,
        ),
    ),
    (
        "mlp",
        re.compile(
            r"mlp|ffn|feed_?forward|gate_proj|up_proj|down_proj|intermediate|\bfc[12]?\b"
            r"|dense_h_to_4h|dense_4h_to_h|\bw[123]\b|encoder\.layer\.\d+\.output",
            re.IGNORECASE,
        ),
    ),
)
"""The first that matches counts: `attn_norm` is a norm, `attn_output` belongs to attention."""


class Inspection(Struct, frozen=True):
    """All that a file says."""

    path: str
    info: ModelInfo
    classes: dict[str, dict[str, int]]
    """Bytes per type, per class of tensors; empty where the format gives no weights."""
    trail: tuple[str, ...]
    """Why it was taken for this format, one clause per format that was asked."""


def inspect(path: Path) -> Inspection:
    """What the model at `path` holds. Reads headers only.

    Raises:
        ModelFileError: no format knows it, or it is not sound.
    """
    found = detect(path)
    why = trail(path)
    if found.open_checkpoint is None:
        return Inspection(str(path), found.describe(path), {}, why)
    with found.open_checkpoint(path) as opened:
        return Inspection(str(path), opened.info, by_class(opened.weights.values()), why)


def by_class(weights: Iterable[Weight]) -> dict[str, dict[str, int]]:
    """Bytes per type, per class of tensors, in the order of `CLASSES`."""
    found: dict[str, dict[str, int]] = {name: {} for name in CLASSES}
    for weight in weights:
        types = found[class_of(weight.name)]
        types[weight.dtype] = types.get(weight.dtype, 0) + weight.bytes
    return {name: types for name, types in found.items() if types}


def class_of(name: str) -> str:
    """The class of a tensor, by its name."""
    short = name.removeprefix("model.") if name.startswith("model.") else name
    for kind, rule in _RULES:
        if rule.search(short):
            return kind
    return "other"
