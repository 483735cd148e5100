"""Broken chat templates: told with their line, repaired beside the file, used by every engine."""

from __future__ import annotations

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from llm_runner_router import refs
from llm_runner_router.convert import run as converting
from llm_runner_router.home import find
from llm_runner_router.models import overrides
from llm_runner_router.models.blobs import Store
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.tokens.check import template_of

from .conftest import Run, in_a_process

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]
HF = Path(__file__).parents[2] / "zoo" / "models" / "tiny-general"
BROKEN = {
    "no endfor": ("{% for m in messages %}\n{{ m.content }}", "line 2"),
    "an unknown filter": ("{% for m in messages %}\n{{ m.content | loud }}{% endfor %}", "line 2"),
    "a missing name": ("{% for m in messages %}\n\n{{ m.parts.first }}\n{% endfor %}", "line 3"),
}  # fmt: skip


def folder(at: Path, template: str) -> Path:
    """The zoo's folder with another template."""
    shutil.copytree(HF, at)
    (at / "chat_template.jinja").write_text(template)
    return at


def gguf(at: Path, template: str) -> Path:
    made = folder(at, template)
    return converting.convert(made, made.with_suffix(".gguf"), "gguf").path


def store() -> Store:
    return Store(find(os.environ).models)


def model(path: Path) -> LocalModel:
    return resolve(refs.parse(f"file:{path}"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_told_and_repaired(llmrr: Run, tmp_path: Path, name: str) -> None:
    template, line = BROKEN[name]
    path = gguf(tmp_path / "m", template)
    before = sha256(path.read_bytes()).digest()
    told = llmrr("verify", "--deep", "--no-run", str(path))
    assert "odd  template" in told.out
    assert f"{line}: " in told.out
    assert f"next: `llmrr verify --deep --repair file:{path}` uses a better one" in told.out
    assert model(path).template is None, "nothing changes unless it is asked for"

    done = llmrr("verify", "--deep", "--repair", str(path))
    assert done.code == 0, done.out
    assert "ok   repair     another template is used from now on" in done.out
    assert "ok   answer     llamacpp: 'The capital of France is Paris.'" in done.out
    assert sha256(path.read_bytes()).digest() == before, "the file stays as it is"
    found = model(path)
    assert found.template == found.info.chat_template == template_of("chatml")

    again = llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    assert "ok   template   as chatml; repaired: the vocabulary has the marks" in again.out
    assert "repair  " not in again.out


def test_without_the_repair_the_engine_refuses_it(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    done = llmrr("verify", "--deep", str(path))
    assert done.code == 1
    assert "bad  answer     llamacpp: " in done.out
    refused = in_a_process("run", str(path), "hello", stdin="")
    assert refused.code == 1
    assert "`llmrr verify --deep --repair` with its name mends the chat template" in refused.err
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    assert in_a_process("run", str(path), "What is the capital of France?", stdin="").out == (
        "The capital of France is Paris.\n"
    )


def test_a_missing_invitation_to_answer_is_put_right(llmrr: Run, tmp_path: Path) -> None:
    template = template_of("chatml").replace("add_generation_prompt", "false")
    path = gguf(tmp_path / "m", template)
    told = llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    assert "odd  template" in told.out
    assert "it does not ask for an answer" in told.out
    assert "ok   repair" in told.out


@pytest.mark.parametrize("engine", ["mistralrs", "torch"])
def test_other_engines_use_the_repair(llmrr: Run, tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine, reason=f"the extra `{engine}` is not installed")
    path = folder(tmp_path / "m", BROKEN["no endfor"][0])
    broken = llmrr("verify", "--deep", "--engine", engine, str(path))
    assert "bad  answer" in broken.out
    assert broken.code == 1
    done = llmrr("verify", "--deep", "--repair", "--engine", engine, str(path))
    assert f"ok   answer     {engine}: 'The capital of France is Paris.'" in done.out


def test_it_is_undone(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    (blob,) = store().blobs.iterdir()
    assert blob.read_text() == template_of("chatml")
    done = llmrr("verify", "--undo-repair", str(path))
    assert (done.code, "undone" in done.out) == (0, True)
    assert model(path).template is None
    assert store().names() == [], "the name was there for the repair alone"
    assert list(store().blobs.iterdir()) == []
    assert "there was none" in llmrr("verify", "--undo-repair", str(path)).out


def test_a_name_keeps_its_repair_and_loses_it(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    assert llmrr("cp", str(path), "mine").code == 0
    llmrr("verify", "--deep", "--no-run", "--repair", "mine")
    assert resolve(refs.parse("mine")).template == template_of("chatml")
    assert llmrr("cp", "mine", "other").code == 0
    assert llmrr("prune").code == 0
    assert resolve(refs.parse("other")).template == template_of("chatml")
    assert llmrr("verify", "--undo-repair", "mine").code == 0
    assert resolve(refs.parse("mine")).template is None
    assert resolve(refs.parse("other")).template == template_of("chatml")
    assert llmrr("rm", "other").code == 0
    assert store().names() == ["mine"]
    kept = {blob.name for blob in store().blobs.iterdir()}
    assert kept == {sha256(path.read_bytes()).hexdigest()}


def test_a_copy_outlives_the_repair_it_came_with(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    assert llmrr("cp", str(path), "mine").code == 0
    assert llmrr("verify", "--undo-repair", "mine").code == 0
    assert "mine" in store().names()
    assert resolve(refs.parse("mine")).template is None
    assert model(path).template == template_of("chatml"), "that is another name"


def test_it_is_shown(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    assert "cannot be rendered" in llmrr("inspect", str(path)).out
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    shown = llmrr("inspect", str(path)).out
    assert "chat template, on a sample (repaired: the vocabulary has" in shown
    assert "<|im_start|>user" in shown
    facts = json.loads(llmrr("inspect", "--json", str(path)).out)
    assert facts["template"].startswith("repaired: ")
    assert "in place of the file's own: the vocabulary has" in llmrr("show", str(path)).out


def test_another_template_in_the_file_ends_it(llmrr: Run, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", BROKEN["no endfor"][0])
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    assert model(path).template is not None
    (path / "chat_template.jinja").write_text(template_of("chatml"))
    assert model(path).template is None
    told = llmrr("verify", "--deep", "--no-run", str(path))
    assert "its own; a repair of another template is kept" in told.out


def test_a_damaged_repair_is_refused(llmrr: Run, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m", BROKEN["no endfor"][0])
    llmrr("verify", "--deep", "--no-run", "--repair", str(path))
    (blob,) = store().blobs.iterdir()
    blob.chmod(0o644)
    blob.write_text("{{ messages }}")
    done = in_a_process("run", str(path), "hello", stdin="")
    assert done.code == 1
    assert "gone or damaged" in done.err
    assert "--undo-repair" in done.err
    assert llmrr("verify", "--undo-repair", str(path)).code == 0
    assert overrides.find(store(), f"file:{path}") is None


def test_what_cannot_be_repaired_is_explained(llmrr: Run, tmp_path: Path) -> None:
    marks = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    path = folder(tmp_path / "m", marks + "{% if add_generation_prompt %}assistant:{% endif %}")
    done = llmrr("verify", "--deep", "--no-run", "zoo:tiny-math", "--repair")
    assert done.code == 0
    assert "repair  " not in done.out
    told = llmrr("verify", "--deep", "--no-run", str(path)).out
    assert "`<|turn|>` is no token of this vocabulary" in told


def test_options_that_do_not_go_together(llmrr: Run) -> None:
    assert llmrr("verify", "--repair", "zoo:tiny-math").code == 2
    assert llmrr("verify", "--undo-repair").code == 2
    assert llmrr("verify", "--undo-repair", "--deep", "zoo:tiny-math").code == 2
