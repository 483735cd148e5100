"""The store of models as a running gateway changes it: pull, copy, delete.

Knows: the store, the Hub's cache, conversions that go with a model. Does not know: wires, the
command line (whose verbs do the same for a person), what is loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import refs
from .errors import BadRequest, RunnerError, UnknownModel
from .home import Home

if TYPE_CHECKING:  # a gateway that nobody asks to change the store does without all of it
    from pathlib import Path

    from .convert.cache import Freed
    from .models.blobs import Store
    from .models.download import Watch
    from .models.manifest import Stored


class AppStore:
    """Changes what is on this machine, for those who may ask a gateway for it.

    Args:
        home: the data folder.
        environ: where tokens and proxies are read.
    """

    def __init__(self, home: Home, environ: Mapping[str, str]) -> None:
        self._home = home
        self._environ = environ

    async def pull(self, name: str, watch: Watch) -> str:
        """Bring a model here, and say what it is called now.

        Raises:
            BadRequest: `name` is no reference to a model elsewhere.
            NotFound, UpstreamError, Unavailable, BadResponse: it cannot be had.
        """
        from .models.pull import Puller

        ref = refs.parse(name)
        if ref.kind not in refs.REMOTE:
            raise BadRequest(
                f"`{name[:200]}` is not a model that can be brought here",
                hint="for example ollama:qwen3:4b or hf:org/repo#q4_k_m",
                param="model",
            )
        stored = await Puller(self._environ, watch).pull(ref)
        return stored.name

    async def copy(self, source: str, destination: str) -> None:
        """Give the stored model `source` the name `destination` as well.

        Raises:
            UnknownModel: there is no such stored model.
            BadRequest: the name is taken, or no name.
        """
        await asyncio.to_thread(self._copy, source, destination)

    async def delete(self, name: str) -> None:
        """Forget the stored model `name` and what was converted from it.

        Raises:
            UnknownModel: there is no such stored model.
        """
        await asyncio.to_thread(self._delete, name)

    def has(self, name: str) -> bool:
        """Whether the store has a model of that name."""
        return self.find(name) is not None

    def digest(self, name: str) -> str:
        """SHA-256 of what an engine opens for the stored model `name`; empty if it is not one."""
        stored = self.find(name)
        if stored is None:
            return ""
        main = [file for file in stored.files if file.path == stored.main or len(stored.files) == 1]
        return main[0].sha256 if main else ""

    def find(self, name: str) -> Stored | None:
        """What the store remembers of `name`; None if it knows no such name."""
        store = self._store()
        for spelling in _spellings(name):
            try:
                stored = store.get(spelling)
            except RunnerError:
                return None
            if stored is not None:
                return stored
        return None

    # ------------------------------------------------------------ in threads

    def _store(self) -> Store:
        from .models.blobs import Store

        return Store(self._home.models)

    def _known(self, name: str) -> Stored:
        stored = self.find(name)
        if stored is None:
            raise UnknownModel(
                f"the store has no model {name[:200]!r}",
                hint="`llmrr ls --all` shows what it has",
                param="model",
            )
        return stored

    def _copy(self, source: str, destination: str) -> None:
        store = self._store()
        refs.plain(destination)
        store.check_name(destination)
        if destination in store.names():
            raise BadRequest(
                f"the store has {destination[:200]!r} already",
                hint="delete it first",
                param="destination",
            )
        with store.pulling():
            store.copy(self._known(source).name, destination)

    def _delete(self, name: str) -> None:
        from .models.discard import remove
        from .models.hubcache import HubCache, folder

        store = self._store()
        stored = self._known(name)
        path = opened_at(stored.name, store)
        remove(stored.name, store, HubCache(folder(self._environ)))
        forget_made(path, store, self._home)


def opened_at(name: str, store: Store) -> Path | None:
    """What an engine opens for a name of the store; None where there is no such name or file."""
    try:
        stored = store.get(name)
        return None if stored is None else store.path_of(stored)
    except RunnerError:
        return None


def forget_made(path: Path | None, store: Store, home: Home) -> Freed:
    """Delete the conversions of a model that was removed, and those whose source is gone.

    Args:
        path: what an engine opened for it; what was made of it stays if a name still means it.
    """
    from .convert.cache import Freed, forget, prune

    if path is not None and any(opened_at(name, store) == path for name in store.names()):
        return Freed()
    mine = Freed() if path is None else forget(home, path)
    rest = prune(home, quick=True)
    return Freed(mine.conversions + rest.conversions, mine.bytes + rest.bytes)


def _spellings(name: str) -> tuple[str, ...]:
    """What a model may be called in the store that is asked for as `name`."""
    from .models.blobs import name_of

    try:
        return (name, name_of(refs.parse(name)))
    except RunnerError:
        return (name,)
