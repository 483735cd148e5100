"""Ternary weights between the layouts, from their definitions; what the engine makes of them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_runner_router.convert import bitnet, bitnet_gguf, kernels, perplexity, run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import gguf

from .building import random_weights, write

SCALE = 0.0625
TEXT = (Path(__file__).parents[2] / "STYLE.md").read_text()[:1500]


def ternary(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, shape).astype(np.int8)


def i2_s(weights: np.ndarray, scale: float) -> bytes:
    """By the definition, weight by weight."""
    flat = weights.ravel()
    made = bytearray(len(flat) // 4)
    for at, weight in enumerate(flat):
        block, j = divmod(at, 128)
        made[block * 32 + j % 32] |= (int(weight) + 1) << (6 - 2 * (j // 32))
    return bytes(made) + struct.pack("<f", scale) + bytes(range(28))


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
@pytest.mark.parametrize("shape", [(1, 256), (5, 768)])
def test_codes_are_equal_both_ways(kind: str, shape: tuple[int, int]) -> None:
    weights = ternary(shape)
    data = i2_s(weights, SCALE)
    blocks = bitnet.to_tq(kind, bitnet.from_i2_s(data, *shape))
    assert np.array_equal(kernels.dequantize(kind, blocks, shape), weights * np.float32(SCALE))
    # ggml itself makes these bytes of these weights.
    assert np.array_equal(
        blocks.reshape(shape[0], -1), kernels.quantize(kind, weights * np.float32(SCALE))
    )
    back = bitnet.to_i2_s(bitnet.from_tq(kind, blocks, *shape))
    assert back[:-28] == data[:-28]
    assert len(back) == len(data)


def test_the_scale_becomes_f16() -> None:
    for scale in (0.0123, 1.7, 3000.0):
        shape, weights = (2, 256), ternary((2, 256))
        blocks = bitnet.to_tq("TQ2_0", bitnet.from_i2_s(i2_s(weights, scale), *shape))
        back = kernels.dequantize("TQ2_0", blocks, shape)
        assert np.array_equal(np.sign(back), weights)
        assert np.abs(back).max() == pytest.approx(scale, rel=2**-11)


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
def test_blocks_of_zeros_keep_the_scale_of_the_others(kind: str) -> None:
    weights = ternary((2, 512))
    weights[0, :256] = 0
    made = bitnet.from_tq(kind, kernels.quantize(kind, weights * np.float32(SCALE)), 2, 512)
    assert made.scale == SCALE
    assert bitnet.to_i2_s(made)[:-28] == i2_s(weights, SCALE)[:-28]


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0, 1e6, 1e-12])
def test_scales_that_are_none(scale: float) -> None:
    with pytest.raises(ValueError, match="none that F16 holds"):
        bitnet.from_i2_s(i2_s(ternary((1, 256)), scale), 1, 256)


def test_the_code_three_is_refused_wherever_it_stands() -> None:
    good = i2_s(ternary((1, 256)), SCALE)
    blocks = bitnet.to_tq("TQ2_0", bitnet.from_i2_s(good, 1, 256)).tobytes()
    for at in (0, 31, 63):
        for shift in (0, 2, 4, 6):
            bad = bytearray(good)
            bad[at] |= 3 << shift
            with pytest.raises(ValueError, match="the code 3"):
                bitnet.from_i2_s(bytes(bad), 1, 256)
            bad = bytearray(blocks)
            bad[at] |= 3 << shift
            with pytest.raises(ValueError, match="the code 3"):
                bitnet.from_tq("TQ2_0", bytes(bad), 1, 256)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        bitnet.from_i2_s(bytes(1000), 2, 128)
    with pytest.raises(ValueError, match="there are 67"):
        bitnet.from_i2_s(bytes(67), 1, 256)
    with pytest.raises(ValueError, match="takes 66 bytes"):
        bitnet.from_tq("TQ2_0", bytes(65), 1, 256)
    two = np.vstack([ternary((1, 256)) * 0.5, ternary((1, 256)) * 0.25]).astype(np.float32)
    with pytest.raises(ValueError, match="2 scales"):
        bitnet.from_tq("TQ2_0", kernels.quantize("TQ2_0", two), 2, 256)


# ---------------------------------------------------------------- files


def is_ternary(name: str, size: tuple[int, ...]) -> bool:
    return name.startswith("blk.") and len(size) > 1


def make(name: str, size: tuple[int, ...], rng: np.random.Generator) -> Any:
    if not is_ternary(name, size):
        return random_weights(name, size, rng)
    return (rng.integers(-1, 2, size) * SCALE).astype(np.float32)


def bitnet_files(folder: Path) -> tuple[Path, Path]:
    """One model in F32, and as bitnet.cpp has it."""
    exact, packed = folder / "exact.gguf", folder / "packed.gguf"
    weights = write(exact, make=make)
    with gguf.open_checkpoint(exact) as model, GGUFWriter(packed, "llama") as out:
        bitnet_gguf._fields(model, out, "I2_S")
        for name, one in model.weights.items():
            if is_ternary(name, one.shape):
                size = int(np.prod(one.shape)) // 4 + 32
                out.foreign_tensor(name, 36, one.shape, size)
            else:
                out.tensor(name, one.dtype, one.shape)
        out.begin()
        for name, one in model.weights.items():
            if is_ternary(name, one.shape):
                out.data(name, i2_s(np.sign(weights[name]).astype(np.int8), SCALE))
            else:
                out.data(name, model.read(name))
        out.finish()
    return exact, packed


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return bitnet_files(tmp_path_factory.mktemp("bitnet"))


def silent(done: int, total: int, what: str) -> None:
    """Nobody watches."""


@pytest.mark.engine
@pytest.mark.xdist_group("perplexity")
def test_the_engine_answers_as_with_the_same_weights_in_full(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    exact, packed = files
    target = tmp_path / "t.gguf"
    assert run.kind_of(packed) == "bitnet-gguf"
    assert [s.want for s in run.steps_for(packed, "gguf")] == ["gguf"]
    bitnet_gguf.from_bitnet(packed, target, Options(), silent)
    assert gguf.describe(target).types["TQ2_0"] > 0
    wanted = perplexity.measure(exact, TEXT, context=128)
    found = perplexity.measure(target, TEXT, context=128)
    # Activations are rounded to eight bits in these products.
    assert np.log(found.value) == pytest.approx(np.log(wanted.value), abs=0.05)


@pytest.mark.parametrize("kind", ["TQ2_0", "TQ1_0"])
def test_files_there_and_back(files: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    _, packed = files
    bitnet_gguf.repack(packed, tmp_path / "t.gguf", kind, silent)
    bitnet_gguf.to_bitnet(tmp_path / "t.gguf", tmp_path / "back.gguf", Options(), silent)
    with (
        gguf.open_checkpoint(packed) as a,
        gguf.open_checkpoint(tmp_path / "back.gguf") as b,
        gguf.open_checkpoint(tmp_path / "t.gguf") as middle,
    ):
        assert dict(a.config) == dict(b.config)
        for name, one in a.weights.items():
            cut = int(np.prod(one.shape)) // 4 + 4 if one.dtype == "I2_S" else None
            assert bytes(a.read(name)[:cut]) == bytes(b.read(name)[:cut])
            assert b.weights[name].dtype == one.dtype
            assert middle.weights[name].dtype == (kind if one.dtype == "I2_S" else one.dtype)


def test_refused_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    exact, packed = files
    with pytest.raises(ModelFileError, match="no weights in I2_S"):
        bitnet_gguf.from_bitnet(exact, tmp_path / "t.gguf", Options(), silent)
    bad = tmp_path / "bad.gguf"
    content = bytearray(packed.read_bytes())
    header = gguf.read_header(packed)
    tensor = next(t for t in header.tensors if t.name == "blk.1.ffn_up.weight")
    content[header.data + tensor.offset + 5] |= 0xC0
    bad.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up.*code 3"):
        bitnet_gguf.from_bitnet(bad, tmp_path / "t.gguf", Options(), silent)
    assert not (tmp_path / "t.gguf").exists()
