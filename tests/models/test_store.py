"""The store: names, contents, links, cleaning, and two processes at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ModelFileError,
    Unavailable,
    UnknownModel,
)
from llm_runner_router.home import stored_names
from llm_runner_router.models import blobs
from llm_runner_router.models.blobs import KEEP_PARTIAL, Store
from llm_runner_router.models.locks import FileLock
from llm_runner_router.models.manifest import (
    Digest,
    Manifest,
    RemoteFile,
    Stored,
    StoredFile,
    check,
    hash_file,
    safe_path,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, tmp_path: Path, name: str, **files: bytes) -> Stored:
    """A model with these files, its first one the main."""
    made = []
    for stem, data in files.items():
        path = tmp_path / stem
        path.write_bytes(data)
        made.append(store.adopt(path))
        path.unlink()
    stored = Stored(name, "path", tuple(made), main=made[0].path)
    store.put(stored)
    return stored


def test_a_name_means_its_files(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "hf:org/a#Q4", weights=b"w" * 100, config=b"{}")
    stored = store.get("hf:org/a#Q4")
    assert stored is not None
    path = store.path_of(stored)
    assert (path.name, path.read_bytes()) == ("weights", b"w" * 100)
    assert sorted(p.name for p in path.parent.iterdir()) == ["config", "weights"]
    assert store.names() == ["hf:org/a#Q4"]
    assert all(checked.ok for checked in store.verify(stored))


def test_equal_contents_are_kept_once(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", one=b"same" * 50)
    put(store, tmp_path, "b", other=b"same" * 50)
    assert len(list(store.blobs.iterdir())) == 1


def test_taking_a_file_leaves_it_as_it_is(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o640)
    file = store.adopt(path)
    assert file.sha256 == hashlib.sha256(b"x" * 5000).hexdigest()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"x" * 5000, 0o640)
    assert not list(store.partial.iterdir())


@pytest.mark.parametrize("ways", ["clone", "link", "copy"])
def test_files_are_shared_linked_or_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ways: str
) -> None:
    if ways != "clone":
        monkeypatch.setattr(blobs, "_clone", lambda source, target: False)
    if ways == "copy":

        def refuse(source: Path, target: Path) -> None:
            raise OSError(18, "another file system")

        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_bytes(b"content")
    blobs.share(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"


def test_two_names_share_and_the_last_one_frees(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", one=b"1" * 1000)
    store.copy("a", "b")
    assert store.remove("a")[1] == 0
    kept = store.get("b")
    assert kept is not None
    assert store.path_of(kept).read_bytes() == b"1" * 1000
    assert store.remove("b")[1] == 1000
    assert list(store.blobs.iterdir()) == []
    assert list((store.path / "trees").iterdir()) == []


def test_what_is_not_there(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "model-a", one=b"1")
    with pytest.raises(UnknownModel, match="did you mean `model-a`"):
        store.remove("model-b")
    with pytest.raises(UnknownModel):
        store.copy("model-b", "c")
    assert store.get("model-b") is None


def test_cleaning_waits_for_downloads(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", one=b"1" * 10)
    orphan = tmp_path / "o"
    orphan.write_bytes(b"2" * 20)
    store.adopt(orphan)
    with store.pulling():
        with pytest.raises(Unavailable, match="a download is running"):
            store.prune()
        stored, freed = store.remove("a")
        assert stored is not None
        assert freed == 0
    pruned = store.prune()
    assert (pruned.files, pruned.bytes) == (2, 30)


def test_cleaning_keeps_young_downloads(store: Store) -> None:
    store.partial.mkdir(parents=True)
    (store.partial / "a.part").write_bytes(b"x" * 7)
    now = (store.partial / "a.part").stat().st_mtime
    assert store.prune(now=now + KEEP_PARTIAL - 1).files == 0
    assert store.prune(now=now + KEEP_PARTIAL + 1).bytes == 7


def test_damage_is_found(store: Store, tmp_path: Path) -> None:
    stored = put(store, tmp_path, "a", one=b"1" * 1000)
    blob = store.blob(stored.files[0].sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[500] ^= 1
    blob.write_bytes(data)
    (checked,) = store.verify(stored)
    assert not checked.ok
    assert "SHA-256" in checked.problem
    blob.write_bytes(b"short")
    with pytest.raises(ModelFileError, match="has 5 bytes instead of 1000"):
        store.path_of(stored)
    blob.unlink()
    with pytest.raises(ModelFileError, match="is not there any more") as caught:
        store.path_of(stored)
    assert "llmrr pull a" in (caught.value.hint or "")


def test_a_damaged_entry_stops_cleaning_and_can_be_forgotten(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, "a", one=b"1")
    put(store, tmp_path, "b", one=b"2")
    (store.path / "names" / "a.json").write_text('{"name": "a", "files": [')
    with pytest.raises(ModelFileError, match="damaged"):
        store.prune()
    assert [stored.name for stored in store.all()] == ["b"]
    assert store.remove("a") == (None, 1)
    assert store.names() == ["b"]


def test_a_lost_tree_grows_again(store: Store, tmp_path: Path) -> None:
    stored = put(store, tmp_path, "a", one=b"1" * 10)
    path = store.path_of(stored)
    path.unlink()
    assert store.path_of(stored).read_bytes() == b"1" * 10


@given(st.text(min_size=1, max_size=60))
def test_any_name_comes_back_or_is_refused(name: str) -> None:
    store = Store(Path("/nowhere"))
    try:
        path = store._name(name)
    except (BadRequest, UnicodeEncodeError):
        return
    assert path.parent == Path("/nowhere/names")
    assert len(path.name.encode()) <= 255


def test_names_are_listed_without_opening(store: Store, tmp_path: Path) -> None:
    for name in ("hf:org/a@refs/pr/1#Q4_K_M", "https://host/a.gguf?x=1", ".hidden", "a b"):
        put(store, tmp_path, name, one=b"1")
    assert stored_names(store.path) == sorted(
        ["hf:org/a@refs/pr/1#Q4_K_M", "https://host/a.gguf?x=1", ".hidden", "a b"]
    )
    assert stored_names(tmp_path / "none") == []


# ---------------------------------------------------------------- paths and digests


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../a",
        "a/../../b",
        "a/./b",
        "a//b",
        "a\\b",
        "C:\\a",
        "a\x00b",
        "a\nb",
        "a\x9bb",
        "a\u202eb",
        "con",
        "aux.gguf",
        "a/nul",
        "a ",
        "a.",
        "x" * 300,
        "a/" * 300 + "b",
        "?",
    ],
)
def test_paths_that_leave_or_surprise_are_refused(path: str) -> None:
    with pytest.raises(BadResponse):
        safe_path(path)


@pytest.mark.parametrize("path", ["a.gguf", "onnx/model.onnx", "1_Pooling/config.json", "a b.txt"])
def test_usual_paths_are_not(path: str) -> None:
    assert safe_path(path) == path


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../x", "sha256:" + "g" * 64, "md5:" + "0" * 32, "0" * 63]
)
def test_what_is_no_digest(digest: str) -> None:
    with pytest.raises(BadResponse):
        Digest.parse(digest)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["a", "A"], "twice"),
        (["a", "a/b"], "both a file and a folder"),
        ([], "0 files"),
        (["b"], "main file"),
        (["a", "../b"], "must not be written"),
    ],
)
def test_manifests_are_checked(files: list[str], words: str) -> None:
    with pytest.raises(BadResponse, match=words):
        check(Manifest("m", "url", tuple(RemoteFile(path) for path in files), main="a"))


def test_git_names_contents_as_git_does(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    digest = Digest("git", "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    assert hash_file(tmp_path / "a", digest)["git"] == digest.hex


# ---------------------------------------------------------------- locks

HOLD = """
import sys
from pathlib import Path
from llm_runner_router.models.locks import FileLock
with FileLock(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("theirs", "ours", "free"),
    [("exclusive", False, False), ("shared", False, False), ("shared", True, True)],
)
def test_locks_hold_between_processes_and_end_with_them(
    tmp_path: Path, theirs: str, ours: bool, free: bool
) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path), theirs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        lock = FileLock(path, shared=ours)
        assert lock.take() is free
        lock.free()
        other.kill()
    with FileLock(path, patience=5):
        pass


