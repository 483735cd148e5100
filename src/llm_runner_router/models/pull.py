"""From a reference to a name in the store: manifest, space, files, checks, name, in this order.

Knows: where each source's files go. Does not know: protocols (`sources/`), bytes (`download.py`),
terminals (`cli/pull.py` shows what a `Watch` is told).

Files of the Hub go to Hugging Face's own cache, which every other program shares; all others to the
store. A content that is on this machine already, wherever, is linked instead of fetched.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from hashlib import sha256 as sha256_of
from pathlib import Path

import msgspec

from llm_runner_router.errors import BadRequest, ModelFileError, Unavailable
from llm_runner_router.home import Home, find
from llm_runner_router.refs import Ref
from llm_runner_router.units import format_size

from . import found
from .blobs import Store, name_of, share, unwritable
from .discard import brought, remember
from .download import SPARE, Downloader, Fetched, Silent, Watch
from .hubcache import HubCache, folder
from .locks import FileLock, waiting
from .manifest import Manifest, Override, RemoteFile, Stored, StoredFile, check, hash_file
from .sources import Source, source_for
from .sources._http import shown

PATIENCE = 6 * 3600.0
"""Seconds one download waits for another process that brings the same file."""


class Puller:
    """Brings models to this machine.

    Args:
        environ: where the folders, tokens and proxies are read.
        watch: told of every step.
        downloader: default is one that tells `watch`.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        watch: Watch | None = None,
        *,
        downloader: Downloader | None = None,
    ) -> None:
        self._environ = environ
        self._watch = watch or Silent()
        self._downloader = downloader or Downloader(self._watch)
        home: Home = find(environ)
        self.store = Store(home.models)
        self.hub = HubCache(folder(environ))

    async def pull(
        self,
        ref: Ref,
        *,
        name: str | None = None,
        source: Source | None = None,
        accept: Callable[[Stored, Store], None] | None = None,
        replace: bool = False,
    ) -> Stored:
        """Bring `ref` here and give it a name; what is there already is checked, not fetched.

        Args:
            name: another name than the reference.
            source: where it comes from; default is the reference's own.
            accept: asked before the name is given; what it raises refuses the model.
            replace: `name` may mean another model so far. A reference is brought up to date in
                any case.

        Raises:
            BadRequest: `name` means another model.
            NotFound, UpstreamError, Unavailable, BadResponse: nothing has a new name then, and
                what came is kept for the next time.
        """
        called = name or name_of(ref)
        self.store.check_name(called)
        try:
            return await self._pull(ref, called, name, source, accept, replace=replace)
        except OSError as exc:
            raise unwritable(exc, self.store.path) from exc

    async def _pull(
        self,
        ref: Ref,
        called: str,
        name: str | None,
        source: Source | None,
        accept: Callable[[Stored, Store], None] | None,
        *,
        replace: bool,
    ) -> Stored:
        async with AsyncExitStack() as stack:
            if source is None:
                source = source_for(ref, self._environ)
                stack.push_async_callback(source.close)
            # The query of an address may be a signature, which is as good as a password.
            told = shown(ref.name) if ref.kind == "url" else f"{ref}"
            self._watch.say(f"pulling manifest {told}")
            manifest = check(await source.manifest(ref))
            for note in manifest.notes:
                self._watch.say(note)
            if name is not None and not replace:
                digests = [file.digest for file in manifest.files if file.digest is not None]
                self._check_free(name, {d.hex for d in digests if d.algorithm == "sha256"})
            shelf = _shelf(self, ref, manifest)
            self._check_space(manifest, shelf)
            await stack.enter_async_context(waiting(self.store.pulling(), patience=60.0))
            files = [await self._file(source, file, shelf) for file in manifest.files]
            files = self._remember_ours(files)
            stored = Stored(
                name=called,
                source=manifest.source,
                files=tuple(files),
                revision=manifest.revision,
                main=manifest.main,
                license=manifest.license,
                notes=manifest.notes,
                branch=shelf.branch,
                template=self._template(called),
            )
            if name is not None and not replace:
                self._check_free(name, {file.sha256 for file in files})
            if accept is not None:
                self._watch.say("verifying signature")
                await asyncio.to_thread(accept, stored, self.store)
            self._watch.say("writing manifest")
            await asyncio.to_thread(shelf.finish)
            await asyncio.to_thread(self.store.put, stored)
            for kept_file in files:
                brought(self.store, kept_file.place).unlink(missing_ok=True)
        kept = self.store.get(stored.name)
        assert kept is not None, "a name that was put is there"
        if kept.former:
            size = format_size(sum(file.size for file in kept.former))
            self._watch.say(f"{size} of the version before stay until `llmrr prune`")
        self._watch.say("success")
        return kept

    def _template(self, name: str) -> Override | None:
        """What stands in for the chat template of `name`; it holds while that stays the same."""
        with suppress(ModelFileError):  # a damaged entry is written anew
            stored = self.store.get(name)
            if stored is not None and stored.template is not None:
                return msgspec.structs.replace(stored.template, only="")
        return None

    def _check_free(self, name: str, wanted: set[str]) -> None:
        """See that `name` means nothing yet, or has every file of the digests `wanted`."""
        have = self.store.get(name)
        if have is None or wanted <= {file.sha256 for file in have.files}:
            return
        raise BadRequest(
            f"the store has another model named {name!r}, from {have.source}",
            param="name",
            hint=f"take another name, `llmrr rm {name}` first, or `--force`",
        )

    def _remember_ours(self, files: list[StoredFile]) -> list[StoredFile]:
        """What an earlier pull put outside the store is still ours, also if it was stopped."""
        kept = self.store.all()
        ours = {f.place for stored in kept for f in (*stored.files, *stored.former) if f.ours}
        return [
            msgspec.structs.replace(
                file,
                ours=file.ours
                or (
                    bool(file.place)
                    and (file.place in ours or brought(self.store, file.place).exists())
                ),
            )
            for file in files
        ]

    # ------------------------------------------------------------ one file

    async def _file(self, source: Source, file: RemoteFile, shelf: Shelf) -> StoredFile:
        key = _key(file)
        lock = shelf.lock(key)
        waited = lambda: self._watch.say(f"another process is bringing {file.path}")  # noqa: E731
        async with waiting(lock, patience=PATIENCE, waited=waited):
            there = await asyncio.to_thread(self._have, file, shelf)
            if there is not None:
                return there
            fetched = await self._downloader.fetch(source, file, shelf.drafts, key)
            return await asyncio.to_thread(shelf.keep, file, fetched, True)

    def _have(self, file: RemoteFile, shelf: Shelf) -> StoredFile | None:
        """The file, if its content is on this machine and sound; linked to where it belongs."""
        digest = file.digest
        if digest is None:
            return None
        mine = shelf.find(file)
        places = [mine] if mine is not None else []
        if digest.algorithm == "sha256":
            places += found.by_sha256(digest.hex, self._environ, self.store, self.hub)
        for place in places:
            try:
                size = place.stat().st_size
                if file.size not in (None, size):
                    continue
                self._watch.say(f"verifying sha256 {file.path}")
                sums = hash_file(place, digest)
            except OSError:
                continue
            if sums[digest.algorithm] != digest.hex:
                self._watch.say(f"`{place}` is damaged; bringing {file.path} again")
                continue
            self._watch.begin(file.path, size, size)
            self._watch.end(file.path)
            if place == mine:
                return shelf.keep(file, Fetched(place, size, sums["sha256"]), False)
            shelf.drafts.mkdir(parents=True, exist_ok=True)
            draft = shelf.drafts / f"{digest.hex}.{os.getpid()}.adopted"
            draft.unlink(missing_ok=True)
            try:
                share(place, draft)
                return shelf.keep(file, Fetched(draft, size, sums["sha256"]), True)
            finally:
                draft.unlink(missing_ok=True)
        return None

    def _check_space(self, manifest: Manifest, shelf: Shelf) -> None:
        """Nothing, if what is missing fits the disk.

        Raises:
            Unavailable: it does not; says what it needs and what there is.
        """
        missing = 0
        for file in manifest.files:
            part = shelf.drafts / f"{_key(file)}.part"
            with suppress(OSError):
                # Blocks, not length: an unfinished file has its final length from the start.
                missing -= min(part.stat().st_blocks * 512, file.size or 0)
            place = shelf.find(file)
            missing += 0 if place is not None and place.exists() else file.size or 0
        at = shelf.drafts
        while not at.exists():
            at = at.parent
        free = shutil.disk_usage(at).free
        if missing > 0 and missing + SPARE > free:
            raise Unavailable(
                f"not enough space for `{manifest.name}`: it needs {format_size(missing + SPARE)}, "
                f"{format_size(free)} are free at `{at}`",
                hint="`llmrr prune` deletes what no name means; `llmrr rm` forgets models",
            )


