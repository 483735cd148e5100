"""`config.json` from the fields of a GGUF file.

Knows: what the fields of an architecture are called in a Hugging Face configuration. Does not know:
weights (only which there are), tokenizers. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported

from .family import Config, llama3_factors

Fields = Mapping[str, Any]


class Back(Struct, frozen=True):
    """The class a model of an architecture had, and what is special in its configuration."""

    kind: str
    """`model_type`."""
    architecture: str
    names: dict[str, str] = {}
    """Further settings: their name in `config.json`, and the field that has them."""
    fixed: dict[str, Any] = {}


_EXPERTS: Final = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_GELU: Final = {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}
BACK: Final[dict[str, Back]] = {
    "llama": Back("llama", "LlamaForCausalLM"),
    "smollm3": Back("smollm3", "SmolLM3ForCausalLM", fixed={"no_rope_layer_interval": 4}),
    "granite": Back(
        "granite",
        "GraniteForCausalLM",
        {
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    "qwen2": Back("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Back("qwen3", "Qwen3ForCausalLM"),
    "qwen2moe": Back(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "shared_expert_intermediate_size": "expert_shared_feed_forward_length"},
        {"decoder_sparse_step": 1, "norm_topk_prob": False},
    ),
    "qwen3moe": Back(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _EXPERTS,
        {"decoder_sparse_step": 1, "norm_topk_prob": True},
    ),
    "gemma": Back("gemma", "GemmaForCausalLM", fixed=_GELU),
    "gemma2": Back(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "sliding_window": "attention.sliding_window",
            "query_pre_attn_scalar": "attention.key_length",
        },
        _GELU,
    ),
    "olmo2": Back("olmo2", "Olmo2ForCausalLM"),
}
MIXTRAL: Final = Back(
    "mixtral",
    "MixtralForCausalLM",
    {"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
)
_LLAMA3: Final = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def back(architecture: str, fields: Fields) -> Back:
    """The class for an architecture.

    Raises:
        Unsupported: files of this architecture are not converted back.
    """
    if architecture == "llama" and fields.get("llama.expert_count"):
        return MIXTRAL
    if architecture not in BACK:
        raise Unsupported(
            f"files of the architecture `{architecture}` are not converted from GGUF",
            hint=f"converted are: {', '.join(sorted(BACK))}",
        )
    return BACK[architecture]


def config(
    architecture: str,
    fields: Fields,
    tensors: Collection[str],
    *,
    rows: int,
    dtype: str,
    factors: list[float],
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        architecture: `general.architecture`.
        fields: the metadata.
        tensors: names of the file's tensors, which say what is tied and has biases.
        rows: rows of the embedding.
        dtype: the type the weights get, in PyTorch's words.
        factors: the values of `rope_freqs.weight`; empty without it.

    Raises:
        Unsupported: the architecture, or a scaling of positions, has no form there.
        ModelFileError: a field is missing.
    """
    found = back(architecture, fields)

    def need(key: str) -> Any:
        whole = f"{architecture}.{key}"
        if fields.get(whole) is None:
            raise ModelFileError(f"the file has no field `{whole}`", hint="download it again")
        return fields[whole]

    def have(key: str, default: Any = None) -> Any:
        return fields.get(f"{architecture}.{key}", default)

    heads, width = need("attention.head_count"), need("embedding_length")
    settings: dict[str, Any] = {
        "architectures": [found.architecture],
        "model_type": found.kind,
        "hidden_size": width,
        "intermediate_size": need("feed_forward_length"),
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": have("attention.head_count_kv", heads),
        "head_dim": have("attention.key_length", width // heads),
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": need("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "vocab_size": rows,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "torch_dtype": dtype,
        **{name: have(key) for name, key in found.names.items() if have(key) is not None},
        **found.fixed,
        **_special(fields),
    }
    settings["rope_theta"] = have("rope.freq_base", 10000.0)
    scaling = _scaling(architecture, fields, settings, factors)
    if scaling is not None:
        settings["rope_scaling"] = scaling
    return settings


def _special(fields: Fields) -> dict[str, int]:
    roles = {"bos": "bos", "eos": "eos", "pad": "padding"}
    found = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in roles.items()}
    return {f"{role}_token_id": number for role, number in found.items() if number is not None}


def _scaling(
    architecture: str, fields: Fields, settings: Mapping[str, Any], factors: list[float]
) -> dict[str, Any] | None:
    def have(key: str) -> Any:
        return fields.get(f"{architecture}.rope.scaling.{key}")

    kind = have("type")
    if factors:
        return _llama3(settings, factors)
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": have("factor")}
    if kind == "yarn":
        trained = have("original_context_length")
        return {
            "rope_type": "yarn",
            "factor": have("factor"),
            "original_max_position_embeddings": trained or settings["max_position_embeddings"],
        }
    raise Unsupported(f"`{architecture}.rope.scaling.type` is `{kind}`, which is not converted")


def _llama3(settings: Mapping[str, Any], factors: list[float]) -> dict[str, Any]:
    """The settings that give these factors; they are tried, not guessed."""
    for trained in (8192, 4096, 2048, 1024, 512, 256, 128, 64):
        scaling = {
            "rope_type": "llama3",
            "factor": max(factors),
            "original_max_position_embeddings": trained,
            **_LLAMA3,
        }
        ((_, given),) = llama3_factors(Config({**settings, "rope_scaling": scaling}))
        if len(given) == len(factors) and all(
            abs(a - b) < 1e-3 * b for a, b in zip(given, factors, strict=True)
        ):
            return scaling
    raise Unsupported(
        "`rope_freqs.weight` are not the factors of Llama 3, which `config.json` could name",
        hint="run the GGUF file as it is",
    )
