"""Which type each tensor of a model gets in a mix such as `Q4_K_M`. Pure: names and shapes in.

Knows: llama.cpp's rules (`src/llama-quant.cpp` of b11549), which give more bits to what suffers
most: the output matrix, attention's values, the feed-forward's last matrix in the layers that
matter. Does not know: weights, files, kernels. Our files equal those of `llama-quantize` byte for
byte, so that what people measured for one holds for the other.

A row that is no whole number of a type's blocks gets the nearest type of 32-weight blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from llm_runner_router.models.formats.gguf_types import KINDS

_KINDS: Final = {kind.name: kind for kind in KINDS.values()}


class Mix(Struct, frozen=True):
    """A mix: its name, the type most tensors get, its number in `general.file_type`."""

    name: str
    type: str
    file_type: int


MIXES: Final[dict[str, Mix]] = {
    mix.name: mix
    for mix in (
        Mix("F32", "F32", 0),
        Mix("F16", "F16", 1),
        Mix("BF16", "BF16", 32),
        Mix("Q8_0", "Q8_0", 7),
        Mix("Q6_K", "Q6_K", 18),
        Mix("Q5_K_M", "Q5_K", 17),
        Mix("Q5_K_S", "Q5_K", 16),
        Mix("Q5_1", "Q5_1", 9),
        Mix("Q5_0", "Q5_0", 8),
        Mix("Q4_K_M", "Q4_K", 15),
        Mix("Q4_K_S", "Q4_K", 14),
        Mix("Q4_1", "Q4_1", 3),
        Mix("Q4_0", "Q4_0", 2),
        Mix("IQ4_NL", "IQ4_NL", 25),
        Mix("IQ4_XS", "IQ4_XS", 30),
        Mix("Q3_K_L", "Q3_K", 13),
        Mix("Q3_K_M", "Q3_K", 12),
        Mix("Q3_K_S", "Q3_K", 11),
        Mix("Q2_K", "Q2_K", 10),
        Mix("TQ2_0", "TQ2_0", 37),
        Mix("TQ1_0", "TQ1_0", 36),
    )
}
"""From the largest to the smallest."""
ALIASES: Final = {"Q5_K": "Q5_K_M", "Q4_K": "Q4_K_M", "Q3_K": "Q3_K_M"}
PLAIN: Final = frozenset({"F32", "F16", "BF16"})

_KEPT: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel",
    "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight",
    "indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd", "sam.pos_embd",
    "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger", "a.rvq.codebook",
    "mm.a.code_embd",
)  # fmt: skip
"""Parts of names of matrices that are small or that routing hangs on; they stay as they are."""
_KEPT_WHOLE: Final = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_OF: Final = {
    "glm5-next": (
        "hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj", "indexer_compressor_gate",
        "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight", "ssm_g_a.weight",
        "ssm_g_b.weight", "ssm_beta.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}  # fmt: skip
_EIGHT_OF: Final = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}
"""Parts of names that one architecture keeps, or keeps at 8 bits."""
_FALLBACK: Final = {
    "IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0",
    "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
_LAYER: Final = re.compile(r"blk\.(\d+)\.")
_ROLES: Final = (
    "attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight", "attn_k.weight", "attn_q.weight",
    "attn_output.weight", "ffn_up", "ffn_gate", "ffn_down",
)  # fmt: skip
"""Roles in the order in which a name is searched for them."""
_VALUES: Final = frozenset({"attn_qkv", "attn_kv_b", "attn_v"})
_SEVENTY: Final = {("llama", 80), ("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


class Shape(Struct, frozen=True):
    """The sizes of a model that the rules ask for; heads and their groups as in layer 0."""

    architecture: str
    layers: int
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0

    @property
    def groups(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def seventy(self) -> bool:
        """Whether it is of the 70 B class, whose value matrices are small for their weight."""
        plain = self.architecture == "llama" and (self.groups == 1 or self.experts == 8)
        return (self.architecture, self.layers) in _SEVENTY and not plain


class Item(Struct, frozen=True):
    """A tensor before: its type, and its shape outermost first."""

    name: str
    type: str
    shape: tuple[int, ...]


class _Place(Struct, frozen=True):
    """Where a tensor stands among those of its role: the `at`-th of `of`."""

    at: int
    of: int
    shape: Shape
    important: bool
    """Whether there is an importance matrix."""

    @property
    def more(self) -> bool:
        """The first and last eighth of the layers, and every third between them."""
        eighth = self.of // 8
        outside = self.at < eighth or self.at >= 7 * self.of // 8
        return outside or (self.at - eighth) % 3 == 2

    @property
    def falcon(self) -> bool:
        return self.shape.architecture == "falcon"


_Rule = Callable[[_Place], str | None]
"""The type of a tensor at that place; None for the mix's own."""


