"""Tensors that do not fit each other, or what the model says of itself."""

from __future__ import annotations

import msgspec

from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.models.deepcheck import structure
from llm_runner_router.models.info import ModelInfo

INFO = ModelInfo(format="gguf", architecture="llama", layers=20, width=8, vocabulary=50)
TWENTY = ", ".join(map(str, range(2, 22)))


def model(*, layers: int = 20) -> dict[str, Weight]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (50, 8), "output_norm.weight": (8,)}
    for number in range(layers):
        shapes[f"blk.{number}.attn_q.weight"] = (8, 8)
        shapes[f"blk.{number}.attn_norm.weight"] = (8,)
    return {name: Weight(name, "F16", shape, 0) for name, shape in shapes.items()}


def found(weights: dict[str, Weight], info: ModelInfo = INFO) -> dict[str, str]:
    return {f.detail: f.state for f in structure(info, weights)}


def test_a_whole_model() -> None:
    assert found(model()) == {"50 rows of 8": "ok", "20 alike, 40 tensors": "ok"}


def test_layers_that_are_missing() -> None:
    weights = {n: w for n, w in model().items() if not n.startswith(("blk.3.", "blk.19."))}
    assert found(weights)["of 20 layers `blk` lacks 3, 19"] == "bad"


def test_a_tensor_that_one_layer_lacks() -> None:
    weights = model()
    del weights["blk.7.attn_q.weight"]
    assert found(weights)["`attn_q.weight` is in 19 of 20; without: 7"] == "bad"


def test_layers_of_two_kinds_are_only_odd() -> None:
    weights = model()
    for number in range(0, 20, 2):
        del weights[f"blk.{number}.attn_q.weight"]
    assert set(found(weights).values()) == {"ok", "odd"}


def test_shapes_that_differ() -> None:
    weights = model()
    weights["blk.2.attn_q.weight"] = Weight("blk.2.attn_q.weight", "F16", (4, 8), 0)
    weights["blk.2.attn_norm.weight"] = Weight("blk.2.attn_norm.weight", "F16", (4,), 0)
    states = found(weights)
    assert states["`attn_q.weight` has different shapes: (8, 8) in 19; (4, 8) in 1"] == "odd"
    assert states["`attn_norm.weight` has different shapes: (8,) in 19; (4,) in 1"] == "bad"


def test_an_embedding_that_does_not_fit() -> None:
    for shape, words in (((49, 8), "has 49 rows for 50 tokens"), ((50, 4), "is 4 wide")):
        weights = model() | {"token_embd.weight": Weight("token_embd.weight", "F16", shape, 0)}
        assert any(words in text and state == "bad" for text, state in found(weights).items())
    weights = model() | {"token_embd.weight": Weight("token_embd.weight", "F16", (64, 8), 0)}
    assert found(weights)["64 rows of 8, 14 to spare"] == "ok"


def test_many_problems_are_counted() -> None:
    weights = {f"blk.{n}.w{n}.weight": Weight("w", "F16", (1,), 0) for n in range(60)}
    assert any("and 40 more" in text for text in found(weights))


def test_a_header_that_claims_more_layers_than_memory_has_numbers() -> None:
    info = msgspec.structs.replace(INFO, layers=1 << 60)
    assert found(model(layers=2), info)[f"of {1 << 60} layers `blk` lacks " + TWENTY] == "bad"
