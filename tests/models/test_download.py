"""Downloads against a server with the real protocols, and everything that can go wrong there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from llm_runner_router.errors import (
    BadResponse,
    NotFound,
    RateLimited,
    RunnerError,
    StreamBroken,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.models.download import (
    ATTEMPTS,
    LONGEST_PAUSE,
    PROGRESS,
    Downloader,
    wait_before,
)
from llm_runner_router.models.manifest import Digest, Manifest, RemoteFile
from llm_runner_router.models.partial import MIB, Partial
from llm_runner_router.models.sources import url as url_source
from llm_runner_router.refs import Ref, parse
from llm_runner_router.testing import Fault
from llm_runner_router.testing.hub import FaultKind

from .rigging import Pauses, Rig

SMALL = Random(1).randbytes(300_000)
LARGE = Random(2).randbytes(40 * MIB)  # three parts


# ---------------------------------------------------------------- the good case


async def test_a_file_comes_whole_under_its_name(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    stored = await rig.pull(at)
    assert stored.name == at
    assert stored.files[0].sha256 == hashlib.sha256(LARGE).hexdigest()
    assert rig.content(stored) == LARGE
    path = rig.puller().store.path_of(stored)
    assert (path.name, path.read_bytes()) == ("model.gguf", LARGE)
    assert rig.notes.counts == {"model.gguf": len(LARGE)}
    assert rig.notes.lines[-1] == "success"
    assert not rig.drafts()


async def test_parts_come_side_by_side_and_only_once(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    await rig.pull(at)
    spans = sorted(a.headers.get("range", "") for a in rig.hub.requests("/files/model.gguf"))
    assert spans == [
        "bytes=0-16777215",
        "bytes=16777216-33554431",
        "bytes=33554432-41943039",
    ]


async def test_an_empty_file(rig: Rig) -> None:
    stored = await rig.pull(rig.hub.put("empty.bin", b""))
    assert rig.content(stored) == b""


async def test_a_pinned_digest_is_compared(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    good = hashlib.sha256(SMALL).hexdigest()
    assert rig.content(await rig.pull(f"{at}#sha256={good}")) == SMALL
    with pytest.raises(BadResponse, match="twice; nothing was kept"):
        await rig.pull(f"{at}#sha256={'0' * 64}")
    assert rig.puller().store.get(f"{at}#sha256={'0' * 64}") is None
    assert not rig.drafts()


async def test_parts_of_a_split_model_come_together(rig: Rig) -> None:
    for part in (1, 2, 3):
        rig.hub.put(f"m-0000{part}-of-00003.gguf", bytes([part]) * 2000)
    stored = await rig.pull(f"{rig.hub.url}/files/m-00002-of-00003.gguf")
    path = rig.puller().store.path_of(stored)
    assert path.name == "m-00001-of-00003.gguf"
    assert [p.read_bytes()[0] for p in sorted(path.parent.iterdir())] == [1, 2, 3]


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", after=200_000),
        Fault("cut", times=3, after=70_000),
        Fault("drop", times=2),
        Fault("short"),
        Fault("long"),
        Fault("503", times=2),
        Fault("500"),
        Fault("429", retry_after="7"),
        Fault("gzip"),
        Fault("flip", after=1234),
        Fault("silent", after=100_000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.times}",
)
async def test_a_fault_that_passes_is_overcome(rig: Rig, fault: Fault) -> None:
    rig.hub.repo("org/name", {"model.gguf": SMALL})
    rig.hub.fault("/cdn/", fault)
    stored = await rig.pull("hf:org/name", stall=0.3)
    assert rig.content(stored) == SMALL
    assert rig.hub._faults["/cdn/"] == [], "the fault did not happen"


LASTING: tuple[FaultKind, ...] = ("cut", "drop", "503", "429", "short", "flip", "silent")


@pytest.mark.parametrize("kind", LASTING)
async def test_a_fault_that_stays_ends_in_an_error_and_no_name(rig: Rig, kind: FaultKind) -> None:
    rig.hub.repo("org/name", {"model.gguf": SMALL})
    rig.hub.fault("/cdn/", Fault(kind, times=1000))
    with pytest.raises(UpstreamError) as caught:
        await rig.pull("hf:org/name", stall=0.05)
    assert caught.value.hint
    assert rig.puller().store.names() == []
    assert not list(rig.puller().hub.path.glob("models--*/snapshots/*/*"))
    assert not [p for p in rig.puller().hub.path.glob("models--*/blobs/*") if not p.suffix]


async def test_the_server_says_when_to_come_back(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    rig.hub.fault("model.gguf", Fault("429", retry_after="7"), Fault("503", retry_after="3"))
    await rig.pull(at)
    assert rig.pauses.seconds == [7.0, 3.0]


async def test_a_long_wait_is_an_error(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    rig.hub.fault("model.gguf", Fault("429", retry_after="3600"))
    with pytest.raises(RateLimited) as caught:
        await rig.pull(at)
    assert caught.value.retry_after == 3600


async def test_a_server_without_ranges_gives_the_whole(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("no-ranges", times=100))
    assert rig.content(await rig.pull(at)) == LARGE
    assert rig.notes.counts == {"model.gguf": len(LARGE)}


async def test_a_wrong_range_is_never_believed(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("wrong-range", times=1000))
    with pytest.raises(BadResponse, match="gives the range"):
        await rig.pull(at)
    assert rig.puller().store.names() == []


async def test_a_content_that_changes_is_fetched_anew(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("changed"))
    assert rig.content(await rig.pull(at)) == LARGE
    assert any("has changed" in line for line in rig.notes.lines)


async def test_redirects_end(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    rig.hub.fault("model.gguf", Fault("loop", times=1000))
    with pytest.raises(BadResponse, match="redirects"):
        await rig.pull(at)


async def test_nobody_there(rig: Rig) -> None:
    rig.hub.close()
    with pytest.raises(UpstreamError, match="cannot reach"):
        await rig.pull(f"{rig.hub.url}/files/model.gguf")


async def test_a_missing_file(rig: Rig) -> None:
    with pytest.raises(NotFound):
        await rig.pull(f"{rig.hub.url}/files/model.gguf")


# ---------------------------------------------------------------- going on


async def test_a_broken_download_goes_on_where_it_was(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("cut", times=ATTEMPTS, after=5 * MIB), Fault("500", times=99))
    with pytest.raises(UpstreamError):
        await rig.puller(workers=1).pull(parse(at))
    (draft,) = rig.drafts()
    came = Partial.open(draft.parent, draft.stem, await _remote(rig, at), workers=1)
    came.close()
    assert came.resumed > 5 * MIB
    rig.hub._faults.clear()
    before = len(rig.hub.asked)
    rig.notes.begun.clear()
    assert rig.content(await rig.puller(workers=1).pull(parse(at))) == LARGE
    assert rig.notes.begun == [("model.gguf", came.resumed)]
    again = [a for a in rig.hub.asked[before:] if a.method == "GET"]
    assert sum(_length(a.headers["range"]) for a in again) == len(LARGE) - came.resumed


async def _remote(rig: Rig, at: str) -> RemoteFile:
    source = url_source.connect(rig.environ)
    try:
        return (await source.manifest(parse(at))).files[0]
    finally:
        await source.close()


def _length(span: str) -> int:
    first, last = span.removeprefix("bytes=").split("-")
    return int(last) + 1 - int(first)


async def test_what_is_there_is_dropped_when_the_source_has_another_content(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("cut", after=5 * MIB), Fault("500", times=99))
    with pytest.raises(UpstreamError):
        await rig.puller(workers=1).pull(parse(at))
    rig.hub._faults.clear()
    other = Random(9).randbytes(len(LARGE))
    rig.hub.put("model.gguf", other)
    assert rig.content(await rig.pull(at)) == other


async def test_cancelling_keeps_what_came(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", *[Fault("hold", after=3 * MIB)] * 3)
    task = asyncio.create_task(rig.pull(at))
    await rig.notes.reached(9 * MIB)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    rig.notes.begun.clear()
    rig.hub._faults.clear()
    assert rig.content(await rig.pull(at)) == LARGE
    assert rig.notes.begun == [("model.gguf", 9 * MIB)]


async def test_two_at_once_fetch_once(rig: Rig) -> None:
    rig.hub.repo("org/name", {"model.gguf": SMALL})
    first, second = await asyncio.gather(
        rig.pull("hf:org/name"), rig.pull("hf:org/name:model.gguf")
    )
    assert first.files[0].sha256 == second.files[0].sha256
    assert len(rig.hub.requests("/cdn/")) == 1


@pytest.mark.parametrize("damage", ["head", "short", "position", "longer"])
def test_a_damaged_journal_means_starting_again(tmp_path: Path, damage: str) -> None:
    file = RemoteFile("a", 100, Digest("sha256", "0" * 64))
    partial = Partial.open(tmp_path, "k", file)
    partial.write(0, b"x" * 40)
    partial.close()
    text = bytearray(partial.journal.read_bytes())
    if damage == "head":
        text[5] ^= 0xFF
    elif damage == "short":
        del text[-3:]
    elif damage == "position":
        text[-8:] = (101).to_bytes(8, "little")
    else:
        text += b"12345678"
    partial.journal.write_bytes(text)
    again = Partial.open(tmp_path, "k", file)
    assert (again.resumed, again.done) == (0, 0)
    again.close()


def test_a_sound_journal_is_continued(tmp_path: Path) -> None:
    file = RemoteFile("a", 100, Digest("sha256", "0" * 64))
    partial = Partial.open(tmp_path, "k", file)
    partial.write(0, b"x" * 40)
    partial.close()
    again = Partial.open(tmp_path, "k", file)
    assert (again.resumed, again.prefix) == (40, 40)
    again.close()
    other = Partial.open(tmp_path, "k", RemoteFile("a", 100, Digest("sha256", "1" * 64)))
    assert other.resumed == 0
    other.close()


# ---------------------------------------------------------------- rules


async def test_secrets_stay_with_the_host_they_are_for(rig: Rig) -> None:
    rig.environ["HF_TOKEN"] = rig.hub.token = "hf_secret"
    rig.hub.repo("org/name", {"model.gguf": SMALL, "config.json": b"{}"}, gated=True)
    await rig.pull("hf:org/name")
    assert rig.hub.requests("/resolve/")
    for asked in rig.hub.requests("/resolve/"):
        assert asked.headers["authorization"] == "Bearer hf_secret"
    assert rig.hub.requests("/cdn/")
    for asked in rig.hub.requests("/cdn/"):
        assert "authorization" not in asked.headers
    assert not any("hf_secret" in line for line in rig.notes.lines)


async def test_a_gated_repository_says_what_to_do(rig: Rig) -> None:
    rig.hub.token = "right"
    rig.hub.repo("org/name", {"model.gguf": SMALL}, gated=True)
    with pytest.raises(UpstreamRefused) as caught:
        await rig.pull("hf:org/name")
    assert "HF_TOKEN" in (caught.value.hint or "")
    assert "licence" in (caught.value.hint or "")


async def test_offline_asks_nobody(rig: Rig) -> None:
    rig.environ["LLMRR_OFFLINE"] = "1"
    for text in ("hf:org/name", "ollama:a", f"{rig.hub.url}/files/a.gguf"):
        with pytest.raises(Unavailable, match="LLMRR_OFFLINE"):
            await rig.pull(text)
    del rig.environ["LLMRR_OFFLINE"]
    rig.environ["HF_HUB_OFFLINE"] = "yes"
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE"):
        await rig.pull("hf:org/name")
    assert rig.hub.asked == []


async def test_space_is_looked_at_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(Unavailable, match=r"not enough space .* 1000 B are free"):
        await rig.pull(at)
    assert rig.hub.requests("/files/") == []


async def test_a_full_disk_keeps_what_came(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    at = rig.hub.put("model.gguf", LARGE)
    write, left = os.pwrite, [20]

    def pwrite(handle: int, data: bytes, offset: int) -> int:
        if len(data) > 4096:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(Unavailable, match="No space left") as caught:
        await rig.pull(at)
    assert "llmrr prune" in (caught.value.hint or "")
    assert rig.puller().store.names() == []
    monkeypatch.undo()
    rig.notes.begun.clear()
    assert rig.content(await rig.pull(at)) == LARGE
    assert rig.notes.begun[0][1] > 0


async def test_a_proxy_is_used(rig: Rig) -> None:
    rig.hub.put("model.gguf", SMALL)
    rig.environ["http_proxy"] = rig.hub.url
    await rig.pull("http://models.example/files/model.gguf")
    assert rig.hub.asked[-1].path == "http://models.example/files/model.gguf"
    rig.environ["no_proxy"] = "127.0.0.1"
    await rig.pull(f"{rig.hub.url}/files/model.gguf")
    assert rig.hub.asked[-1].path == "/files/model.gguf"


def test_waits_grow_and_follow_the_server() -> None:
    rng = Random(1)
    waits = [[wait_before(n, StreamBroken("x"), rng) for _ in range(200)] for n in range(8)]
    for n, some in enumerate(waits):
        bound = min(LONGEST_PAUSE, 0.5 * 2**n)
        assert 0 <= min(some) < 0.1 * bound, "a wait may be next to nothing"
        assert 0.9 * bound < max(some) <= bound
    assert wait_before(10**6, StreamBroken("x"), rng) <= LONGEST_PAUSE
    assert wait_before(3, RunnerError("x", retry_after=9.0), rng) == 9.0


async def test_a_server_that_gives_one_byte_per_connection_is_given_up(rig: Rig) -> None:
    at = rig.hub.put("model.gguf", SMALL)
    rig.hub.fault("model.gguf", Fault("cut", times=1000, after=1))
    with pytest.raises(StreamBroken):
        await rig.pull(at)
    assert len(rig.hub.requests("model.gguf")) == ATTEMPTS
    assert len(rig.pauses.seconds) == ATTEMPTS - 1


class Dripping:
    """A source that gives a few bytes at a time, and lets a clock run meanwhile.

    It breaks off after `most` bytes of each time.
    """

    def __init__(self, data: bytes, piece: int, seconds: float, most: int = 1 << 40) -> None:
        self.data = data
        self.piece = piece
        self.seconds = seconds
        self.most = most
        self.now = 0.0
        self.opened = 0

    def clock(self) -> float:
        return self.now

    async def manifest(self, ref: Ref) -> Manifest:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is kept open."""

    @asynccontextmanager
    async def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.opened += 1
        yield self._pieces(from_byte, len(self.data) if to_byte is None else to_byte)

    async def _pieces(self, at: int, end: int) -> AsyncIterator[bytes]:
        until = min(end, at + self.most)
        while at < until:
            self.now += self.seconds
            count = min(self.piece, until - at)
            yield self.data[at : at + count]
            at += count
        if at < end:
            raise StreamBroken("it broke off", hint="again")


