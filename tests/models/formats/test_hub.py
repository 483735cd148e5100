"""Facts out of `config.json` and its neighbours, for the families people use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.models.formats import safetensors

from .building import safetensors as build

FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 3.2 1B": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
         "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 64, "max_position_embeddings": 131072, "vocab_size": 128256,
         "tie_word_embeddings": True},
        {"architecture": "llama", "layers": 16, "kv_heads": 8, "key_length": 64, "tied": True,
         "context": 131072, "task": "generate"},
    ),
    "Mistral with a window": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
         "num_hidden_layers": 32, "num_attention_heads": 32, "sliding_window": 4096},
        {"window": 4096, "kv_heads": 32, "key_length": 128},
    ),
    "Qwen2 whose window is off": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
         "num_attention_heads": 14, "sliding_window": 32768, "use_sliding_window": False},
        {"window": 0, "key_length": 64},
    ),
    "Qwen3 MoE": (
        {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 128,
         "num_experts_per_tok": 8, "hidden_size": 2048, "num_attention_heads": 32, "head_dim": 128},
        {"architecture": "qwen3_moe", "experts": 128, "experts_used": 8, "key_length": 128},
    ),
    "Mixtral": (
        {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8,
         "num_experts_per_tok": 2},
        {"experts": 8, "experts_used": 2},
    ),
    "DeepSeek V2": (
        {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
         "hidden_size": 2048, "num_attention_heads": 16, "qk_nope_head_dim": 128,
         "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "auto_map": {"A": "b"}},
        {"key_length": 192, "value_length": 128, "experts": 64,
         "notes": ("it names program code of its own (`auto_map`), which is never run",)},
    ),
    "GPT-2": (
        {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12,
         "n_head": 12, "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50257},
        {"layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "context": 1024,
         "task": "generate"},
    ),
    "Falcon 7B": (
        {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 4544,
         "num_attention_heads": 71, "multi_query": True},
        {"kv_heads": 1, "key_length": 64},
    ),
    "Gemma 3 with images": (
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
         "vision_config": {}, "text_config": {"hidden_size": 2560, "num_hidden_layers": 34,
         "sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"]}},
        {"architecture": "gemma3", "width": 2560, "layers": 34, "window": 1024,
         "notes": ("it also has parts for images or sound, which are not used",)},
    ),
    "OLMo 3 without a sliding layer": (
        {"model_type": "olmo3", "sliding_window": 4096, "layer_types": ["full_attention"]},
        {"window": 0},
    ),
    "BERT": (
        {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 384,
         "num_attention_heads": 12, "num_hidden_layers": 6, "max_position_embeddings": 512},
        {"task": "embed", "context": 512, "tied": False},
    ),
    "XLM-RoBERTa": (
        {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta",
         "max_position_embeddings": 514},
        {"task": "embed", "context": 512},
    ),
    "a reranker": (
        {"architectures": ["XLMRobertaForSequenceClassification"], "model_type": "xlm-roberta",
         "id2label": {"0": "LABEL_0"}},
        {"task": "rerank"},
    ),
    "a classifier": (
        {"architectures": ["BertForSequenceClassification"], "model_type": "bert",
         "id2label": {"0": "a", "1": "b", "2": "c"}},
        {"task": "embed", "notes": ("it sorts texts into 3 classes, which no engine here does",)},
    ),
    "T5": (
        {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5",
         "is_encoder_decoder": True, "d_model": 512},
        {"width": 512, "notes": ("it is an encoder and a decoder, not a decoder alone",)},
    ),
    "GPTQ": (
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"notes": ("its weights are quantised already (gptq)",)},
    ),
    "nonsense": (
        {"model_type": 7, "architectures": "x", "hidden_size": -4, "num_attention_heads": 2.5,
         "vocab_size": 2**70, "text_config": 3, "id2label": 4, "num_key_value_heads": True},
        {"architecture": "unknown", "width": 0, "heads": 0, "vocabulary": 0, "kv_heads": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path: Path, name: str) -> None:
    config, expected = FAMILIES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"lm_head.weight": ("U8", (1,)), "embed": ("U8", (1,))}
    (tmp_path / "model.safetensors").write_bytes(build(tensors))
    info = safetensors.describe(tmp_path)
    assert {field: getattr(info, field) for field in expected} == expected


def described(folder: Path, files: dict[str, str | bytes]) -> Any:
    (folder / "model.safetensors").write_bytes(build({"a": ("U8", (1,))}))
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return safetensors.describe(folder)


TOKENIZERS: dict[str, tuple[dict[str, str | bytes], str]] = {
    "bpe": ({"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}}, "x": [1, {}]}'}, "bpe"),
    "spm": ({"tokenizer.json": '{"model": {"type": "BPE", "byte_fallback": true}}'}, "spm"),
    "unigram": ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "unigram"),
    "old unigram": ({"tokenizer.json": '{"model": {"vocab": [["a", 0.0]]}}'}, "unigram"),
    "old bpe": ({"tokenizer.json": '{"model": {"vocab": {"a": 0}}}'}, "bpe"),
    "wordpiece": ({"tokenizer.json": '{"model": {"type": "WordPiece"}}'}, "wordpiece"),
    "sentencepiece": ({"tokenizer.model": b"\n\x0e\n\x05"}, "spm"),
    "tiktoken": ({"tokenizer.model": b"IQ== 0\nIg== 1\n"}, "tiktoken"),
    "qwen": ({"qwen.tiktoken": b"IQ== 0\n"}, "tiktoken"),
    "merges": ({"merges.txt": "a b", "vocab.json": "{}"}, "bpe"),
    "vocab": ({"vocab.txt": "[PAD]"}, "wordpiece"),
    "none": ({}, ""),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers(tmp_path: Path, name: str) -> None:
    files, expected = TOKENIZERS[name]
    assert described(tmp_path, files).tokenizer == expected


TEMPLATES: dict[str, tuple[dict[str, str | bytes], str | None]] = {
    "own file first": (
        {"chat_template.jinja": "A", "tokenizer_config.json": '{"chat_template": "B"}'}, "A",
    ),
    "in the configuration": ({"tokenizer_config.json": '{"chat_template": "B"}'}, "B"),
    "by name": (
        {"tokenizer_config.json": json.dumps({"chat_template": [
            {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})},
        "D",
    ),
    "JSON": ({"chat_template.json": '{"chat_template": "J"}'}, "J"),
    "none": ({"tokenizer_config.json": "{}"}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(tmp_path: Path, name: str) -> None:
    files, expected = TEMPLATES[name]
    assert described(tmp_path, files).chat_template == expected


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# A", "apache-2.0"),
        ('---\nlicense: "mit"\n---', "mit"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("# A\nlicense: mit\n", ""),
        ("---\nlanguage: en\n---\nlicense: mit\n", ""),
    ],
)
def test_licences(tmp_path: Path, readme: str, expected: str) -> None:
    assert described(tmp_path, {"README.md": readme}).license == expected


def test_sentence_transformers_are_for_embedding(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "config.json": '{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}',
        "modules.json": "[]",
    }
    assert described(tmp_path, files).task == "embed"


def test_an_adapter_says_so(tmp_path: Path) -> None:
    tensors = {"base.q_proj.lora_A.weight": ("F32", (2, 2))}
    (tmp_path / "adapter_model.safetensors").write_bytes(build(tensors))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    notes = safetensors.describe(tmp_path).notes
    assert any("LoRA adapter for 'org/base'" in note for note in notes)
