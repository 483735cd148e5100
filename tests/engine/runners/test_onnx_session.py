"""The loop of the `onnx` engine on a graph whose logits tell what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router.engine.runners.onnx import OnnxModel, find_graph
from llm_runner_router.engine.runners.refusal import Refusal
from llm_runner_router.engine.runners.session import Order

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

ZOO = Path(__file__).resolve().parents[3] / "zoo" / "models"
SIZE = 16


def order(path: Path, **options: Any) -> Order:
    facts = {"model": str(path), "name": "m", "api_key": "k", "slots": 1, "context": 64}
    more = {"threads": 1, "batch_threads": 1, "purpose": "chat", "options": options}
    return msgspec.convert(facts | more, Order)


def telling(folder: Path) -> None:
    """A decoder: logits are one for the position and two for how many keys there were; all keys
    are positions. In F16, as exporters for GPUs write it, and with the inputs of a merged graph."""
    helper, kinds = onnx.helper, onnx.TensorProto
    both = ("key", "value")
    info = helper.make_tensor_value_info
    inputs = [
        info("input_ids", kinds.INT64, [1, "n"]),
        info("attention_mask", kinds.INT64, [1, "total"]),
        info("position_ids", kinds.INT64, [1, "n"]),
        info("use_cache_branch", kinds.BOOL, [1]),
        *(info(f"past_key_values.0.{k}", kinds.FLOAT16, [1, 1, "past", 1]) for k in both),
    ]
    outputs = [
        info("logits", kinds.FLOAT, [1, "n", SIZE]),
        *(info(f"present.0.{k}", kinds.FLOAT16, [1, 1, "total", 1]) for k in both),
    ]
    nodes = [
        helper.make_node("OneHot", ["position_ids", "depth", "ones"], ["places"]),
        helper.make_node("ReduceSum", ["attention_mask", "axes"], ["total"], keepdims=1),
        helper.make_node("OneHot", ["total", "depth", "twos"], ["lengths"]),
        helper.make_node("Add", ["places", "lengths"], ["logits"]),
        helper.make_node("Cast", ["position_ids"], ["half"], to=kinds.FLOAT16),
        helper.make_node("Reshape", ["half", "shape"], ["new"]),
        *(
            helper.make_node(
                "Concat", [f"past_key_values.0.{k}", "new"], [f"present.0.{k}"], axis=2
            )
            for k in both
        ),
    ]
    constants = {
        "depth": np.array(SIZE),
        "ones": np.array([0, 1], np.float32),
        "twos": np.array([0, 2], np.float32),
        "axes": np.array([1]),
        "shape": np.array([1, 1, -1, 1]),
    }
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "telling", inputs, outputs, weights)
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(made, str(folder / "model.onnx"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ZOO / "tiny-chat" / name).read_bytes())


def test_positions_and_lengths_go_on_where_the_past_ends(tmp_path: Path) -> None:
    telling(tmp_path)
    session = OnnxModel(order(tmp_path)).session()

    def said(tokens: list[int]) -> tuple[int, int]:
        logits = session.feed(tokens)
        assert logits.dtype == np.float32
        (position,), (length,) = np.nonzero(logits == 1), np.nonzero(logits == 2)
        return int(position[0]), int(length[0])

    assert said([5, 6, 7]) == (2, 3)
    assert said([5]) == (3, 4)
    assert session.rewind(2) == 2
    assert said([8]) == (2, 3)
    assert session.rewind(0) == 0
    assert said([9, 9]) == (1, 2)


def test_the_graph_is_found_or_named(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(Refusal, match=r"2 graphs \(a.onnx, b.onnx\)"):
        find_graph(order(tmp_path))
    assert find_graph(order(tmp_path, file="b.onnx")).name == "b.onnx"
    with pytest.raises(Refusal, match="not in"):
        find_graph(order(tmp_path, file="../other.onnx"))
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    assert find_graph(order(tmp_path)).parent.name == "onnx"
    assert find_graph(order(tmp_path / "a.onnx")).name == "a.onnx"
