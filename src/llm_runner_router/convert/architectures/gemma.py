"""Gemma 1 to 3 (text), and EmbeddingGemma.

Knows: their rows and fields; that a norm multiplies by 1 + weight, that the output is always the
embedding, and that llama.cpp fixes how scores are scaled.
"""

from __future__ import annotations

from llm_runner_router.convert.family import (
    Config,
    Family,
    Fields,
    Row,
    plus_one,
    refuse,
    standard,
)

from .llama import BLOCKS, PLAIN

_NORMS = {"model.norm", "model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"}
COMMON: tuple[Row, ...] = (
    ("lm_head", ""),  # the embedding again, where a quantiser left it behind
    ("model.norm", "output_norm", plus_one),
    ("model.layers.*.input_layernorm", "blk.*.attn_norm", plus_one),
    *(row for row in BLOCKS if row[0] not in _NORMS and row[0] != "lm_head"),
    *PLAIN,
)
GEMMA: tuple[Row, ...] = (
    *COMMON,
    ("model.layers.*.post_attention_layernorm", "blk.*.ffn_norm", plus_one),
)
GEMMA2: tuple[Row, ...] = (
    *COMMON,
    ("model.layers.*.post_attention_layernorm", "blk.*.post_attention_norm", plus_one),
    ("model.layers.*.pre_feedforward_layernorm", "blk.*.ffn_norm", plus_one),
    ("model.layers.*.post_feedforward_layernorm", "blk.*.post_ffw_norm", plus_one),
)
GEMMA3: tuple[Row, ...] = (
    *GEMMA2,
    ("model.layers.*.self_attn.q_norm", "blk.*.attn_q_norm", plus_one),
    ("model.layers.*.self_attn.k_norm", "blk.*.attn_k_norm", plus_one),
)
EMBEDDING: tuple[Row, ...] = (
    *GEMMA3,
    ("dense.2", "dense_2"),
    ("dense.3", "dense_3"),
)
HEAD = 256
"""Length of a head where the configuration leaves it out."""


def _fields(config: Config) -> Fields:
    head = config.count("head_dim", default=HEAD)
    return {
        **standard(config),
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", default=1e-6),
    }


def _gemma2(config: Config) -> Fields:
    return {
        **_fields(config),
        "attn_logit_softcapping": config.real("attn_logit_softcapping", default=0.0) or None,
        "final_logit_softcapping": config.real("final_logit_softcapping", default=0.0) or None,
        "attention.sliding_window": config.count("sliding_window", default=4096),
    }


def _gemma3(config: Config) -> Fields:
    fields = {
        **_fields(config),
        "context_length": config.count("max_position_embeddings", default=131072),
        "rope.freq_base": float(config.rope.get("rope_theta", 1e6)),
        "final_logit_softcapping": config.real("final_logit_softcapping", default=0.0) or None,
    }
    window, kinds = config.get("sliding_window"), config.get("layer_types")
    if window:
        local = config.rope_local.get("rope_theta", config.get("rope_local_base_freq"))
        fields["attention.sliding_window"] = window
        fields["rope.freq_base_swa"] = float(local or 10000.0)
        if kinds:
            fields["attention.sliding_window_pattern"] = [k == "sliding_attention" for k in kinds]
    return fields


def _embedding(config: Config) -> Fields:
    fields = _gemma3(config)
    fields["attention.sliding_window"] = config.count("sliding_window")
    for number, (inputs, outputs) in enumerate(config.get("dense_features", default=()), 2):
        fields[f"dense_{number}_feat_in"] = inputs
        fields[f"dense_{number}_feat_out"] = outputs
    return fields


def _check_embedding(config: Config) -> None:
    _check_gemma3(config)
    if not config.get("use_bidirectional_attention"):
        raise refuse("use_bidirectional_attention", False, "gemma-embedding")


def _check_gemma2(config: Config) -> None:
    _check_scale(config, "gemma2", layers_of_27b=46)


def _check_gemma3(config: Config) -> None:
    _check_scale(config, "gemma3", layers_of_27b=62)
    if cap := config.get("attn_logit_softcapping"):
        raise refuse("attn_logit_softcapping", cap, "gemma3")


def _check_scale(config: Config, architecture: str, *, layers_of_27b: int) -> None:
    """llama.cpp divides scores by the root of a head, or of width / heads for the 27 B."""
    scalar = config.get("query_pre_attn_scalar")
    usual = config.count("head_dim", default=HEAD)
    if config.layers == layers_of_27b:
        usual = config.width // config.heads
    if scalar is not None and scalar != usual:
        raise refuse("query_pre_attn_scalar", scalar, architecture)


FAMILIES = (
    Family(name="gemma", classes=("GemmaForCausalLM",), rows=GEMMA, fields=_fields),
    Family(
        name="gemma2",
        classes=("Gemma2ForCausalLM",),
        rows=GEMMA2,
        fields=_gemma2,
        check=_check_gemma2,
    ),
    Family(
        name="gemma3",
        classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
        rows=GEMMA3,
        fields=_gemma3,
        check=_check_gemma3,
    ),
    Family(
        name="gemma-embedding",
        classes=("Gemma3TextModel",),
        rows=EMBEDDING,
        fields=_embedding,
        check=_check_embedding,
        pooling=True,
        dense=True,
    ),
)
