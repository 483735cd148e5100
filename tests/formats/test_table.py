"""The page of formats and engines says what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.models import detect
from llm_runner_router.testing import check_format

from . import npz
from .forms import FORMS
from .notes import Notes, table
from .table import HEAD, PAGE, SECTIONS, columns, section


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SECTIONS)
async def test_the_page_says_what_happens(name: str) -> None:
    told = await SECTIONS[name]()
    hint = f"`python -m tests.formats.table {name}` writes it"
    assert told == section(PAGE.read_text(), name), hint


def test_every_format_and_every_engine_has_its_place() -> None:
    """Cheap, so that one who adds a format or an engine hears of it in the usual run."""
    page = PAGE.read_text()
    assert page.startswith(HEAD)
    lines = section(page, "formats").splitlines()
    (head,) = [line for line in lines if line.startswith("| Format |")]
    assert [cell.strip(" `") for cell in head.split("|")[3:-2]] == columns()
    named = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert named == ["Format", *FORMS]
    detected = {line.split(" | ")[1].strip("`") for line in lines if line.startswith("| ")}
    ours = {name for name, _ in detect._own()}
    assert ours <= detected, f"no row shows {ours - detected}"


def test_the_example_of_a_plugin_keeps_the_contract(tmp_path: Path) -> None:
    for name in ("sound", "scratch"):
        (tmp_path / name).mkdir()
    check_format(npz, npz.written(tmp_path / "sound"), tmp_path / "scratch", damages=30)


def test_no_cell_is_left_without_a_word() -> None:
    notes = Notes()
    assert notes.mark("a") == notes.mark("a") == "<sup>1</sup>"
    assert notes.mark("b") == "<sup>2</sup>"
    assert list(notes.lines()) == ["1. a", "2. b"]
    assert table(["x", "y"], [["a|b", "c"]]) == ["| x | y |", "|---|---|", "| a\\|b | c |"]
    for hole in ("", " "):
        with pytest.raises(AssertionError):
            table(["x", "y"], [["a", hole]])
        with pytest.raises(AssertionError):
            notes.mark(hole)
