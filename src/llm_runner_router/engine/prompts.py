"""Which prompts are worth keeping while their model is unloaded, and which are kept. Pure.

Knows: slots, tokens, bytes, a speed of writing. Does not know: files, processes (`slots.py`).

Reading a prompt again costs a forward pass per token; its keys and values cost a file read. On
weights of 140 M parameters and one thread, a prompt of 1,355 tokens took 7.4 s to compute and 6 ms
to read back (30 MB).
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from .kept import Held

LEAST_TOKENS = 32
"""Shorter prompts are computed again: a file would save nothing that anybody notices."""


class Slot(Struct, frozen=True):
    """A slot of a runner: the tokens it holds, and when it was used."""

    id: int
    tokens: int
    task: int | None = None
    """Number of its last task, growing with time; None if unused since the model was loaded."""


class Saved(Struct, frozen=True):
    """A prompt in a file. `key` names the weights and how they were loaded."""

    key: str
    model: str
    file: str
    tokens: int
    bytes: int
    prompt: tuple[int, ...] = ()
    """The tokens themselves; empty if they could not be read."""
    held: Held | None = None
    """What is known of it besides, see `kept.py`."""


class Counts(Struct):
    """What was done for one model; for display."""

    saved: int = 0
    restored: int = 0
    tokens: int = 0
    """Tokens that were restored and so not computed again."""
    failed: int = 0


def worth_saving(
    slots: Iterable[Slot], *, per_token: int, limit: int, seconds: float, rate: float
) -> tuple[Slot, ...]:
    """Slots to save, latest used first, within `limit` bytes and `seconds` at `rate` bytes/s.

    One that does not fit is passed over; an earlier, shorter one may still fit.
    """
    used = [slot for slot in slots if slot.task is not None and slot.tokens >= LEAST_TOKENS]
    room = min(limit, int(seconds * rate))
    chosen: list[Slot] = []
    for slot in sorted(used, key=lambda s: s.task or 0, reverse=True):
        size = slot.tokens * per_token
        if size <= room:
            chosen.append(slot)
            room -= size
    return tuple(chosen)


class Shelf:
    """The prompts that are kept, oldest first, never more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._saved: dict[str, Saved] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(saved.bytes for saved in self._saved.values())

    def add(self, saved: Saved) -> tuple[Saved, ...]:
        """Put a file on the shelf; gives those that must go for it, which may be itself.

        A prompt that this one continues goes first: whatever it is good for, this one is, too.
        """
        gone = [old for old in self._saved.values() if _continues(saved, old)]
        self.drop([old.file for old in gone])
        self._saved[saved.file] = saved
        for oldest in tuple(self._saved.values()):
            if self.bytes <= self.limit:
                break
            gone.append(self._saved.pop(oldest.file))
        return tuple(gone)

    def newest(self, key: str, most: int) -> tuple[Saved, ...]:
        """At most `most` prompts for `key`, latest saved first."""
        found = [saved for saved in self._saved.values() if saved.key == key]
        return tuple(reversed(found))[:most]

    def drop(self, files: Iterable[str]) -> tuple[Saved, ...]:
        """Take files off the shelf; gives those that were on it."""
        return tuple(s for file in files if (s := self._saved.pop(file, None)) is not None)

    def drop_key(self, key: str) -> tuple[Saved, ...]:
        """Take off all that `key` has."""
        return self.drop([file for file, saved in self._saved.items() if saved.key == key])

    def drop_model(self, model: str) -> tuple[Saved, ...]:
        """Take off all that the model called `model` has, however it was loaded."""
        return self.drop([file for file, saved in self._saved.items() if saved.model == model])


def _continues(new: Saved, old: Saved) -> bool:
    if new.key != old.key or not old.prompt:
        return False
    return new.prompt[: len(old.prompt)] == old.prompt
