"""`llmrr verify --deep` on models that are whole, and on such that are not."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from llm_runner_router.models.resolve import ZOO

from .conftest import Run

HF = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"


@pytest.mark.parametrize("model", ["zoo:tiny-math", str(HF)])
def test_a_whole_model(llmrr: Run, model: str) -> None:
    done = llmrr("verify", "--deep", "--no-run", "--json", model)
    assert done.code == 0, done.out
    findings = json.loads(done.out)[0]["findings"]
    assert [f["check"] for f in findings] == [
        "header", "embedding", "layers", "numbers", "tokenizer", "template",
    ]  # fmt: skip
    assert {f["state"] for f in findings} == {"ok"}


def broken(folder: Path) -> Path:
    shutil.copytree(HF, folder / "m")
    return folder / "m"


def test_a_number_that_is_none(llmrr: Run, tmp_path: Path) -> None:
    model = broken(tmp_path)
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x00\x7e")
    done = llmrr("verify", "--deep", "--no-run", str(model))
    assert done.code == 1
    assert "bad  numbers    not finite: `" in done.out


def test_a_template_that_is_odd_is_no_failure(llmrr: Run, tmp_path: Path) -> None:
    model = broken(tmp_path)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}{% endfor %}")
    done = llmrr("verify", "--deep", "--no-run", str(model))
    assert done.code == 0
    assert "odd  template" in done.out


def test_a_damaged_file(llmrr: Run, tmp_path: Path) -> None:
    model = broken(tmp_path)
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    done = llmrr("verify", "--deep", "--no-run", str(model))
    assert done.code == 1
    assert "bad  header" in done.out


def test_a_packed_model_is_not_judged_by_what_lies_beside_it(llmrr: Run, tmp_path: Path) -> None:
    folder = broken(tmp_path)  # with a tokenizer and a template, which are another model's
    packed = folder / "other.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(HF, "other")
    done = llmrr("verify", "--deep", str(packed))
    assert done.code == 0
    assert "--to safetensors` writes" in done.out
    assert "tokenizer" not in done.out


def test_a_file_of_gguf_without_its_ending(llmrr: Run, tmp_path: Path) -> None:
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "sha256-0123")
    done = llmrr("verify", "--deep", "--no-run", str(tmp_path / "sha256-0123"))
    assert "ok   tokenizer" in done.out


def test_an_engine_that_there_is_not_says_nothing_of_the_model(llmrr: Run) -> None:
    done = llmrr("verify", "--deep", "--engine", "nope", "zoo:tiny-math")
    assert done.code == 2
    assert "`nope`" in done.err or "'nope'" in done.err
    assert not done.out
