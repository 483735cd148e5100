"""Encoders converted to GGUF and asked through llama.cpp's runner, against transformers.

Weights are F32 on both sides; what remains is ggml's table of GELU in half precision. Measured: an
element of a vector of length one differs by at most 7e-4 (with a position, a token of the window
or the pooling wrong, by at least 1e-2), and a score between -5 and 5 by at most 9e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

from tests.convert import encoders

from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.errors import ModelFileError, RunnerError, Unsupported
from llm_runner_router.testing import check_reranker
from llm_runner_router.types import RerankRequest

from .locally import CALL, Locally, model_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

VECTOR = 3e-3
SCORE = 2e-2
"""Room for other processors."""
CASES = [
    ("bert", "mean_tokens", ()),
    ("bert", "cls_token", ()),
    ("roberta", "mean_tokens", ()),
    ("xlm", "cls_token", ()),
    ("xlm", "", ()),
    ("camembert", "lasttoken", ()),
    ("gemma", "mean_tokens", ()),
    ("gemma", "mean_tokens", (64, 160, 64)),
]


@pytest.fixture(scope="module")
def local() -> Iterator[Locally]:
    local = Locally(slots=1)
    yield local
    local.close()


def converted(folder: Path) -> Path:
    gguf = folder / "model.gguf"
    from_safetensors(folder, gguf, Options(type="f32"), lambda done, total, what: None)
    return gguf


@pytest.mark.parametrize(("kind", "pooling", "dense"), CASES)
def test_vectors_are_those_of_transformers(
    local: Locally, kind: str, pooling: str, dense: tuple[int, ...], tmp_path: Path
) -> None:
    reference, tokenizer = encoders.make(kind, tmp_path)
    layers = encoders.modules(tmp_path, pooling=pooling, dense=dense)
    model = model_at(converted(tmp_path))
    assert model.info.task == "embed"
    words = {"cls_token": "cls", "lasttoken": "last"}
    assert model.info.pooling == words.get(pooling, "mean")
    found = local.embed(model, *encoders.TEXTS)
    for text, vector in zip(encoders.TEXTS, found.vectors, strict=True):
        expected = encoders.vector(reference, tokenizer, text, pooling, layers)
        worst = max(abs(a - b) for a, b in zip(vector, expected, strict=True))
        assert worst < VECTOR


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm"])
def test_scores_are_those_of_transformers(local: Locally, kind: str, tmp_path: Path) -> None:
    reference, tokenizer = encoders.make(kind, tmp_path, ranks=True, one_type=True)
    model = model_at(converted(tmp_path))
    assert (model.info.task, model.info.pooling) == ("rerank", "rank")
    texts = encoders.TEXTS
    request = RerankRequest("m", encoders.QUERY, texts)
    found = local.run(local.target(model).rerank(request, CALL))
    expected = [encoders.score(reference, tokenizer, encoders.QUERY, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -expected[i])
    assert [one.index for one in found.results] == order
    for one in found.results:
        assert one.score == pytest.approx(expected[one.index], abs=SCORE)
    pairs = [tokenizer(encoders.QUERY, text)["input_ids"] for text in texts]
    assert found.usage.prompt_tokens == sum(map(len, pairs))
    assert max(expected) - min(expected) > 40 * SCORE


def test_a_reranker_in_gguf_keeps_the_contract(local: Locally, tmp_path: Path) -> None:
    encoders.make("xlm", tmp_path, ranks=True)
    model = model_at(converted(tmp_path))
    local.run(local.residency.load(model))
    local.run(check_reranker(local.target(model)))
    assert local.embed(model, "rain").vectors, "the mean of its tokens is a vector all the same"


def test_types_of_tokens_that_the_engine_does_not_have_are_refused(tmp_path: Path) -> None:
    encoders.make("bert", tmp_path, ranks=True)
    with pytest.raises(Unsupported, match=r"token_type_embeddings.*another type") as caught:
        converted(tmp_path)
    assert "`onnx`" in (caught.value.hint or "")


def test_several_classes_are_refused(tmp_path: Path) -> None:
    encoders.make("roberta", tmp_path, ranks=True, num_labels=3)
    with pytest.raises(Unsupported, match="into 3 classes"):
        converted(tmp_path)


@pytest.mark.parametrize(
    ("kind", "pooling", "dense", "message"),
    [
        ("bert", "max_tokens", (), "pooled by `max`"),
        ("bert", "mean_tokens", (64, 32), "`bert` has no place"),
        ("gemma", "mean_tokens", (64, 32), "a place for two"),
        ("gemma", "mean_tokens", (64, 96, 32), "lead back to the width"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    kind: str, pooling: str, dense: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    encoders.make(kind, tmp_path)
    encoders.modules(tmp_path, pooling=pooling, dense=dense)
    with pytest.raises(Unsupported, match=message) as caught:
        converted(tmp_path)
    assert "`transformers`" in (caught.value.hint or "")


def test_a_dense_layer_of_another_shape_is_refused(tmp_path: Path) -> None:
    encoders.make("gemma", tmp_path)
    encoders.modules(tmp_path, pooling="mean_tokens", dense=(64, 160, 64))
    (tmp_path / "3_Dense" / "model.safetensors").write_bytes(
        (tmp_path / "2_Dense" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ModelFileError, match=r"3_Dense.*from 160 to 64"):
        converted(tmp_path)


def test_other_engines_compute_dense_layers_too(local: Locally, tmp_path: Path) -> None:
    reference, tokenizer = encoders.make("bert", tmp_path)
    layers = encoders.modules(tmp_path, pooling="mean_tokens", dense=(64, 32, 48))
    found = local.embed(model_at(tmp_path, engine="torch"), *encoders.TEXTS)
    for text, vector in zip(encoders.TEXTS, found.vectors, strict=True):
        expected = encoders.vector(reference, tokenizer, text, "mean_tokens", layers)
        assert vector == pytest.approx(expected, abs=1e-4)


def test_a_module_that_is_not_known_is_no_other_vector(local: Locally, tmp_path: Path) -> None:
    encoders.make("bert", tmp_path)
    encoders.modules(tmp_path, pooling="mean_tokens")
    path = tmp_path / "modules.json"
    path.write_text(path.read_text().replace("Normalize", "LayerNorm"))
    model = model_at(tmp_path, engine="torch")
    assert "LayerNorm" in model.info.notes[0]
    with pytest.raises(RunnerError, match="LayerNorm"):
        local.embed(model, "rain")
    with pytest.raises(Unsupported, match="LayerNorm"):
        converted(tmp_path)
