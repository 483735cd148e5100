"""What it takes to describe a family of models to the converter: rows, fields and small transforms.

Knows: configurations of Hugging Face, names of GGUF fields, and the rearrangements of weights that
differ between the two. Does not know: any family (`architectures/`), tokenizers, files.

A family's tensors are rows `(source, target)` or `(source, target, transform)`. In a name, `*`
stands for the number of a layer and `#` for that of an expert; `.weight` and `.bias` are left out
and carried over. An empty target drops the tensor. A transform plans `Out`s from shapes alone and
reads no weight: the header of a GGUF file comes before its data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Weight

from .arrays import Array

Make = Callable[..., Array]
MOST: Final = (1 << 31) - 1
"""The largest count in a configuration; GGUF keeps most of them in 32 bits."""
MAX_LAYERS: Final = 4096
MAX_EXPERTS: Final = 65_536
MAX_HEADS: Final = 65_536
MAX_HEAD: Final = 1 << 20
Fields = dict[str, Any]
"""GGUF fields without the architecture's name in front; None means that it is not written."""


class Piece(Struct, frozen=True):
    """Some rows of a tensor: the weights they come from, and how."""

    sources: tuple[str, ...]
    make: Make | None = None
    """From the sources' arrays to one; None takes the single source as it is."""


