"""Converted models that are kept: told apart by content, made once, and gone when of no use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_runner_router.convert import cache, identity
from llm_runner_router.convert.base import Cancelled, Options
from llm_runner_router.errors import BadRequest, EngineError, ModelFileError
from llm_runner_router.home import Home

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"
Q8 = Options(quantize="Q8_0")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of small files, which nothing here looks into."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(b"w" * 4000)
    return folder


def put(size: int = 500) -> Callable[[Path], object]:
    """Work that writes `size` bytes."""
    return lambda target: target.write_bytes(b"x" * size)


def make(home: Home, source: Path, options: Options = Q8, want: str = "gguf") -> Path:
    return cache.cached(home, source, want, options, put())


def rewrite(path: Path, data: bytes) -> None:
    """Other bytes in place, with the size and the time of writing of before."""
    before = path.stat()
    assert len(data) == before.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def entries(home: Home) -> list[str]:
    """Everything below the folder of results but locks."""
    folder = home.path / "converted"
    return sorted(p.name for p in folder.iterdir() if p.name != ".locks") if folder.exists() else []


# ---------------------------------------------------------------- told apart


def test_a_single_file_is_told_with_what_lies_beside_it(model: Path) -> None:
    file = model / "model.safetensors"
    before = identity.digest(file), identity.stamp(file)
    (model / "config.json").write_text('{"a": 2}')
    assert identity.digest(file) != before[0]
    assert identity.stamp(file) != before[1]
    changed = identity.digest(file)
    (model / "tokenizer.model").write_bytes(b"words")
    assert identity.digest(file) != changed
    changed = identity.digest(file)
    (model / "another.safetensors").write_bytes(b"of another model")
    (model / "holiday.iso").write_bytes(b"of nobody")
    (model / "README.md").write_text("words")
    assert identity.digest(file) == changed


def test_a_gguf_file_is_told_alone_and_with_its_parts(tmp_path: Path) -> None:
    names = [f"a-0000{n}-of-00002.gguf" for n in (1, 2)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    before = identity.digest(tmp_path / names[0])
    (tmp_path / "config.json").write_text("{}")
    assert identity.digest(tmp_path / names[0]) == before
    (tmp_path / names[1]).write_bytes(b"other")
    assert identity.digest(tmp_path / names[0]) != before


def test_shards_beside_a_json_count(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    before = identity.digest(tmp_path / "model.json")
    (tmp_path / "group1-shard1of1.bin").write_bytes(b"w")
    assert identity.digest(tmp_path / "model.json") != before


def test_a_file_rewritten_in_place_has_another_stamp(model: Path) -> None:
    file = model / "model.safetensors"
    folder = model.stat().st_mtime_ns
    before = identity.stamp(model), identity.stamp(file)
    time.sleep(0.02)  # two changes within one tick of the file system's clock cannot be told
    rewrite(file, b"v" * 4000)
    assert model.stat().st_mtime_ns == folder
    assert identity.stamp(model) != before[0]
    assert identity.stamp(file) != before[1]


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        identity.stamp(tmp_path / "a.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match="has no files"):
        identity.stamp(tmp_path / "empty")


# ---------------------------------------------------------------- made once


def test_a_kept_result_is_used_again(home: Home, model: Path, tmp_path: Path) -> None:
    made: list[Path] = []

    def work(target: Path) -> None:
        put()(target)
        made.append(target)

    first = cache.cached(home, model, "gguf", Q8, work)
    assert cache.cached(home, model, "gguf", Q8, work) == first
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    assert cache.cached(home, copy, "gguf", Q8, work) == first
    assert len(made) == 1
    (one,) = cache.kept(home)
    assert (one.path, one.note.bytes, one.note.want) == (first, 500, "gguf")
    assert [origin.path for origin in one.note.origins] == [str(model), str(copy)]
    assert cache.made_of(home, copy) == [one]


def test_a_result_of_a_version_without_notes_is_found(home: Home, model: Path) -> None:
    place = cache.place(home, model, "gguf", Q8)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert make(home, model) == place
    assert [one.path for one in cache.made_of(home, model)] == [place]


@pytest.mark.parametrize("when", ["written", "beside"])
def test_a_source_that_changes_meanwhile_is_not_kept(home: Home, model: Path, when: str) -> None:
    def work(target: Path) -> None:
        put()(target)
        time.sleep(0.02)
        if when == "written":
            rewrite(model / "model.safetensors", b"v" * 4000)
        else:
            (model / "tokenizer.json").write_text("{}")

    source = model if when == "written" else model / "model.safetensors"
    with pytest.raises(ModelFileError, match="changed while it was converted"):
        cache.cached(home, source, "gguf", Q8, work)
    assert entries(home) == []
    assert make(home, source).read_bytes() == b"x" * 500


def test_touching_the_source_meanwhile_changes_nothing(home: Home, model: Path) -> None:
    def work(target: Path) -> None:
        put()(target)
        (model / "config.json").touch()
        (model / "README.md").write_text("words")

    assert cache.cached(home, model, "gguf", Q8, work).exists()


def test_work_that_fails_leaves_nothing(home: Home, model: Path) -> None:
    def work(target: Path) -> None:
        target.write_bytes(b"half")
        raise BadRequest("no")

    with pytest.raises(BadRequest):
        cache.cached(home, model, "gguf", Q8, work)
    assert entries(home) == []


def test_a_folder_that_cannot_be_written_is_told(home: Home, model: Path) -> None:
    home.path.mkdir()
    (home.path / "converted").write_text("in the way")
    with pytest.raises(EngineError, match="cannot keep a converted model in") as caught:
        make(home, model)
    assert caught.value.hint


HOLD = """
import sys
from pathlib import Path
from llm_runner_router.convert import cache
from llm_runner_router.convert.base import Options
from llm_runner_router.home import Home
def work(target):
    target.write_bytes(b"y" * 9)
    print("working", flush=True)
    sys.stdin.readline()
    print("done", flush=True)
