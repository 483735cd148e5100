"""From figures to one readable table, and to an entry of `bench/LOG.md`.

Knows: rows (asked, measured, the same work without us, the ratio) and how they are written. Does
not know how anything was measured.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from .facts import Facts

LOG = Path(__file__).with_name("LOG.md")
_HEAD = ("what", "asked", "measured", "without us", "ratio", "met", "note")
_LEFT = {0, 6}
_PREFACE = """# Figures

What `make bench` has measured, newest last. Times differ from machine to machine and from hour to
hour; what counts are the ratios to the same work without us in the same run, CPU time, and medians
over interleaved rounds. A row that could not be measured says so.
"""


class Row(Struct, frozen=True):
    """One figure. `value` None means that it could not be measured; the note says why."""

    what: str
    value: float | None
    unit: str
    asked: float | None = None
    """The goal, in `unit` (or as a ratio, see `asked_ratio`)."""
    direct: float | None = None
    """The same work without us, in the same run and unit."""
    better: Literal["less", "more"] = "less"
    asked_ratio: float | None = None
    """A goal for `ratio` instead of the value."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Measured over direct."""
        if self.value is None or not self.direct:
            return None
        return self.value / self.direct

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a figure."""
        if self.value is None:
            return None if self.asked is None and self.asked_ratio is None else False
        if self.asked is not None:
            return _reached(self.value, self.asked, self.better)
        if self.asked_ratio is not None and self.ratio is not None:
            return _reached(self.ratio, self.asked_ratio, self.better)
        return None


class Section(Struct, frozen=True):
    """What one benchmark found; `failures` are told in full."""

    name: str
    rows: tuple[Row, ...]
    failures: tuple[str, ...] = ()


def _reached(value: float, goal: float, better: str) -> bool:
    return value <= goal if better == "less" else value >= goal


def figure(value: float | None, unit: str = "") -> str:
    """A number with three significant digits and its unit; `–` for none.

    >>> figure(1234.5, "µs"), figure(0.01234, "s"), figure(None)
    ('1,234 µs', '0.0123 s', '–')
    """
    if value is None:
        return "–"
    if abs(value) >= 100 or value == int(value):
        text = f"{value:,.0f}"
    else:
        digits = 2 if abs(value) >= 1 else 4
        text = f"{value:.{digits}f}" if abs(value) >= 10**-digits else f"{value:.2g}"
        if abs(value) >= 10:
            text = f"{value:.1f}"
    return f"{text} {unit}".rstrip()


def _asked(row: Row) -> str:
    sign = "≤" if row.better == "less" else "≥"
    if row.asked is not None:
        return f"{sign} {figure(row.asked, row.unit)}"
    if row.asked_ratio is not None:
        return f"{sign} {figure(row.asked_ratio)} ×"
    return ""


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: ""}[row.met]
    measured = "failed" if row.value is None else figure(row.value, row.unit)
    direct = "" if row.direct is None else figure(row.direct, row.unit)
    ratio = "" if row.ratio is None else f"{figure(row.ratio)} ×"
    return (row.what, _asked(row), measured, direct, ratio, met, row.note)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that is also readable as it is."""
    body = [_cells(row) for row in rows]
    widths = [max(len(line[i]) for line in (_HEAD, *body)) for i in range(len(_HEAD))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i in _LEFT else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (width + 2) if i in _LEFT else "-" * (width + 1) + ":"
        for i, width in enumerate(widths)
    )
    return "\n".join([line(_HEAD), f"|{rule}|", *(line(cells) for cells in body)])


def entry(sections: Sequence[Section], facts: Facts, when: datetime.datetime) -> str:
    """One entry of the log: when, what, on which machine, the table, the failures."""
    names = ", ".join(section.name for section in sections)
    parts = [f"## {when:%Y-%m-%d %H:%M} UTC · {facts.commit} · {names}", facts.line()]
    for section in sections:
        parts.append(f"### {section.name}")
        if section.rows:
            parts.append(table(section.rows))
        parts += [f"- failed: {failure}" for failure in section.failures]
    return "\n\n".join(parts) + "\n"


def append(text: str, log: Path = LOG) -> None:
    """Add an entry to the log; a reader sees the old or the new file, never half of one."""
    old = log.read_text() if log.exists() else _PREFACE
    part = log.with_suffix(".part")
    part.write_text(f"{old.rstrip()}\n\n{text}")
    os.replace(part, log)
