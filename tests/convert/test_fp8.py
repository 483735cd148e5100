"""8-bit floats with a scale per block: the same file as from the plain numbers they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.convert import companions
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import gguf

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"
BLOCK = 48
"""No divisor of the sizes, so that the last blocks are cut."""

pytestmark = pytest.mark.xdist_group("transformers")


def silent(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total


def scaled(matrix: Any) -> tuple[Any, Any, Any]:
    """A matrix in E4M3, its scales, and the numbers it now stands for, by PyTorch."""
    import torch

    rows, columns = (-(-n // BLOCK) for n in matrix.shape)
    scales = torch.zeros(rows, columns)
    small = torch.zeros(matrix.shape, dtype=torch.float8_e4m3fn)
    plain = torch.zeros(matrix.shape)
    for r in range(rows):
        for c in range(columns):
            place = (slice(r * BLOCK, (r + 1) * BLOCK), slice(c * BLOCK, (c + 1) * BLOCK))
            scales[r, c] = matrix[place].abs().max() / 448
            small[place] = (matrix[place] / scales[r, c]).to(small.dtype)
            plain[place] = small[place].float() * scales[r, c]
    return small, scales, plain


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The zoo's model in 8-bit floats, and the plain one that it stands for."""
    from safetensors.torch import load_file, save_file

    small, plain = tmp_path / "small" / "tiny", tmp_path / "plain" / "tiny"
    weights: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, tensor in load_file(SOURCE / "model.safetensors").items():
        tensor = tensor.float()
        if "proj" in name:
            weights[0][name], weights[0][f"{name}_scale_inv"], tensor = scaled(tensor)
        else:
            weights[0][name] = tensor
        weights[1][name] = tensor
    for folder, content in zip((small, plain), weights, strict=True):
        companions.copy(SOURCE, folder)
        save_file(content, folder / "model.safetensors")
    config = json.loads((small / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (small / "config.json").write_text(json.dumps(config))
    return small, plain


def test_scaled_blocks_are_the_numbers_they_stand_for(tmp_path: Path) -> None:
    small, plain = folders(tmp_path)
    from_safetensors(small, tmp_path / "a.gguf", Options(type="f32"), silent)
    from_safetensors(plain, tmp_path / "b.gguf", Options(type="f32"), silent)
    with (
        gguf.open_checkpoint(tmp_path / "a.gguf") as ours,
        gguf.open_checkpoint(tmp_path / "b.gguf") as theirs,
    ):
        assert set(ours.weights) == set(theirs.weights)
        for name in theirs.weights:
            assert bytes(ours.read(name)) == bytes(theirs.read(name)), name


def test_scales_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small, _ = folders(tmp_path)
    config = json.loads((small / "config.json").read_bytes())
    config["quantization_config"]["weight_block_size"] = [128, 128]
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="weight_scale_inv"):
        from_safetensors(small, tmp_path / "a.gguf", Options(), silent)
    assert not (tmp_path / "a.gguf").exists()
