"""Rerankers asked like any local model, by torch, onnx and the mock, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router import refs
from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.engine.local import RANKED
from llm_runner_router.engine.runners.api import BATCH, MOST, batches
from llm_runner_router.errors import BadRequest, ContextTooLong, LoadFailed, Unsupported
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.testing import check_reranker
from llm_runner_router.types import Ranking, RerankRequest

from .locally import CALL, HUB, Locally, model_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "a", "mat", "rain", "##y"]
QUERY = "the cat"
TEXTS = ("the cat sat on the mat", "rain", "a rainy cat", "on a mat the rain sat")


def mock() -> LocalModel:
    zoo = resolve(refs.parse("zoo:tiny-math"))
    return msgspec.structs.replace(zoo, name="mock", engine="mock")


def ranked(
    local: Locally, model: LocalModel, texts: tuple[str, ...] = TEXTS, **changes: Any
) -> Ranking:
    request = RerankRequest("m", QUERY, texts, **changes)
    return local.run(local.target(model).rerank(request, CALL))


class Reference:
    """A random cross-encoder of transformers in `folder`, and its scores."""

    def __init__(self, name: str, folder: Path) -> None:
        from tests.convert import tiny_hf  # it needs torch and looks for it
        from tests.engine.test_onnx_vectors import with_tokenizer

        self._torch = tiny_hf.torch
        self._typed = name.startswith("bert")
        self.model = tiny_hf.encoder(name, folder)
        self.folder = folder
        with_tokenizer(folder)

    def pair(self, text: str) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return tokenizer.encode(QUERY, text)

    def score(self, text: str) -> float:
        """The logit of the pair alone: padding has no part in it."""
        found = self.pair(text)
        given = {"input_ids": self._torch.tensor([found.ids])}
        if self._typed:
            given["token_type_ids"] = self._torch.tensor([found.type_ids])
        with self._torch.no_grad():
            return float(self.model(**given).logits[0, 0])


@pytest.mark.parametrize("name", ["bert-reranker", "xlm-reranker"])
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_scores_are_those_of_transformers(
    local: Locally, engine: str, name: str, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    reference = Reference(name, tmp_path / "hf")
    folder = reference.folder
    if engine == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
        folder = tmp_path / "onnx"
        hf_onnx.encoder(reference.folder, folder, Options("f32"), lambda *_: None)
    model = model_at(folder, engine=engine)
    assert model.info.task == "rerank"
    found = ranked(local, model)
    expected = {i: reference.score(text) for i, text in enumerate(TEXTS)}
    assert [one.index for one in found.results] == sorted(expected, key=lambda i: -expected[i])
    for one in found.results:
        assert one.score == pytest.approx(expected[one.index], abs=1e-4)
    assert found.usage.prompt_tokens == sum(len(reference.pair(text).ids) for text in TEXTS)
    assert found.origin is not None
    assert (found.origin.target, found.origin.local) == (model.name, True)
    assert ranked(local, model, top_n=2).results == found.results[:2]
    with pytest.raises(ContextTooLong) as caught:
        ranked(local, model, ("rain",) * (RANKED + 2) + ("rain " * 600,))
    assert caught.value.param == f"documents[{RANKED + 2}]"


def test_a_reranker_that_is_a_folder_keeps_the_contract(local: Locally, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    reference = Reference("bert-reranker", tmp_path / "hf")
    model = model_at(reference.folder, engine="torch")
    local.run(local.residency.load(model))
    local.run(check_reranker(local.target(model)))
    assert [row.purpose for row in local.residency.status() if row.name == model.name] == ["chat"]


def test_the_mock_keeps_the_contract(local: Locally) -> None:
    local.run(local.residency.load(mock()))
    local.run(check_reranker(local.target(mock())))


def test_many_documents_are_scored_in_parts(local: Locally) -> None:
    texts = tuple("the cat" if i % 7 == 3 else "the" if i % 2 else "no" for i in range(300))
    found = ranked(local, mock(), texts)
    expected = [float(len({"the", "cat"} & set(text.split()))) for text in texts]
    assert [one.index for one in found.results] == sorted(
        range(300), key=lambda i: (-expected[i], i)
    )
    assert [one.score for one in found.results] == sorted(expected, reverse=True)
    assert found.usage.prompt_tokens == sum(len(QUERY) + 1 + len(text) for text in texts)
    (row,) = [row for row in local.residency.status() if row.name == "mock"]
    before = row.served
    ranked(local, mock(), texts)
    (row,) = [row for row in local.residency.status() if row.name == "mock"]
    assert row.served - before == -(-300 // RANKED), "one lease for each part"


def test_texts_of_like_length_are_scored_together() -> None:
    parts = batches([5, 9000, 3, 100] + [7] * 70, MOST)
    assert sorted(i for part in parts for i in part) == list(range(74))
    assert max(len(part) for part in parts) == BATCH
    assert parts[-1] == [1], "a long one alone"
    assert parts[0][:2] == [2, 0]
    assert all(len(part) * 200 <= MOST for part in batches([200] * 100, MOST))
    assert all(len(part) * 200 <= 1000 for part in batches([200] * 100, 1000))
    assert batches([], MOST) == []


def test_what_does_not_rerank_says_so(local: Locally) -> None:
    with pytest.raises(Unsupported, match="does not rerank") as caught:
        ranked(local, resolve(refs.parse("zoo:tiny-general")))
    assert caught.value.param == "model"
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    with pytest.raises((BadRequest, Unsupported), match="does not rerank"):
        ranked(local, model_at(HUB / "tiny-general", engine="torch"))


def test_no_engine_that_cannot_rerank_is_taken(local: Locally) -> None:
    model = model_at(HUB / "tiny-general", engine="mistralrs")
    with pytest.raises(LoadFailed, match="does not rerank"):
        local.residency.engines.get_best(model, purpose="rerank")
