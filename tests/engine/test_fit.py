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
    roomy = fit.place(EIGHT_B, fit.Wanted(slots=4, context=None, budget=512 * GIB))
    assert (roomy.context, roomy.slots) == (131072, 4)
    tight = fit.place(EIGHT_B, fit.Wanted(slots=4, context=None, budget=16 * GIB))
    assert fit.LEAST_CONTEXT <= tight.context < 131072
    assert tight.bytes <= 16 * GIB
    least = fit.place(EIGHT_B, fit.Wanted(slots=4, context=None, budget=6 * GIB))
    assert least.context == fit.LEAST_CONTEXT
    assert least.slots < 4
    assert least.bytes <= 6 * GIB


def test_a_configured_context_stays() -> None:
    found = fit.place(EIGHT_B, fit.Wanted(slots=4, context=32768, budget=8 * GIB))
    assert (found.context, found.slots) == (32768, 1)
    assert found.bytes > 8 * GIB, "the scheduler refuses it with both numbers"


def test_no_more_context_than_the_model_was_trained_for() -> None:
    small = msgspec.structs.replace(EIGHT_B, context=1024)
    assert fit.place(small, fit.Wanted(slots=1, context=9999, budget=64 * GIB)).context == 1024
    unknown = msgspec.structs.replace(EIGHT_B, context=0)
    assert fit.place(unknown, fit.Wanted(slots=1, context=None, budget=64 * GIB)).context == 2048


def test_embedding_has_a_bounded_length() -> None:
    found = fit.place(EIGHT_B, fit.Wanted(slots=4, context=None, budget=64 * GIB, embed=True))
    assert found.context == fit.EMBED_CONTEXT
    assert found.prompt_cache == found.memory.prompts == 0
    assert found.slots == 1, "keys and values of four such texts would take 4 GiB"


def test_texts_that_are_embedded_together_have_room_each() -> None:
    wanted = fit.Wanted(slots=4, context=512, budget=64 * GIB, embed=True)
    found = fit.place(EIGHT_B, wanted)
    assert (found.slots, found.memory.cache) == (4, 4 * fit.kv_bytes(EIGHT_B, 512))
    encoder = msgspec.structs.replace(EIGHT_B, architecture="nomic-bert", task="embed")
    assert fit.place(encoder, wanted).memory.cache == fit.kv_bytes(EIGHT_B, 512)


def test_the_estimate_grows_with_everything() -> None:
    base = fit.place(EIGHT_B, fit.Wanted(slots=2, context=8192, budget=64 * GIB)).bytes
    assert base > EIGHT_B.bytes + fit.kv_bytes(EIGHT_B, 2 * 8192)
    assert fit.place(EIGHT_B, fit.Wanted(slots=3, context=8192, budget=64 * GIB)).bytes > base
    assert fit.place(EIGHT_B, fit.Wanted(slots=2, context=16384, budget=64 * GIB)).bytes > base


def test_eight_bit_keys_and_values_take_17_of_32_of_the_bytes() -> None:
    assert fit.kv_bytes(EIGHT_B, 64, "q8_0") * 32 == fit.kv_bytes(EIGHT_B, 64) * 17
    half = fit.place(EIGHT_B, fit.Wanted(slots=4, context=8192, budget=64 * GIB, kv_type="q8_0"))
    assert half.kv_type == "q8_0"
    assert half.bytes < fit.place(EIGHT_B, fit.Wanted(slots=4, context=8192, budget=64 * GIB)).bytes


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

    def weights(info: ModelInfo) -> tuple[bool, int, int]:
        found = fit.place(info, fit.Wanted(slots=1, context=512, budget=64 * GIB))
        return found.mapped, found.memory.weights, found.memory.mapped

    assert weights(made(Q4_K=700, Q6_K=300)) == (False, 1000, 0)
    assert weights(made(Q8_0=900, Q4_0=100)) == (True, 100, 1000), "the copy comes on top"
    assert weights(made(Q8_0=1000)) == (True, 0, 1000)


def test_work_buffers_follow_the_width_inside_the_mlp() -> None:
    """Llama 3 8B: 14,336 inside, so two of those and seven of 4,096 for 512 tokens."""
    llama = msgspec.structs.replace(EIGHT_B, parameters=8_030_261_248)
    exact = 4 * 512 * (2 * 14336 + 7 * 4096) + 2 * 512 * 1024 + 24 * 128256
    assert fit.work_bytes(llama, 1024) / exact == pytest.approx(1, abs=0.01)
    unknown = fit.work_bytes(EIGHT_B, 1024)
    assert unknown / exact == pytest.approx(1.05, abs=0.1)


