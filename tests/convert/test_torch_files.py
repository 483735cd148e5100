"""PyTorch's files: written without it, read by it; and back."""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.convert import run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.torch_files import pickled, to_pytorch
from llm_runner_router.errors import Unsupported
from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.models.formats import pytorch, safetensors

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"

pytestmark = pytest.mark.xdist_group("transformers")


def silent(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total


def every_type(folder: Path) -> dict[str, Any]:
    """Tensors of all types and of odd shapes, saved to `folder`."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    numbers = torch.arange(24).reshape(2, 3, 4)
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
             "uint8", "bool")  # fmt: skip
    tensors = {name: numbers.to(getattr(torch, name)).contiguous() for name in kinds}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "näme.ü": torch.ones(1)}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_torch_reads_what_was_written(tmp_path: Path) -> None:
    import torch

    tensors = every_type(tmp_path / "from")
    to_pytorch(tmp_path / "from", tmp_path / "to", Options(), silent)
    path = tmp_path / "to" / "pytorch_model.bin"
    for mmap in (False, True):
        read = torch.load(path, weights_only=True, mmap=mmap)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert read[name].is_contiguous()
            assert torch.equal(read[name], tensor), name
        del read


def test_the_same_weights_give_the_same_file(tmp_path: Path) -> None:
    for name in "ab":
        to_pytorch(SOURCE, tmp_path / name, Options(), silent)
    first, second = ((tmp_path / name / "pytorch_model.bin").read_bytes() for name in "ab")
    assert first == second


def test_there_and_back_is_what_it_was(tmp_path: Path) -> None:
    run.convert(SOURCE, tmp_path / "torch", "pytorch")
    run.convert(tmp_path / "torch", tmp_path / "back", "safetensors")
    with (
        safetensors.open_checkpoint(SOURCE) as old,
        safetensors.open_checkpoint(tmp_path / "back") as new,
        pytorch.open_checkpoint(tmp_path / "torch") as between,
    ):
        assert set(old.weights) == set(new.weights) == set(between.weights)
        for name, weight in old.weights.items():
            assert new.weights[name] == weight
            assert bytes(new.read(name)) == bytes(old.read(name)) == bytes(between.read(name))
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= names
    assert "training.json" not in names


def test_pytorch_and_safetensors_give_the_same_gguf(tmp_path: Path) -> None:
    run.convert(SOURCE, tmp_path / "tiny-chat", "pytorch")
    run.convert(tmp_path / "tiny-chat", tmp_path / "a.gguf", "gguf")
    run.convert(SOURCE, tmp_path / "b.gguf", "gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_transformers_reads_what_torch_left(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    run.convert(SOURCE, tmp_path / "torch", "pytorch")
    run.convert(tmp_path / "torch", tmp_path / "back", "safetensors")
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        answers = [
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in (SOURCE, tmp_path / "back")
        ]
    assert torch.equal(*answers)


def test_long_numbers_are_pickled() -> None:
    program = pickled([Weight("a", "U8", (1 << 33,), 1 << 33)])
    assert (1 << 33) in [argument for _, argument, _ in pickletools.genops(program)]


def test_a_type_that_torch_lacks_is_told(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    small = torch.zeros(4, dtype=torch.float8_e4m3fn)
    save_file({"odd": small}, tmp_path / "model.safetensors")
    with pytest.raises(Unsupported, match="`odd` has the type `F8_E4M3`"):
        to_pytorch(tmp_path, tmp_path / "to", Options(), silent)
