"""Memory estimates, and the context that fits."""

from __future__ import annotations

import msgspec
import pytest

from llm_runner_router.engine import fit
from llm_runner_router.models.info import ModelInfo

GIB = 1 << 30
EIGHT_B = ModelInfo(
    format="gguf",
    architecture="llama",
    bytes=int(4.6 * GIB),
    context=131072,
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    key_length=128,
    value_length=128,
    vocabulary=128256,
)


def test_the_cache_of_a_known_model() -> None:
    """Llama 3 8B: 128 KiB per token."""
    assert fit.kv_bytes(EIGHT_B, 1) == 128 * 1024


def test_an_unset_context_is_cut_to_the_memory_but_not_below_the_least() -> None:
    roomy = fit.place(EIGHT_B, slots=4, context=None, budget=512 * GIB)
    assert (roomy.context, roomy.slots) == (131072, 4)
    tight = fit.place(EIGHT_B, slots=4, context=None, budget=16 * GIB)
    assert fit.LEAST_CONTEXT <= tight.context < 131072
    assert tight.bytes <= 16 * GIB
    least = fit.place(EIGHT_B, slots=4, context=None, budget=6 * GIB)
    assert least.context == fit.LEAST_CONTEXT
    assert least.slots < 4
    assert least.bytes <= 6 * GIB


def test_a_configured_context_stays() -> None:
    found = fit.place(EIGHT_B, slots=4, context=32768, budget=8 * GIB)
    assert (found.context, found.slots) == (32768, 1)
    assert found.bytes > 8 * GIB, "the scheduler refuses it with both numbers"


def test_no_more_context_than_the_model_was_trained_for() -> None:
    small = msgspec.structs.replace(EIGHT_B, context=1024)
    assert fit.place(small, slots=1, context=9999, budget=64 * GIB).context == 1024
    unknown = msgspec.structs.replace(EIGHT_B, context=0)
    assert fit.place(unknown, slots=1, context=None, budget=64 * GIB).context == 2048


def test_embedding_has_a_bounded_length() -> None:
    found = fit.place(EIGHT_B, slots=4, context=None, budget=64 * GIB, embed=True)
    assert found.context == fit.EMBED_CONTEXT
    assert found.prompt_cache == 0


def test_the_estimate_grows_with_everything() -> None:
    base = fit.place(EIGHT_B, slots=2, context=8192, budget=64 * GIB).bytes
    assert base > EIGHT_B.bytes + fit.kv_bytes(EIGHT_B, 2 * 8192)
    assert fit.place(EIGHT_B, slots=3, context=8192, budget=64 * GIB).bytes > base
    assert fit.place(EIGHT_B, slots=2, context=16384, budget=64 * GIB).bytes > base


def test_eight_bit_keys_and_values_take_17_of_32_of_the_bytes() -> None:
    assert fit.kv_bytes(EIGHT_B, 64, "q8_0") * 32 == fit.kv_bytes(EIGHT_B, 64) * 17
    half = fit.place(EIGHT_B, slots=4, context=8192, budget=64 * GIB, kv_type="q8_0")
    assert half.kv_type == "q8_0"
    assert half.bytes < fit.place(EIGHT_B, slots=4, context=8192, budget=64 * GIB).bytes


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    """Gemma 3's pattern: five of six layers see 1,024 tokens."""
    gemma = msgspec.structs.replace(EIGHT_B, architecture="gemma3", window=1024, layers=36)
    full = msgspec.structs.replace(gemma, window=0)
    assert fit.kv_bytes(gemma, 1024) == fit.kv_bytes(full, 1024)
    per_layer = fit.kv_bytes(full, 1) // 36
    assert fit.kv_bytes(gemma, 65536) == per_layer * (6 * 65536 + 30 * 1536)
    other = msgspec.structs.replace(gemma, architecture="llama")
    assert fit.kv_bytes(other, 65536) == fit.kv_bytes(full, 65536), "unknown patterns count whole"


def test_latent_attention_keeps_keys_only() -> None:
    latent = msgspec.structs.replace(
        EIGHT_B, architecture="deepseek2", kv_heads=1, key_length=576, value_length=512, layers=27
    )
    assert fit.kv_bytes(latent, 1) == 27 * 576 * 2


def test_weights_that_are_repacked_are_read_and_others_mapped() -> None:
    def made(**types: int) -> ModelInfo:
        return msgspec.structs.replace(EIGHT_B, types=types, bytes=sum(types.values()))

    assert not fit.is_mapped(made(Q4_K=700, Q6_K=300))
    assert fit.weight_bytes(made(Q4_K=700, Q6_K=300)) == 1000
    assert fit.is_mapped(made(Q8_0=900, Q4_0=100))
    assert fit.weight_bytes(made(Q8_0=900, Q4_0=100)) == 1100, "the copy comes on top"
    assert fit.is_mapped(made(Q8_0=1000))


def test_work_buffers_follow_the_width_inside_the_mlp() -> None:
    """Llama 3 8B: 14,336 inside, so two of those and seven of 4,096 for 512 tokens."""
    llama = msgspec.structs.replace(EIGHT_B, parameters=8_030_261_248)
    exact = 4 * 512 * (2 * 14336 + 7 * 4096) + 2 * 512 * 1024 + 24 * 128256
    assert fit.work_bytes(llama, 1024) / exact == pytest.approx(1, abs=0.01)
    unknown = fit.work_bytes(EIGHT_B, 1024)
    assert unknown / exact == pytest.approx(1.05, abs=0.1)