# ---------------------------------------------------------------- recorded measurements

MIB = 1 << 20
RANDOM = ModelInfo(
    format="gguf",
    architecture="llama",
    parameters=140_019_456,
    types={"Q8_0": 148_733_952, "F32": 138_240},
    bytes=148_913_184,
    context=4096,
    layers=22,
    width=768,
    heads=12,
    kv_heads=4,
    key_length=64,
    value_length=64,
    vocabulary=1024,
)
"""140 M random weights: `bench/synthetic.py` with its default shape, Q8_0."""
FOUR_BIT = msgspec.structs.replace(
    RANDOM, bytes=84_141_600, types={"Q4_K": 67_350_528, "Q6_K": 16_611_840, "F32": 138_240}
)
SIXTEEN_BIT = msgspec.structs.replace(
    RANDOM, bytes=280_149_024, types={"F16": 279_969_792, "F32": 138_240}
)


@pytest.mark.parametrize(
    ("info", "slots", "context", "kv_type", "loaded", "served", "kept"),
    [
        # Resident MiB of the process right after the load, with the first long prompt read, and
        # after further ones until prompts were kept as far as they are: xllamacpp 2026.10.11549
        # on Linux, two threads, `speculate: off`, in small pages.
        (RANDOM, 2, 512, "f16", 198.2, 216.2, 251.5),
        (FOUR_BIT, 2, 512, "f16", 136.5, 155.8, 188.2),
        (SIXTEEN_BIT, 2, 512, "f16", 323.3, 342.5, 374.9),
        (RANDOM, 1, 2048, "f16", 220.1, 242.8, 331.2),
        (RANDOM, 4, 512, "f16", 220.4, 238.7, 276.3),
    ],
)
def test_what_was_measured_with_llama_cpp(
    info: ModelInfo,
    slots: int,
    context: int,
    kv_type: fit.KvType,
    loaded: float,
    served: float,
    kept: float,
) -> None:
    wanted = fit.Wanted(slots=slots, context=context, kv_type=kv_type, budget=64 * GIB)
    memory = fit.place(info, wanted).memory
    assert (memory.loaded - fit.PAGES) / MIB == pytest.approx(loaded, rel=0.03)
    assert (memory.serving - fit.PAGES) / MIB == pytest.approx(served, rel=0.03)
    assert (memory.most - fit.PAGES) / MIB == pytest.approx(kept, rel=0.05)
    assert memory.loading - memory.loaded < MIB // 4, "a file is mapped, or read piece by piece"


MANY_TOKENS = msgspec.structs.replace(
    RANDOM,
    parameters=34_866_432,
    types={"F16": 69_730_304, "F32": 5_120},
    bytes=79_574_816,
    context=1024,
    layers=2,
    width=256,
    heads=4,
    vocabulary=131_072,
    tied=True,
)
"""Random weights of two layers for a BPE tokenizer of 131,072 tokens and 262,000 merges, F16."""


def test_a_large_vocabulary_counts() -> None:
    """Measured: 163.6 MiB right after the load, 166.1 after many prompts, 173.6 at the top."""
    memory = fit.place(MANY_TOKENS, fit.Wanted(slots=1, context=512, budget=GIB)).memory
    assert memory.loaded / MIB == pytest.approx(163.6, rel=0.03)
    assert memory.loading / MIB == pytest.approx(173.6, rel=0.03)
    assert memory.serving / MIB == pytest.approx(166.1, rel=0.08)


def test_terms_add_up() -> None:
    memory = fit.Memory(
        process=1, code=2, weights=4, mapped=8, adapters=16, cache=32, work=64, prompts=128, peak=3
    )
    assert (memory.loaded, memory.serving, memory.most, memory.loading) == (63, 127, 255, 66)
    assert memory.later == 192
    late = msgspec.structs.replace(memory, late=True)
    assert (late.loaded, late.serving, late.most, late.loading) == (31, 127, 255, 34)
    assert late.later == 224
    guessing = msgspec.structs.replace(memory, draft=1000)
    assert (guessing.most, guessing.later) == (1255, 192), "a draft is there from the start"


def test_loading_counts_where_it_takes_more() -> None:
    small = fit.Placement(512, 1, fit.Memory(weights=10, work=5, peak=3))
    assert small.bytes == 15
    assert msgspec.structs.replace(small, memory=fit.Memory(weights=10, peak=30)).bytes == 40
