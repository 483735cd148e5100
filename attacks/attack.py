"""What an attack is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Attack:
    """One hostile model: its files, what to open, and what the refusal must say."""

    name: str
    files: dict[str, bytes | str]
    """Content by relative path; a text is the target of a symbolic link."""
    error: str
    """Words of the refusal."""
    target: str = ""
    """What to open, relative to the folder; the only file where it is not said."""
    runs: bool = False
    """Whether a reader that unpickles would run the program inside."""
    source: str = ""
    """Where such an attack was seen."""

    @staticmethod
    def file(
        name: str, content: bytes, error: str, *, runs: bool = False, source: str = ""
    ) -> Attack:
        """An attack that is one file."""
        return Attack(PurePosixPath(name).stem, {name: content}, error, name, runs, source)
