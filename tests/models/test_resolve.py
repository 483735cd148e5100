"""References to files: the zoo, the disk, and what is neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_runner_router.errors import ModelFileError, UnknownModel, Unsupported
from llm_runner_router.models.resolve import ZOO, resolve, zoo_models, zoo_names
from llm_runner_router.refs import parse


def test_a_built_in_model() -> None:
    model = resolve(parse("zoo:tiny-math"))
    assert model.name == model.card.name == "zoo:tiny-math"
    assert model.path.is_file()
    assert model.card.local
    assert model.card.context == model.info.context


def test_the_nearest_names_are_told() -> None:
    with pytest.raises(UnknownModel, match=r"did you mean `zoo:tiny-math`") as caught:
        resolve(parse("zoo:tiny-meth"))
    assert "zoo:tiny-chat" in (caught.value.hint or "")


def test_a_name_cannot_leave_the_zoo() -> None:
    with pytest.raises(UnknownModel):
        resolve(parse("zoo:../zoo/tiny-math"))


def test_two_spellings_of_a_path_are_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "a.gguf")
    monkeypatch.chdir(tmp_path)
    assert resolve(parse("./a.gguf")) == resolve(parse(f"file:{tmp_path / 'a.gguf'}"))


def test_a_folder_is_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has no model files"):
        resolve(parse(f"file:{tmp_path}"))
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "a.gguf")
    model = resolve(parse(f"file:{tmp_path}"))
    assert (model.path, model.name) == (tmp_path / "a.gguf", f"file:{tmp_path}")


def test_a_folder_that_only_a_plugin_knows(tmp_path: Path) -> None:
    from tests.formats import npz

    (tmp_path / "model").mkdir()
    path = npz.written(tmp_path / "model")
    with pytest.raises(ModelFileError, match="has no model files"):
        resolve(parse(f"file:{path}"))
    with npz.installed(tmp_path / "site"):
        model = resolve(parse(f"file:{path}"))
        assert (model.path, model.info.format) == (path, "npz")


@pytest.mark.parametrize("text", ["hf:org/repo#q4_k_m", "ollama:qwen3:4b", "https://host/a.gguf"])
def test_what_is_not_here_says_how_to_get_it(text: str) -> None:
    with pytest.raises(UnknownModel, match="is not on this machine") as caught:
        resolve(parse(text))
    assert f"llmrr pull {text}" in (caught.value.hint or "")


def test_other_kinds_are_not_local() -> None:
    with pytest.raises(Unsupported, match="not a local model"):
        resolve(parse("openai/gpt-4o-mini"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_cards_are_read(tmp_path: Path, wrapped: bool) -> None:
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "one.gguf")
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "bare.gguf")
    entry = {
        "name": "first",
        "file": "one.gguf",
        "description": "adds",
        "capabilities": {"tools": False, "json": False},
        "scores": {"addition": 0.98},
        "license": "MIT",
    }
    cards: object = {"version": 1, "models": [entry]} if wrapped else [entry]
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    assert zoo_names(zoo=tmp_path) == ("first", "bare", "one")
    card = resolve(parse("zoo:first"), zoo=tmp_path).card
    assert (card.description, card.scores, card.license) == ("adds", {"addition": 0.98}, "MIT")
    assert not card.capabilities.json
    assert resolve(parse("zoo:bare"), zoo=tmp_path).card.scores == {}


def test_damaged_cards_are_named(tmp_path: Path) -> None:
    (tmp_path / "cards.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"cards\.json"):
        zoo_models(zoo=tmp_path)
