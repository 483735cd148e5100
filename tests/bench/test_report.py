"""Tables and log entries say what was measured, what was asked, and what failed."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from bench import facts, report
from bench.report import Row, Section

FACTS = facts.Facts("abc1234", "A CPU", 2, 8 * 2**30, "Linux", "3.11", 1.5, 0.25)
WHEN = datetime.datetime(2026, 11, 24, 22, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (1234567.8, "1,234,568"),
        (250.0, "250"),
        (99.44, "99.4"),
        (2.345, "2.35"),
        (0.97, "0.9700"),
        (0.01234, "0.0123"),
        (0.0000123, "1.2e-05"),
        (-3.0, "-3"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert report.figure(value) == text


def test_a_unit_follows_its_number() -> None:
    assert report.figure(12.0, "µs") == "12 µs"


@pytest.mark.parametrize(
    ("row", "ratio", "met"),
    [
        (Row("x", 200.0, "µs", 250), None, True),
        (Row("x", 300.0, "µs", 250), None, False),
        (Row("x", 300.0, "", 256, better="more"), None, True),
        (Row("x", 97.0, "tok/s", direct=100.0, better="more", asked_ratio=0.97), 0.97, True),
        (Row("x", 90.0, "tok/s", direct=100.0, better="more", asked_ratio=0.97), 0.9, False),
        (Row("x", 5.0, "ms"), None, None),
        (Row("x", None, "ms", 5), None, False),
        (Row("x", None, "ms"), None, None),
        (Row("x", 5.0, "ms", direct=0.0), None, None),
    ],
)
def test_goals_are_judged(row: Row, ratio: float | None, met: bool | None) -> None:
    assert row.ratio == ratio
    assert row.met is met


def test_a_table_has_a_cell_for_everything() -> None:
    rows = [
        Row("decode", 95.0, "tok/s", None, 100.0, "more", 0.97, "2 threads"),
        Row("a longer name", None, "ms", 5),
    ]
    lines = report.table(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1, "columns are not aligned"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["decode", "≥ 0.9700 ×", "95 tok/s", "100 tok/s", "0.9500 ×", "NO", "2 threads"]
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == ["a longer name", "≤ 5 ms", "failed", "", "", "NO", ""]


def test_an_entry_tells_machine_time_figures_and_failures() -> None:
    sections = [
        Section("import", (Row("modules", 120.0, "", 250),)),
        Section("local", (), ("the runner did not start",)),
    ]
    text = report.entry(sections, FACTS, WHEN)
    assert text.startswith("## 2026-11-24 22:05 UTC · abc1234 · import, local\n")
    assert "A CPU · 2 cores · 8 GiB · Linux · Python 3.11 · load 1.5, 25%" in text
    assert "| modules" in text
    assert "- failed: the runner did not start" in text


def test_the_log_grows_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "LOG.md"
    report.append("## one\n", log)
    report.append("## two\n", log)
    text = log.read_text()
    assert text.startswith("# Figures\n")
    assert text.index("## one") < text.index("## two")
    assert text.count("# Figures\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["LOG.md"]


def test_facts_name_no_machine() -> None:
    import getpass
    import socket

    line = facts.gather().line()
    assert socket.gethostname() not in line
    assert "/" not in line.replace("GNU/Linux", ""), "a path?"
    assert getpass.getuser() not in line.split()
