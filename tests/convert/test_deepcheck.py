"""Numbers that are none are found wherever a type keeps them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.models.formats.building import safetensors

from llm_runner_router.convert import deepcheck
from llm_runner_router.convert.deepcheck import numbers
from llm_runner_router.models.detect import open_checkpoint
from llm_runner_router.models.resolve import ZOO, zoo_models

INFINITE = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def states(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as opened:
        return {finding.detail: finding.state for finding in numbers(opened)}


def test_the_zoo_is_finite() -> None:
    for model in zoo_models():
        assert list(states(model.path).values()) == ["ok"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [*INFINITE, "BF16"])
def test_floats(tmp_path: Path, dtype: str, value: float) -> None:
    array = np.ones(6, "<f4")
    array[4] = value
    if dtype == "BF16":
        data = (array.view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = array.astype(INFINITE[dtype]).tobytes()
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"w": (dtype, (2, 3))}, data=data))
    assert states(path) == {"not finite: `w` (1)": "bad"}
    half = len(data) // 2
    path.write_bytes(safetensors({"w": (dtype, (2, 3))}, data=data[:half] * 2))
    assert list(states(path).values()) == ["ok"]


def test_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors({"w": ("F16", (2, 3)), "bias": ("F16", (3,))}, data=bytes(18)))
    assert states(path) == {"nothing but zeros, as a download with holes leaves them: `w`": "bad"}


@pytest.mark.parametrize("dtype", deepcheck._SCALES)
def test_scales_lie_where_the_gguf_package_reads_them(dtype: str) -> None:
    """An infinite number at any place of a block: we miss it exactly where it does not matter."""
    kind = gguf.GGMLQuantizationType[dtype]
    size = gguf.GGML_QUANT_SIZES[kind][1]
    assert deepcheck._SCALES[dtype][0] == size
    for place in range(0, size - 1, 2):
        block = np.full((1, size), 0x11, np.uint8)
        block[0, place : place + 2] = (0, 0x7C)
        with np.errstate(all="ignore"):
            finite = np.isfinite(gguf.quants.dequantize(block, kind)).all()
        assert bool(deepcheck._wrong(block.reshape(-1), dtype)) == (not finite), place


def test_a_large_tensor_is_read_in_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepcheck, "SLAB", 1000)
    path = tmp_path / "a.gguf"
    content = bytearray((ZOO / "tiny-math.gguf").read_bytes())
    with open_checkpoint(ZOO / "tiny-math.gguf") as opened:
        name = next(n for n, w in opened.weights.items() if w.dtype == "Q8_0")
        raw = opened.read(name).tobytes()
    at = content.index(raw) + 34 * 777
    content[at : at + 2] = b"\x00\xfc"
    path.write_bytes(content)
    assert states(path) == {f"not finite: `{name}` (1)": "bad"}
