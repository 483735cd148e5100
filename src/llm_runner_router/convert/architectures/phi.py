"""Phi 1.5 and 2 (`phi2`), Phi 3, 3.5, 4 and 4-mini (`phi3`).

Knows: their rows and fields. llama.cpp takes Phi 3's fused projections as they are.
"""

from __future__ import annotations

import math

from llm_runner_router.convert.family import (
    Config,
    Family,
    Fields,
    Row,
    partial_rotary,
    refuse,
    standard,
)

PHI2: tuple[Row, ...] = (
    ("model.embed_tokens", "token_embd"),
    ("model.final_layernorm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.*.input_layernorm", "blk.*.attn_norm"),
    ("model.layers.*.self_attn.q_proj", "blk.*.attn_q"),
    ("model.layers.*.self_attn.k_proj", "blk.*.attn_k"),
    ("model.layers.*.self_attn.v_proj", "blk.*.attn_v"),
    ("model.layers.*.self_attn.dense", "blk.*.attn_output"),
    ("model.layers.*.mlp.fc1", "blk.*.ffn_up"),
    ("model.layers.*.mlp.fc2", "blk.*.ffn_down"),
)
PHI3: tuple[Row, ...] = (
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.*.input_layernorm", "blk.*.attn_norm"),
    ("model.layers.*.post_attention_layernorm", "blk.*.ffn_norm"),
    ("model.layers.*.self_attn.qkv_proj", "blk.*.attn_qkv"),
    ("model.layers.*.self_attn.o_proj", "blk.*.attn_output"),
    ("model.layers.*.mlp.gate_up_proj", "blk.*.ffn_up"),
    ("model.layers.*.mlp.down_proj", "blk.*.ffn_down"),
)


def _phi2(config: Config) -> Fields:
    return {**standard(config), "rope.dimension_count": partial_rotary(config, 0.5)}


def _check_phi2(config: Config) -> None:
    if config.get("qk_layernorm"):
        raise refuse("qk_layernorm", True, "phi2")


def _phi3(config: Config) -> Fields:
    rope = config.rope
    trained = rope.get("original_max_position_embeddings")
    fields = {
        **standard(config),
        "rope.dimension_count": partial_rotary(config, 1.0),
        "rope.scaling.original_context_length": trained,
        # Phi 3 has a window, which llama.cpp does not use here; zero marks Phi 4.
        "attention.sliding_window": config.count("sliding_window", default=0),
    }
    if rope.get("long_factor") and trained:
        scale = config.count("max_position_embeddings") / trained
        kind = rope["rope_type"].lower()
        fields["rope.scaling.attn_factor"] = _attention_factor(kind, scale, trained)
    return fields


def _attention_factor(kind: str, scale: float, trained: int) -> float:
    """What scores grow by beyond the trained context, as transformers computes it."""
    if scale <= 1:
        return 1.0
    if kind == "yarn":
        return 0.1 * math.log(scale) + 1.0
    return math.sqrt(1 + math.log(scale) / math.log(trained))


def _factors(config: Config) -> list[tuple[str, list[float]]]:
    rope = config.rope
    return [
        (f"rope_factors_{which}.weight", [float(f) for f in rope[f"{which}_factor"]])
        for which in ("long", "short")
        if rope.get(f"{which}_factor")
    ]


FAMILIES = (
    Family(
        name="phi2",
        classes=("PhiForCausalLM",),
        rows=PHI2,
        fields=_phi2,
        check=_check_phi2,
        output=True,
    ),
    Family(
        name="phi3",
        classes=("Phi3ForCausalLM",),
        rows=PHI3,
        fields=_phi3,
        extra=_factors,
    ),
)