def _values() -> dict[str, _Rule]:
    def grouped(wide: str, else_: str | None = None) -> _Rule:
        return lambda p: wide if p.shape.groups >= 4 else else_

    return {
        "Q2_K": grouped("Q4_K", "Q3_K"),
        "Q3_K_M": lambda p: "Q5_K" if p.at < 2 else "Q4_K",
        "Q3_K_L": lambda p: "Q5_K",
        "IQ4_NL": grouped("Q5_K"),
        "IQ4_XS": grouped("Q5_K"),
        "Q4_K_S": lambda p: "Q5_K" if p.at < 4 else None,
        "Q4_K_M": lambda p: "Q6_K" if p.more else None,
        "Q5_K_M": lambda p: "Q6_K" if p.more else None,
    }


def _downs() -> dict[str, _Rule]:
    def first(kind: str, *, important: bool) -> _Rule:
        return lambda p: kind if p.at < p.of // 8 and p.important == important else None

    def q3_k_m(p: _Place) -> str:
        if p.at < p.of // 16:
            return "Q5_K"
        return "Q4_K" if not p.falcon or p.more else "Q3_K"

    def q4_k_m(p: _Place) -> str | None:
        if not p.falcon:
            return "Q6_K" if p.more else None
        return "Q6_K" if p.at < p.of // 16 else "Q5_K" if p.more else "Q4_K"

    return {
        "Q2_K": lambda p: "Q3_K",
        "Q3_K_M": q3_k_m,
        "Q3_K_L": lambda p: "Q4_K" if p.falcon else "Q5_K",
        "Q4_K_M": q4_k_m,
        "Q4_K_S": lambda p: "Q5_K" if not p.falcon and p.at < p.of // 8 else None,
        "Q5_K_M": lambda p: "Q6_K" if p.more else None,
        "IQ4_NL": first("Q5_K", important=False),
        "IQ4_XS": first("Q5_K", important=False),
        "Q4_0": first("Q4_1", important=True),
        "Q5_0": first("Q5_1", important=True),
    }


_VALUE_RULES: Final = _values()
_DOWN_RULES: Final = _downs()
_OUTPUT: Final = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_OUTPUT_OF_8: Final = frozenset(
    {"Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"}
)
"""Mixes whose attention output gets Q5_K in models of eight experts."""
_EMBEDDING: Final = {"TQ1_0": "Q4_K", "TQ2_0": "Q4_K"}


def named(name: str) -> Mix:
    """The mix of that name, in any case; `Q4_K` stands for `Q4_K_M`.

    Raises:
        KeyError: there is no such mix.
    """
    upper = name.upper()
    return MIXES[ALIASES.get(upper, upper)]


