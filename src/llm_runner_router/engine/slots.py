"""Saves the prompts of a runner before it is stopped, and gives them to the next one.

Knows: the engine's `/slots`, the folder of files, deadlines. Does not know: which runner goes and
why (`scheduler.py`); `prompts.py` says what is worth it. The only writer of its folder.

A file holds a prompt's tokens and their keys and values, so it is private: a folder of mode 0700
below the data folder, files of mode 0600, gone when the gateway ends. What a gateway that was
killed left behind goes at the next start.

The engine aborts its process on a file that is cut short (b11549: `GGML_ASSERT(nread <=
state_size)`), so a file whose size is not the one that was written is never offered to it. On some
architectures a restored slot is not used (https://github.com/ggml-org/llama.cpp/issues/26676), so
the first one of each model is tried: asked for one token after the same prompt, the engine must
say that it had the prompt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from llm_runner_router.errors import EngineError

from .fit import kv_bytes
from .live import Endpoint, Live
from .private import call
from .prompts import Saved, Shelf, Slot, worth_saving

HURRY = 1.0
"""Seconds that saving may take while a request waits for the memory."""
CALM = 5.0
"""The same where nobody waits: the model was idle, or is replaced by a loaded one."""
RESTORE = 2.0
"""Seconds that restoring may take while a request waits for the model."""
RATE = 100e6
"""Bytes per second of writing until it was measured: a slow disk, or a busy machine."""
FREE = 1 << 30
"""Bytes that stay free on the disk."""
_MAGIC, _VERSION = 0x67677371, 4
"""Of the engine's slot files, and the version whose list of tokens is read here."""
_log = logging.getLogger(__name__)


