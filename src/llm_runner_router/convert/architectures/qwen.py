"""Qwen 2, 2.5 and 3, dense and as mixtures, as generators and as embedding models.

Knows: their rows and fields. They rotate halves in both worlds, so nothing is rearranged.
"""

from __future__ import annotations

from llm_runner_router.convert.family import Config, Family, Row, flat, halves, refuse, stacked
from llm_runner_router.convert.family import standard as fields

from .llama import BLOCKS, PLAIN

NORMED: tuple[Row, ...] = (
    ("model.layers.*.self_attn.q_norm", "blk.*.attn_q_norm"),
    ("model.layers.*.self_attn.k_norm", "blk.*.attn_k_norm"),
)
"""Norms of queries and keys per head, of Qwen 3 and Gemma 3."""
EXPERTS: tuple[Row, ...] = (
    ("model.layers.*.mlp.gate", "blk.*.ffn_gate_inp"),
    ("model.layers.*.mlp.experts.#.gate_proj", "blk.*.ffn_gate_exps", stacked),
    ("model.layers.*.mlp.experts.#.up_proj", "blk.*.ffn_up_exps", stacked),
    ("model.layers.*.mlp.experts.#.down_proj", "blk.*.ffn_down_exps", stacked),
    # Transformers 5 keeps all experts in one tensor, and may save them so.
    (
        "model.layers.*.mlp.experts.gate_up_proj",
        "blk.*",
        halves("blk.*.ffn_gate_exps", "blk.*.ffn_up_exps"),
    ),
    ("model.layers.*.mlp.experts.down_proj", "blk.*.ffn_down_exps"),
)
SHARED: tuple[Row, ...] = (
    ("model.layers.*.mlp.shared_expert.gate_proj", "blk.*.ffn_gate_shexp"),
    ("model.layers.*.mlp.shared_expert.up_proj", "blk.*.ffn_up_shexp"),
    ("model.layers.*.mlp.shared_expert.down_proj", "blk.*.ffn_down_shexp"),
    ("model.layers.*.mlp.shared_expert_gate", "blk.*.ffn_gate_inp_shexp", flat),
)


def _check_layers(config: Config, architecture: str) -> None:
    """Every layer must be a mixture."""
    if dense := config.get("mlp_only_layers"):
        raise refuse("mlp_only_layers", dense, architecture)
    step = config.get("decoder_sparse_step", default=1)
    if step != 1:
        raise refuse("decoder_sparse_step", step, architecture)


def _check_qwen2moe(config: Config) -> None:
    _check_layers(config, "qwen2moe")
    if config.get("norm_topk_prob"):
        raise refuse("norm_topk_prob", True, "qwen2moe")


def _check_qwen3moe(config: Config) -> None:
    _check_layers(config, "qwen3moe")
    if not config.get("norm_topk_prob", default=False):
        raise refuse("norm_topk_prob", False, "qwen3moe")


FAMILIES = (
    Family(
        name="qwen2",
        classes=("Qwen2ForCausalLM", "Qwen2Model"),
        rows=(*BLOCKS, *PLAIN),
        fields=fields,
        pooling=True,
    ),
    Family(
        name="qwen3",
        classes=("Qwen3ForCausalLM", "Qwen3Model"),
        rows=(*BLOCKS, *PLAIN, *NORMED),
        fields=fields,
        pooling=True,
    ),
    Family(
        name="qwen2moe",
        classes=("Qwen2MoeForCausalLM",),
        rows=(*BLOCKS, *PLAIN, *EXPERTS, *SHARED),
        fields=fields,
        check=_check_qwen2moe,
        output=True,
    ),
    Family(
        name="qwen3moe",
        classes=("Qwen3MoeForCausalLM",),
        rows=(*BLOCKS, *PLAIN, *NORMED, *EXPERTS),
        fields=fields,
        check=_check_qwen3moe,
    ),
)
