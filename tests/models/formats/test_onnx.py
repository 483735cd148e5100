"""ONNX: equal to what the `onnx` package reads; external data stays in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.detect import detect
from llm_runner_router.models.formats import onnx as ours
from llm_runner_router.testing import check_format

RAW: dict[str, Any] = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "f16": np.arange(6, dtype=np.float16),
    "i64": np.array([[1], [-2]], dtype=np.int64),
    "u8": np.arange(7, dtype=np.uint8),
    "flag": np.array([True, False]),
    "scalar": np.array(3.5, dtype=np.float64),
    "none": np.zeros((0, 4), dtype=np.float32),
}


def a_model(extra: list[Any] | None = None, *, domain: str = "", output: str = "logits") -> Any:
    tensors = [numpy_helper.from_array(value, name) for name, value in RAW.items()]
    node = helper.make_node("Identity", ["f32"], [output], domain=domain)
    shape = helper.make_tensor_value_info(output, TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node], "g", [], [shape], initializer=[*tensors, *(extra or [])])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def same(path: Path) -> None:
    reference = onnx.load(str(path if path.is_file() else path / "model.onnx"))
    with ours.open_checkpoint(path) as opened:
        expected = {t.name: numpy_helper.to_array(t) for t in reference.graph.initializer}
        assert list(opened.weights) == list(expected)
        for name, array in expected.items():
            assert opened.weights[name].shape == array.shape
            assert opened.read(name).tobytes() == array.tobytes(), name


def test_raw_and_typed_numbers(tmp_path: Path) -> None:
    typed = [
        helper.make_tensor("t_f32", TensorProto.FLOAT, [2], [1.5, -2.0]),
        helper.make_tensor("t_i64", TensorProto.INT64, [3], [1, -1, 2**40]),
        helper.make_tensor("t_i32", TensorProto.INT32, [2], [-7, 7]),
        helper.make_tensor("t_i8", TensorProto.INT8, [2], [-7, 7]),
        helper.make_tensor("t_f16", TensorProto.FLOAT16, [2], [1.5, -2.0]),
        helper.make_tensor("t_f64", TensorProto.DOUBLE, [1], [0.1]),
    ]
    path = tmp_path / "model.onnx"
    onnx.save(a_model(typed), str(path))
    assert detect(path).name == detect(tmp_path).name == "onnx"
    same(path)
    info = ours.describe(path)
    assert "ONNX IR 10, ai.onnx 21, com.microsoft 1" in info.notes
    assert info.task == "generate"


def test_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(
        a_model(), str(path), save_as_external_data=True, location="model.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    same(tmp_path)
    whole = path.stat().st_size + (tmp_path / "model.onnx.data").stat().st_size
    assert ours.describe(path).bytes == whole


def external(location: str, *, offset: str = "0", length: str = "24") -> Any:
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (external("../secret"), "leads out"),
        (external("/etc/passwd"), "no relative path"),
        (external("a/../../secret"), "leads out"),
        (external("link"), "link that leads out"),
        (external("absent"), "missing"),
        (external(""), "no file name"),
        (external("data", offset="-4"), "is said to lie|lies at"),
        (external("data", offset="1" * 40), "lies at"),
        (external("data", offset="8"), "for 24 in"),
        (external("data", length="20"), "takes 24 bytes"),
    ],
)
def test_external_data_stays_inside(tmp_path: Path, tensor: Any, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(24))
    (folder / "data").write_bytes(bytes(24))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(a_model([tensor]).SerializeToString())
    with pytest.raises(ModelFileError, match=words):
        ours.describe(folder)


def wrong(**fields: Any) -> Any:
    values: dict[str, Any] = {"name": "x", "data_type": 1, "dims": [2], "raw_data": bytes(8)}
    return TensorProto(**values | fields)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (wrong(raw_data=bytes(7)), "takes 8 bytes, but 7"),
        (wrong(raw_data=None), "takes 8 bytes, but 0"),
        (wrong(dims=[2**50]), "has the shape"),
        (wrong(dims=[-2]), "has the shape"),
        (wrong(dims=[1] * 17), "has the shape"),
        (wrong(dims=[2**40, 2**40]), "bytes, but 8 are there"),
        (wrong(data_type=99), "unknown type 99"),
        (wrong(name="f32"), "stands there twice"),
        (wrong(float_data=[1, 2]), "two fields"),
    ],
)
def test_tensors_that_lie(tmp_path: Path, tensor: Any, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(a_model([tensor]).SerializeToString())
    with pytest.raises(ModelFileError, match=words):
        ours.describe(path)


def test_operators_from_elsewhere_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(a_model(domain="evil.ops", output="embedding").SerializeToString())
    info = ours.describe(path)
    assert any("operators of evil.ops" in note for note in info.notes)
    assert info.task == "embed"


def test_the_layout_of_onnxruntime_genai(tmp_path: Path) -> None:
    (tmp_path / "decoder.onnx").write_bytes(a_model().SerializeToString())
    decoder = {
        "filename": "decoder.onnx", "head_size": 32, "hidden_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4,
    }  # fmt: skip
    model = {"type": "llama", "context_length": 1024, "vocab_size": 512, "decoder": decoder}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}))
    info = detect(tmp_path).describe(tmp_path)
    assert (info.format, info.architecture, info.task) == ("onnx", "llama", "generate")
    assert (info.context, info.vocabulary, info.layers, info.width) == (1024, 512, 4, 128)
    assert (info.heads, info.kv_heads, info.key_length) == (4, 2, 32)
    assert any("onnxruntime-genai" in note for note in info.notes)
    model["decoder"] = decoder | {"filename": "../decoder.onnx"}
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ModelFileError, match="leads out"):
        ours.describe(tmp_path)


def test_facts_of_a_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(a_model().SerializeToString())
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    for path in (tmp_path, tmp_path / "onnx", tmp_path / "onnx" / "model.onnx"):
        info = ours.describe(path)
        assert (info.architecture, info.task) == ("bert", "embed")


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "model.onnx"
    path.write_bytes(a_model().SerializeToString())
    (tmp_path / "scratch").mkdir()
    check_format(ours, path, tmp_path / "scratch", damages=300)
    onnx.save_model(
        a_model(), str(path), save_as_external_data=True, location="d", size_threshold=0
    )
    check_format(ours, tmp_path / "m", tmp_path / "scratch", damages=100)