def plan(
    mix: Mix, shape: Shape, items: Sequence[Item], *, important: bool = False
) -> dict[str, str]:
    """The type of every tensor, in the order in which llama.cpp counts and writes them.

    Args:
        mix: one of `MIXES`.
        shape: of the model.
        items: all its tensors, in any order.
        important: whether an importance matrix will be used; a few rules ask.
    """
    tied = all(item.name != "output.weight" for item in items)
    values = sum(_role(item.name) in _VALUES for item in items)
    counts: dict[str, int] = {}
    found: dict[str, str] = {}
    for item in sorted(items, key=_order):
        if not _quantisable(item, shape.architecture):
            found[item.name] = item.type
            continue
        if mix.type in PLAIN:
            found[item.name] = mix.type
            continue
        role = _role(item.name)
        group = "values" if role in _VALUES else role
        at, of = counts.get(group, 0), values if role in _VALUES else shape.layers
        layer = _LAYER.match(item.name)
        if shape.experts > 1 and role not in _VALUES and layer is not None:
            at = int(layer[1])  # experts' tensors do not come one per layer
        wanted = _wanted(mix, role, item, _Place(at, of, shape, important), tied=tied)
        if not (role == "token_embd" or role == "output"):
            counts[group] = counts.get(group, 0) + 1
        found[item.name] = _fitting(wanted, item.shape[-1])
    return found


def size(items: Sequence[Item], types: Mapping[str, str]) -> int:
    """Bytes of all tensors in the types that `plan` gave them, without padding."""
    total = 0
    for item in items:
        _, block, width = _KINDS[types[item.name]]
        count = 1
        for length in item.shape:
            count *= length
        total += count // block * width
    return total


def _order(item: Item) -> tuple[int, str]:
    layer = _LAYER.match(item.name)
    return int(layer[1]) if layer else -1, item.name


def _quantisable(item: Item, architecture: str) -> bool:
    """Matrices whose names end in `weight`, but for the exceptions above."""
    if all(length == 1 for length in item.shape[:-1]):
        return False
    name = item.name
    if not name.endswith("weight") or name in _KEPT_WHOLE:
        return False
    return not any(part in name for part in (*_KEPT, *_KEPT_OF.get(architecture, ())))


def _role(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "token_embd"
    for part in _ROLES:
        if part in name:
            return part.removesuffix(".weight")
    return "other"


def _wanted(mix: Mix, role: str, item: Item, place: _Place, *, tied: bool) -> str:
    """The type by the rules, whether or not the rows fit it."""
    if any(part in item.name for part in _EIGHT_OF.get(place.shape.architecture, ())):
        return "Q8_0"
    if role == "output" or (tied and role == "token_embd"):
        # With one matrix at both ends, the output's needs count.
        if place.falcon or item.shape[-1] % _KINDS[mix.type].block:
            return "Q8_0"
        return mix.type if mix.type == "Q8_0" else "Q6_K"
    if role == "token_embd":
        return _EMBEDDING.get(mix.name, mix.type)
    if role in _VALUES:
        return _value(mix, place)
    if role == "attn_k" and place.shape.experts == 8:
        return "Q8_0"
    if role == "ffn_down" and mix.name in _DOWN_RULES:
        return _DOWN_RULES[mix.name](place) or mix.type
    if role == "attn_output" and not place.falcon:
        if place.shape.experts == 8:
            return "Q5_K" if mix.name in _OUTPUT_OF_8 else mix.type
        return _OUTPUT.get(mix.name, mix.type)
    if role == "attn_output" and mix.name == "Q3_K_L":
        return "Q4_K"
    return mix.type


def _value(mix: Mix, place: _Place) -> str:
    rule = _VALUE_RULES.get(mix.name)
    found = (rule(place) if rule else None) or mix.type
    if place.shape.seventy and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return "Q8_0" if place.shape.experts == 8 else found


def _fitting(kind: str, cols: int) -> str:
    """`kind`, or the nearest whose blocks the rows are a multiple of."""
    for tried in (kind, _FALLBACK.get(kind, kind)):
        if cols % _KINDS[tried].block == 0:
            return tried
    return "F16"