@pytest.mark.parametrize(("piece", "seconds", "ends"), [(1, 20.0, False), (1000, 3.0, True)])
async def test_a_source_that_drips_is_not_waited_for(
    tmp_path: Path, piece: int, seconds: float, ends: bool
) -> None:
    source = Dripping(SMALL, piece, seconds)
    loader = Downloader(sleep=Pauses(), rng=Random(3), clock=source.clock)
    file = RemoteFile("a.gguf", len(SMALL), Digest("sha256", hashlib.sha256(SMALL).hexdigest()))
    if ends:
        fetched = await loader.fetch(source, file, tmp_path, "a")
        assert fetched.path.read_bytes() == SMALL
        return
    with pytest.raises(UpstreamTimeout, match="in 60 s"):
        await loader.fetch(source, file, tmp_path, "a")
    assert source.opened == ATTEMPTS


async def test_a_line_that_breaks_again_and_again_but_brings_much_is_endured(
    tmp_path: Path,
) -> None:
    data = Random(4).randbytes(3 * ATTEMPTS * PROGRESS)
    source = Dripping(data, PROGRESS, 0.0, most=PROGRESS)
    pauses = Pauses()
    loader = Downloader(sleep=pauses, rng=Random(3))
    file = RemoteFile("a.gguf", len(data), Digest("sha256", hashlib.sha256(data).hexdigest()))
    assert (await loader.fetch(source, file, tmp_path, "a")).path.read_bytes() == data
    assert source.opened == 3 * ATTEMPTS
    assert len(pauses.seconds) == source.opened - 1, "also after progress there is a pause"


async def test_without_a_way_to_write_at_a_place_all_is_the_same(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pwrite", "preadv", "pread", "pwritev"):
        monkeypatch.delattr(os, name)
    at = rig.hub.put("model.gguf", LARGE)
    rig.hub.fault("model.gguf", Fault("cut", after=5 * MIB))
    assert rig.content(await rig.pull(at)) == LARGE
