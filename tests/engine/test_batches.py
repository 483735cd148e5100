"""Many texts in one computation have the vectors and scores that each has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router import refs
from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.types import RerankRequest

from .locally import CALL, HUB, Locally, model_at

np = pytest.importorskip("numpy")
pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

TEXTS = tuple("the cat sat on a mat " * (1 + 7 * i % 23) + "rain" * (i % 3) for i in range(70))
"""More than one batch, of many lengths, in an order that is not theirs."""


def example(engine: str, kind: str, folder: Path) -> LocalModel:
    """A model for `engine`: an encoder by its name in `tiny_hf`, or `decoder`."""
    from tests.convert import tiny_hf
    from tests.engine.test_onnx_vectors import with_tokenizer

    if engine == "mock":
        zoo = resolve(refs.parse("zoo:tiny-math"))
        return msgspec.structs.replace(zoo, name="mock", engine="mock")
    if kind == "decoder":
        return model_at(HUB / "tiny-general", engine=engine)
    hub = folder / "hf"
    tiny_hf.encoder(kind, hub)
    with_tokenizer(hub)
    if engine == "onnx":
        hf_onnx.encoder(hub, folder / "onnx", Options("f32"), lambda *_: None)
        hub = folder / "onnx"
    return model_at(hub, engine=engine)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [("torch", "bert"), ("torch", "decoder"), ("onnx", "bert"), ("mock", "")],
)
def test_vectors(local: Locally, engine: str, kind: str, tmp_path: Path) -> None:
    model = example(engine, kind, tmp_path)
    together = local.embed(model, *TEXTS)
    alone = [local.embed(model, text) for text in TEXTS]
    assert np.array(together.vectors) == pytest.approx(
        np.array([one.vectors[0] for one in alone]), abs=1e-5
    )
    assert together.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    backwards = local.embed(model, *reversed(TEXTS))
    assert np.array(backwards.vectors[::-1]) == pytest.approx(np.array(together.vectors), abs=1e-5)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [("torch", "bert-reranker"), ("onnx", "xlm-reranker"), ("mock", "")],
)
def test_scores(local: Locally, engine: str, kind: str, tmp_path: Path) -> None:
    model = example(engine, kind, tmp_path)

    def scores(texts: tuple[str, ...]) -> dict[int, float]:
        request = RerankRequest("m", "the cat", texts)
        found: Any = local.run(local.target(model).rerank(request, CALL))
        return {one.index: one.score for one in found.results}

    together = scores(TEXTS)
    for i, text in enumerate(TEXTS):
        assert scores((text,))[0] == pytest.approx(together[i], abs=1e-5)
