"""Embedding models and rerankers in the `onnx` engine, against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.engine.runners.session import Order
from llm_runner_router.errors import Unsupported
from llm_runner_router.types import Request

from .locally import Locally, model_at

np = pytest.importorskip("numpy")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

from tests.convert import tiny_hf  # noqa: E402  # it needs torch and looks for it

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("onnx")]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "rain", "##y"]
TEXTS = ("the cat sat on the mat", "rain", "a rainy cat")


def tick(done: int, total: int, what: str) -> None:
    pass


def with_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer as BERT has it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


def made(tmp_path: Path, name: str, pooling: str | None = None) -> tuple[Any, Path]:
    """The model in transformers, and the folder of its graph."""
    model = tiny_hf.encoder(name, tmp_path / "hf")
    with_tokenizer(tmp_path / "hf")
    if pooling is not None:
        (tmp_path / "hf" / "1_Pooling").mkdir()
        settings = json.dumps({pooling: True})
        (tmp_path / "hf" / "1_Pooling" / "config.json").write_text(settings)
    hf_onnx.encoder(tmp_path / "hf", tmp_path / "onnx", Options("f32"), tick)
    return model, tmp_path / "onnx"


def expected(model: Any, folder: Path, pooling: str | None) -> Any:
    """Each text alone, so padding has no part in it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = []
    for text in TEXTS:
        ids = tiny_hf.torch.tensor([tokenizer.encode(text).ids])
        with tiny_hf.torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state[0].numpy()
        row = hidden[0] if pooling == "pooling_mode_cls_token" else hidden.mean(0)
        row = hidden[-1] if pooling == "pooling_mode_lasttoken" else row
        row = hidden.max(0) if pooling == "pooling_mode_max_tokens" else row
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


@pytest.fixture(scope="module")
def local() -> Iterator[Locally]:
    local = Locally(slots=1)
    yield local
    local.close()


def test_vectors_are_those_of_transformers(local: Locally, tmp_path: Path) -> None:
    model, folder = made(tmp_path, "bert")
    found = local.embed(model_at(folder), *TEXTS)
    want = expected(model, folder, None)
    assert np.array([list(v) for v in found.vectors]) == pytest.approx(want, abs=1e-5)
    assert found.usage is not None
    assert found.usage.prompt_tokens == 8 + 3 + 6
    with pytest.raises(Unsupported, match="does not write"):
        local.ask(model_at(folder), Request(model="m", prompt="the"))


def test_a_model_of_vectors_is_loaded_once(local: Locally, tmp_path: Path) -> None:
    """Whoever loads it before it is asked loads it for what it does."""
    _, folder = made(tmp_path, "bert")
    model = model_at(folder, name="once")
    local.run(local.residency.load(model))
    local.embed(model, *TEXTS)
    with pytest.raises(Unsupported, match="does not write"):
        local.ask(model, Request(model="m", prompt="the"))
    assert len([row for row in local.residency.status() if row.name == "once"]) == 1


@pytest.mark.parametrize(
    "pooling", ["pooling_mode_cls_token", "pooling_mode_lasttoken", "pooling_mode_max_tokens"]
)
def test_vectors_are_pooled_as_the_folder_says(pooling: str, tmp_path: Path) -> None:
    from llm_runner_router.engine.runners.onnx import OnnxModel

    model, folder = made(tmp_path, "bert", pooling)
    loaded = OnnxModel(order(folder))
    rows = [loaded.vocabulary.encode(text, begin=True) for text in TEXTS]
    assert loaded.embed(rows) == pytest.approx(expected(model, folder, pooling), abs=1e-5)


@pytest.mark.parametrize("name", ["bert-reranker", "xlm-reranker"])
def test_scores_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    from llm_runner_router.engine.runners.onnx import OnnxModel

    model, folder = made(tmp_path, name)
    loaded = OnnxModel(order(folder))
    pairs = [loaded.vocabulary.pair("the cat", text) for text in TEXTS]
    for score, pair in zip(loaded.score(pairs), pairs, strict=True):
        given = {"input_ids": tiny_hf.torch.tensor([pair.tokens])}
        if name == "bert-reranker":
            given["token_type_ids"] = tiny_hf.torch.tensor([pair.kinds])
        with tiny_hf.torch.no_grad():
            assert score == pytest.approx(float(model(**given).logits), abs=1e-5)


def order(folder: Path) -> Order:
    return msgspec.convert(
        {
            "model": str(folder),
            "name": "m",
            "api_key": "k",
            "slots": 1,
            "context": 64,
            "threads": 1,
            "batch_threads": 1,
            "purpose": "embed",
        },
        Order,
    )
