"""What a decoder of Llama's family computes, read from `config.json`. Pure.

Knows: the fields of Hugging Face's configurations for the architectures in `FAMILIES` and how their
meaning differs: windows, rotary frequencies, scales, caps. Does not know: weights, graphs. What a
checkpoint shows by having a tensor (biases, norms of queries, fused projections) is not asked here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported


class Family(Struct, frozen=True):
    """How an architecture differs from Llama beyond what its tensors show."""

    type: str
    """What onnxruntime-genai calls it."""
    plus_one: bool = False
    """Norms multiply by one more than their weight (Gemma)."""
    embed_root: bool = False
    """Embeddings are multiplied by the square root of their length (Gemma)."""
    windows: str = "config"
    """Which layers see a window only where `layer_types` does not say: `none`, `all`, `even`,
    `upper` (from `max_window_layers` on), `pattern` (all but each `sliding_window_pattern`th)."""


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family("llama", windows="none"),
    "MistralForCausalLM": Family("mistral", windows="all"),
    "Qwen2ForCausalLM": Family("qwen2", windows="upper"),
    "Qwen3ForCausalLM": Family("qwen3", windows="upper"),
    "GemmaForCausalLM": Family("gemma", plus_one=True, embed_root=True, windows="none"),
    "Gemma2ForCausalLM": Family("gemma2", plus_one=True, embed_root=True, windows="even"),
    "Gemma3ForCausalLM": Family("gemma3_text", plus_one=True, embed_root=True, windows="pattern"),
    "Phi3ForCausalLM": Family("phi3", windows="all"),
    "SmolLM3ForCausalLM": Family("smollm3", windows="none"),
    "GraniteForCausalLM": Family("granite", windows="none"),
    "Olmo2ForCausalLM": Family("olmo", windows="none"),
}


class Rope(Struct, frozen=True):
    """Rotary positions: one frequency per pair of dimensions."""

    frequencies: tuple[float, ...]
    """Radians per position, for each pair; the first half of a head turns with the second."""
    scale: float = 1.0
    """Sines and cosines are multiplied by it (YaRN)."""


class Layer(Struct, frozen=True):
    """What differs from layer to layer."""

    window: int = 0
    """Positions that a token sees, itself among them; zero for all."""
    rope: str = "full"
    """Name of its table in `DecoderShape.ropes`; empty for a layer without positions."""


class DecoderShape(Struct, frozen=True):
    """The numbers of a decoder."""

    architecture: str
    family: Family
    width: int
    heads: int
    kv_heads: int
    head: int
    """Length of a head's queries, keys and values."""
    inner: int
    vocabulary: int
    context: int
    eps: float
    activation: str
    """`silu`, `gelu`, `gelu_tanh` or `relu`."""
    layers: tuple[Layer, ...]
    ropes: dict[str, Rope]
    attention_scale: float
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    """Logits are divided by it."""
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    tied: bool = False


WRONG: Final = (TypeError, ValueError, AttributeError, ArithmeticError, IndexError)
"""What reading a field of a wrong kind raises."""
MAX_CONTEXT: Final = 1 << 17
"""Positions that a graph is written for, at most: each costs a row in the tables of sines."""


def read(config: Mapping[str, Any]) -> DecoderShape:
    """The shape that a `config.json` describes.

    Raises:
        Unsupported: an architecture or a feature that is not converted; names the field.
        ModelFileError: a field is of a wrong kind.
    """
    try:
        return _read(config)
    except WRONG as exc:
        raise wrong_kind(exc) from exc


def wrong_kind(exc: Exception) -> ModelFileError:
    """The error for a configuration whose fields are not what they should be."""
    return ModelFileError(
        f"config.json has a field of a wrong kind: {exc}",
        hint="compare it with the original; the download may be damaged",
    )


def _read(config: Mapping[str, Any]) -> DecoderShape:
    architecture = str((config.get("architectures") or ["?"])[0])
    family = FAMILIES.get(architecture)
    if family is None:
        raise Unsupported(
            f"`architectures` of config.json is `{architecture}`, which is not converted to ONNX",
            param="architectures",
            hint=f"these are: {', '.join(sorted(FAMILIES))}",
        )
    width = count_of(config, "hidden_size")
    heads = count_of(config, "num_attention_heads")
    head = int(config.get("head_dim") or 0) or width // heads
    scalar = config.get("query_pre_attn_scalar")
    scale = config.get("attention_multiplier") or float(scalar or head) ** -0.5
    return DecoderShape(
        architecture=architecture,
        family=family,
        width=width,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head=head,
        inner=count_of(config, "intermediate_size"),
        vocabulary=count_of(config, "vocab_size"),
        context=min(MAX_CONTEXT, count_of(config, "max_position_embeddings")),
        eps=float(config.get("rms_norm_eps") or 1e-6),
        activation=_activation(config, family),
        layers=_layers(config, family),
        ropes=_ropes(config, head),
        attention_scale=float(scale),
        embed_scale=math.sqrt(width)
        if family.embed_root
        else float(config.get("embedding_multiplier") or 1.0),
        residual_scale=float(config.get("residual_multiplier") or 1.0),
        logits_scale=float(config.get("logits_scaling") or 1.0),
        attention_cap=float(config.get("attn_logit_softcapping") or 0.0),
        logits_cap=float(config.get("final_logit_softcapping") or 0.0),
        tied=bool(config.get("tie_word_embeddings", family.embed_root)),
    )


