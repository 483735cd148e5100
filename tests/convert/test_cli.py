"""`llmrr convert`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.cli import main

SOURCE = str(Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat")


def test_a_folder_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "tiny.gguf"
    assert main(["convert", SOURCE, str(target), "--type", "Q8_0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(str(target))
    assert "safetensors to gguf: 100 %" in printed.err
    assert main(["show", str(target)]) == 0


def test_without_a_target_the_result_lies_beside_the_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").symlink_to(SOURCE)
    assert main(["convert", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine-F16.gguf").is_file()


def test_a_plan_is_shown_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", SOURCE, str(tmp_path / "a.gguf"), "--plan"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["FROM", "TO", "DISK", "TIME", "EXACT"]
    assert printed[1].split()[:2] == ["safetensors", "gguf"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["zoo:tiny-chat"], "`gguf` already"),
        ([SOURCE, "out"], "does not say which kind"),
        ([SOURCE, "--to", "pdf"], "no kind of model called `pdf`"),
        (["/nowhere/model"], "nowhere"),
    ],
)
def test_a_refusal_has_a_next_step(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *args]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert "hint: " in printed


def test_an_adapter_becomes_a_file_for_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("safetensors")
    from . import adapters

    folder = adapters.make(Path(SOURCE), tmp_path / "lora", only=("q_proj",))
    assert main(["convert", str(folder)]) == 1
    printed = capsys.readouterr().err
    assert "not said for which model" in printed
    assert "--base" in printed
    assert main(["convert", str(folder), "--base", "zoo:tiny-chat"]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "lora-F16.gguf"))
    assert main(["inspect", str(tmp_path / "lora-F16.gguf")]) == 0
    assert "a LoRA adapter, which changes a model" in capsys.readouterr().out
    assert main(["convert", SOURCE, str(tmp_path / "m.gguf"), "--base", SOURCE]) == 1
    assert "`--base` is for adapters" in capsys.readouterr().err
