"""What `rm` and `prune` free, and what they leave to others."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from huggingface_hub import scan_cache_dir, snapshot_download

from llm_runner_router.errors import RunnerError
from llm_runner_router.models.blobs import KEEP_PARTIAL
from llm_runner_router.models.discard import brought, prune, remove
from llm_runner_router.models.download import ATTEMPTS
from llm_runner_router.models.manifest import Stored
from llm_runner_router.refs import parse
from llm_runner_router.testing import Fault

from .rigging import Rig

OLD, NEW = Random(1).randbytes(7000), Random(2).randbytes(8000)
NAME = "model.safetensors"
CONFIG = b'{"model_type": "llama"}'
LATER = 4e9
"""Seconds since 1970 of a day on which every download has rested for long."""


def weights(rig: Rig) -> list[int]:
    """Sizes of the finished weights in Hugging Face's cache."""
    blobs = Path(rig.environ["HF_HOME"]).glob("hub/models--*/blobs/*")
    sizes = (blob.stat().st_size for blob in blobs if not blob.suffix)
    return sorted(size for size in sizes if size > 1000)


async def moved(rig: Rig) -> Stored:
    """A repository that is pulled, moves on, and is pulled again."""
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    await rig.pull("hf:org/name")
    rig.hub.repo("org/name", {NAME: NEW, "config.json": CONFIG})
    return await rig.pull("hf:org/name")


async def test_what_a_name_meant_before_stays_until_it_is_pruned(rig: Rig) -> None:
    stored = await moved(rig)
    puller = rig.puller()
    assert weights(rig) == [7000, 8000], "a server may still answer from the one before"
    assert any("of the version before stay until `llmrr prune`" in n for n in rig.notes.lines)
    pruned = prune(puller.store, puller.hub)
    assert pruned.bytes == 7000
    assert weights(rig) == [8000]
    assert rig.content(stored) in (NEW, CONFIG)
    assert all(checked.ok for checked in puller.store.verify(stored))
    assert not scan_cache_dir(puller.hub.path).warnings
    kept = puller.store.get("hf:org/name")
    assert kept is not None
    assert kept.former == ()
    assert prune(puller.store, puller.hub).files == 0


async def test_removing_a_name_frees_what_it_meant_before(rig: Rig) -> None:
    stored = await moved(rig)
    puller = rig.puller()
    gone = remove(stored.name, puller.store, puller.hub)
    assert gone.bytes == 15000 + len(CONFIG), "the small file is shared by both snapshots"
    assert not gone.waits
    assert not list(puller.hub.path.glob("models--*"))


async def test_a_source_that_moves_back(rig: Rig) -> None:
    await moved(rig)
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    stored = await rig.pull("hf:org/name")
    assert {f.size for f in stored.files} == {7000, len(CONFIG)}
    assert {f.size for f in stored.former} == {8000, len(CONFIG)}
    assert all(f.ours for f in stored.files)
    puller = rig.puller()
    prune(puller.store, puller.hub)
    assert weights(rig) == [7000]
    remove(stored.name, puller.store, puller.hub)
    assert weights(rig) == []


async def test_another_name_keeps_what_it_means(rig: Rig) -> None:
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    await rig.pull("hf:org/name")
    puller = rig.puller()
    puller.store.copy("hf:org/name", "mine")
    rig.hub.repo("org/name", {NAME: NEW, "config.json": CONFIG})
    await rig.pull("hf:org/name")
    assert prune(puller.store, puller.hub).files == 0, "what stays is not counted"
    mine = puller.store.get("mine")
    assert mine is not None
    assert all(checked.ok for checked in puller.store.verify(mine))
    remove("mine", puller.store, puller.hub)
    assert weights(rig) == [8000], "the last name that meant it frees it"


async def test_a_tag_that_another_program_asked_for_keeps_its_files(rig: Rig) -> None:
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG}, revision="v1")
    await rig.pull("hf:org/name")
    puller = rig.puller()
    cache = puller.hub.path
    theirs = snapshot_download("org/name", revision="v1", cache_dir=cache, endpoint=rig.hub.url)
    rig.hub.repo("org/name", {NAME: NEW, "config.json": CONFIG})
    await rig.pull("hf:org/name")
    prune(puller.store, puller.hub)
    assert (Path(theirs) / NAME).read_bytes() == OLD
    remove("hf:org/name", puller.store, puller.hub)
    assert weights(rig) == [7000]
    again = snapshot_download("org/name", revision="v1", cache_dir=cache, local_files_only=True)
    assert (Path(again) / NAME).read_bytes() == OLD


