"""Formats are told by content; what is none is explained; packages add their own."""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models import detect as detecting
from llm_runner_router.models.detect import detect
from llm_runner_router.models.formats import gguf, safetensors
from llm_runner_router.models.info import ModelInfo
from llm_runner_router.models.resolve import ZOO as GGUFS
from llm_runner_router.testing import check_format

from .building import ZOO


def test_names_do_not_matter(tmp_path: Path) -> None:
    for source, expected in (
        (GGUFS / "tiny-math.gguf", "gguf"),
        (ZOO / "tiny-math" / "model.safetensors", "safetensors"),
    ):
        for name in ("model.safetensors", "model.gguf", "pytorch_model.bin", "model"):
            path = tmp_path / name
            shutil.copy(source, path)
            found = detect(path)
            assert found.name == expected
            assert found.describe(path).format == expected
            path.unlink()


def test_a_folder() -> None:
    assert detect(ZOO / "tiny-math").name == "safetensors"
    with detecting.open_checkpoint(ZOO / "tiny-math") as opened:
        assert opened.info == detecting.describe(ZOO / "tiny-math")


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


STRANGERS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "it is empty", "download it again"),
    "zeros": (bytes(5000), "zeros only", "download it again"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "pointer of Git LFS",
        "git lfs pull",
    ),
    "web page": (b"\n<!DOCTYPE html><html>Login", "a web page", "login"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(9), "HDF5", "safetensors"),
    "TFLite": (b"\x20\0\0\0TFL3" + bytes(9), "TensorFlow Lite", "GGUF"),
    "gzip": (gzip.compress(b"only a text"), "an unknown file inside", "gunzip"),
    "broken gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\xff" * 60, "damaged", "again"),
    "zip": (zipped("inner/a.txt"), "its first entry is 'inner/a.txt'", "unzip"),
    "npz": (zipped("a.npy"), "NumPy arrays", "safetensors"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive", "unpack"),
    "tar": (b"x" * 257 + b"ustar\0" + bytes(90), "a tar archive", "tar -xf"),
    "JSON": (b'{"weight_map": {}}', "a JSON text", "folder"),
    "Modelfile": (b"FROM llama3\nPARAMETER x 1\n", "a Modelfile", "FROM"),
    "text": ("no model, só texto".encode(), "it is a text", "format"),
    "noise": (b"\xde\xad\xbe\xef" * 9, r"begins with b'\xde\xad", "format"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_model_is_explained(tmp_path: Path, name: str) -> None:
    content, words, step = STRANGERS[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError) as caught:
        detect(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert step in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("files", "words", "step"),
    [
        ((), "empty folder", "name a model"),
        (("notes.md",), "no model file in it", "name a model"),
        (("b.gguf", "a.gguf"), "GGUF files", "a.gguf"),
        (("saved_model.pb",), "SavedModel", "tf2onnx"),
        (("config.json", "tokenizer.json"), "without its weights", "weights"),
        (("model_index.json", "config.json"), "makes images", "format"),
    ],
)
def test_folders_are_explained(
    tmp_path: Path, files: tuple[str, ...], words: str, step: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(ModelFileError, match=words) as caught:
        detect(tmp_path)
    assert step in (caught.value.hint or "")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    import os

    with pytest.raises(ModelFileError, match="no model file"):
        detect(tmp_path / "absent")
    with pytest.raises(ModelFileError, match="cannot read"):
        detect(tmp_path / "nul\0byte")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="neither a file nor a folder"):
        detect(tmp_path / "pipe")


# ---------------------------------------------------------------- added by packages


def toy_describe(path: Path) -> ModelInfo:
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ModelFileError(f"cannot read `{path}`: {exc}", hint="check the path") from exc
    if content[:4] != b"TOY!":
        raise ModelFileError(f"`{path}` is no toy", hint="make another one")
    return ModelInfo(format="toy", architecture="toy", bytes=len(content))


TOY = SimpleNamespace(sniff=lambda path, head: head[:4] == b"TOY!", describe=toy_describe)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Pretend that a package offers a format: an object, or an error that loading it raises."""
    real = importlib.metadata.entry_points
    added: list[SimpleNamespace] = []

    def points(*, group: str, name: str | None = None) -> list[Any]:
        if group != "llm_runner_router.models.formats":
            return list(real(group=group))
        return [p for p in added if name is None or p.name == name]

    def install(name: str, thing: Any) -> None:
        def load() -> Any:
            if isinstance(thing, Exception):
                raise thing
            return thing

        point = SimpleNamespace(name=name, load=load, dist=None, value=f"{name}_package:format")
        added.append(point)

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    return install


def test_a_package_adds_a_format(tmp_path: Path, installed: Callable[[str, Any], None]) -> None:
    path = tmp_path / "a.toy"
    path.write_bytes(b"TOY! car")
    with pytest.raises(ModelFileError, match="it is a text"):
        detect(path)
    installed("toy", TOY)
    found = detect(path)
    assert (found.name, found.describe(path).architecture) == ("toy", "toy")
    assert found.open_checkpoint is None
    with pytest.raises(ModelFileError, match="the format `toy` gives none"):
        detecting.open_checkpoint(path)


def test_ours_come_first(installed: Callable[[str, Any], None]) -> None:
    installed("greedy", SimpleNamespace(sniff=lambda path, head: True, describe=toy_describe))
    assert detect(GGUFS / "tiny-math.gguf").name == "gguf"


def test_a_broken_package_does_not_hide_the_reason(
    tmp_path: Path, installed: Callable[[str, Any], None]
) -> None:
    def fail(path: Path, head: bytes) -> bool:
        raise ZeroDivisionError("oh")

    installed("broken", ImportError("no such library"))
    installed("failing", SimpleNamespace(sniff=fail))
    path = tmp_path / "a.toy"
    path.write_bytes(b"text")
    with pytest.raises(ModelFileError, match=r"it is a text.*no such library.*oh"):
        detect(path)
    installed("toy", TOY)
    path.write_bytes(b"TOY!")
    assert detect(path).name == "toy"


# ---------------------------------------------------------------- the conformance check


def test_gguf_and_safetensors_keep_the_contract(tmp_path: Path) -> None:
    check_format(gguf, GGUFS / "tiny-math.gguf", tmp_path)
    check_format(safetensors, ZOO / "tiny-math", tmp_path)


def test_the_toy_keeps_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "a.toy"
    path.write_bytes(b"TOY! car")
    (tmp_path / "scratch").mkdir()
    check_format(TOY, path, tmp_path / "scratch")


def without_hint(path: Path) -> ModelInfo:
    try:
        return toy_describe(path)
    except ModelFileError as exc:
        raise ModelFileError(exc.message) from None


def leaky(path: Path) -> ModelInfo:
    info = toy_describe(path)
    if b"\xff" in path.read_bytes():
        raise AttributeError("a reader that has no attribute for this")
    return info


def writing(path: Path) -> ModelInfo:
    info = toy_describe(path)
    path.with_suffix(".cache").write_bytes(b"")
    return info


WRONG = {
    "knows everything": (SimpleNamespace(sniff=lambda p, h: True, describe=toy_describe), "takes"),
    "knows nothing": (SimpleNamespace(sniff=lambda p, h: False, describe=toy_describe), "know"),
    "no next step": (SimpleNamespace(sniff=TOY.sniff, describe=without_hint), "next step"),
    "writes": (SimpleNamespace(sniff=TOY.sniff, describe=writing), "a file was written"),
    "other errors": (SimpleNamespace(sniff=TOY.sniff, describe=leaky), "has no attribute for"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_check_finds_what_is_wrong(tmp_path: Path, name: str) -> None:
    module, words = WRONG[name]
    path = tmp_path / "a.toy"
    path.write_bytes(b"TOY! car")
    (tmp_path / "scratch").mkdir()
    with pytest.raises((AssertionError, AttributeError), match=words):
        check_format(module, path, tmp_path / "scratch")


def test_a_bin_file_is_told_by_what_is_in_it(tmp_path: Path) -> None:
    """The ending says nothing: six kinds of file have it."""
    from .fuzzing import sound_ggml, sound_older_pytorch, sound_pytorch, sound_small_gguf
    from .test_older import openvino_model, tfjs_model

    made = {
        "gguf": sound_small_gguf,
        "ggml": sound_ggml,
        "pytorch": sound_pytorch,
        "pytorch-older": sound_older_pytorch,
    }
    for name, make in made.items():
        folder = tmp_path / name
        folder.mkdir()
        path = make(folder).rename(folder / "weights.bin")
        assert detect(path).name == name.removesuffix("-older")
    for name, model, shard in (
        ("tfjs", tfjs_model, "group1-shard1of2.bin"),
        ("openvino", openvino_model, "openvino_model.bin"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        part = model(folder) / shard
        words = {"tfjs": "a shard of a TensorFlow.js model", "openvino": "the weights of"}[name]
        with pytest.raises(ModelFileError, match=words) as caught:
            detect(part)
        assert str(folder) in (caught.value.hint or "")
    (tmp_path / "raw.bin").write_bytes(b"\x3f\x80\x11\x22" * 99)
    with pytest.raises(ModelFileError, match="raw numbers perhaps"):
        detect(tmp_path / "raw.bin")
