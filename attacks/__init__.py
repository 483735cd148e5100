"""Hostile model files, made by hand, each with the refusal that it must get.

    python -m attacks FOLDER        writes them all, to try them on anything that reads models

Those that hold programs are harmless: the program creates an empty file, whose path the maker of
the attack chooses. Tests run every attack against `llmrr inspect`'s readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from . import archives, headers, pickles
from .attack import Attack

__all__ = ["Attack", "all_attacks", "write"]


def all_attacks(marker: Path) -> Iterator[Attack]:
    """Every attack. `marker` is the file that the programs among them create."""
    yield from pickles.attacks(marker)
    yield from archives.attacks(marker)
    yield from headers.attacks()


def write(attack: Attack, folder: Path) -> Path:
    """Write the files of `attack` below `folder`.

    Returns:
        What to name: the file, or the folder of a model of several files.
    """
    for name, content in attack.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return folder / attack.target
