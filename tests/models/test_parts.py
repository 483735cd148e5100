"""Files that go with a model and are none: told apart, and refused as models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.convert.quantize import quantize
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import ModelFileError
from llm_runner_router.models import detect
from llm_runner_router.models.pick import Listed, choose
from llm_runner_router.models.resolve import ZOO, resolve
from llm_runner_router.refs import parse

from .formats.building import safetensors

TENSORS = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ("F32", (2, 4))}


def gguf_file(path: Path, architecture: str, **fields: str) -> Path:
    with GGUFWriter(path, architecture) as out:
        for key, value in fields.items():
            out.field(key.replace("__", "."), value)
        out.tensor("blk.0.attn_q.weight.lora_a", "F32", (2, 4))
        out.begin()
        out.data("blk.0.attn_q.weight.lora_a", bytes(32))
        return out.finish()


def peft(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    said = {"peft_type": "LORA", "base_model_name_or_path": "org/base", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    (folder / "adapter_model.safetensors").write_bytes(safetensors(TENSORS))
    return folder


CASES = {
    "adapter": ("llama", {"general__type": "adapter"}, "a LoRA adapter", "`adapters:` of that"),
    "mmproj": ("clip", {"general__type": "mmproj"}, "a projector for images", "own file"),
    "older mmproj": ("clip", {}, "a projector for images", "own file"),
    "imatrix": ("", {"general__type": "imatrix"}, "an importance matrix", "own file"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_gguf_file_that_is_no_model_says_what_it_is(case: str, tmp_path: Path) -> None:
    architecture, fields, what, step = CASES[case]
    path = gguf_file(tmp_path / "a.gguf", architecture, **fields)
    info = detect.describe(path)
    assert info.part == case.removeprefix("older ")
    for refused in (lambda: resolve(parse(str(path))), lambda: detect.check_whole(path, info)):
        with pytest.raises(ModelFileError, match=what) as caught:
            refused()
        assert str(path) in caught.value.message
        assert step in (caught.value.hint or "")
    verdicts = EngineSelector().rank(info)
    assert all(verdict.score == 0 and what in verdict.why for verdict in verdicts)
    with pytest.raises(ModelFileError, match=what):
        quantize(path, tmp_path / "b.gguf", "Q8_0", threads=1)


@pytest.mark.parametrize("name", ["", "adapter_model.safetensors"])
def test_a_folder_of_peft_is_no_model(name: str, tmp_path: Path) -> None:
    path = peft(tmp_path / "lora") / name
    with pytest.raises(ModelFileError, match="LoRA adapter, which changes a model") as caught:
        resolve(parse(f"file:{path}"))
    assert "use-lora.md" in (caught.value.hint or "")
    info = detect.describe(path)
    assert any("LoRA adapter for 'org/base'" in note for note in info.notes)


def test_other_adapters_of_peft_are_told_by_their_kind(tmp_path: Path) -> None:
    folder = peft(tmp_path / "a", peft_type="PREFIX_TUNING")
    (folder / "adapter_model.safetensors").write_bytes(
        safetensors({"prompt_embeddings": ("F32", (2, 4))})
    )
    info = detect.describe(folder)
    assert info.part == "adapter"
    assert any("PREFIX_TUNING adapter" in note for note in info.notes)


def test_a_model_with_an_adapter_beside_it_is_a_model(tmp_path: Path) -> None:
    folder = peft(tmp_path / "both")
    (folder / "model.safetensors").write_bytes(safetensors({"a.weight": ("F32", (2, 4))}))
    assert detect.describe(folder).part == ""


def test_a_part_may_be_asked_for(tmp_path: Path) -> None:
    folder = peft(tmp_path / "lora")
    assert resolve(parse(f"file:{folder}"), part="adapter").path == folder
    with pytest.raises(ModelFileError, match="is a whole model, not a LoRA adapter"):
        resolve(parse(str(ZOO / "tiny-math.gguf")), part="adapter")


def test_what_is_pulled_of_an_adapter() -> None:
    def chosen(*names: str) -> set[str]:
        files = [Listed(name, 1) for name in names]
        return {file.path for file in choose(files, parse("hf:org/lora")).files}

    peft_files = {"adapter_config.json", "adapter_model.safetensors"}
    assert chosen(*peft_files, "README.md", "train.py") == peft_files
    assert chosen("sql-lora-f16.gguf", "README.md") == {"sql-lora-f16.gguf"}
    assert chosen("sql-lora-f16.gguf", "model-Q4_K_M.gguf") == {"model-Q4_K_M.gguf"}