class Out(Struct, frozen=True):
    """A tensor to write. Its pieces lie one after the other, so that one at a time is in memory."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    type: str = ""
    """Its element type where that is no choice."""


class Config:
    """A model's `config.json` in the words of all versions of its library.

    A model of text inside one of more senses keeps its own settings in `text_config`.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        text = raw.get("text_config")
        self.raw: dict[str, Any] = {**raw, **text} if isinstance(text, Mapping) else dict(raw)

    @property
    def architecture(self) -> str:
        """The class it was made for, such as `LlamaForCausalLM`; empty if it does not say."""
        named = self.raw.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    def get(self, *names: str, default: Any = None) -> Any:
        """The first of `names` that is there and not null."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.raw[name]
        return default

    def count(self, *names: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number from 0 to `most` under the first of `names` that is there.

        Raises:
            ModelFileError: it is not there and has no default, or is something else.
        """
        value = self.get(*names, default=default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise _bad(names[0], value, f"a whole number from 0 to {most}")
        return value

    def real(self, *names: str, default: float | None = None) -> float:
        """A number under the first of `names` that is there.

        Raises:
            ModelFileError: as `count`.
        """
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _bad(names[0], value, "a number")
        return float(value)

    @property
    def layers(self) -> int:
        """Blocks of the model."""
        return self.count("num_hidden_layers", "n_layer", "num_layers", "n_layers", most=MAX_LAYERS)

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return self.count("hidden_size", "n_embd", "d_model")

    @property
    def heads(self) -> int:
        """Heads of the queries."""
        return max(1, self.count("num_attention_heads", "n_head", "n_heads", most=MAX_HEADS))

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.count("num_key_value_heads", "n_kv_heads", default=self.heads, most=MAX_HEADS)

    @property
    def head(self) -> int:
        """Length of a head."""
        return self.count("head_dim", default=self.width // self.heads, most=MAX_HEAD)

    @property
    def experts(self) -> int:
        """Experts of a layer; zero for a dense model."""
        return self.count(
            "num_local_experts", "num_experts", "n_routed_experts", default=0, most=MAX_EXPERTS
        )

    @property
    def rope(self) -> dict[str, Any]:
        """How positions are rotated: `rope_theta`, `rope_type` and what belongs to the type.

        Up to version 4 of transformers `rope_theta` stood by itself and the rest in
        `rope_scaling`; since then all is in `rope_parameters`, per kind of attention where a model
        has several (here: of full attention).
        """
        merged: dict[str, Any] = {}
        for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            if self.raw.get(key) is not None:
                merged[key] = self.raw[key]
        for key in ("rope_scaling", "rope_parameters"):
            given = self.raw.get(key)
            if isinstance(given, Mapping):
                full = given.get("full_attention", given)
                merged.update({k: v for k, v in dict(full or {}).items() if v is not None})
        merged["rope_type"] = str(merged.get("rope_type") or merged.get("type") or "default")
        return merged

    @property
    def rope_local(self) -> dict[str, Any]:
        """The same for layers with a sliding window, where they differ."""
        given = self.raw.get("rope_parameters")
        local = given.get("sliding_attention") if isinstance(given, Mapping) else None
        return dict(local) if isinstance(local, Mapping) else {}


class Context(Struct, frozen=True):
    """What a transform may look at."""

    config: Config
    weights: Mapping[str, Weight]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a source.

        Raises:
            ModelFileError: the checkpoint has no such tensor.
        """
        if name not in self.weights:
            raise ModelFileError(
                f"the checkpoint has no tensor `{name}`", hint="download it again; it is incomplete"
            )
        return self.weights[name].shape


Transform = Callable[[Context, str, str], Iterator[Out]]
"""`(context, source, target) -> outs`; both names are whole, with layer, expert and suffix."""
Row = tuple[str, str] | tuple[str, str, Transform]


class Family(Struct, frozen=True):
    """An architecture of llama.cpp and the models that become it."""

    name: str
    """Its name in `general.architecture`."""
    classes: tuple[str, ...]
    """Names in `architectures` of `config.json`."""
    rows: tuple[Row, ...]
    fields: Callable[[Config], Fields]
    extra: Callable[[Config], Sequence[tuple[str, list[float]]]] = lambda config: ()
    """Tensors that are computed from the configuration: name and values."""
    check: Callable[[Config], None] = lambda config: None
    """Raises `Unsupported` for settings that the architecture of this name cannot express."""
    pooling: bool = False
    """It embeds texts: the pooling of sentence-transformers belongs to it."""
    ranks: bool = False
    """It scores a query with a document: it has a classifier of one class."""
    dense: bool = False
    """It has a place for two dense layers behind the pooling."""
    output: bool = False
    """llama.cpp wants `output.weight` also where it equals the embedding."""


# ---------------------------------------------------------------- transforms


def same(context: Context, source: str, target: str) -> Iterator[Out]:
    """As it is."""
    yield Out(target, context.shape(source), (Piece((source,)),))


def plus_one(context: Context, source: str, target: str) -> Iterator[Out]:
    """Gemma multiplies by 1 + weight; llama.cpp by the weight."""
    yield Out(target, context.shape(source), (Piece((source,), lambda a: a + np.float32(1)),))


def turned(context: Context, source: str, target: str) -> Iterator[Out]:
    """Of a `Conv1D`, which keeps (in, out) where a linear layer keeps (out, in)."""
    shape = context.shape(source)
    if len(shape) < 2:
        yield from same(context, source, target)
        return
    flipped = (*shape[:-2], shape[-1], shape[-2])
    yield Out(target, flipped, (Piece((source,), lambda a: a.swapaxes(-1, -2)),))


def interleave(array: Array, heads: int) -> Array:
    """Rows of each head from two halves to pairs.

    Hugging Face's Llama rotates element i with element i + head/2; llama.cpp's `LLAMA` and its kin
    rotate neighbours, as Meta's own files do.
    """
    split = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)


def deinterleave(array: Array, heads: int) -> Array:
    """The inverse of `interleave`."""
    split = array.reshape(heads, array.shape[0] // heads // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)


def flat(context: Context, source: str, target: str) -> Iterator[Out]:
    """Without axes of length one."""
    shape = tuple(n for n in context.shape(source) if n != 1) or (1,)
    yield Out(target, shape, (Piece((source,), lambda a: a.reshape(shape)),))


def behind_padding(context: Context, source: str, target: str) -> Iterator[Out]:
    """Positions from the first one in use: RoBERTa counts on from the padding token's id."""
    rows, width = context.shape(source)
    start = first_position(context.config)
    if rows <= start:
        raise ModelFileError(f"`{source}` has {rows} rows, none behind the padding's")
    yield Out(target, (rows - start, width), (Piece((source,), lambda a: a[start:]),))


def first_position(config: Config) -> int:
    """The row of the position of a text's first token, in RoBERTa and its kin."""
    return config.count("pad_token_id", default=1) + 1


def _interleaved(context: Context, source: str, target: str, heads: int) -> Iterator[Out]:
    shape = context.shape(source)
    if shape[0] % (2 * heads):
        raise ModelFileError(f"`{source}` has {shape[0]} rows, which are not {heads} even heads")
    yield Out(target, shape, (Piece((source,), lambda a: interleave(a, heads)),))


def query(context: Context, source: str, target: str) -> Iterator[Out]:
    """`interleave` with the heads of the queries."""
    yield from _interleaved(context, source, target, context.config.heads)


def key(context: Context, source: str, target: str) -> Iterator[Out]:
    """`interleave` with the heads of the keys."""
    yield from _interleaved(context, source, target, context.config.kv_heads)


def stacked(context: Context, source: str, target: str) -> Iterator[Out]:
    """All experts of a layer as one tensor; called for each, it acts on the first."""
    place = re.search(r"experts\.(\d+)\.", source)
    assert place is not None, f"{source} names no expert"
    if place[1] != "0":
        return
    names = [
        f"{source[: place.start(1)]}{i}{source[place.end(1) :]}"
        for i in range(context.config.experts)
    ]
    shape = context.shape(source)
    for name in names:
        if context.shape(name) != shape:
            raise ModelFileError(f"the experts `{source}` and `{name}` differ in shape")
    yield Out(target, (len(names), *shape), tuple(Piece((name,)) for name in names))


def halves(first: str, second: str, *, turn: bool = False) -> Transform:
    """A fused gate and up projection as two tensors; `*` in their names is filled in.

    With `turn`, the last two axes are exchanged first (experts of Llama 4).
    """

    def split(context: Context, source: str, target: str) -> Iterator[Out]:
        shape = context.shape(source)
        if turn:
            shape = (*shape[:-2], shape[-1], shape[-2])
        rows = shape[-2] // 2
        layer = re.search(r"\.(\d+)\.", source)
        number = layer[1] if layer else ""

        def half(start: int) -> Make:
            def make(a: Array) -> Array:
                a = a.swapaxes(-1, -2) if turn else a
                return a[..., start : start + rows, :]

            return make

        for name, start in ((first, 0), (second, rows)):
            whole = name.replace("*", number) + ".weight"
            yield Out(whole, (*shape[:-2], rows, shape[-1]), (Piece((source,), half(start)),))

    return split


# ---------------------------------------------------------------- rows


_SUFFIX: Final = re.compile(r"^(.*?)(\.weight|\.bias|\.gamma|\.beta)?$", re.S)
_OLD_SUFFIX: Final = {".gamma": ".weight", ".beta": ".bias", "": ".weight"}


def refuse(field: str, value: Any, architecture: str) -> Unsupported:
    """The error for a setting that an architecture of llama.cpp does not have."""
    return Unsupported(
        f"`{field}` is {value!r} in `config.json`, which llama.cpp's `{architecture}` cannot do",
        hint="run the folder as it is, with the engine `torch`",
    )


class Rows:
    """The rows of a family, compiled."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: list[tuple[re.Pattern[str], str, Transform]] = []
        for row in rows:
            source, target = row[0], row[1]
            transform = row[2] if len(row) > 2 else same
            pattern = re.escape(source).replace(r"\*", r"(?P<layer>\d+)").replace(r"\#", r"\d+")
            self._rows.append((re.compile(pattern + r"\Z"), target, transform))

    def plan(self, context: Context, name: str, source: str) -> list[Out] | None:
        """The tensors that begin at the weight `source`, whose usual name is `name`.

        None if no row knows the name.
        """
        split = _SUFFIX.match(name)
        assert split is not None
        suffix = split[2] or ""
        for pattern, target, transform in self._rows:
            found = pattern.match(split[1])
            if found is None:
                continue
            if not target:
                return []
            layer = found.groupdict().get("layer")
            whole = target.replace("*", layer) if layer is not None else target
            return list(transform(context, source, whole + _OLD_SUFFIX.get(suffix, suffix)))
        return None


# ---------------------------------------------------------------- fields


def standard(config: Config) -> Fields:
    """The fields that most families share, as far as the configuration has them."""
    rope = config.rope
    theta = rope.get("rope_theta")
    head = config.get("head_dim")
    fields: Fields = {
        "context_length": config.get(
            "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length"
        ),
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.get("intermediate_size", "n_inner"),
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": _float(config.get("rms_norm_eps")),
        "attention.layer_norm_epsilon": _float(
            config.get("layer_norm_eps", "layer_norm_epsilon", "norm_eps")
        ),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.freq_base": _float(theta),
        "vocab_size": config.get("vocab_size"),
    }
    return {**fields, **scaling(rope), **mixture(config)}


def scaling(rope: Mapping[str, Any]) -> Fields:
    """How positions beyond the trained context are reached.

    Raises:
        Unsupported: a way that llama.cpp does not have.
    """
    kind, factor = rope["rope_type"].lower(), rope.get("factor")
    # `dynamic` changes nothing up to the trained context; `llama3` is a tensor of factors.
    if kind in ("default", "dynamic", "llama3", "none", "proportional"):
        return {}
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": _float(factor)}
    if kind in ("su", "longrope"):
        return {"rope.scaling.type": "longrope"}
    if kind == "yarn":
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": _float(factor),
            "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
            "rope.scaling.yarn_ext_factor": _float(rope.get("extrapolation_factor")),
            "rope.scaling.yarn_beta_fast": _float(rope.get("beta_fast")),
            "rope.scaling.yarn_beta_slow": _float(rope.get("beta_slow")),
        }
    raise Unsupported(
        f"`rope_scaling` of the type `{kind}` in `config.json` has no form in GGUF",
        hint="run the folder as it is, with the engine `torch`",
    )


def llama3_factors(config: Config) -> list[tuple[str, list[float]]]:
    """The tensor of factors for Llama 3.1's scaling: low frequencies are slowed, high ones kept.

    The formula is Meta's (`apply_scaling` in llama-models), as in `modeling_rope_utils`.
    """
    rope = config.rope
    if rope["rope_type"].lower() != "llama3":
        return []
    head = config.head
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    wavelengths = 2 * np.pi * float(rope.get("rope_theta", 10000.0)) ** exponents
    factor = float(rope.get("factor", 8.0))
    low, high = float(rope.get("low_freq_factor", 1.0)), float(rope.get("high_freq_factor", 4.0))
    context = float(rope.get("original_max_position_embeddings", 8192))
    smooth = (context / wavelengths - low) / (high - low) if high != low else np.zeros(head // 2)
    mixed = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(
        wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, mixed)
    )
    return [("rope_freqs.weight", [float(f) for f in factors])]


def mixture(config: Config) -> Fields:
    """The fields of a mixture of experts; none for a dense model."""
    if not config.experts:
        return {}
    return {
        "expert_count": config.experts,
        "expert_used_count": config.count("num_experts_per_tok", "num_experts_per_token"),
        "expert_feed_forward_length": config.get("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.get("shared_expert_intermediate_size"),
    }


def partial_rotary(config: Config, default: float) -> int:
    """Elements of a head that are rotated, where only a part is."""
    return int(float(config.rope.get("partial_rotary_factor", default)) * config.head)


@contextmanager
def sensible(what: str) -> Iterator[None]:
    """The border behind which settings are trusted to be of the type they should be.

    Raises:
        ModelFileError: something inside could not work with them; names the file `what`.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ModelFileError(
            f"`{what}` says something that cannot be: {type(exc).__name__}: {exc}",
            hint="compare the file with that of a model of the same class",
        ) from exc


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _bad(field: str, value: Any, what: str) -> ModelFileError:
    if value is None:
        return ModelFileError(
            f"`config.json` does not say `{field}`", hint="check that the folder is complete"
        )
    return ModelFileError(f"`{field}` in `config.json` is {value!r}, not {what}")
