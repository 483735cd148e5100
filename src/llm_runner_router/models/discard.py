"""What goes away: names with all that was pulled for them, and what no name means any more.

Knows: which files outside the store a pull put there, and who else needs them. Does not know:
conversions of models (`convert/cache.py`), how the store counts its own contents (`blobs.py`).

Hugging Face's cache is shared. From it goes only what a pull of ours put there, that no other name
of the store needs, and whose snapshot no branch or tag of that cache means but our own: a program
that asked for `v2` finds `v2` as it left it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from msgspec import Struct

from llm_runner_router.errors import RunnerError, Unavailable
from llm_runner_router.refs import parse

from .blobs import BROUGHT, KEEP_PARTIAL, Pruned, Store
from .hubcache import HubCache
from .manifest import Stored

MAX_MARK = 1 << 16
"""Bytes of a mark that are read; a path is shorter."""


class Removed(Struct, frozen=True):
    """What forgetting a name did."""

    stored: Stored | None
    """What it meant; None where its entry was damaged."""
    bytes: int
    """Freed."""
    waits: bool = False
    """Something is left for `prune`, because a download runs or another program is at it."""


def brought(store: Store, place: str) -> Path:
    """The mark of a file that a pull put outside the store, while no name remembers it.

    Without it a pull that is stopped and started again would take its own first files for those of
    another program, and `rm` would leave them.
    """
    return store.partial / f"{BROUGHT}{sha256(os.fsencode(place)).hexdigest()[:32]}"


def remember(store: Store, place: str, branch: str, *, due: bool = False) -> None:
    """Write the mark of `place`; with `due` the next `prune` deletes the file.

    Args:
        branch: the branch of the Hub for which it came.

    Raises:
        OSError: the folder cannot be written.
    """
    mark = brought(store, place)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_bytes(os.fsencode(f"{branch}\n{place}"))
    if due:
        os.utime(mark, (0, 0))


def remove(name: str, store: Store, hub: HubCache) -> Removed:
    """Forget a name and delete what pulls brought for it and no other name needs.

    Files that other programs put where they are stay.

    Raises:
        UnknownModel: there is no such name.
    """
    stored, freed = store.remove(name)
    if stored is None:
        return Removed(None, freed)
    _, branch = _branch(stored, hub)
    places = {f.place: branch for f in (*stored.files, *stored.former) if f.place and f.ours}
    try:
        with store.collecting():
            _, more, waits = _free(places, store, hub)
            return Removed(stored, freed + more, waits)
    except Unavailable:
        for place in places:
            remember(store, place, branch, due=True)
        return Removed(stored, freed, waits=True)


def prune(store: Store, hub: HubCache, *, now: float | None = None) -> Pruned:
    """Delete what no name means, what names meant before their sources moved on, and downloads
    that rest for longer than `KEEP_PARTIAL`, also in Hugging Face's cache.

    Args:
        now: seconds since 1970.

    Raises:
        Unavailable, ModelFileError: as `Store.prune`.
    """
    now = time.time() if now is None else now
    with store.collecting():
        mine = store.sweep(now=now)
        kept = store.all()
        places = {f.place: "" for stored in kept for f in stored.former if f.place and f.ours}
        for mark in store.partial.glob(f"{BROUGHT}*"):
            if _is_due(mark, now - KEEP_PARTIAL):
                place, branch = _marked(mark)
                mark.unlink(missing_ok=True)
                places |= {place: branch} if place else {}
        gone, freed, _ = _free(places, store, hub)
        for stored in kept:
            if stored.former:
                store.settle(stored.name)
        files, size = hub.prune(now - KEEP_PARTIAL)
    return Pruned(mine.files + gone + files, mine.bytes + freed + size)


def _free(places: Mapping[str, str], store: Store, hub: HubCache) -> tuple[int, int, bool]:
    """Delete files of Hugging Face's cache that nobody needs: how many went, bytes that are free by
    that, and whether some must wait.

    Args:
        places: paths, and the branch for which each came.
    """
    kept = store.all()
    needed = {file.place for other in kept for file in other.files}
    own = {_branch(other, hub) for other in kept}
    files, freed, waits = 0, 0, False
    for place, branch in places.items():
        path = Path(place)
        repo, others = hub.repo_of(path), hub.branches(path) - {branch}
        if place in needed or any((repo, other) not in own for other in others):
            continue
        there = os.path.lexists(path)
        try:
            freed += hub.remove(path)
            files += there
        except (OSError, Unavailable):
            waits = True
            with suppress(OSError):
                remember(store, place, branch, due=True)
    return files, freed, waits


def _branch(stored: Stored, hub: HubCache) -> tuple[str, str]:
    """The repository of the Hub that a name means, and the branch that its pull moved there."""
    repos = (hub.repo_of(Path(file.place)) for file in stored.files if file.place)
    return next(filter(None, repos), ""), stored.branch or _asked(stored.name)


def _asked(name: str) -> str:
    """The branch in a name from before entries had a field for it."""
    try:
        return parse(name).revision or "main"
    except RunnerError:
        return "main"


def _is_due(mark: Path, before: float) -> bool:
    try:
        return mark.lstat().st_mtime < before
    except OSError:
        return False


def _marked(mark: Path) -> tuple[str, str]:
    """The path that a mark stands for, and its branch; empty where it does not say."""
    try:
        with mark.open("rb") as file:
            branch, _, place = os.fsdecode(file.read(MAX_MARK)).partition("\n")
    except OSError:
        return "", ""
    return (place, branch) if os.path.isabs(place) else ("", "")


__all__ = ["Removed", "brought", "prune", "remember", "remove"]
