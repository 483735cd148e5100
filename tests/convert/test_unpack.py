"""Packed models: unpacked whole, or refused with nothing written outside and nothing left."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.models.formats.packing import GGUF, WEIGHTS, hostile, hub, tarred, zipped

from llm_runner_router.cli import main
from llm_runner_router.convert import unpack
from llm_runner_router.convert.run import convert, kind_of, steps_for
from llm_runner_router.errors import EngineError, ModelFileError, RunnerError
from llm_runner_router.models.detect import describe, detect
from llm_runner_router.models.formats._archive import walk
from llm_runner_router.testing import damaged

from . import adapters

HOSTILE = hostile()
PACKED: dict[str, Callable[[], bytes]] = {
    "m.gguf.gz": lambda: gzip.compress(GGUF),
    "m.gguf.xz": lambda: lzma.compress(GGUF),
    "m.gguf.bz2": lambda: bz2.compress(GGUF),
    "in-two-parts.gguf.gz": lambda: gzip.compress(GGUF[:70]) + gzip.compress(GGUF[70:]) + bytes(9),
    "g.zip": lambda: zipped({"read.me": b"hello", "x/m.gguf": GGUF, "__MACOSX/x/._m.gguf": b"?"}),
    "g.tar": lambda: tarred({"./x/m.gguf": GGUF, "x/LICENSE": b"MIT"}),
    "long-name.tgz": lambda: gzip.compress(tarred({f"{'d' * 90}/{'m' * 90}.gguf": GGUF}, format=1)),
    "f.zip": lambda: zipped(hub()),
    "stored.zip": lambda: zipped(hub(), zipfile.ZIP_STORED),
    "f.tar": lambda: tarred(hub()),
    "f.tar.gz": lambda: gzip.compress(tarred(hub())),
    "f.tar.xz": lambda: lzma.compress(tarred(hub())),
    "m.safetensors.gz": lambda: gzip.compress(WEIGHTS),
}


def content(path: Path) -> dict[str, bytes]:
    """Every file below a folder, or a file alone."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", PACKED)