class Prompts:
    """The prompts of unloaded models, in files.

    Args:
        folder: where they go, in a folder of its own below; None keeps none.
        limit: bytes of all files; 0 keeps none.
    """

    def __init__(
        self, folder: Path | None, limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._parent = folder if limit > 0 else None
        self._folder: Path | None = None
        self._clock = clock
        self._shelf = Shelf(limit)
        self._rate = RATE
        self._useless: set[str] = set()
        self._tried: set[str] = set()

    @property
    def bytes(self) -> int:
        """Bytes on disk; for display."""
        return self._shelf.bytes

    def folder(self) -> Path | None:
        """The folder that runners save to, made if need be; None if nothing is kept."""
        if self._parent is not None and self._folder is None:
            try:
                self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sweep(self._parent)
                mine = self._parent / f"{os.getpid()}-{secrets.token_hex(4)}"
                mine.mkdir(mode=0o700)
                self._folder = mine
            except OSError as exc:
                _log.warning("prompts of unloaded models are not kept: %s", exc)
                self._parent = None
        return self._folder

    async def close(self) -> None:
        """Delete everything; nothing is kept any more."""
        folder, self._folder, self._parent = self._folder, None, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def forget(self, model: str) -> None:
        """Delete what is kept of the model called `model`."""
        await self._delete(self._shelf.drop_model(model))

    # ------------------------------------------------------------ saving

    async def save(self, live: Live, seconds: float) -> None:
        """Save what is worth it of a runner that answers nobody; never raises, never late."""
        key, end = self._key(live), self._clock() + seconds
        at = live.endpoint
        if self._folder is None or at is None or not key or key in self._useless:
            return
        try:
            slots = await self._slots(at, seconds)
            for slot in self._chosen(live, slots, end - self._clock()):
                await self._save(live, at, slot, key, end - self._clock())
        except (EngineError, OSError) as exc:
            live.known.prompts.failed += 1
            _log.info("a prompt of %s was not kept: %s", live.known.model.name, exc)

    def _chosen(self, live: Live, slots: list[Slot], seconds: float) -> tuple[Slot, ...]:
        assert self._folder is not None
        free = shutil.disk_usage(self._folder).free - FREE
        return worth_saving(
            slots,
            per_token=kv_bytes(live.known.model.info, 1, live.known.placement.kv_type),
            limit=min(self._shelf.limit, free),
            seconds=seconds,
            rate=self._rate,
        )

    async def _save(self, live: Live, at: Endpoint, slot: Slot, key: str, seconds: float) -> None:
        assert self._folder is not None
        file = f"{secrets.token_hex(8)}.kv"
        path = self._folder / file
        began = self._clock()
        try:
            found = await _ask(at, slot.id, "save", file, seconds)
            os.chmod(path, 0o600)
            if path.stat().st_size != found["n_written"]:
                raise EngineError("the file is not as long as the engine said")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        size = int(found["n_written"])
        took = max(1e-3, self._clock() - began)
        self._rate += 0.5 * (size / took - self._rate) if size > 1 << 20 else 0
        count = int(found["n_saved"])
        tokens = await asyncio.to_thread(_tokens, path, count)
        held = None if live.kept is None else live.kept.holds(slot.id, count)
        saved = Saved(key, live.known.model.name, file, count, size, tokens, held)
        live.known.prompts.saved += 1
        await self._delete(self._shelf.add(saved))

    async def _slots(self, at: Endpoint, seconds: float) -> list[Slot]:
        found = await call(*_where(at), "GET", "/slots", seconds=seconds)
        return [
            Slot(slot["id"], slot.get("n_prompt_tokens", 0), slot.get("id_task")) for slot in found
        ]

    # ------------------------------------------------------------ restoring

    async def restore(self, live: Live, at: Endpoint) -> bool:
        """Give the new runner at `at` what was kept for its model; False if it did not survive.

        The slots are filled from the first one on: the engine takes new prompts to the last of
        those that were never used.
        """
        return await self._restore(live, at, list(range(live.known.placement.slots)))

    async def hand_over(self, live: Live) -> None:
        """Give a runner that answers already what its predecessor had, in slots it has not used."""
        if self._folder is None or live.endpoint is None:
            return
        try:
            slots = await self._slots(live.endpoint, RESTORE)
        except EngineError:
            return  # it went meanwhile
        free = [slot.id for slot in slots if slot.task is None and slot.id not in live.restored]
        await self._restore(live, live.endpoint, free)

    async def _restore(self, live: Live, at: Endpoint, slots: list[int]) -> bool:
        key, end = self._key(live), self._clock() + RESTORE
        for slot, saved in zip(slots, self._shelf.newest(key, len(slots)), strict=False):
            if not self._is_whole(saved):
                await self._delete(self._shelf.drop([saved.file]))
                continue
            left = end - self._clock()
            if saved.bytes > left * self._rate:
                break  # whoever waits for the model would wait for longer than is worth it
            try:
                found = await _ask(at, slot, "restore", saved.file, left)
                if found["n_restored"] != saved.tokens:
                    raise EngineError(f"{found['n_restored']} of {saved.tokens} tokens came back")
                if key not in self._tried:
                    self._tried.add(key)
                    await self._try(at, slot, saved, left)
            except (EngineError, OSError) as exc:
                await self._give_up(live, key, str(exc))
                return await _survives(live, at)
            live.restored[slot] = saved
            if live.kept is not None:
                live.kept.restored(slot, saved.held)
            live.known.prompts.restored += 1
            live.known.prompts.tokens += saved.tokens
        return True

    async def _try(self, at: Endpoint, slot: int, saved: Saved, seconds: float) -> None:
        """Check that the engine really uses what it restored."""
        if not saved.prompt:
            return  # another version of the file: what it holds is not known here
        body = {"prompt": list(saved.prompt), "n_predict": 1, "id_slot": slot, "stream": True}
        found = await call(*_where(at), "POST", "/completion", body, seconds=seconds)
        cached = found.get("timings", {}).get("cache_n", 0)
        if cached < saved.tokens - 2:  # the last one or two are always computed
            raise EngineError(f"the engine uses {cached} of {saved.tokens} restored tokens")

    async def _give_up(self, live: Live, key: str, why: str) -> None:
        self._useless.add(key)
        live.restored.clear()
        if live.kept is not None:
            live.kept.forget()
        live.known.prompts.failed += 1
        _log.warning("prompts of %s are not kept from now on: %s", live.known.model.name, why)
        await self._delete(self._shelf.drop_key(key))

    def _is_whole(self, saved: Saved) -> bool:
        assert self._folder is not None
        try:
            return (self._folder / saved.file).stat().st_size == saved.bytes
        except OSError:
            return False

    # ------------------------------------------------------------ both

    async def drop_restored(self, live: Live) -> None:
        """A runner crashed: what it had been given may be why, so it is not given again."""
        await self._delete(self._shelf.drop([saved.file for saved in live.restored.values()]))

    def _key(self, live: Live) -> str:
        """The weights and how they are loaded: state of one is of no use to another.

        Empty, and nothing is kept, for a model with LoRA adapters: which of them a slot's keys and
        values were computed with is not told by the engine, nor kept in its files.
        """
        model, place = live.known.model, live.known.placement
        if model.adapters:
            return ""
        try:
            at = model.path.stat()
        except OSError:
            return ""
        return f"{model.path}|{at.st_mtime_ns}|{at.st_size}|{place.context}|{place.kv_type}"

    async def _delete(self, gone: tuple[Saved, ...]) -> None:
        if gone and self._folder is not None:
            await asyncio.to_thread(_unlink, [self._folder / saved.file for saved in gone])


def tokens_of(head: bytes) -> tuple[int, ...]:
    """The tokens at the start of a slot file of version 4; empty if it is another. Pure.

    Layout as found in files of b11549, all little-endian 32-bit: magic `ggsq`, version, count of
    numbers, then -1, 1, count of tokens, the tokens.
    """
    if len(head) < 24:
        return ()
    magic, version, count, first, second, tokens = struct.unpack_from("<IIIiii", head)
    if (magic, version, first, second) != (_MAGIC, _VERSION, -1, 1):
        return ()
    if not 0 <= tokens <= count or len(head) < 24 + 4 * tokens:
        return ()
    return struct.unpack_from(f"<{tokens}i", head, 24)


def _tokens(path: Path, count: int) -> tuple[int, ...]:
    with path.open("rb") as file:
        found = tokens_of(file.read(24 + 4 * count))
    return found if len(found) == count else ()


async def _ask(at: Endpoint, slot: int, action: str, file: str, seconds: float) -> Any:
    path = f"/slots/{slot}?action={action}"
    found = await call(*_where(at), "POST", path, {"filename": file}, seconds=seconds)
    if not isinstance(found, dict):
        raise EngineError(f"the runner answered {path} with no object")
    return found


def _where(at: Endpoint) -> tuple[str, str]:
    return at.base_url.removesuffix("/v1"), at.api_key


async def _survives(live: Live, at: Endpoint) -> bool:
    """The runner still answers, or at least has not ended a moment after it failed."""
    assert live.worker is not None
    try:
        await call(*_where(at), "GET", "/health", seconds=RESTORE)
    except EngineError:
        return False
    return live.worker.is_alive


def _unlink(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sweep(parent: Path) -> None:
    """Delete folders of gateways that are gone."""
    for folder in parent.iterdir():
        owner = folder.name.partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
