"""The choice of a mix: memory first, then speed, never far below four bits for speed alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.convert import mixes
from llm_runner_router.convert.dynamic import LADDER, choose, estimate, read_bandwidth, touched
from llm_runner_router.convert.quantize import shape_of
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.info import ModelInfo

from .building import Shape, write

GB = 10**9
EIGHT = ModelInfo(
    format="gguf", architecture="llama", parameters=8_030_000_000, quantisation="F16",
    bytes=16 * GB, layers=32, width=4096, heads=32, kv_heads=8, key_length=128, value_length=128,
    vocabulary=128_256,
)  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "bandwidth", "mix", "words"),
    [
        (64 * GB, 500e9, "Q8_0", "tokens/s"),
        (7 * GB, 500e9, "Q6_K", "Q8_0 would take"),
        (64 * GB, 70e9, "Q5_K_M", "Q6_K would decode"),
        (64 * GB, 60e9, "Q4_K_M", "Q5_K_M would decode"),
        (64 * GB, 5e9, "Q4_K_M", "no mix is faster"),
        (int(4.2 * GB), 500e9, "Q3_K_M", "Q4_K_M would take"),
        (int(3.3 * GB), 5e9, "Q2_K", "Q3_K_M would take"),
    ],
)
def test_choices(budget: int, bandwidth: float, mix: str, words: str) -> None:
    found = choose(EIGHT, budget, bandwidth)
    assert (found.mix, found.fits) == (mix, True)
    assert words in found.why
    assert found.bytes <= budget


def test_nothing_fits() -> None:
    found = choose(EIGHT, GB, 500e9)
    assert (found.mix, found.fits) == ("Q2_K", False)
    assert "even this takes" in found.why


def test_what_is_quantised_already_is_taken_as_it_is() -> None:
    import msgspec

    four = msgspec.structs.replace(EIGHT, quantisation="Q4_K", bytes=5 * GB)
    assert choose(four, 64 * GB, 500e9).mix == ""
    assert not choose(four, GB, 500e9).fits
    eight = msgspec.structs.replace(EIGHT, quantisation="Q8_0", bytes=9 * GB)
    assert choose(eight, 64 * GB, 500e9).mix == ""
    assert choose(eight, 5 * GB, 500e9).mix == "Q4_K_M"


def test_more_memory_or_bandwidth_never_gives_a_worse_mix() -> None:
    for bandwidth in (5e9, 50e9, 500e9):
        at = [LADDER.index(choose(EIGHT, b * GB, bandwidth).mix) for b in range(3, 12)]
        assert at == sorted(at, reverse=True)
    for budget in (4, 6, 9):
        at = [LADDER.index(choose(EIGHT, budget * GB, b * 1e9).mix) for b in (5, 20, 50, 80, 200)]
        assert at == sorted(at, reverse=True)


def test_sizes_of_a_known_model() -> None:
    """Meta-Llama-3-8B as published by several: 8.54, 6.60, 5.73, 4.92, 4.02 GB."""
    for mix, size in (("Q8_0", 8.54), ("Q6_K", 6.60), ("Q5_K_M", 5.73), ("Q4_K_M", 4.92),
                      ("Q3_K_M", 4.02)):  # fmt: skip
        assert estimate(EIGHT, mix) / GB == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize("shape", [Shape(), Shape(tied=True), Shape(layers=9, kv_heads=1)])
def test_the_estimate_is_what_the_plan_gives(tmp_path: Path, shape: Shape) -> None:
    path = tmp_path / "a.gguf"
    write(path, shape, "F16")
    info = gguf.describe(path)
    with gguf.open_checkpoint(path) as model:
        items = [mixes.Item(w.name, w.dtype, w.shape) for w in model.weights.values()]
        for mix in LADDER:
            planned = mixes.plan(mixes.MIXES[mix], shape_of(model), items)
            assert estimate(info, mix) == pytest.approx(mixes.size(items, planned), rel=0.02)


def test_a_mixture_reads_what_it_uses() -> None:
    import msgspec

    assert 0.9 * GB < touched(EIGHT, GB) < GB
    mixture = msgspec.structs.replace(EIGHT, experts=8, experts_used=2)
    assert touched(mixture, GB) == pytest.approx(touched(EIGHT, GB) * 0.325)


def test_bandwidth_is_a_number_of_bytes_per_second() -> None:
    assert read_bandwidth(2, size=1 << 20, rounds=1) > 1e6
