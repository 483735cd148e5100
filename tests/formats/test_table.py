"""The page of formats and engines says what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.engine.test_features import CHECKS, ENGINES, REFUSED

from llm_runner_router.convert.base import found
from llm_runner_router.engine.prepare import PACKED
from llm_runner_router.engine.select import engine_names, load_engine
from llm_runner_router.models import detect
from llm_runner_router.testing import check_format

from . import conversions, features, npz
from .forms import FORMS
from .notes import Notes, table
from .table import HEAD, PAGE, SECTIONS, columns, section


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["formats", "conversions"])
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


async def test_the_table_of_features_is_that_of_the_test_of_features() -> None:
    told = await SECTIONS["features"]()
    assert told == section(PAGE.read_text(), "features"), "`python -m tests.formats.table features`"


def test_what_engines_say_of_themselves_is_what_they_are_seen_to_do() -> None:
    assert {*ENGINES, features.OUTSIDE} == set(engine_names())
    checks = {name for names in features.OF.values() for name in names}
    assert checks <= set(CHECKS)
    for engine in ENGINES:
        has = load_engine(engine).FEATURES
        assert has <= features.OF.keys() | features.BESIDE.keys()
        for feature, names in features.OF.items():
            for name in names:
                refuses = (engine, name) in REFUSED
                assert refuses == (feature not in has), f"{engine}: {name}"


def test_every_kind_has_its_place() -> None:
    lines = section(PAGE.read_text(), "conversions").splitlines()
    (head,) = [line for line in lines if line.startswith("| From |")]
    assert [cell.strip(" `") for cell in head.split("|")[3:-1]] == conversions.kinds()
    named = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert named == ["From", *conversions.SOURCES]
    there = {line.split(" | ")[1].strip("`") for line in lines if line.startswith("| ")}
    read = {one.facts.have for one in found() if not one.facts.have.startswith(PACKED)}
    assert read <= there, f"no row converts {read - there}"
    assert any(kind.startswith(PACKED) for kind in there)
