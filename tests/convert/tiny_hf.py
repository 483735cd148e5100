"""Small random models in Hugging Face's layout, made by transformers, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra `torch` is not installed")

SMALL: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4,
                                                   "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8,
                               "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "qwen3-yarn": ("Qwen3", {"rope_parameters": YARN}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 20}),
    "gemma3": ("Gemma3", {"sliding_window": 8, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "phi3-partial": ("Phi3", {"partial_rotary_factor": 0.5, "num_attention_heads": 2,
                              "num_key_value_heads": 1, "head_dim": 32, "sliding_window": None}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                            "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "olmo2": ("Olmo2", {}),
}  # fmt: skip
"""Every way in which a decoder of this kind differs, by name."""

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {}),
    "bert-tanh": ("BertModel", {"hidden_act": "gelu_new"}),
    "bert-reranker": ("BertForSequenceClassification", {"num_labels": 1}),
    "xlm-roberta": ("XLMRobertaModel", {}),
    "xlm-reranker": ("XLMRobertaForSequenceClassification", {"num_labels": 1}),
}


def decoder(name: str, folder: Path, *, type: str = "float32") -> Any:
    """A random decoder, saved in `folder`; weights large enough that every part matters."""
    family, changes = DECODERS[name]
    if family == "Gemma3":
        made = transformers.Gemma3TextConfig(**SMALL | changes)
    else:
        made = getattr(transformers, f"{family}Config")(**SMALL | changes)
    return _saved(getattr(transformers, f"{family}ForCausalLM"), made, folder, type)


def encoder(name: str, folder: Path) -> Any:
    """A random encoder, saved in `folder`."""
    kind, changes = ENCODERS[name]
    config, kinds = ("XLMRobertaConfig", 1) if kind.startswith("XLM") else ("BertConfig", 2)
    shape = {k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")}
    made = getattr(transformers, config)(**shape | {"type_vocab_size": kinds} | changes)
    return _saved(getattr(transformers, kind), made, folder, "float32")


def _saved(kind: Any, config: Any, folder: Path, type: str) -> Any:
    torch.manual_seed(7)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.2))
    model.to(getattr(torch, type)).save_pretrained(folder)
    return model.float()


def greedy(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens after `prompt`, whatever they are."""
    with torch.no_grad():
        found = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
    answer: list[int] = found[0].tolist()[len(prompt) :]
    return answer


def logits(model: Any, prompt: Sequence[int]) -> Any:
    """Logits after `prompt`."""
    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0, -1].float().numpy()
