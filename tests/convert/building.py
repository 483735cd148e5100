"""Small models for these tests: a Llama of any shape, random weights, a zoo model's words."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from llm_runner_router.convert import kernels
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.resolve import ZOO

DONOR = ZOO / "tiny-math.gguf"
Array = NDArray[np.float32]


class Shape(Struct, frozen=True):
    """Sizes of a Llama; rows of 256, so that every type fits."""

    width: int = 256
    layers: int = 2
    hidden: int = 512
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    experts: int = 0


def tensors(shape: Shape, vocab: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes, outermost first."""
    width, hidden = shape.width, shape.hidden
    kv = width // shape.heads * shape.kv_heads
    lead = (shape.experts,) if shape.experts else ()
    end = "_exps" if shape.experts else ""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, width)}
    for i in range(shape.layers):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            f"ffn_gate{end}": (*lead, hidden, width),
            f"ffn_up{end}": (*lead, hidden, width),
            f"ffn_down{end}": (*lead, width, hidden),
        }
        if shape.experts:
            layer["ffn_gate_inp"] = (shape.experts, width)
        found |= {f"blk.{i}.{name}.weight": size for name, size in layer.items()}
    found["output_norm.weight"] = (width,)
    if not shape.tied:
        found["output.weight"] = (vocab, width)
    return found


def random_weights(name: str, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Ones for norms; else normal numbers whose products stay near one."""
    if len(size) == 1:
        return np.ones(size, np.float32)
    made: Array = (rng.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)
    return made


def write(
    path: Path,
    shape: Shape | None = None,
    kind: str = "F32",
    make: Callable[[str, tuple[int, ...], np.random.Generator], Array] = random_weights,
    *,
    seed: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Write a model that the engine can load; its weights before they became `kind`."""
    shape, rng = shape or Shape(), np.random.default_rng(seed)
    with gguf.open_checkpoint(DONOR) as donor, GGUFWriter(path, "llama") as out:
        metadata: Any = donor.config
        vocab = metadata.length("tokenizer.ggml.tokens")
        for key in (k for k in metadata if k.startswith("tokenizer.")):
            entry = metadata.raw(key)
            at = 8 + struct.unpack_from("<Q", entry)[0]
            out.raw_field(key, struct.unpack_from("<I", entry, at)[0], entry[at + 4 :])
        _fields(out, shape, vocab)
        for key, value in (extra or {}).items():
            out.field(key, value)
        sizes = tensors(shape, vocab)
        kinds = {n: "F32" if len(s) == 1 or "gate_inp" in n else kind for n, s in sizes.items()}
        for name, size in sizes.items():
            out.tensor(name, kinds[name], size)
        out.begin()
        weights = {name: make(name, size, rng) for name, size in sizes.items()}
        for name, array in weights.items():
            out.data(name, kernels.quantize(kinds[name], array.reshape(-1, array.shape[-1])))
        out.finish()
    return weights


def _fields(out: GGUFWriter, shape: Shape, vocab: int) -> None:
    out.field("general.name", "random")
    for key, value in {
        "context_length": 512,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.hidden,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "rope.dimension_count": shape.width // shape.heads,
        "vocab_size": vocab,
    }.items():
        out.field(f"llama.{key}", value)
    out.field("llama.attention.layer_norm_rms_epsilon", 1e-5)
    if shape.experts:
        out.field("llama.expert_count", shape.experts)
        out.field("llama.expert_used_count", 2)
