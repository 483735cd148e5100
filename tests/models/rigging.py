"""A server with the real protocols, a machine's folders, and a puller between them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

from llm_runner_router.models.download import Downloader, Silent
from llm_runner_router.models.manifest import Stored
from llm_runner_router.models.pull import Puller
from llm_runner_router.refs import parse
from llm_runner_router.testing import FakeHub


class Notes(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: dict[str, int] = {}
        self.begun: list[tuple[str, int]] = []
        self._news = asyncio.Event()

    async def reached(self, count: int) -> None:
        """Wait until so many bytes of all files are there."""
        while sum(self.counts.values()) < count:
            self._news.clear()
            await self._news.wait()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, name: str, size: int | None, done: int) -> None:
        self.counts[name] = done
        self.begun.append((name, done))

    def advance(self, name: str, count: int) -> None:
        self.counts[name] += count
        self._news.set()


class Pauses:
    """A sleep that takes no time and remembers for how long it was asked."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class Rig:
    """A server, a machine's folders, and a puller between them."""

    def __init__(self, hub: FakeHub, tmp_path: Path) -> None:
        self.hub = hub
        self.environ = {
            "LLMRR_HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": hub.url,
            "LLMRR_OLLAMA_REGISTRY": hub.url,
            "OLLAMA_MODELS": str(tmp_path / "ollama"),
            "LLAMA_CACHE": str(tmp_path / "llama.cpp"),
            "HOME": str(tmp_path),
        }
        self.notes = Notes()
        self.pauses = Pauses()

    def puller(self, *, stall: float = 20.0, workers: int = 4) -> Puller:
        downloader = Downloader(
            self.notes, sleep=self.pauses, rng=Random(3), stall=stall, workers=workers
        )
        return Puller(self.environ, self.notes, downloader=downloader)

    async def pull(self, text: str, *, stall: float = 20.0) -> Stored:
        return await self.puller(stall=stall).pull(parse(text))

    def content(self, stored: Stored, index: int = 0) -> bytes:
        return self.puller().store.place(stored.files[index]).read_bytes()

    def drafts(self) -> list[Path]:
        home = Path(self.environ["LLMRR_HOME"]) / "models"
        return sorted((home / "partial").glob("*.part"))
