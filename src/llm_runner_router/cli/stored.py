"""What the verbs about the store share: opening it, and finding what a person means.

Knows: that people write references, names and spellings of both. Does not know: what is done with
what is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_runner_router import refs
from llm_runner_router.errors import RunnerError, UnknownModel
from llm_runner_router.home import find
from llm_runner_router.models.blobs import Store, name_of, unwritable
from llm_runner_router.models.found import Found, locate
from llm_runner_router.models.manifest import Stored, StoredFile, hash_file


def opened() -> Store:
    """The store of the data folder."""
    return Store(find(os.environ).models)


@contextmanager
def changing(store: Store) -> Iterator[None]:
    """A disk that refuses is told as the store's own error.

    Raises:
        Unavailable: says where, and what helps.
    """
    try:
        yield
    except OSError as exc:
        raise unwritable(exc, store.path) from exc


def plural(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def stored_name(text: str, store: Store) -> str:
    """The name in the store that `text` means; `text` itself if there is none."""
    if text in store.names():
        return text
    try:
        return name_of(refs.parse(text))
    except RunnerError:
        return text


def locate_other(text: str) -> Found | None:
    """The model of another program that `text` means."""
    try:
        return locate(refs.parse(text), os.environ)
    except RunnerError:
        return None


def kept(text: str, store: Store) -> Stored:
    """What `text` means on this machine, as the store would remember it, hashed if it is not there.

    Raises:
        UnknownModel: it is not here.
        ModelFileError: its entry is damaged.
    """
    stored = store.get(stored_name(text, store))
    if stored is not None:
        return stored
    from llm_runner_router.models.resolve import resolve

    model = resolve(refs.parse(text))
    if model.name.startswith("zoo:"):
        raise UnknownModel(
            f"`{model.name}` is part of the package, not of the store", hint="it is always there"
        )
    files = _files(model.path)
    main = model.path.name if model.path.is_file() else ""
    return Stored(model.name, "path", files, main=main, license=model.info.license)


def _files(path: Path) -> tuple[StoredFile, ...]:
    """The files an engine reads of a file (all its parts) or folder, where they lie."""
    from llm_runner_router.models.pick import choose, split_names
    from llm_runner_router.models.sources.path import listed

    if path.is_file():
        names = split_names(path.name)
        places = {name: path.parent / name for name in names}
    else:
        chosen = choose(listed(path), refs.Ref("file", str(path)))
        places = {file.path: path / file.path for file in chosen.files}
    return tuple(
        StoredFile(name, place.stat().st_size, hash_file(place)["sha256"], str(place))
        for name, place in places.items()
    )
