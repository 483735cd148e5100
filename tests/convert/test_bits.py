"""The bits per weight by which downloads are estimated, against the mixes that make the files."""

from __future__ import annotations

import math

import pytest

from llm_runner_router.convert.mixes import MIXES, Item, Shape, plan, size
from llm_runner_router.models.formats.gguf_types import KINDS
from llm_runner_router.models.pick import BITS

WIDTH, INNER, KEYS, LAYERS, WORDS = 4096, 14336, 1024, 32, 128256


def llama_8b() -> list[Item]:
    """The tensors of Llama 3.1 8B, from its published configuration."""
    matrices = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KEYS, WIDTH),
        "attn_v": (KEYS, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    items = [Item(f"{name}.weight", "F16", (WORDS, WIDTH)) for name in ("token_embd", "output")]
    items.append(Item("output_norm.weight", "F32", (WIDTH,)))
    for layer in range(LAYERS):
        stem = f"blk.{layer}."
        items += [Item(f"{stem}{name}.weight", "F16", at) for name, at in matrices.items()]
        items += [Item(f"{stem}{n}.weight", "F32", (WIDTH,)) for n in ("attn_norm", "ffn_norm")]
    return items


@pytest.mark.parametrize("name", sorted(set(BITS) & set(MIXES)))
def test_the_estimate_is_what_the_mix_comes_to(name: str) -> None:
    items = llama_8b()
    weights = sum(math.prod(item.shape) for item in items)
    assert weights == 8_030_261_248
    types = plan(MIXES[name], Shape("llama", LAYERS, WIDTH // 128, KEYS // 128), items)
    assert BITS[name] == pytest.approx(size(items, types) * 8 / weights, abs=0.006)


def test_the_rest_is_told_where_it_comes_from() -> None:
    assert set(BITS) - set(MIXES) == {
        *("IQ2_M", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K_S", "MXFP4")
    }
    assert set(MIXES) <= set(BITS)
    (block,) = (kind for kind in KINDS.values() if kind.name == "MXFP4")
    assert BITS["MXFP4"] == block.size * 8 / block.block
