"""What a configuration of another program becomes: our settings, variables, and a note per line.

Knows: the shape of such a result and how notes are collected. Does not know: any program
(`config_litellm.py`, `config_llama_swap.py`, `config_modelfile.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from .config_yaml import Path as Where

Outcome = Literal["became", "lost", "moot"]
"""`became` a setting of ours; `lost`: it has no counterpart and its effect is gone; `moot`: nothing
is lost, because it says what is so here anyway or concerns a part that is not here."""

_OTHER = re.compile(r"[^A-Za-z0-9]+")


class Note(Struct, frozen=True):
    """What became of one line."""

    line: int
    """From 1; 0 where the line is not known."""
    key: str
    """The setting as the other program calls it, for example `router_settings.timeout`."""
    outcome: Outcome
    text: str
    """Into what, or why not and what to do instead. Never a secret."""


class Foreign(Struct, frozen=True):
    """A configuration of another program in our terms."""

    settings: dict[str, Any]
    """As if read from `llmrr.yaml`; not checked yet."""
    environment: dict[str, str]
    """Variables to set: secrets that stood in the file, and those that it sets itself."""
    notes: tuple[Note, ...]
    lines: dict[Where, int]
    """Path of a setting of ours to the line that it came from."""

    @property
    def lost(self) -> tuple[Note, ...]:
        """The notes of what cannot be carried."""
        return tuple(note for note in self.notes if note.outcome == "lost")

    def line(self, at: Where) -> int | None:
        """The line that a setting of ours, or the nearest around it, came from."""
        found = (self.lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self.lines)
        return next(found, None)


class Notes:
    """Collects notes while a file is read.

    Args:
        lines: path in the foreign file to its line.
    """

    def __init__(self, lines: Mapping[Where, int]) -> None:
        self._lines = lines
        self._notes: list[Note] = []

    def line(self, at: Where) -> int:
        """The line of `at`, or of the nearest thing around it; 0 if none is known."""
        known = (self._lines[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self._lines)
        return next(known, 0)

    def became(self, at: Where, text: str) -> None:
        """`at` is carried."""
        self._add(at, "became", text)

    def lost(self, at: Where, text: str) -> None:
        """`at` cannot be carried."""
        self._add(at, "lost", text)

    def moot(self, at: Where, text: str) -> None:
        """Nothing is lost without `at`."""
        self._add(at, "moot", text)

    def _add(self, at: Where, outcome: Outcome, text: str) -> None:
        self._notes.append(Note(self.line(at), spelled(at), outcome, text))

    def done(self) -> tuple[Note, ...]:
        """All of them in the order of the file's lines."""
        return tuple(sorted(self._notes, key=lambda note: note.line))


def texts(value: object) -> list[str]:
    """The texts of a list; nothing of anything else."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def spelled(at: Where) -> str:
    """A path as people write it: `model_list[0].litellm_params.model`."""
    text = ""
    for part in at:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def variable(*words: str, taken: Mapping[str, str]) -> str:
    """A name for an environment variable made of `words` that is not in `taken`."""
    base = _OTHER.sub("_", "_".join(words)).strip("_").upper() or "KEY"
    if base[0].isdigit():
        base = f"_{base}"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    return name
