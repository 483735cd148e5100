"""Classes of tensors by their names, in every naming scheme there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.models.inspect import class_of, inspect
from llm_runner_router.models.resolve import ZOO

HF = Path(__file__).parents[2] / "zoo" / "models"

NAMES = {
    "embedding": (
        "model.embed_tokens.weight", "token_embd.weight", "transformer.wte.weight",
        "tok_embeddings.weight", "bert.embeddings.word_embeddings.weight", "token_types.weight",
        "gpt_neox.embed_in.weight", "rope_freqs.weight",
    ),
    "attention": (
        "model.layers.0.self_attn.q_proj.weight", "blk.3.attn_q.weight", "blk.3.attn_output.weight",
        "transformer.h.0.attn.c_attn.weight", "layers.0.attention.wq.weight",
        "encoder.layer.1.attention.self.query.bias", "model.layers.0.self_attn.o_proj.weight",
    ),
    "mlp": (
        "model.layers.0.mlp.down_proj.weight", "blk.0.ffn_up.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "layers.0.feed_forward.w1.weight", "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.output.dense.weight",
    ),
    "experts": (
        "blk.0.ffn_gate_exps.weight", "model.layers.0.mlp.experts.3.up_proj.weight",
        "model.layers.0.block_sparse_moe.gate.weight",
    ),
    "norm": (
        "model.norm.weight", "blk.0.attn_norm.weight", "transformer.ln_f.weight",
        "model.layers.0.post_attention_layernorm.weight", "output_norm.weight",
        "encoder.layer.0.output.LayerNorm.weight", "transformer.h.0.ln_1.bias",
        "model.layers.0.self_attn.q_norm.weight",
    ),
    "output": ("lm_head.weight", "output.weight", "embed_out.weight", "classifier.weight"),
    "other": ("blk.0.ssm_a", "something"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in NAMES.items() for n in names])
def test_the_class_of_a_tensor(kind: str, name: str) -> None:
    assert class_of(name) == kind


@pytest.mark.parametrize("path", [ZOO / "tiny-math.gguf", HF / "tiny-math"], ids=["gguf", "hf"])
def test_every_byte_has_a_class(path: Path) -> None:
    found = inspect(path)
    assert list(found.classes) == ["embedding", "attention", "mlp", "norm"]
    assert sum(sum(types.values()) for types in found.classes.values()) == sum(
        found.info.types.values()
    )
    assert found.trail[-1] == f"`{found.info.format}` knows it"
