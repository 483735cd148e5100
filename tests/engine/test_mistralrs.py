"""The mistralrs engine: a folder and a GGUF file of the zoo, asked like any local model, against
transformers."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.deltas import collect
from llm_runner_router.engine import mistralrs
from llm_runner_router.errors import BadRequest, ContextTooLong, LoadFailed, Unsupported
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.models.resolve import ZOO
from llm_runner_router.types import Request, Tool

from .locally import (
    CALL,
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

pytest.importorskip("mistralrs", reason="the extra `mistralrs` is not installed")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240), pytest.mark.xdist_group("mistralrs")]

SOURCE = HUB / "tiny-general"


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return model_at(SOURCE, engine="mistralrs")


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    return said_by_transformers(SOURCE)


def test_greedy_answers_are_those_of_transformers(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    for prompt, expected in zip(PROMPTS, reference, strict=True):
        answer = local.ask(model, written(prompt, logprobs=True, top_logprobs=3))
        assert answer.text == expected["text"]
        ends = expected["tokens"][-1] == 2
        assert answer.choices[0].finish == ("stop" if ends else "length")
        found = told(answer)
        count = len(expected["tokens"]) - ends
        assert [one["top_logprobs"][0]["id"] for one in found] == expected["tokens"][:count]
        first = expected["tokens"][0]
        assert found[0]["logprob"] == pytest.approx(expected["logprobs"][first], abs=1e-3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(expected["tokens"])
    (row,) = [row for row in local.residency.status() if row.name == model.name]
    assert (row.engine, row.state) == ("mistralrs", "ready")
    check_memory(row)


def test_a_chat_is_rendered_by_the_models_template(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    assert local.ask(model, chat("What is 12 + 30?")).text == reference[0]["text"]


def test_gguf_answers_like_llama_cpp(local: Locally) -> None:
    """The same Q8_0 weights; both round activations, each in its way, so not every token."""
    path = ZOO / "tiny-general.gguf"
    ours = local.ask(model_at(path, engine="mistralrs", name="gguf"), chat("What is 12 + 30?"))
    theirs = local.ask(model_at(path), chat("What is 12 + 30?"))
    assert ours.text == theirs.text
    assert ours.usage is not None
    assert theirs.usage is not None
    assert ours.usage.prompt_tokens == theirs.usage.prompt_tokens


def test_a_gguf_file_in_parts(local: Locally, tmp_path: Path) -> None:
    from tests.formats.forms import converted, split_gguf

    (tmp_path / "whole").mkdir()
    whole = converted("gguf")(tmp_path / "whole")
    one = local.ask(model_at(whole, engine="mistralrs", name="whole"), chat())
    parts = split_gguf(tmp_path)
    assert local.ask(model_at(parts, engine="mistralrs", name="parts"), chat()).text == one.text


def test_a_configuration_of_newer_transformers(
    local: Locally, tmp_path: Path, reference: list[dict[str, Any]]
) -> None:
    """They put `rope_theta` into `rope_parameters`."""
    folder = tmp_path / "model"
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    theta = config.pop("rope_theta")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    (folder / "config.json").write_text(json.dumps(config))
    answer = local.ask(model_at(folder, engine="mistralrs"), written(PROMPTS[1]))
    assert answer.text == reference[1]["text"]


def test_weights_are_quantised_while_loading(
    local: Locally, model: LocalModel, reference: list[dict[str, Any]]
) -> None:
    small = msgspec.structs.replace(model, name="small", options={"isq": "q8_0"})
    answer = local.ask(small, written(PROMPTS[0], logprobs=True, max_tokens=1))
    first = reference[0]["tokens"][0]
    expected = reference[0]["logprobs"][first]
    found = told(answer)[0]["logprob"]
    assert found != expected
    assert found == pytest.approx(expected, abs=0.2)


def test_what_it_cannot_do_is_said(local: Locally, model: LocalModel) -> None:
    look = (Tool("look"),)
    seeded = chat("hello", temperature=1.0, seed=4)
    gguf = model_at(ZOO / "tiny-general.gguf", engine="mistralrs", name="gguf")
    calling = msgspec.structs.replace(chat("hello"), tools=look)
    for asked, request, param in ((gguf, calling, "tools"), (model, seeded, "seed")):
        with pytest.raises(Unsupported) as caught:
            local.ask(asked, request)
        assert caught.value.param == param
    cold = written("x", seed=4)
    assert local.ask(model, cold).choices[0].finish, "a seed does not matter without chance"


@pytest.mark.parametrize("kind", ["dict", "list", "elsewhere"])
def test_tags_get_other_names_and_keep_their_numbers(tmp_path: Path, kind: str) -> None:
    from llm_runner_router.engine.runners.mistralrs import ALIASES, without_tags

    tags = [*ALIASES][:3]
    added = [{"id": i, "content": tag, "special": i == 1} for i, tag in enumerate([*tags, "<s>"])]
    words = [one["content"] for one in added]
    vocabularies: dict[str, Any] = {
        "dict": {word: i for i, word in enumerate(words)},
        "list": [[word, -1.0] for word in words],
        "elsewhere": {"a": 9},
    }
    file = {"added_tokens": added, "model": {"vocab": vocabularies[kind]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    changed, aliases = without_tags(tmp_path)
    assert aliases == {tag: ALIASES[tag] for tag in tags}
    assert [(one["id"], one["content"]) for one in changed["added_tokens"]] == [
        *((i, ALIASES[tag]) for i, tag in enumerate(tags)), (3, "<s>")]  # fmt: skip
    expected: dict[str, Any] = {
        "dict": {**{ALIASES[tag]: i for i, tag in enumerate(tags)}, "<s>": 3},
        "list": [*([ALIASES[tag], -1.0] for tag in tags), ["<s>", -1.0]],
        "elsewhere": {"a": 9},
    }
    assert changed["model"]["vocab"] == expected[kind]


def test_a_call_in_an_answer_is_told_by_its_tags(local: Locally, model: LocalModel) -> None:
    """A completion shows what the model writes: the tags by their own names."""
    prompt = (
        "<|im_start|>system\n<tools>\nget_weather(city): Tells the weather\n</tools><|im_end|>\n"
        "<|im_start|>user\nWhat is the weather in Rome?<|im_end|>\n<|im_start|>assistant\n"
    )
    answer = local.ask(model, written(prompt, max_tokens=40, logprobs=True, top_logprobs=1))
    assert answer.text.startswith("<tool_call>")
    assert "</tool_call>" in answer.text
    first = told(answer)[0]
    assert first["token"] == first["top_logprobs"][0]["token"] == "<tool_call>"
    assert bytes(first["bytes"]) == b"<tool_call>"


def adapted(folder: Path) -> tuple[Path, Path]:
    """A LoRA adapter, and the model with it put into the weights."""
    np = pytest.importorskip("numpy")
    files = pytest.importorskip("safetensors.numpy")
    merged, adapter = folder / "merged", folder / "adapter"
    shutil.copytree(SOURCE, merged)
    adapter.mkdir()
    random = np.random.default_rng(0)
    weights = files.load_file(SOURCE / "model.safetensors")
    parts: dict[str, Any] = {}
    for name in [n for n in weights if n.endswith(("q_proj.weight", "v_proj.weight"))]:
        whole = weights[name].astype(np.float32)
        down = random.normal(size=(4, whole.shape[1])).astype(np.float32) * 0.3
        up = random.normal(size=(whole.shape[0], 4)).astype(np.float32) * 0.3
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        parts |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        weights[name] = whole + 8 / 4 * (up @ down)
    as_f32 = {name: value.astype(np.float32) for name, value in weights.items()}
    files.save_file(as_f32, merged / "model.safetensors", metadata={"format": "pt"})
    files.save_file(parts, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
                "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "bias": "none",
                "fan_in_fan_out": False, "base_model_name_or_path": "base"}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return adapter, merged


def test_an_adapter_for_one_request(local: Locally, model: LocalModel, tmp_path: Path) -> None:
    """It answers as if the adapter were in the weights; the next one as if there were none."""
    adapter, merged = adapted(tmp_path)
    with_lora = msgspec.structs.replace(
        model, name="with-lora", options={"adapters": {"sea": str(adapter)}}
    )
    request = chat("Tell me about the sea.")

    def taking(lora: str) -> Request:
        return msgspec.structs.replace(request, extra={"lora": Raw(lora.encode())})

    plain, other = local.ask(model, request).text, local.ask(model_at(merged), request).text
    assert plain != other
    assert local.ask(with_lora, taking('[{"id":"sea"}]')).text == other
    assert local.ask(with_lora, request).text == plain
    for wrong in ('[{"id":"lake"}]', '[{"id":"sea","scale":0.5}]'):
        with pytest.raises(BadRequest, match="LoRA adapter") as caught:
            local.ask(with_lora, taking(wrong))
        assert caught.value.param == "lora"


def test_many_at_a_time_answer_as_one_alone(local: Locally, model: LocalModel) -> None:
    alone = local.ask(model, chat("Tell me about the sea.")).text

    async def one() -> str:
        async with local.target(model).open(chat("Tell me about the sea."), CALL) as deltas:
            return (await collect(deltas)).text

    async def many() -> list[str]:
        return list(await asyncio.gather(*(one() for _ in range(6))))

    assert local.run(many()) == [alone] * 6


def test_a_prompt_that_is_too_long(local: Locally, model: LocalModel) -> None:
    with pytest.raises(ContextTooLong):
        local.ask(model, chat("word " * 2000))


def test_code_of_a_model_is_never_run(local: Locally, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadFailed, match="auto_map"):
        local.ask(model_at(folder, engine="mistralrs"), chat("hello"))


def test_what_it_runs() -> None:
    def score(**facts: Any) -> float:
        info = ModelInfo(**{"format": "safetensors", "architecture": "llama", **facts})
        return mistralrs.can_run(info, MACHINE).score

    assert score() > score(format="gguf") > 0
    assert score(format="onnx") == 0
    assert score(task="embed") == 0
    assert score(architecture="mamba") == 0
    assert score(format="gguf", types={"F32": 9, "Q4_K": 9}) > 0
    assert score(format="gguf", types={"F32": 9, "TQ2_0": 9}) == 0
    assert score(types={"I2_S": 9}) > 0, "a word of GGUF alone"
