"""Llama 1 to 4, Mistral, Mixtral, SmolLM 3, Granite: what rotates neighbours and norms before.

Knows: their rows and fields. Llama 4 is here for its kinship, though its checkpoints rotate
neighbours already.
"""

from __future__ import annotations

from llm_runner_router.convert.family import (
    Config,
    Family,
    Fields,
    Row,
    halves,
    key,
    llama3_factors,
    query,
    refuse,
    stacked,
    standard,
    turned,
)

BLOCKS: tuple[Row, ...] = (
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.*.input_layernorm", "blk.*.attn_norm"),
    ("model.layers.*.post_attention_layernorm", "blk.*.ffn_norm"),
    ("model.layers.*.self_attn.v_proj", "blk.*.attn_v"),
    ("model.layers.*.self_attn.o_proj", "blk.*.attn_output"),
    ("model.layers.*.self_attn.rotary_emb.inv_freq", ""),
    ("model.layers.*.mlp.gate_proj", "blk.*.ffn_gate"),
    ("model.layers.*.mlp.up_proj", "blk.*.ffn_up"),
    ("model.layers.*.mlp.down_proj", "blk.*.ffn_down"),
)
"""What most decoders since Llama have in common; queries and keys are left to each."""
PLAIN: tuple[Row, ...] = (
    ("model.layers.*.self_attn.q_proj", "blk.*.attn_q"),
    ("model.layers.*.self_attn.k_proj", "blk.*.attn_k"),
)
"""Queries and keys of architectures whose engine rotates halves as the checkpoint does."""
PAIRED: tuple[Row, ...] = (
    ("model.layers.*.self_attn.q_proj", "blk.*.attn_q", query),
    ("model.layers.*.self_attn.k_proj", "blk.*.attn_k", key),
)
MIXTRAL: tuple[Row, ...] = (
    ("model.layers.*.block_sparse_moe.gate", "blk.*.ffn_gate_inp"),
    ("model.layers.*.block_sparse_moe.experts.#.w1", "blk.*.ffn_gate_exps", stacked),
    ("model.layers.*.block_sparse_moe.experts.#.w2", "blk.*.ffn_down_exps", stacked),
    ("model.layers.*.block_sparse_moe.experts.#.w3", "blk.*.ffn_up_exps", stacked),
)
LLAMA4: tuple[Row, ...] = (
    ("model.layers.*.feed_forward.gate_proj", "blk.*.ffn_gate"),
    ("model.layers.*.feed_forward.up_proj", "blk.*.ffn_up"),
    ("model.layers.*.feed_forward.down_proj", "blk.*.ffn_down"),
    ("model.layers.*.feed_forward.router", "blk.*.ffn_gate_inp"),
    (
        "model.layers.*.feed_forward.experts.gate_up_proj",
        "blk.*",
        halves("blk.*.ffn_gate_exps", "blk.*.ffn_up_exps", turn=True),
    ),
    ("model.layers.*.feed_forward.experts.down_proj", "blk.*.ffn_down_exps", turned),
    ("model.layers.*.feed_forward.shared_expert.gate_proj", "blk.*.ffn_gate_shexp"),
    ("model.layers.*.feed_forward.shared_expert.up_proj", "blk.*.ffn_up_shexp"),
    ("model.layers.*.feed_forward.shared_expert.down_proj", "blk.*.ffn_down_shexp"),
)
GRANITE_MOE: tuple[Row, ...] = (
    ("model.layers.*.block_sparse_moe.router.layer", "blk.*.ffn_gate_inp"),
    (
        "model.layers.*.block_sparse_moe.input_linear",
        "blk.*",
        halves("blk.*.ffn_gate_exps", "blk.*.ffn_up_exps"),
    ),
    ("model.layers.*.block_sparse_moe.output_linear", "blk.*.ffn_down_exps"),
)
CHUNK, NO_ROPE_STEP = 8192, 4
"""Llama 4's chunk of attention and every how many layers do without positions: fixed in
llama.cpp."""


def _fields(config: Config) -> Fields:
    return {**standard(config), "rope.dimension_count": config.head}


def _llama4(config: Config) -> Fields:
    return {
        **_fields(config),
        "feed_forward_length": config.count("intermediate_size_mlp"),
        "expert_feed_forward_length": config.count("intermediate_size"),
        "interleave_moe_layer_step": config.count("interleave_moe_layer_step"),
    }


def _check_llama4(config: Config) -> None:
    chunk = config.get("attention_chunk_size", default=CHUNK)
    if chunk != CHUNK:
        raise refuse("attention_chunk_size", chunk, "llama4")
    flags = config.get("no_rope_layers", default=[])
    if flags and flags != _rope_layers(config):
        raise refuse("no_rope_layers", flags, "llama4")
    normed = config.get("use_qk_norm", default=True)
    if bool(normed) == (config.experts == 128):
        raise refuse("use_qk_norm", normed, "llama4")


def _rope_layers(config: Config) -> list[int]:
    """1 for layers that know positions; every fourth does not."""
    return [int((i + 1) % NO_ROPE_STEP != 0) for i in range(config.layers)]


def _check_smollm3(config: Config) -> None:
    flags = config.get("no_rope_layers", default=[])
    if flags and flags != _rope_layers(config):
        raise refuse("no_rope_layers", flags, "smollm3")


def _granite(config: Config) -> Fields:
    return {
        **_fields(config),
        "attention.key_length": None,
        "attention.value_length": None,
        "attention.scale": config.real("attention_multiplier", default=1.0),
        "embedding_scale": config.real("embedding_multiplier", default=1.0),
        "residual_scale": config.real("residual_multiplier", default=1.0),
        "logit_scale": config.real("logits_scaling", default=1.0),
    }


FAMILIES = (
    Family(
        name="llama",
        classes=(
            "LlamaForCausalLM",
            "LLaMAForCausalLM",
            "LlamaModel",
            "MistralForCausalLM",
            "MixtralForCausalLM",
        ),
        rows=(*BLOCKS, *PAIRED, *MIXTRAL),
        fields=_fields,
        extra=llama3_factors,
    ),
    Family(
        name="smollm3",
        classes=("SmolLM3ForCausalLM",),
        rows=(*BLOCKS, *PAIRED),
        fields=_fields,
        extra=llama3_factors,
        check=_check_smollm3,
    ),
    Family(
        name="llama4",
        classes=("Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        rows=(*BLOCKS, *PLAIN, *LLAMA4),
        fields=_llama4,
        extra=llama3_factors,
        check=_check_llama4,
    ),
    Family(
        name="granite",
        classes=("GraniteForCausalLM",),
        rows=(*BLOCKS, *PAIRED),
        fields=_granite,
    ),
    Family(
        name="granitemoe",
        classes=("GraniteMoeForCausalLM",),
        rows=(*BLOCKS, *PAIRED, *GRANITE_MOE),
        fields=_granite,
    ),
)
