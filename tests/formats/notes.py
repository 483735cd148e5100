"""Cells of tables in Markdown, and the notes below a table.

Knows: how a long reason becomes a number beside a cell. Does not know: what the tables say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class Notes:
    """The notes of one table, each once, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """The mark of a note with this text."""
        assert text.strip(), "a reason that says nothing explains nothing"
        number = self._numbers.setdefault(text, len(self._numbers) + 1)
        return f"<sup>{number}</sup>"

    def lines(self) -> Iterable[str]:
        """The notes as a numbered list."""
        return [f"{number}. {text}" for text, number in self._numbers.items()]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table.

    Raises:
        AssertionError: a cell is empty: that would be a hole without an explanation.
    """
    lines = [_line(head), "|" + "---|" * len(head)]
    for cells in rows:
        assert len(cells) == len(head), cells
        assert all(cell.strip() for cell in cells), f"an empty cell: {cells}"
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
