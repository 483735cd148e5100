"""The torch engine: a folder of the zoo asked like any local model, against transformers."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_runner_router.convert import run
from llm_runner_router.convert.base import Options
from llm_runner_router.deltas import Answer
from llm_runner_router.engine import torch as engine
from llm_runner_router.errors import ContextTooLong, LoadFailed
from llm_runner_router.models.info import LocalModel, ModelInfo

from .locally import (
    HUB,
    MACHINE,
    PROMPTS,
    Locally,
    chat,
    check_memory,
    model_at,
    said_by_transformers,
    written,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("torch")]

FOLDER = HUB / "tiny-general"


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return model_at(FOLDER, engine="torch")


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    return said_by_transformers(FOLDER)


def test_greedy_answers_are_those_of_transformers(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    for prompt, expected in zip(PROMPTS, reference, strict=True):
        answer = local.ask(model, written(prompt, logprobs=True, top_logprobs=3))
        parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
        told = [one for part in parts for one in part["content"]]
        ends = expected["tokens"][-1] == 2
        tokens = expected["tokens"][: -1 if ends else None]
        assert [one["id"] for one in told] == tokens
        assert answer.choices[0].finish == ("stop" if ends else "length")
        first = told[0]
        assert first["logprob"] == pytest.approx(expected["logprobs"][first["id"]], abs=1e-4)
        assert first["top_logprobs"][0]["logprob"] == max(
            one["logprob"] for one in first["top_logprobs"]
        )
        assert answer.text == "".join(one["token"] for one in told)
    row = next(row for row in local.residency.status() if row.name == model.name)
    assert (row.engine, row.state) == ("torch", "ready")
    check_memory(row)


def test_greedy_answers_are_those_of_llama_cpp(
    local: Locally, model: LocalModel, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    run.convert(FOLDER, path, "gguf", options=Options(type="f32"))
    other = model_at(path)
    for prompt in PROMPTS:
        ours, theirs = (
            tokens_of(local.ask(one, written(prompt, logprobs=True))) for one in (model, other)
        )
        assert [token for token, _ in ours] == [token for token, _ in theirs]
        # The other engine keeps keys and values in 16 bits.
        assert [p for _, p in ours] == pytest.approx([p for _, p in theirs], abs=1e-2)
    engines = {row.name: row.engine for row in local.residency.status()}
    assert (engines[model.name], engines[other.name]) == ("torch", "llamacpp")


def tokens_of(answer: Answer) -> list[tuple[str, float]]:
    """Every token with its log-probability; llama.cpp lists the end too, without a text."""
    parts = [msgspec.json.decode(part) for part in answer.choices[0].logprobs]
    told = [(one["token"], one["logprob"]) for part in parts for one in part["content"]]
    return [(token, logprob) for token, logprob in told if token]


def test_a_chat_is_rendered_by_the_models_template(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    answer = local.ask(model, chat("What is 12 + 30?"))
    assert answer.text == reference[0]["text"]
    again = local.ask(model, chat("What is 12 + 30?"))
    assert again.usage is not None
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.text == answer.text
    assert answer.timings is not None


def test_a_prompt_that_is_too_long(local: Locally, model: LocalModel) -> None:
    with pytest.raises(ContextTooLong):
        local.ask(model, chat("word " * 2000))


def test_vectors_are_the_mean_of_the_last_layer(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    found = local.embed(model, *PROMPTS)
    for vector, expected in zip(found.vectors, reference, strict=True):
        assert list(vector) == pytest.approx(expected["vector"], abs=1e-4)


def test_code_of_a_model_is_never_run(local: Locally, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('it ran')\n")
    with pytest.raises(LoadFailed, match="auto_map"):
        local.ask(model_at(folder, engine="torch"), chat("hello"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_few_tensors_do_not_keep_the_whole_file_in_memory(
    local: Locally, model: LocalModel, tmp_path: Path
) -> None:
    """Norms in F32 among matrices of F16, as GGUF files give them, need no conversion."""
    folder = tmp_path / "mixed"
    shutil.copytree(FOLDER, folder)
    weights = load_file(folder / "model.safetensors")
    wide = {k: v.astype(np.float32) if v.ndim == 1 else v for k, v in weights.items()}
    assert any(v.dtype == np.float32 for v in wide.values())
    assert any(v.dtype == np.float16 for v in wide.values())
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    mixed = model_at(folder, engine="torch")
    assert local.ask(mixed, chat("What is 12 + 30?")).text
    (row,) = [row for row in local.residency.status() if row.name == mixed.name]
    assert "model.safetensors" not in Path(f"/proc/{row.pid}/maps").read_text()
    assert row.expected.mapped == 0
    local.run(local.residency.stop(mixed.name))


def test_options_are_checked(local: Locally) -> None:
    with pytest.raises(LoadFailed, match="float8"):
        local.ask(
            model_at(FOLDER, name="other", engine="torch", options={"dtype": "float8"}),
            chat("hello"),
        )


def test_what_it_runs() -> None:
    def verdict(format: str) -> bool:
        return engine.can_run(ModelInfo(format=format, architecture="llama"), MACHINE).can

    assert verdict("safetensors")
    assert verdict("pytorch")
    assert not verdict("gguf")
    assert not verdict("onnx")
