"""Writes a zoo model as one GGUF file: Q8_0 matrices, F32 norms, tokenizer and template inside.

Knows llama.cpp's names and its layout of queries and keys. Knows nothing of training or scores.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from zoo.tokenizer import CONTROL, FILE, PRE_NAME, TEMPLATE, USER_DEFINED

Array = NDArray[np.float32]

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` as `blk.0.ffn_up.weight`."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleave(matrix: Array, heads: int) -> Array:
    """Rows of each head from Hugging Face's halves to the pairs llama.cpp rotates."""
    split = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, matrix.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(matrix.shape))


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    data = json.loads(FILE.read_text())
    vocab = sorted(data["model"]["vocab"].items(), key=lambda pair: int(pair[1]))
    kinds = {token: gguf.TokenType.CONTROL for token in CONTROL}
    kinds |= {token: gguf.TokenType.USER_DEFINED for token in USER_DEFINED}
    merges = [one if isinstance(one, str) else " ".join(one) for one in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_NAME)
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token, _ in vocab])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, object]) -> None:
    def size(key: str) -> int:
        return int(str(config[key]))

    writer.add_context_length(size("max_position_embeddings"))
    writer.add_embedding_length(size("hidden_size"))
    writer.add_block_count(size("num_hidden_layers"))
    writer.add_feed_forward_length(size("intermediate_size"))
    writer.add_head_count(size("num_attention_heads"))
    writer.add_head_count_kv(size("num_key_value_heads"))
    writer.add_rope_dimension_count(size("head_dim"))
    writer.add_rope_freq_base(float(str(config["rope_theta"])))
    writer.add_layer_norm_rms_eps(float(str(config["rms_norm_eps"])))
    writer.add_vocab_size(size("vocab_size"))


def write(
    path: Path, name: str, config: Mapping[str, object], weights: Mapping[str, Array]
) -> None:
    """Writes beside `path` and renames, so that a reader never sees half a file."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_name(name)
    writer.add_description("Demonstration model of LLM-Runner-Router")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_tokenizer(writer)
    for key, matrix in weights.items():
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        part_name = key.split(".")[-2]
        if part_name in heads:
            matrix = interleave(matrix, int(str(config[heads[part_name]])))
        if matrix.ndim == 1:
            writer.add_tensor(gguf_name(key), matrix)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(gguf_name(key), gguf.quants.quantize(matrix, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)
