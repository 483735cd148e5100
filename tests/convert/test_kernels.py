"""ggml's kernels against the `gguf` package's own arithmetic, and against each other."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from llm_runner_router.convert import kernels
from llm_runner_router.errors import EngineError
from llm_runner_router.models.formats.gguf_types import KINDS

BOTH = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
"""Types that the `gguf` package can make too."""
READ = [*BOTH, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "NVFP4"]
BITS = {"Q2_K": 0.32, "Q3_K": 0.19, "Q4_K": 0.09, "Q5_K": 0.045, "Q6_K": 0.023, "Q8_0": 0.007}
"""Largest relative RMS error on normal weights; a little above what each was measured to have."""


def normal(rows: int, cols: int = 512, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def theirs(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("name", BOTH)
def test_makes_the_bytes_that_the_gguf_package_makes(name: str) -> None:
    weights = normal(16)
    ours, wanted = kernels.quantize(name, weights), gguf.quants.quantize(weights, theirs(name))
    assert ours.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", READ)
def test_reads_what_the_gguf_package_reads(name: str) -> None:
    blocks = kernels.quantize(name, normal(16))
    ours = kernels.dequantize(name, blocks, (16, 512))
    wanted = gguf.quants.dequantize(blocks, theirs(name))
    # The same arithmetic in another order: one rounding of F32 apart at most.
    np.testing.assert_allclose(ours, wanted, rtol=3e-7, atol=1e-9)


@pytest.mark.parametrize("name", sorted(BITS))
def test_the_error_is_that_of_its_bits(name: str) -> None:
    weights = normal(64)
    back = kernels.dequantize(name, kernels.quantize(name, weights), weights.shape)
    error = float(np.sqrt(np.mean((back - weights) ** 2)))
    assert BITS[name] / 3 < error < BITS[name]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ4_NL"])
def test_threads_do_not_change_a_byte(name: str) -> None:
    weights = normal(1200)  # three shares
    one = kernels.quantize(name, weights, threads=1)
    assert np.array_equal(one, kernels.quantize(name, weights, threads=4))
    shape = weights.shape
    assert np.array_equal(
        kernels.dequantize(name, one, shape), kernels.dequantize(name, one, shape, threads=4)
    )


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q4_0", "IQ4_NL"])
def test_an_importance_matrix_moves_the_error_to_where_it_weighs_less(name: str) -> None:
    weights = normal(64)
    importance = np.where(np.arange(512) % 4 == 0, 100.0, 1.0).astype(np.float32)

    def error(blocks: np.ndarray) -> float:
        back = kernels.dequantize(name, blocks, weights.shape)
        return float(np.mean(importance * (back - weights) ** 2))

    plain = error(kernels.quantize(name, weights))
    assert error(kernels.quantize(name, weights, importance)) < 0.9 * plain


def test_some_types_need_an_importance_matrix() -> None:
    needy = {k.name for k in KINDS.values() if kernels.requires_imatrix(k.name)}
    assert needy == {"IQ2_XXS", "IQ2_XS", "IQ1_S"}
    with pytest.raises(ValueError, match="importance matrix"):
        kernels.quantize("IQ1_S", normal(1))


def test_every_type_of_the_table_is_read_or_refused() -> None:
    for kind in KINDS.values():
        blocks = bytes(kernels.row_bytes(kind.name, 256))
        if kind.name in ("Q8_1", "Q8_K"):
            with pytest.raises(ValueError, match="cannot read"):
                kernels.dequantize(kind.name, blocks, (1, 256))
        else:
            assert np.isfinite(kernels.dequantize(kind.name, blocks, (1, 256))).all(), kind.name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    weights = normal(4)
    weights[3, 500] = bad
    with pytest.raises(ValueError, match="not finite"):
        kernels.quantize("Q4_K", weights)


def test_a_scale_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows"):
        kernels.quantize("Q8_0", normal(1) * np.float32(1e9))


def test_shapes_that_do_not_fit_never_reach_the_library() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        kernels.quantize("Q4_K", normal(1, 320))
    with pytest.raises(ValueError, match="importance matrix has"):
        kernels.quantize("Q4_K", normal(1), np.ones(511, np.float32))
    with pytest.raises(ValueError, match="takes 288 bytes, not 287"):
        kernels.dequantize("Q4_K", bytes(287), (1, 512))
    with pytest.raises(ValueError, match="nothing is quantised"):
        kernels.quantize("Q8_K", normal(1))
    with pytest.raises(ValueError, match="contiguous"):
        kernels.quantize_into("F32", normal(4)[::2], np.empty((2, 2048), np.uint8))
    with pytest.raises(ValueError, match="unknown tensor type"):
        kernels.quantize("Q9_Z", normal(1))


@pytest.fixture
def fresh() -> object:
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_library_without_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda path: SimpleNamespace())
    with pytest.raises(EngineError, match="lacks a function") as caught:
        kernels.quantize("Q8_0", normal(1))
    assert kernels.TRIED in str(caught.value.hint)


@pytest.mark.usefixtures("fresh")
def test_a_library_whose_types_moved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = KINDS[12]._replace(size=148)
    monkeypatch.setitem(KINDS, 12, moved)
    with pytest.raises(EngineError, match="q4_K with 256 weights in 144"):
        kernels.quantize("Q8_0", normal(1))


@pytest.mark.usefixtures("fresh")
def test_without_the_wheel_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "PACKAGE", "no_such_engine")
    with pytest.raises(EngineError, match="not installed") as caught:
        kernels.quantize("Q8_0", normal(1))
    assert "pip install" in str(caught.value.hint)
