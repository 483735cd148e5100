"""Memory estimates, and the context that fits."""

from __future__ import annotations

import msgspec

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
