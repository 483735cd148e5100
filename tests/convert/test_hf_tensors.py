"""What becomes of which tensor, and what is refused, from names and shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.convert import arrays
from llm_runner_router.convert.family import deinterleave, interleave
from llm_runner_router.convert.hf_tensors import Plan, families, plan
from llm_runner_router.errors import ModelFileError, RunnerError, Unsupported
from llm_runner_router.models.checkpoint import Weight

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
BLOCK = {
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (4, 8),
    "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (16, 8),
    "mlp.up_proj": (16, 8),
    "mlp.down_proj": (8, 16),
}


def checkpoint(layers: int = 2, prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (10, 8),
        f"{prefix}norm.weight": (8,),
    }
    for i in range(layers):
        shapes |= {f"{prefix}layers.{i}.{name}.weight": shape for name, shape in BLOCK.items()}
    return shapes


def planned(shapes: dict[str, tuple[int, ...]], **changes: Any) -> Plan:
    weights = {name: Weight(name, "F32", shape, 0) for name, shape in shapes.items()}
    return plan({**CONFIG, **changes}, weights)


def test_every_tensor_has_a_place() -> None:
    found = planned(checkpoint())
    assert len(found.outs) == len(checkpoint())
    assert found.rows == 10


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_the_same_model_inside_other_classes(prefix: str) -> None:
    plain = {out.name for out in planned(checkpoint()).outs}
    assert {out.name for out in planned(checkpoint(prefix=prefix)).outs} == plain


def test_parts_that_see_are_left_out_and_told() -> None:
    found = planned(checkpoint() | {"vision_tower.patch.weight": (4, 4)})
    assert found.notes == ("1 tensors for images or sound are left out",)
    assert not any("patch" in out.name for out in found.outs)


def test_a_tied_output_is_left_out() -> None:
    shapes = checkpoint() | {"lm_head.weight": (10, 8)}
    assert "output.weight" in {out.name for out in planned(shapes).outs}
    tied = planned(shapes, tie_word_embeddings=True)
    assert "output.weight" not in {out.name for out in tied.outs}


def without(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in checkpoint().items() if key != name}


@pytest.mark.parametrize(
    ("shapes", "changes", "error", "message"),
    [
        (checkpoint(), {"architectures": ["NobodyForCausalLM"]}, Unsupported, "Nobody"),
        (checkpoint(), {"architectures": []}, ModelFileError, "`architectures`"),
        (checkpoint(), {"num_hidden_layers": "two"}, ModelFileError, "'two'"),
        (checkpoint(), {"num_hidden_layers": None}, ModelFileError, "num_hidden_layers"),
        (checkpoint(1), {}, ModelFileError, "layer 1"),
        (without("model.embed_tokens.weight"), {}, ModelFileError, "embedding"),
        (without("model.layers.1.self_attn.o_proj.weight"), {}, ModelFileError, "layer 1"),
        (checkpoint() | {"model.odd.weight": (3,)}, {}, Unsupported, "`model.odd.weight`"),
        (checkpoint(), {"quantization_config": {"quant_method": "gptq"}}, Unsupported, "gptq"),
        (checkpoint(), {"num_attention_heads": 3}, ModelFileError, "q_proj"),
    ],
)
def test_a_refusal_names_the_tensor_or_field(
    shapes: dict[str, tuple[int, ...]],
    changes: dict[str, Any],
    error: type[RunnerError],
    message: str,
) -> None:
    with pytest.raises(error) as refused:
        planned(shapes, **changes)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("Qwen2MoeForCausalLM", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar"),
        ("Llama4ForCausalLM", {"attention_chunk_size": 64}, "attention_chunk_size"),
        ("FalconForCausalLM", {"alibi": True}, "alibi"),
        ("PhiForCausalLM", {"qk_layernorm": True}, "qk_layernorm"),
        ("BertModel", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [0, 0]}, "no_rope_layers"),
        ("Qwen2ForCausalLM", {"rope_scaling": {"type": "longrope"}}, "rope_scaling"),
    ],
)
def test_what_the_engine_fixes_is_checked(kind: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unsupported) as refused:
        planned(checkpoint(), architectures=[kind], **changes)
    assert f"`{field}`" in refused.value.message
    assert "`torch`" in (refused.value.hint or "")


def test_no_class_belongs_to_two_families() -> None:
    known = families()
    assert len(known) >= 25
    assert len({family.name for family in known.values()}) >= 20


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_interleaving_is_undone(heads: int, half: int, width: int) -> None:
    array = np.arange(heads * 2 * half * width, dtype=np.float32).reshape(-1, width)
    there = interleave(array, heads)
    assert np.array_equal(deinterleave(there, heads), array)
    # Row 1 of the pairs is the first of the second half.
    assert np.array_equal(there[1], array[half])


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=64))
def test_bf16_is_the_nearest_of_its_numbers(numbers: list[float]) -> None:
    import torch

    array = np.array(numbers, np.float32)
    ours = arrays.encode(array, "BF16").view(np.uint16)
    theirs = torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view(np.uint16)
    real = ~np.isnan(array)
    assert np.array_equal(ours[real], theirs[real])
    back = arrays.decode(memoryview(ours.tobytes()), "BF16", array.shape)
    assert np.array_equal(np.isnan(back), np.isnan(array))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_small_floats_are_those_of_torch(dtype: str) -> None:
    import torch

    kind = torch.float8_e4m3fn if dtype == "F8_E4M3" else torch.float8_e5m2
    every = torch.arange(256, dtype=torch.uint8)
    theirs = every.view(kind).float().numpy()
    ours = arrays.decode(memoryview(bytes(range(256))), dtype, (256,))
    assert np.array_equal(ours, theirs, equal_nan=True)


def test_an_unknown_type_is_told() -> None:
    with pytest.raises(Unsupported, match="F6_E2M3"):
        arrays.decode(memoryview(b"abc"), "F6_E2M3", (4,))


def test_the_docs_name_every_class() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "convert.md"
    text = page.read_text("utf-8")
    old_names = {"LLaMAForCausalLM", "RWForCausalLM", "StableLMEpochForCausalLM"}
    bare = {"LlamaModel", "Qwen2Model", "Qwen3Model", "BertForMaskedLM"}
    missing = [name for name in families() if f"`{name}`" not in text]
    assert set(missing) <= old_names | bare
