"""Output: tables, JSON, dim lines and notes; plain text when nobody looks.

Knows: when standard output is a terminal, and NO_COLOR. Does not know: what is shown. Meaning is
never in the colour alone.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TextIO

import msgspec

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BREAKS = re.compile(r"[\t-\r\x85\u2028\u2029]+")
_TURNS = re.compile(r"[\u202a-\u202e\u2066-\u2069]")
_HALVES = re.compile(r"[\ud800-\udfff]")
_COLOURS = {"error": "31;1", "hint": "36", "warning": "33;1", "ok": "32", "fail": "31;1"}


def coloured(stream: TextIO) -> bool:
    """Whether `stream` is a terminal that wants colours."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """`text` in the colour of that meaning, if the stream shows colours."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if coloured(stream or sys.stdout) else text


def note(kind: str, text: str) -> None:
    """`kind: text` on standard error; kinds are `error`, `hint`, `warning`."""
    print(f"{paint(kind, kind, sys.stderr)}: {line(text)}", file=sys.stderr)


def safe(text: str) -> str:
    """`text` without control characters: a model must not be able to steer the terminal.

    Bytes of a file name that are no UTF-8 come as halves of characters, which cannot be printed.
    """
    return _HALVES.sub("\ufffd", _CONTROLS.sub("", text))


def line(text: str) -> str:
    """A name or another fact as part of one line: as `safe`, without line breaks, and without the
    marks that turn the direction of what follows, with which `a.exe` can be shown as `exe.a`."""
    return safe(_TURNS.sub("", _BREAKS.sub(" ", text)))


def dim(text: str) -> None:
    """A line beside the answer, on standard error, so that the answer can be piped alone."""
    print(f"\x1b[2m{text}\x1b[0m" if coloured(sys.stderr) else text, file=sys.stderr)


def json(value: object) -> None:
    """`value` as indented JSON on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()
) -> None:
    """Rows under a head; columns named in `numbers` are aligned to the right.

    Plain columns, two spaces apart and never cut, when standard output is no terminal. Cells are
    shown as `line` gives them.
    """
    rows = [[line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(len(str(r[i])) for r in (head, *rows)) for i in range(len(head))]
        for row in (head, *rows):
            cells = [
                c.rjust(w) if h in numbers else c.ljust(w)
                for c, w, h in zip(row, widths, head, strict=True)
            ]
            print("  ".join(cells).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in head:
        grid.add_column(title, justify="right" if title in numbers else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    Console().print(grid)


def pairs(rows: Sequence[tuple[str, str]], indent: str = "") -> None:
    """`name   value` lines, as `line` gives them; empty values are left out."""
    rows = [(line(name), line(value)) for name, value in rows]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        if value:
            print(f"{indent}{name.ljust(width)}  {value}")


def money(dollars: float | None) -> str:
    """US dollars as short as they can be told."""
    if dollars is None:
        return "cost unknown"
    if dollars == 0:
        return "$0"
    return f"${dollars:.2f}" if dollars >= 1 else f"${dollars:.6f}".rstrip("0")


def count(number: int) -> str:
    """`1.1 M`, `4 k`: a count for people."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + f" {unit}"
    return str(number)
