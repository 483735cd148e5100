"""The file server of the download benchmark serves what the Hub serves, and keeps its pace."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from bench import files

from llm_runner_router.models.pull import Puller
from llm_runner_router.refs import parse

DATA = Random(5).randbytes(40_000_000)


@contextmanager
def serving(folder: Path, rate: float = 0.0) -> Iterator[str]:
    folder.mkdir()
    (folder / "model-Q8_0.gguf").write_bytes(DATA)
    with files.Server(folder, rate) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def test_a_pull_gets_what_is_served(tmp_path: Path) -> None:
    with serving(tmp_path / "served") as url:
        environ = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"),
                   "LLMRR_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}  # fmt: skip
        puller = Puller(environ)
        stored = await puller.pull(parse(f"hf:{files.REPO}"))
    (file,) = stored.files
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()
    assert puller.store.path_of(stored).name == "model-Q8_0.gguf"
    assert all(checked.ok for checked in puller.store.verify(stored))


def test_the_connections_share_the_rate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    (tmp_path / "served").mkdir()
    with files.Server(tmp_path / "served", rate=1000.0) as server:
        for _ in range(3):
            server.wait(500)
    assert slept == [0.5, 1.0, 1.5]
