"""DeepSeek V2, V2-Lite and V3 (`deepseek2`): latent attention and a mixture with shared experts.

Knows: their rows and fields. llama.cpp runs latent attention in its absorbed form, so the matrix
that expands keys and values is split in two, and the one of the keys is turned per head.
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
    standard,
)

from .llama import BLOCKS
from .qwen import EXPERTS

GATING = {"softmax": 1, "sigmoid": 2}
"""How a router's logits become weights, as llama.cpp numbers them."""


def _expansion(context: Context, source: str, target: str) -> Iterator[Out]:
    """`kv_b_proj` as `attn_k_b` (heads, rank, nope) and `attn_v_b` (heads, value, rank)."""
    config = context.config
    heads, rank = config.heads, context.shape(source)[-1]
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")

    def keys(a: Array) -> Array:
        split = a.reshape(heads, nope + value, rank)[:, :nope]
        return np.ascontiguousarray(split.swapaxes(1, 2))

    def values(a: Array) -> Array:
        return np.ascontiguousarray(a.reshape(heads, nope + value, rank)[:, nope:])

    layer = re.search(r"\.(\d+)\.", source)
    assert layer is not None, f"{source} names no layer"
    stem = f"blk.{layer[1]}"
    yield Out(f"{stem}.attn_k_b.weight", (heads, rank, nope), (Piece((source,), keys),))
    yield Out(f"{stem}.attn_v_b.weight", (heads, value, rank), (Piece((source,), values),))


DEEPSEEK: tuple[Row, ...] = (
    *BLOCKS,
    *EXPERTS,
    ("model.layers.*.self_attn.q_proj", "blk.*.attn_q"),
    ("model.layers.*.self_attn.q_a_proj", "blk.*.attn_q_a"),
    ("model.layers.*.self_attn.q_a_layernorm", "blk.*.attn_q_a_norm"),
    ("model.layers.*.self_attn.q_b_proj", "blk.*.attn_q_b"),
    ("model.layers.*.self_attn.kv_a_proj_with_mqa", "blk.*.attn_kv_a_mqa"),
    ("model.layers.*.self_attn.kv_a_layernorm", "blk.*.attn_kv_a_norm"),
    ("model.layers.*.self_attn.kv_b_proj", "blk.*", _expansion),
    ("model.layers.*.mlp.gate.e_score_correction_bias", "blk.*.exp_probs_b.bias"),
    ("model.layers.*.mlp.shared_experts.gate_proj", "blk.*.ffn_gate_shexp"),
    ("model.layers.*.mlp.shared_experts.up_proj", "blk.*.ffn_up_shexp"),
    ("model.layers.*.mlp.shared_experts.down_proj", "blk.*.ffn_down_shexp"),
)


def _fields(config: Config) -> Fields:
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    every = config.get("mscale_all_dim") or config.rope.get("mscale_all_dim")
    return {
        **standard(config),
        "attention.head_count_kv": 1,  # absorbed, all heads share one latent key
        "attention.q_lora_rank": config.count("q_lora_rank", default=0),
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": config.count("qk_nope_head_dim") + rope,
        "attention.value_length_mla": config.count("v_head_dim"),
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", default=1e-6),
        "rope.dimension_count": rope,
        # A tenth, because llama.cpp multiplies it by ten for this architecture.
        "rope.scaling.yarn_log_multiplier": None if every is None else 0.1 * float(every),
        "leading_dense_block_count": config.count("first_k_dense_replace", default=0),
        "expert_feed_forward_length": config.count("moe_intermediate_size"),
        "expert_shared_count": config.count("n_shared_experts", default=0),
        "expert_shared_feed_forward_length": None,
        "expert_weights_scale": config.real("routed_scaling_factor", default=1.0),
        "expert_weights_norm": bool(config.get("norm_topk_prob", default=False)),
        "expert_gating_func": _gating(config),
        "expert_group_count": config.get("n_group"),
        "expert_group_used_count": config.get("topk_group"),
    }


def _gating(config: Config) -> int:
    third = config.architecture.startswith("DeepseekV3")
    return GATING[config.get("scoring_func", default="sigmoid" if third else "softmax")]


FAMILIES = (
    Family(
        name="deepseek2",
        classes=("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
        rows=DEEPSEEK,
        fields=_fields,
    ),
)
