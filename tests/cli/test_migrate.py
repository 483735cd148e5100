"""`llmrr migrate`: what is printed, written and told."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run

LITELLM = """\
model_list:
  - model_name: gpt
    litellm_params:
      model: openai/gpt-4o-mini
      api_key: sk-hush-hush
      temperature: 0.5
"""


def test_a_litellm_file_is_written_and_serves_the_same(llmrr: Run, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "config.yaml", tmp_path / "llmrr.yaml"
    theirs.write_text(LITELLM)
    done = llmrr("migrate", str(theirs), "--to", str(ours))
    assert done.code == 0, done.err
    assert "cannot be carried:\n  line 6    model_list[0].litellm_params.temperature: " in done.out
    assert "line 2    model_list[0]: `openai/gpt-4o-mini` for `gpt`" in done.out
    assert "sk-hush-hush" not in done.out + done.err + ours.read_text()
    for file in (theirs, ours):
        checked = llmrr("config", "check", str(file))
        assert checked.code == 0, checked.err
        assert "gpt   openai/gpt-4o-mini\n" in checked.out
    again = llmrr("migrate", str(theirs), "--to", str(ours))
    assert again.code == 2
    assert "exists already" in again.err
    assert llmrr("migrate", str(theirs), "--to", str(ours), "--force").code == 0


def test_the_configuration_alone_is_on_the_standard_output(llmrr: Run, tmp_path: Path) -> None:
    file = tmp_path / "Modelfile.mario"
    file.write_text("FROM llama3.2:3b\nSYSTEM You are Mario.\n")
    done = llmrr("migrate", str(file))
    assert done.code == 0, done.err
    assert done.out == (
        "# From Modelfile.mario, by `llmrr migrate`.\n\n"
        'models:\n  mario: "ollama:llama3.2:3b"  # Modelfile.mario:1\n'
    )
    assert "line 2    SYSTEM[1]: a model has no messages of its own" in done.err


def test_llama_swap_is_told_by_its_commands(llmrr: Run, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("models:\n  a:\n    cmd: llama-server --port ${PORT} -m a.gguf\n")
    done = llmrr("migrate", str(file))
    assert done.code == 0, done.err
    assert 'command: [llama-server, "--port", "{port}", "-m", a.gguf]' in done.out


@pytest.mark.parametrize("text", ["models: {a: zoo:tiny-math}", "- a", "FROM llama3"])
def test_what_is_nobodys_is_said(text: str, llmrr: Run, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(text)
    done = llmrr("migrate", str(file))
    assert done.code == 2
    assert not done.out
    assert done.err.startswith("error: ")
