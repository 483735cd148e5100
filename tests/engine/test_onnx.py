"""The ONNX engines: graphs converted from the zoo, asked like any local model, against transformers
and against the same graph in the other engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router.convert import hf_onnx
from llm_runner_router.convert.base import Options
from llm_runner_router.engine import onnx, onnx_genai
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import ContextTooLong, LoadFailed
from llm_runner_router.models import detect
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
    told,
    written,
)

pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")
onnx_files = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("onnx")]

SOURCE = HUB / "tiny-general"
ENGINES = ("onnx_genai", "onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "tiny-general"
    hf_onnx.decoder(SOURCE, target, Options("f16"), lambda done, total, what: None)
    return target


def named(folder: Path, engine: str, **changes: Any) -> LocalModel:
    return model_at(folder, engine=engine, name=f"{folder}:{engine}", **changes)


@pytest.fixture(params=ENGINES)
def model(folder: Path, request: pytest.FixtureRequest) -> LocalModel:
    return named(folder, request.param)


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    return said_by_transformers(SOURCE)


def test_greedy_answers_are_those_of_transformers(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    for prompt, expected in zip(PROMPTS, reference, strict=True):
        answer = local.ask(model, written(prompt, logprobs=True, top_logprobs=3))
        found = told(answer)
        ends = expected["tokens"][-1] == 2
        assert [one["id"] for one in found] == expected["tokens"][: -1 if ends else None]
        assert answer.choices[0].finish == ("stop" if ends else "length")
        first = found[0]
        assert first["logprob"] == pytest.approx(expected["logprobs"][first["id"]], abs=1e-3)
    (row,) = [row for row in local.residency.status() if row.name == model.name]
    assert (row.engine, row.state) == (model.engine, "ready")
    check_memory(row)


def test_a_common_beginning_is_computed_once(local: Locally, model: LocalModel) -> None:
    first = local.ask(model, chat("What is 12 + 30?"))
    again = local.ask(model, chat("What is 12 + 30?"))
    assert again.text == first.text
    assert again.usage is not None
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    other = local.ask(model, chat("What is 12 + 31?"))
    assert other.usage is not None
    assert 3 < other.usage.cached_tokens < other.usage.prompt_tokens - 1
    fresh = msgspec.structs.replace(model, name=f"{model.name}:fresh")
    assert local.ask(fresh, chat("What is 12 + 31?")).text == other.text


def test_a_prompt_that_is_too_long(local: Locally, model: LocalModel) -> None:
    with pytest.raises(ContextTooLong):
        local.ask(model, chat("word " * 2000))


def test_the_folder_tells_which_engine(folder: Path, local: Locally) -> None:
    chooser = EngineSelector()
    info = detect.describe(folder)
    assert chooser.get_best(info).NAME == "onnx_genai"
    with pytest.raises(LoadFailed, match="gives no embeddings"):
        local.embed(named(folder, "onnx_genai"), "some text")


def test_a_graph_that_is_gone_when_it_is_loaded(
    local: Locally, folder: Path, tmp_path: Path
) -> None:
    for engine, name in (("onnx_genai", "genai_config.json"), ("onnx", "model.onnx")):
        copy = tmp_path / engine
        shutil.copytree(folder, copy)
        model = named(copy, engine)
        (copy / name).unlink()
        with pytest.raises(LoadFailed, match=r"genai_config\.json|0 graphs"):
            local.ask(model, chat("hello"))


def test_a_graph_of_unknown_inputs(local: Locally, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    model = named(copy, "onnx")
    graph = onnx_files.load(str(copy / "model.onnx"), load_external_data=False)
    for one in graph.graph.input:
        if one.name == "input_ids":
            one.name = "pixels"
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            if name == "input_ids":
                node.input[i] = "pixels"
    onnx_files.save(graph, str(copy / "model.onnx"))
    with pytest.raises(LoadFailed, match="takes pixels"):
        local.ask(model, chat("hello"))


@pytest.mark.parametrize("type", ["q8_0", "q4_0"])
def test_quantised_graphs_answer_alike_in_both(local: Locally, tmp_path: Path, type: str) -> None:
    hf_onnx.decoder(SOURCE, tmp_path / type, Options(type), lambda done, total, what: None)
    ours, plain = (
        local.ask(named(tmp_path / type, engine), chat("What is 12 + 30?")).text
        for engine in ENGINES
    )
    assert ours == plain


def test_what_they_run() -> None:
    def scores(**facts: Any) -> tuple[float, float]:
        info = ModelInfo(architecture="llama", **{"format": "onnx", **facts})
        return onnx_genai.can_run(info, MACHINE).score, onnx.can_run(info, MACHINE).score

    genai, plain = scores(notes=("has genai_config.json",))
    assert genai > plain > 0
    genai, plain = scores()
    assert plain > genai == 0
    genai, plain = scores(task="embed")
    assert plain > genai == 0
    assert scores(format="gguf") == (0, 0)