cache.cached(Home(Path(sys.argv[1])), Path(sys.argv[2]), "gguf", Options(quantize="Q8_0"), work)
"""


@pytest.fixture
def other(home: Home, model: Path) -> subprocess.Popen[bytes]:
    """Another process in the middle of the same conversion."""
    command = [sys.executable, "-c", HOLD, str(home.path), str(model)]
    held = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            env={**os.environ})  # fmt: skip
    assert held.stdout is not None
    assert held.stdout.readline() == b"working\n"
    return held


def test_another_process_is_waited_for(
    home: Home, model: Path, other: subprocess.Popen[bytes]
) -> None:
    looks = 0

    def cancelled() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            assert other.stdin is not None
            other.stdin.write(b"\n")
            other.stdin.flush()
        return False

    with other:
        path = cache.cached(home, model, "gguf", Q8, put(), cancelled=cancelled)
    assert path.read_bytes() == b"y" * 9, "it was made twice"


def test_waiting_can_be_cancelled(home: Home, model: Path, other: subprocess.Popen[bytes]) -> None:
    with other:
        with pytest.raises(Cancelled):
            cache.cached(home, model, "gguf", Q8, put(), cancelled=lambda: True)
        assert cache.prune(home) == cache.Freed()
        assert cache.sweep(home) == 0
        assert len(entries(home)) == 1, "what runs is left alone"
        other.kill()


@pytest.mark.parametrize("how", ["sweep", "prune", "again"])
def test_what_a_killed_one_left_is_swept(
    home: Home, model: Path, other: subprocess.Popen[bytes], how: str
) -> None:
    with other:
        other.kill()
    (draft,) = entries(home)
    assert draft.endswith(".draft")
    if how == "sweep":
        assert cache.sweep(home) == 1
    elif how == "prune":
        cache.prune(home)
    else:
        assert make(home, model).read_bytes() == b"x" * 500
    assert draft not in entries(home)


# ---------------------------------------------------------------- of no use any more


def test_what_has_lost_its_source_is_pruned(home: Home, model: Path) -> None:
    make(home, model)
    assert cache.prune(home) == cache.Freed()
    shutil.rmtree(model)
    assert cache.prune(home) == cache.Freed(1, 500)
    assert entries(home) == []


def test_what_was_made_of_an_older_form_is_pruned(home: Home, model: Path) -> None:
    old = make(home, model)
    (model / "config.json").write_text('{"a": 2}')
    new = make(home, model)
    assert cache.prune(home, quick=True) == cache.Freed()
    assert cache.prune(home) == cache.Freed(1, 500)
    assert not old.exists()
    assert new.exists()


def test_a_source_that_was_only_touched_keeps_what_was_made_of_it(home: Home, model: Path) -> None:
    path = make(home, model)
    for file in model.iterdir():
        os.utime(file, ns=(1, 1))
    assert cache.prune(home) == cache.Freed()
    assert path.exists()
    (one,) = cache.kept(home)
    assert one.note.origins[0].stamp == identity.stamp(model), "it needs not be read next time"


def test_results_of_results_go_with_them(home: Home, model: Path) -> None:
    first = make(home, model)
    second = make(home, first, Options(quantize="Q4_0"))
    shutil.rmtree(model)
    assert cache.prune(home).conversions == 2
    assert not second.exists()


@pytest.mark.parametrize("damage", ["version", "note", "result", "none"])
def test_what_nobody_can_ask_for_is_pruned(home: Home, model: Path, damage: str) -> None:
    path = make(home, model)
    note = path.with_name("about.json")
    if damage == "version":
        note.write_bytes(note.read_bytes().replace(b'"gguf"', b'"gguf","version":0'))
    elif damage == "note":
        note.write_bytes(b"{")
    elif damage == "result":
        path.unlink()
    assert cache.prune(home).conversions == (0 if damage == "none" else 1)


def test_forgetting_a_model_frees_what_was_made_of_it(
    home: Home, model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    path = make(home, model)
    assert make(home, copy) == path
    other = make(home, model, Options(quantize="Q4_0"))
    assert cache.forget(home, model) == cache.Freed(1, 500)
    assert path.exists(), "the copy may ask for it"
    assert not other.exists()
    assert cache.forget(home, copy) == cache.Freed(1, 500)
    assert entries(home) == []


def test_nothing_there_is_nothing_to_do(home: Home, model: Path) -> None:
    assert cache.kept(home) == []
    assert cache.prune(home) == cache.forget(home, model) == cache.Freed()
    assert cache.sweep(home) == 0
    assert not home.path.exists(), "looking creates nothing"
