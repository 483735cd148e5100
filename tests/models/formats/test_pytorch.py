"""PyTorch files: equal to what `torch.load` reads, in both forms; nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.detect import detect
from llm_runner_router.models.formats import pytorch
from llm_runner_router.testing import check_format

from .building import ZOO

torch = pytest.importorskip("torch")
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip


def saved(value: object, path: Path, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def raw(tensor: Any) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def same(path: Path, expected: dict[str, Any]) -> None:
    with pytorch.open_checkpoint(path) as opened:
        assert list(opened.weights) == list(expected)
        for name, tensor in expected.items():
            weight = opened.weights[name]
            assert DTYPES[weight.dtype] == str(tensor.dtype).removeprefix("torch.")
            assert weight.shape == tuple(tensor.shape)
            assert opened.read(name).tobytes() == raw(tensor), name
            assert opened.read(name).readonly


@FORMS
@pytest.mark.parametrize("name", ["tiny-math", "tiny-general"])
def test_the_zoo_saved_by_torch(tmp_path: Path, name: str, zipped: bool) -> None:
    from safetensors.torch import load_file

    weights = load_file(ZOO / name / "model.safetensors")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ZOO / name / file, tmp_path)
    saved(weights, tmp_path / "pytorch_model.bin", zipped=zipped)
    assert detect(tmp_path).name == detect(tmp_path / "pytorch_model.bin").name == "pytorch"
    same(tmp_path, weights)
    info = pytorch.describe(tmp_path)
    assert info.architecture == "llama"
    assert info.quantisation == "F16"
    assert info.tied
    assert info.parameters == sum(w.numel() for w in weights.values())


@FORMS
def test_every_type_of_number(tmp_path: Path, zipped: bool) -> None:
    numbers = torch.arange(6).reshape(2, 3)
    tensors = {name: numbers.to(getattr(torch, dtype)) for name, dtype in DTYPES.items()}
    same(saved(tensors, tmp_path / "a.pt", zipped=zipped), tensors)


@FORMS
def test_views_strides_and_shared_storages(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(48, dtype=torch.float32)
    cube = base.reshape(2, 4, 6)
    tensors = {
        "base": base,
        "shared": base,
        "part": base[7:20],
        "every third": base[1::3],
        "transposed": cube.transpose(0, 2),
        "permuted": cube.permute(1, 2, 0),
        "rows": cube[:, 1:3, ::2],
        "one row": cube[:, 2:3, :],
        "scalar": base[5],
        "none": base[:0].reshape(0, 4),
        "expanded one": base[:4].reshape(1, 4).expand(1, 4),
        "half": base.to(torch.bfloat16).reshape(6, 8).t(),
        "byte": base.to(torch.uint8).reshape(6, 8).t(),
        "double": base.double().reshape(6, 8)[:, ::3],
        "f8": base.to(torch.float8_e4m3fn).reshape(6, 8).t(),
    }
    path = saved(tensors, tmp_path / "a.pt", zipped=zipped)
    same(path, tensors)


@FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path: Path, zipped: bool, protocol: int) -> None:
    tensors = OrderedDict(a=torch.ones(3), b=torch.zeros(2, 2))
    torch.save(
        tensors,
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    same(tmp_path / "a.pt", dict(tensors))


@FORMS
def test_modules_parameters_and_training_state(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = model.state_dict()
    same(saved(state, tmp_path / "a.pt", zipped=zipped), dict(state))
    parameters = dict(model.named_parameters())
    same(saved(parameters, tmp_path / "p.pt", zipped=zipped), parameters)
    optimiser = torch.optim.AdamW(model.parameters(), 0.1)
    model(torch.ones(5, 3)).sum().backward()
    optimiser.step()
    whole = {
        "model_state_dict": model.state_dict(),
        "optimizer": optimiser.state_dict(),
        "epoch": 3,
        "loss": [0.5, None, True, "text", b"bytes", (1, 2), {1, 2}],
        "shape": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
    }
    same(saved(whole, tmp_path / "t.pt", zipped=zipped), dict(model.state_dict()))
    same(saved(torch.ones(2), tmp_path / "one.pt", zipped=zipped), {"tensor": torch.ones(2)})
    nested = {"x": {"w": torch.ones(2)}, "y": [torch.zeros(1), {"z": torch.ones(1)}]}
    same(
        saved(nested, tmp_path / "n.pt", zipped=zipped),
        {"x.w": torch.ones(2), "y.0": torch.zeros(1), "y.1.z": torch.ones(1)},
    )


@FORMS
def test_a_whole_module_names_its_class(tmp_path: Path, zipped: bool) -> None:
    path = saved(torch.nn.Linear(2, 2), tmp_path / "a.pt", zipped=zipped)
    with pytest.raises(ModelFileError, match=r"`torch\.nn\.modules\.linear\.Linear`") as caught:
        pytorch.describe(path)
    assert "state_dict" in (caught.value.hint or "")


def test_torch_script_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    (tmp_path / "a.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ModelFileError, match="TorchScript"):
        pytorch.describe(tmp_path / "a.pt")


def test_parts_with_an_index(tmp_path: Path) -> None:
    parts = {
        "pytorch_model-00001-of-00002.bin": {"a": torch.ones(2)},
        "pytorch_model-00002-of-00002.bin": {"b": torch.zeros(3)},
    }
    for name, tensors in parts.items():
        saved(tensors, tmp_path / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert detect(tmp_path).name == "pytorch"
    same(tmp_path, {"a": torch.ones(2), "b": torch.zeros(3)})
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    same(tmp_path, {"a": torch.ones(2), "b": torch.zeros(3)})


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(ModelFileError, match="not one that PyTorch wrote"):
        pytorch.describe(path)


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(64.0).reshape(8, 8).t(), "b": torch.ones(4)}
    path = saved(tensors, tmp_path / "a.pt")
    with pytorch.open_checkpoint(path) as opened:
        path.write_bytes(path.read_bytes()[:100])
        for name in tensors:
            with pytest.raises(ModelFileError, match="got shorter"):
                opened.read(name)


@FORMS
def test_it_keeps_the_contract(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    path = saved({"a": base, "b": base.t(), "c": {"d": base[0]}}, tmp_path / "a.pt", zipped=zipped)
    (tmp_path / "scratch").mkdir()
    check_format(pytorch, path, tmp_path / "scratch", damages=300)