def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock(path)
    assert first.take()
    path.unlink()
    second = FileLock(path)
    assert second.take()
    with pytest.raises(Unavailable), FileLock(path, patience=0):
        pass
    first.free()
    second.free()


def test_outside_files_are_named_where_they_are(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    (folder / "sub").mkdir(parents=True)
    for path in ("a", "sub/b"):
        (folder / path).write_bytes(b"x")
    sha = hashlib.sha256(b"x").hexdigest()
    files = tuple(StoredFile(p, 1, sha, str(folder / p)) for p in ("a", "sub/b"))
    store.put(Stored("n", "path", files))
    stored = store.get("n")
    assert stored is not None
    assert store.path_of(stored) == folder
    assert not (store.path / "trees").exists()
    store.remove("n")
    assert (folder / "a").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("path", "../a"), ("path", "a\x00b"), ("sha256", "../../a"), ("sha256", ""), ("main", "b")],
)
def test_an_entry_that_names_something_strange_is_damaged(
    store: Store, tmp_path: Path, field: str, value: str
) -> None:
    put(store, tmp_path, "a", one=b"1")
    put(store, tmp_path, "b", one=b"2")
    entry = store.path / "names" / "a.json"
    read = json.loads(entry.read_text())
    (read if field == "main" else read["files"][0])[field] = value
    entry.write_text(json.dumps(read))
    with pytest.raises(ModelFileError, match="is damaged"):
        store.get("a")
    assert [stored.name for stored in store.all()] == ["b"]


def test_cleaning_takes_folders_too(store: Store) -> None:
    scratch = store.partial / "signed-0123"
    scratch.mkdir(parents=True)
    (scratch / "model.gguf").write_bytes(b"x")
    now = scratch.stat().st_mtime
    store.prune(now=now + KEEP_PARTIAL - 1)
    assert scratch.exists()
    store.prune(now=now + KEEP_PARTIAL + 1)
    assert not scratch.exists()