def test_what_was_packed_comes_out(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / name, tmp_path / "out" / "model"
    source.write_bytes(PACKED[name]())
    kind = kind_of(source).removeprefix("packed-")
    done: list[tuple[int, int]] = []
    result = convert(
        source, target, kind, report=lambda progress: done.append((progress.done, progress.total))
    )
    assert result.have == f"packed-{kind}"
    assert done == sorted(done)
    assert done[-1] == (source.stat().st_size,) * 2
    folder = {k.removeprefix("model/"): v for k, v in hub().items()}
    expected = {"": GGUF} if kind == "gguf" else folder
    if name == "m.safetensors.gz":
        expected = {"model.safetensors": WEIGHTS}
    assert content(target) == expected
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model"], "nothing beside it"


def test_its_facts_are_told_without_unpacking(tmp_path: Path) -> None:
    gguf, folder = tmp_path / "m.gguf.gz", tmp_path / "f.tar.gz"
    gguf.write_bytes(PACKED[gguf.name]())
    folder.write_bytes(PACKED[folder.name]())
    plain = tmp_path / "plain.gguf"
    plain.write_bytes(GGUF)
    found, expected = describe(gguf), describe(plain)
    assert (found.format, found.architecture) == ("packed", expected.architecture)
    assert (found.parameters, found.bytes) == (expected.parameters, gguf.stat().st_size)
    assert "compressed with gzip, with a GGUF file inside" in found.notes[0]
    found = describe(folder)
    assert (found.architecture, found.layers, found.width) == ("llama", 5, 8)
    assert "tar archive, compressed with gzip, with a model in safetensors" in found.notes[0]


def test_one_look_serves_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def counted(*given: Any) -> Any:
        looks.append(1)
        return walk(*given)

    monkeypatch.setattr("llm_runner_router.models.formats.packed.walk", counted)
    source = tmp_path / "m.tgz"
    source.write_bytes(PACKED["f.tar.gz"]())
    assert describe(source).architecture == "llama"
    assert kind_of(source) == "packed-safetensors"
    assert len(looks) == 1
    source.write_bytes(PACKED["m.gguf.gz"]())
    assert kind_of(source) == "packed-gguf"
    assert len(looks) == 2, "it is another file by now"


def test_it_goes_on_to_other_kinds(tmp_path: Path) -> None:
    source = tmp_path / "f.zip"
    source.write_bytes(PACKED["f.zip"]())
    steps = [(step.have, step.want) for step in steps_for(source, "gguf")]
    assert steps == [("packed-safetensors", "safetensors"), ("safetensors", "gguf")]


def test_what_is_made_of_it_has_its_name(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"
    source = tmp_path / "mine.tar.gz"
    source.write_bytes(gzip.compress(tarred({p.name: p.read_bytes() for p in model.iterdir()}), 1))
    convert(source, tmp_path / "out.gguf", "gguf")
    assert describe(tmp_path / "out.gguf").name == "mine"


def test_an_adapter_is_told_and_becomes_one_for_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"
    folder = adapters.make(base, tmp_path / "sea", only=("q_proj",))
    source = tmp_path / "sea.tgz"
    parts = {f"sea/{p.name}": p.read_bytes() for p in folder.iterdir()}
    source.write_bytes(gzip.compress(tarred(parts)))
    assert describe(source).part == "adapter"
    for packed in (source, folder):
        target = tmp_path / f"from-{packed.name}.gguf"
        assert main(["convert", str(packed), str(target), "--base", str(base)]) == 0
    assert (tmp_path / "from-sea.tgz.gguf").read_bytes() == (
        tmp_path / "from-sea.gguf"
    ).read_bytes()
    capsys.readouterr()
    assert main(["convert", str(source), "--to", "peft", str(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == content(folder)


def test_a_file_of_pytorch_stays_one(tmp_path: Path) -> None:
    from attacks.pickles import archive, tensor, text

    torch = archive(b"\x80\x02}(" + text("a") + tensor() + b"u.")
    path, packed = tmp_path / "pytorch_model.bin", tmp_path / "pytorch_model.bin.gz"
    path.write_bytes(torch)
    packed.write_bytes(gzip.compress(torch))
    assert detect(path).name == "pytorch"
    assert kind_of(packed) == "packed-pytorch"
    convert(packed, tmp_path / "out", "pytorch")
    assert content(tmp_path / "out") == {"pytorch_model.bin": torch}


def test_settings_beside_a_compressed_file_go_along(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors.gz"
    source.write_bytes(gzip.compress(WEIGHTS))
    settings = hub()["model/config.json"]
    (tmp_path / "config.json").write_bytes(settings)
    convert(source, tmp_path / "out", "safetensors")
    found = content(tmp_path / "out")
    assert found == {"config.json": settings, "model.safetensors": WEIGHTS}


@pytest.mark.parametrize("size", [0, 257, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 258])
def test_ends_of_pieces_lose_nothing(size: int, tmp_path: Path) -> None:
    """Long runs, which a decompressor holds back while it has no more input to ask for."""
    files = {**hub(), "model/zeros.txt": bytes(size)}
    for name, data in (
        ("a.zip", zipped(files)),
        ("a.tgz", gzip.compress(tarred(files))),
        ("a.tar.bz2", bz2.compress(tarred(files))),
    ):
        source = tmp_path / name
        source.write_bytes(data)
        convert(source, tmp_path / f"{name}.out", "safetensors")
        assert content(tmp_path / f"{name}.out")["zeros.txt"] == bytes(size)


def test_texts_beside_the_model_s_folder_go_into_it(tmp_path: Path) -> None:
    source = tmp_path / "f.zip"
    beside = {"README.md": b"hello", "LICENSE": b"MIT", "x/LICENSE": b"other"}
    source.write_bytes(zipped(beside | {f"x/{name}": data for name, data in hub().items()}))
    convert(source, tmp_path / "out", "safetensors")
    found = content(tmp_path / "out")
    assert (found["README.md"], found["LICENSE"]) == (b"hello", b"other")
    assert set(found) == {name.removeprefix("model/") for name in hub()} | {"README.md", "LICENSE"}


def test_what_makes_no_model_is_told_by_the_file_s_own_name(tmp_path: Path) -> None:
    source = tmp_path / "f.zip"
    source.write_bytes(zipped(hub() | {"other/notes.csv": b"1,2"}))
    with pytest.raises(ModelFileError, match=r"f\.zip.*makes no model") as caught:
        convert(source, tmp_path / "out", "safetensors")
    assert ".converting" not in caught.value.message
    assert "unpack it" in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["f.zip"]


def test_no_code_comes_out(tmp_path: Path) -> None:
    source = tmp_path / "f.zip"
    source.write_bytes(zipped({**hub(), "model/modeling_x.py": b"evil()", "model/run.sh": b"evil"}))
    convert(source, tmp_path / "out", "safetensors")
    assert not [name for name in content(tmp_path / "out") if name.endswith((".py", ".sh"))]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused(name: str, tmp_path: Path) -> None:
    file, data, words = HOSTILE[name]
    folder = tmp_path / "in"
    folder.mkdir()
    source, target = folder / file, tmp_path / "out" / "model"
    source.write_bytes(data)
    before = content(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        convert(source, target, "gguf")
    assert words in caught.value.message
    assert caught.value.hint
    assert content(tmp_path) == before, "nothing was written"


def test_room_is_looked_for_before_and_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "m.gguf.gz"
    source.write_bytes(PACKED["m.gguf.gz"]())
    free = iter([1 << 40, 1 << 40, 1 << 10])
    monkeypatch.setattr(unpack, "LOOK", 0)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free, 1 << 10))
    )
    with pytest.raises(EngineError, match="unpacking needs"):
        convert(source, tmp_path / "out", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf.gz"]
    with pytest.raises(EngineError, match="may need"):
        convert(source, tmp_path / "out", "gguf")


@pytest.mark.parametrize("name", ["m.gguf.gz", "f.zip", "f.tar.gz"])
def test_seven_hundred_damaged_archives(name: str, tmp_path: Path) -> None:
    """Each is refused, or all of it comes out as it went in: sums of check see every byte."""
    source, draft = tmp_path / name, tmp_path / "draft"
    sound = PACKED[name]()
    kind = "gguf" if name.startswith("m") else "safetensors"
    target = draft / ("1.gguf" if kind == "gguf" else "1")

    def unpacked(data: bytes) -> dict[str, bytes]:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        source.write_bytes(data)
        unpack.unpack(source, target, kind, lambda done, total, what: None)
        return content(target)

    expected = unpacked(sound)
    accepted = 0
    for seed in range(700):
        with suppress(RunnerError):
            assert unpacked(damaged(sound, seed)) == expected, seed
            accepted += 1
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted((name, "draft")), seed
        assert [p.name for p in draft.iterdir()] in ([], [target.name]), seed
    assert accepted < 350