# ---------------------------------------------------------------- where files go


class Shelf:
    """Where the files of one model go: the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.drafts = store.partial
        """Where unfinished files lie: on the file system of the finished ones."""
        self.branch = ""
        """See `Stored`."""

    def find(self, file: RemoteFile) -> Path | None:
        """Where the content is, if it is here under its digest."""
        if file.digest is None or file.digest.algorithm != "sha256":
            return None
        blob = self._store.blob(file.digest.hex)
        return blob if blob.exists() else None

    def lock(self, key: str) -> FileLock:
        """The lock on one content."""
        return self._store.lock(key)

    def keep(self, file: RemoteFile, fetched: Fetched, new: bool) -> StoredFile:
        """A checked file takes its place; `new` if it was not there before."""
        if new:
            self._store.commit(fetched.path, fetched.sha256)
        return StoredFile(file.path, fetched.size, fetched.sha256)

    def finish(self) -> None:
        """All files are there."""


class HubShelf(Shelf):
    """Where the files of a repository of the Hub go: Hugging Face's own cache."""

    def __init__(self, store: Store, hub: HubCache, ref: Ref, commit: str) -> None:
        super().__init__(store)
        self._hub = hub
        self._repo = ref.name
        self.branch = ref.revision or "main"
        self._commit = commit
        self.drafts = hub.repo(ref.name) / "blobs"

    def find(self, file: RemoteFile) -> Path | None:
        """See `Shelf`."""
        blob = self._hub.blob(self._repo, file)
        return blob if blob is not None and blob.exists() else None

    def lock(self, key: str) -> FileLock:
        """See `Shelf`."""
        return self._hub.lock(self._repo, key)

    def keep(self, file: RemoteFile, fetched: Fetched, new: bool) -> StoredFile:
        """See `Shelf`."""
        if file.digest is None:  # nothing in this cache is without one
            return super().keep(file, fetched, new)
        if new:
            self._hub.commit(self._repo, fetched.path, file)
        at = self._hub.place(self._repo, self._commit, file)
        # What stands there is another program's, also if it was damaged and we mended it.
        ours = not os.path.lexists(at)
        if ours:
            remember(self._store, str(at), self.branch)
        self._hub.point(self._repo, self._commit, file)
        return StoredFile(file.path, fetched.size, fetched.sha256, str(at), ours=ours)

    def finish(self) -> None:
        """See `Shelf`."""
        self._hub.name(self._repo, self.branch, self._commit)


def _shelf(puller: Puller, ref: Ref, manifest: Manifest) -> Shelf:
    if manifest.source == "huggingface":
        return HubShelf(puller.store, puller.hub, ref, manifest.revision)
    return Shelf(puller.store)


def _key(file: RemoteFile) -> str:
    """The name under which an unfinished file is kept: by content, else by address."""
    if file.digest is not None:
        return file.digest.hex
    return "url-" + sha256_of(file.url.encode()).hexdigest()


__all__ = ["HubShelf", "Puller", "Shelf"]
