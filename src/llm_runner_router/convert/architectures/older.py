"""GPT-2, Falcon, StableLM, OLMo 2.

Knows: their rows and fields, and Falcon's way of mixing queries, keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from llm_runner_router.convert.arrays import Array
from llm_runner_router.convert.family import (
    Config,
    Context,
    Family,
    Fields,
    Out,
    Piece,
    Row,
    partial_rotary,
    refuse,
    standard,
    turned,
)

from .llama import BLOCKS, PLAIN

GPT2: tuple[Row, ...] = (
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
    ("transformer.h.*.ln_1", "blk.*.attn_norm"),
    ("transformer.h.*.attn.c_attn", "blk.*.attn_qkv", turned),
    ("transformer.h.*.attn.c_proj", "blk.*.attn_output", turned),
    ("transformer.h.*.attn.masked_bias", ""),
    ("transformer.h.*.attn", ""),  # `.bias` is the causal mask
    ("transformer.h.*.ln_2", "blk.*.ffn_norm"),
    ("transformer.h.*.mlp.c_fc", "blk.*.ffn_up", turned),
    ("transformer.h.*.mlp.c_proj", "blk.*.ffn_down", turned),
)
OLMO2: tuple[Row, ...] = (
    *(row for row in BLOCKS if not row[0].endswith("layernorm")),
    *PLAIN,
    ("model.layers.*.self_attn.q_norm", "blk.*.attn_q_norm"),
    ("model.layers.*.self_attn.k_norm", "blk.*.attn_k_norm"),
    ("model.layers.*.post_attention_layernorm", "blk.*.post_attention_norm"),
    ("model.layers.*.post_feedforward_layernorm", "blk.*.post_ffw_norm"),
)


def _gpt2(config: Config) -> Fields:
    width = config.width
    return {
        **standard(config),
        "context_length": config.count("n_positions", "n_ctx", "max_position_embeddings"),
        "feed_forward_length": config.count("n_inner", default=4 * width),
        "attention.head_count_kv": None,
        "rope.freq_base": None,
    }


def _check_gpt2(config: Config) -> None:
    for name, usual in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True)):
        if bool(config.get(name, default=usual)) != usual:
            raise refuse(name, config.get(name), "gpt2")


# ---------------------------------------------------------------- Falcon


def _groups(config: Config) -> int:
    """Heads of keys and values."""
    if config.get("new_decoder_architecture"):
        return config.count("num_kv_heads", "n_head_kv", default=config.heads)
    return 1 if config.get("multi_query", default=True) else config.heads


def _grouped(context: Context, source: str, target: str) -> Iterator[Out]:
    """All queries, then all keys, then all values.

    A checkpoint has, for each head of keys, its queries, the key and the value together.
    """
    config, shape = context.config, context.shape(source)
    groups, head = _groups(config), config.head
    each = config.heads // groups

    def make(a: Array) -> Array:
        split = a.reshape(groups, each + 2, head, *a.shape[1:])
        parts = (split[:, :each], split[:, each], split[:, each + 1])
        return np.concatenate([part.reshape(-1, *a.shape[1:]) for part in parts])

    yield Out(target, shape, (Piece((source,), make),))


FALCON: tuple[Row, ...] = (
    ("transformer.word_embeddings", "token_embd"),
    ("transformer.ln_f", "output_norm"),
    ("lm_head", "output"),
    ("transformer.h.*.input_layernorm", "blk.*.attn_norm"),
    ("transformer.h.*.ln_mlp", "blk.*.attn_norm"),
    ("transformer.h.*.ln_attn", "blk.*.attn_norm_2"),
    ("transformer.h.*.self_attention.query_key_value", "blk.*.attn_qkv", _grouped),
    ("transformer.h.*.self_attention.dense", "blk.*.attn_output"),
    ("transformer.h.*.mlp.dense_h_to_4h", "blk.*.ffn_up"),
    ("transformer.h.*.mlp.dense_4h_to_h", "blk.*.ffn_down"),
)


def _falcon(config: Config) -> Fields:
    return {
        **standard(config),
        "context_length": config.count("max_position_embeddings", default=2048),
        "feed_forward_length": config.count("ffn_hidden_size", default=4 * config.width),
        "attention.head_count_kv": _groups(config),
        "tensor_data_layout": "jploski",
    }


def _check_falcon(config: Config) -> None:
    wanted = {"alibi": False, "bias": False, "parallel_attn": True}
    for name, usual in wanted.items():
        if bool(config.get(name, default=usual)) != usual:
            raise refuse(name, config.get(name), "falcon")


# ---------------------------------------------------------------- StableLM


def _head_norms(context: Context, source: str, target: str) -> Iterator[Out]:
    """The norms of all heads as one tensor."""
    place = re.search(r"norms\.(\d+)\.", source)
    assert place is not None, f"{source} names no head"
    if place[1] != "0":
        return
    count = context.config.heads if "q_layernorm" in source else context.config.kv_heads
    names = [f"{source[: place.start(1)]}{i}{source[place.end(1) :]}" for i in range(count)]
    shape = context.shape(names[-1])
    yield Out(target, (count, *shape), tuple(Piece((name,)) for name in names))


STABLELM: tuple[Row, ...] = (
    *BLOCKS,
    *PLAIN,
    ("model.layers.*.self_attn.q_layernorm.norms.#", "blk.*.attn_q_norm", _head_norms),
    ("model.layers.*.self_attn.k_layernorm.norms.#", "blk.*.attn_k_norm", _head_norms),
)


def _stablelm(config: Config) -> Fields:
    share = float(config.get("rope_pct", default=0.25))
    return {
        **standard(config),
        "rope.dimension_count": partial_rotary(config, share),
        "use_parallel_residual": bool(config.get("use_parallel_residual", default=True)),
    }


FAMILIES = (
    Family(name="gpt2", classes=("GPT2LMHeadModel",), rows=GPT2, fields=_gpt2, check=_check_gpt2),
    Family(
        name="falcon",
        classes=("FalconForCausalLM", "RWForCausalLM"),
        rows=FALCON,
        fields=_falcon,
        check=_check_falcon,
    ),
    Family(
        name="stablelm",
        classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
        rows=STABLELM,
        fields=_stablelm,
        output=True,
    ),
    Family(name="olmo2", classes=("Olmo2ForCausalLM",), rows=OLMO2, fields=standard, output=True),
)
