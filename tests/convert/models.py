"""Tiny models of every family, with random weights that leave nothing at its neutral value.

Norms are not ones, biases not zeros, and spreads are large, so that a tensor under a wrong name, a
forgotten field or an exchanged row shows in the answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY = 320
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.15,
}
QWEN = {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", BASE),
    "llama-tied-bias": ("Llama", {**BASE, "tie_word_embeddings": True, "attention_bias": True}),
    "llama3": ("Llama", {**BASE, "head_dim": 24, "rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        {**BASE, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {**BASE, "sliding_window": None}),
    "mixtral": ("Mixtral", {**BASE, "num_local_experts": 4}),
    "smollm3": ("SmolLM3", {**BASE, "num_hidden_layers": 4}),
    "llama4": (
        "Llama4",
        {
            **BASE,
            "num_hidden_layers": 4,
            "intermediate_size_mlp": 128,
            "head_dim": 16,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
        },
    ),
    "granite": (
        "Granite",
        {
            **BASE,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "granitemoe": (
        "GraniteMoe",
        {
            **BASE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "qwen2": ("Qwen2", BASE),
    "qwen2-yarn": ("Qwen2", {**BASE, "rope_parameters": YARN}),
    "qwen3": ("Qwen3", {**BASE, "head_dim": 24}),
    "qwen2moe": ("Qwen2Moe", {**QWEN, "shared_expert_intermediate_size": 48}),
    "qwen3moe": ("Qwen3Moe", {**QWEN, "head_dim": 16, "norm_topk_prob": True}),
    "gemma": ("Gemma", {**BASE, "head_dim": 24}),
    "gemma2": (
        "Gemma2",
        {**BASE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12},
    ),
    "gemma3": (
        "Gemma3",
        {
            **BASE,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 7,
            "sliding_window": 12,
        },
    ),
    "phi2": ("Phi", {**BASE, "num_key_value_heads": 4}),
    "phi3": ("Phi3", {**BASE, "sliding_window": None}),
    "phi3-long": ("Phi3", {**BASE, "sliding_window": None, "rope_parameters": LONGROPE}),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "initializer_range": 0.15,
        },
    ),
    "falcon": ("Falcon", {**BASE, "multi_query": True}),
    "falcon-groups": (
        "Falcon",
        {**BASE, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "stablelm": ("StableLm", {**BASE, "use_qkv_bias": True}),
    "stablelm-norms": (
        "StableLm",
        {**BASE, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "olmo2": ("Olmo2", {**BASE, "num_key_value_heads": 4}),
    "deepseek2": (
        "DeepseekV2",
        {
            **BASE,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": None,
            "topk_method": "greedy",
        },
    ),
    "bert": (
        "Bert",
        {
            **{k: v for k, v in BASE.items() if k != "num_key_value_heads"},
            "type_vocab_size": 2,
            "pad_token_id": 0,
        },
    ),
    "nomic-bert": (
        "NomicBert",
        {
            **{k: v for k, v in BASE.items() if k != "num_key_value_heads"},
            "type_vocab_size": 2,
            "pad_token_id": 0,
        },
    ),
}
ENCODERS = ("bert", "nomic-bert")


def make(name: str, folder: Path) -> Any:
    """The model `name`, saved with a tokenizer to `folder` as a maker would, ready to be asked."""
    import torch
    import transformers

    family, settings = MODELS[name]
    suffix = "Text" if family in ("Llama4", "Gemma3") else ""
    config = getattr(transformers, f"{family}{suffix}Config")(**settings)
    config._attn_implementation = "eager"
    head = {"GPT2": "LMHeadModel", "Bert": "Model", "NomicBert": "Model"}.get(family, "ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, family + head)(config).eval().float()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            elif parameter.ndim == 3:  # experts, which some classes leave empty
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 256 bytes, three special tokens and a few merges."""
    words = ["<|begin|>", "<|endoftext|>", "<|pad|>", *alphabet(), "th", "the", "in"]
    model = {
        "type": "BPE",
        "vocab": {word: i for i, word in enumerate(words)},
        "merges": [["t", "h"], ["th", "e"], ["i", "n"]],
    }
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    write_json(
        folder,
        model,
        added=[(i, words[i], True) for i in range(3)],
        pre_tokenizer=byte_level({"Regex": split}),
        decoder={"type": "ByteLevel"},
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    )


def alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes, in its order."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(n) for n in letters] + [chr(256 + i) for i in range(256 - len(letters))]


def byte_level(*splits: dict[str, str]) -> dict[str, Any]:
    """A pre-tokenizer that cuts by each of `splits` and then has letters for bytes."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": split, "behavior": "Isolated", "invert": False}
        for split in splits
    ]
    bytes_of = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", **bytes_of}]}


def write_json(
    folder: Path, model: dict[str, Any], *, added: list[tuple[int, str, bool]], **steps: Any
) -> Path:
    """`tokenizer.json` with `added` tokens `(id, text, special)`; its path."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    empty = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": t, "special": s, **flags} for i, t, s in added],
        **empty,
        **steps,
        "model": model,
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    return path