def count_of(config: Mapping[str, Any], name: str) -> int:
    """A field that is a number of things.

    Raises:
        Unsupported: it is not; names the field.
    """
    value = config.get(name)
    if not isinstance(value, int) or not 0 < value < 1 << 31:
        raise Unsupported(
            f"`{name}` of config.json is {value!r}, not a count",
            param=name,
            hint="`llmrr inspect --why` shows what the folder says of itself",
        )
    return value


_ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _activation(config: Mapping[str, Any], family: Family) -> str:
    name = str(config.get("hidden_activation") or config.get("hidden_act") or "silu")
    if family.plus_one:
        # Gemma's first configurations say `gelu`; it was trained with the other one.
        name = "gelu_pytorch_tanh" if name == "gelu" else name
    if name not in _ACTIVATIONS:
        raise Unsupported(
            f"`hidden_act` of config.json is `{name}`, which is not converted to ONNX",
            param="hidden_act",
            hint=f"these are: {', '.join(sorted(_ACTIVATIONS))}",
        )
    return _ACTIVATIONS[name]


def _layers(config: Mapping[str, Any], family: Family) -> tuple[Layer, ...]:
    count = count_of(config, "num_hidden_layers")
    if count > 1000:
        raise Unsupported(
            f"`num_hidden_layers` of config.json is {count}, more than any model has",
            param="num_hidden_layers",
            hint="look at the file",
        )
    windows = _windowed(config, family, count)
    window = int(config.get("sliding_window") or 0)
    local = "sliding" if family.type == "gemma3_text" else "full"
    turning = config.get("no_rope_layers") or [
        (i + 1) % int(config.get("no_rope_layer_interval") or 4) for i in range(count)
    ]
    if family.type != "smollm3":
        turning = [1] * count
    return tuple(
        Layer(
            window=window if windows[i] else 0,
            rope="" if not turning[i] else local if windows[i] else "full",
        )
        for i in range(count)
    )


def _windowed(config: Mapping[str, Any], family: Family, count: int) -> list[bool]:
    """For each layer, whether it sees only a window."""
    if not config.get("sliding_window") or family.windows == "none":
        return [False] * count
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == count and family.windows != "all":
        return [kind == "sliding_attention" for kind in types]
    if family.windows == "all":
        return [True] * count
    if family.windows == "even":
        return [i % 2 == 0 for i in range(count)]
    if family.windows == "pattern":
        every = int(config.get("sliding_window_pattern") or 6)
        return [(i + 1) % every != 0 for i in range(count)]
    first = int(config.get("max_window_layers") or 0)
    return [bool(config.get("use_sliding_window")) and i >= first for i in range(count)]


# ---------------------------------------------------------------- rotary positions


def _ropes(config: Mapping[str, Any], head: int) -> dict[str, Rope]:
    parameters = config.get("rope_parameters") or {}
    if "full_attention" in parameters:
        return {
            "full": _rope(config, parameters["full_attention"], head),
            "sliding": _rope(config, parameters.get("sliding_attention") or {}, head),
        }
    wanted = {**(config.get("rope_scaling") or {}), **parameters}
    wanted.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    ropes = {"full": _rope(config, wanted, head)}
    if config.get("model_type") == "gemma3_text":
        theta = config.get("rope_local_base_freq") or 10000.0
        ropes["sliding"] = _rope(config, {"rope_theta": theta}, head)
    return ropes


def _rope(config: Mapping[str, Any], wanted: Mapping[str, Any], head: int) -> Rope:
    part = wanted.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    turned = int(head * float(part))
    theta = float(wanted.get("rope_theta") or 10000.0)
    base = [theta ** (-2 * i / turned) for i in range(turned // 2)]
    kind = str(wanted.get("rope_type") or wanted.get("type") or "default")
    if kind == "default":
        return Rope(tuple(base))
    factor = float(wanted.get("factor") or 1.0)
    if kind == "linear":
        return Rope(tuple(f / factor for f in base))
    original = float(
        wanted.get("original_max_position_embeddings")
        or config.get("original_max_position_embeddings")
        or config.get("max_position_embeddings")
        or 0
    )
    if kind == "llama3":
        return Rope(tuple(_llama3(f, factor, original, wanted) for f in base))
    if kind == "yarn":
        return _yarn(base, theta, factor, original, wanted)
    raise Unsupported(
        f"`rope_type` of config.json is `{kind}`, which is not converted to ONNX",
        param="rope_scaling",
        hint="`default`, `linear`, `llama3` and `yarn` are; GGUF takes more: `llmrr convert`",
    )


def _llama3(frequency: float, factor: float, original: float, wanted: Mapping[str, Any]) -> float:
    """Long waves are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
    low = float(wanted.get("low_freq_factor") or 1.0)
    high = float(wanted.get("high_freq_factor") or 4.0)
    turns = original * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    share = (turns - low) / (high - low)
    return (1 - share) * frequency / factor + share * frequency


def _yarn(
    base: list[float], theta: float, factor: float, original: float, wanted: Mapping[str, Any]
) -> Rope:
    """YaRN (Peng et al. 2023, arXiv 2309.00071), with the ramp over dimensions of its authors."""
    turned = 2 * len(base)

    def dimension(turns: float) -> float:
        return turned * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(float(wanted.get("beta_fast") or 32))
    high = dimension(float(wanted.get("beta_slow") or 1))
    if wanted.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, turned - 1)
    found = []
    for i, frequency in enumerate(base):
        ramp = min(max((i - low) / max(high - low, 1e-3), 0.0), 1.0)
        found.append(frequency / factor * ramp + frequency * (1 - ramp))
    scale = wanted.get("attention_factor")
    if scale is None:
        scale = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    return Rope(tuple(found), float(scale))