async def test_a_damaged_file_of_another_program_stays_its_own(rig: Rig) -> None:
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    puller = rig.puller()
    theirs = snapshot_download("org/name", cache_dir=puller.hub.path, endpoint=rig.hub.url)
    (Path(theirs) / NAME).resolve().write_bytes(OLD[:-1] + b"?")
    stored = await rig.pull("hf:org/name")
    assert not any(file.ours for file in stored.files)
    remove(stored.name, puller.store, puller.hub)
    assert (Path(theirs) / NAME).read_bytes() == OLD


async def test_removing_beside_a_download_leaves_the_rest_to_prune(rig: Rig) -> None:
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    await rig.pull("hf:org/name")
    puller = rig.puller()
    with puller.store.pulling():
        gone = remove("hf:org/name", puller.store, puller.hub)
    assert (gone.bytes, gone.waits) == (0, True)
    assert weights(rig) == [7000]
    assert prune(puller.store, puller.hub).bytes == 7000 + len(CONFIG)
    assert not list(puller.hub.path.glob("models--*"))


async def test_what_another_program_is_bringing_is_left_to_the_next_prune(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_runner_router.models.hubcache.PATIENCE", 0.0)
    rig.hub.repo("org/name", {NAME: OLD, "config.json": CONFIG})
    stored = await rig.pull("hf:org/name")
    puller = rig.puller()
    sha = next(file.sha256 for file in stored.files if file.path == NAME)
    with puller.hub.lock("org/name", sha):
        gone = remove("hf:org/name", puller.store, puller.hub)
    assert (gone.bytes, gone.waits) == (len(CONFIG), True)
    assert weights(rig) == [7000]
    assert prune(puller.store, puller.hub).bytes == 7000


async def test_what_an_abandoned_pull_brought_is_pruned_in_time(rig: Rig) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    rig.hub.repo("org/name", {names[0]: OLD, names[1]: NEW, "config.json": CONFIG})
    rig.hub.fault(names[1], Fault("500", times=ATTEMPTS))
    with pytest.raises(RunnerError):
        await rig.pull("hf:org/name")
    puller = rig.puller()
    marks = list(puller.store.partial.glob("brought-*"))
    assert marks
    now = max(mark.stat().st_mtime for mark in marks)
    assert prune(puller.store, puller.hub, now=now + KEEP_PARTIAL - 60).files == 0
    assert weights(rig) == [7000]
    assert prune(puller.store, puller.hub, now=LATER).bytes >= 7000
    assert not list(puller.hub.path.glob("models--*"))
    assert not list(puller.store.partial.glob("brought-*"))


async def test_a_mark_names_nothing_outside_the_cache(rig: Rig, tmp_path: Path) -> None:
    puller = rig.puller()
    mine = tmp_path / "thesis.txt"
    mine.write_text("words")
    mark = brought(puller.store, str(mine))
    mark.parent.mkdir(parents=True)
    away = "/".join([".."] * len(puller.hub.path.parts)) + str(mine)
    (puller.hub.path / "models--a").mkdir(parents=True)
    for text in (
        f"main\n{mine}".encode(),
        f"main\n{puller.hub.path}/models--a/../{away}".encode(),
        b"",
        b"main\n../../thesis.txt",
        b"\xff\n/\x00",
    ):
        mark.write_bytes(text)
        prune(puller.store, puller.hub, now=LATER)
    assert mine.read_text() == "words"


async def test_contents_of_the_store_that_a_name_meant_before(rig: Rig) -> None:
    url = rig.hub.put("m.gguf", OLD)
    await rig.pull(url)
    rig.hub.put("m.gguf", NEW)
    stored = await rig.pull(url)
    puller = rig.puller()
    assert rig.content(stored) == NEW
    assert [file.size for file in stored.former] == [7000]
    gone = remove(parse(url).name, puller.store, puller.hub)
    assert gone.bytes == 15000
    assert list(puller.store.blobs.iterdir()) == []
