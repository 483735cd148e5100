"""`llmrr verify --deep` asks real models: sound ones, random ones, broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_runner_router.cli.deep_run import tried
from llm_runner_router.config import Config, Engine
from llm_runner_router.convert import run as converting
from llm_runner_router.models.deepcheck import Finding

from .conftest import Run

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]
HF = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"


def changed(folder: Path, change: Callable[[str, Any], Any]) -> Path:
    """The zoo's folder with other weights."""
    shutil.copytree(HF, folder)
    weights = load_file(folder / "model.safetensors")
    found = {name: change(name, value) for name, value in weights.items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random(folder: Path) -> Path:
    chance = np.random.default_rng(1)

    def draw(name: str, value: Any) -> Any:
        return chance.normal(0, 0.02, value.shape).astype(value.dtype) if value.ndim > 1 else value

    return changed(folder, draw)


def broken(folder: Path) -> Path:
    def spoil(name: str, value: Any) -> Any:
        if "layers.0.mlp.down_proj" in name:
            value = value.copy()
            value[3, 3] = np.nan
        return value

    return changed(folder, spoil)


def gguf(folder: Path) -> Path:
    return converting.convert(folder, folder.with_suffix(".gguf"), "gguf").path


def asked(path: Path, engine: str | None = None, **settings: Any) -> list[Finding]:
    return list(tried(f"file:{path}", Config(engine=Engine(**settings)), engine))


def test_a_sound_model_answers(llmrr: Run) -> None:
    done = llmrr("verify", "--deep", "zoo:tiny-general", "--json")
    assert done.code == 0, done.out
    *_, answer, perplexity = json.loads(done.out)[0]["findings"]
    assert (answer["check"], answer["state"]) == ("answer", "ok")
    assert answer["detail"].startswith("llamacpp: ")
    assert answer["detail"].endswith("ends by itself, the same twice")
    assert (perplexity["check"], perplexity["state"]) == ("perplexity", "ok")
    assert "made for other texts" in perplexity["detail"], "it knows no prose, and is no random one"


def test_random_weights_warn_and_both_measures_agree(llmrr: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    folder = random(tmp_path / "m")
    done = llmrr("verify", "--deep", str(gguf(folder)))
    assert done.code == 0, done.out
    assert "it repeats one token; it is about as unsure as if it guessed" in done.out
    assert "odd  perplexity" in done.out
    assert "as good as random, of 1024 tokens" in done.out
    here = asked(gguf(folder.rename(tmp_path / "again")))
    there = asked(tmp_path / "again", "torch")
    figures = [float(found[1].detail.split()[0]) for found in (here, there)]
    assert figures[1] == pytest.approx(figures[0], rel=0.01)
    assert 900 < figures[0] < 1200


def test_numbers_that_are_none_fail(tmp_path: Path, llmrr: Run) -> None:
    path = gguf(broken(tmp_path / "m"))
    (found,) = asked(path)
    assert (found.check, found.state) == ("answer", "bad")
    assert "NaN" in found.detail
    done = llmrr("verify", "--deep", str(path))
    assert done.code == 1
    assert "skip answer     a model with such weights is not run" in done.out


def test_the_engine_is_not_installed(llmrr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_runner_router.engine.select.find_spec", lambda name: None)
    done = llmrr("verify", "--deep", "zoo:tiny-math")
    assert done.code == 0, done.out
    assert "skip answer     llamacpp would run it, but lacks xllamacpp: `pip install" in done.out


def test_an_engine_by_name(llmrr: Run) -> None:
    done = llmrr("verify", "--deep", "--engine", "mock", "zoo:tiny-math")
    assert done.code == 0, done.out
    assert "answer     mock: 'mock: " in done.out
    assert "perplexity 258 on English prose, 8.0" in done.out, "each of its tokens is as likely"
    wrong = llmrr("verify", "--deep", "--engine", "onnx", "zoo:tiny-math")
    assert (wrong.code, "skip answer" in wrong.out) == (0, True), wrong.out


def test_what_is_about_the_machine_is_no_fault(tmp_path: Path) -> None:
    (found,) = asked(HF, "mock", memory=1024)
    assert found.state == "skip"
    assert "memory" in found.detail


def test_it_is_not_run(llmrr: Run) -> None:
    done = llmrr("verify", "--deep", "--no-run", "zoo:tiny-math")
    assert done.code == 0
    assert "template" in done.out
    assert "answer" not in done.out
    assert llmrr("verify", "--no-run", "zoo:tiny-math").code == 2


@pytest.mark.parametrize(("name", "check"), [("bert", "vectors"), ("bert-reranker", "ranking")])
def test_vectors_and_scores(name: str, check: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra `torch` is not installed")
    from tests.convert import tiny_hf
    from tests.engine.test_onnx_vectors import with_tokenizer

    tiny_hf.encoder(name, tmp_path / "m")
    with_tokenizer(tmp_path / "m")
    (found,) = asked(tmp_path / "m", "torch")
    assert found.check == check
    assert found.state in ("ok", "odd"), "random weights mean nothing by what they say"
    assert found.detail.startswith("torch: ")
