"""What every model format must do: ours, and those that other packages add.

Knows: the contract in `models/formats/__init__.py`. Does not know: any real format.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_runner_router.errors import ModelFileError

HEAD = 4096
_STRANGERS = (b"", b"\0" * 64, b"hello\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b"\xff" * HEAD)


def check_format(module: Any, sound: Path, scratch: Path, *, damages: int = 100) -> None:
    """Whether `module` keeps the contract of a format.

    Args:
        module: what the entry point names: has `sniff`, `describe`, perhaps `open_checkpoint`.
        sound: a small model in that format, a file or a folder. It is not changed.
        scratch: an empty folder for damaged copies.
        damages: how many damaged copies are tried; the same ones on every run.

    Raises:
        AssertionError: it does not do what the contract says.
    """
    _recognises(module, sound, scratch)
    info = module.describe(sound)
    assert info.format, "`describe` does not say the format"
    assert info.architecture, "`describe` does not say the architecture"
    assert info.bytes > 0, "`describe` does not say the size"
    assert module.describe(sound) == info, "`describe` says something else the second time"
    _missing(module, scratch)
    if hasattr(module, "open_checkpoint"):
        _opens(module, sound, info)
    _survives(module, sound, scratch, damages)


def damaged(content: bytes, seed: int) -> bytes:
    """`content` with a few bytes changed, a stretch lost or doubled, or its end cut off.

    The same for the same seed. Half of the changes fall in the first kilobyte, where headers lie.
    """
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.randrange(1, 5)):
        if not data:
            break
        most = len(data) if rng.random() < 0.5 else min(len(data), 1024)
        at, act = rng.randrange(most), rng.random()
        if act < 0.7:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif act < 0.8:
            del data[at : at + rng.randrange(1, 64)]
        elif act < 0.9:
            data[at:at] = data[at : at + rng.randrange(1, 64)]
        else:
            data[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), b"\0" * 7 + b"\x80"))
    if rng.random() < 0.15:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


def _recognises(module: Any, sound: Path, scratch: Path) -> None:
    assert module.sniff(sound, _head(sound)), f"`sniff` does not know {sound}"
    other = scratch / "other"
    for content in _STRANGERS:
        other.write_bytes(content)
        assert not module.sniff(other, content), f"`sniff` takes {content[:16]!r} for its own"
    other.unlink()
    empty = scratch / "empty"
    empty.mkdir()
    assert not module.sniff(empty, b""), "`sniff` takes an empty folder for its own"
    empty.rmdir()


def _missing(module: Any, scratch: Path) -> None:
    path = scratch / "absent"
    error = _refused(module, path)
    assert error is not None, "`describe` finds facts in a file that is not there"
    assert str(path) in error.message, f"the missing file is not named: {error.message}"


def _opens(module: Any, sound: Path, info: Any) -> None:
    with module.open_checkpoint(sound) as opened:
        assert opened.info == info, "`open_checkpoint` and `describe` disagree"
        assert len(opened.weights) == info.tensors, "not every tensor is among the weights"
        for name, weight in opened.weights.items():
            view = opened.read(name)
            assert weight.name == name, f"{name!r} calls itself {weight.name!r}"
            assert view.nbytes == weight.bytes, f"{name!r} has {view.nbytes}, not {weight.bytes}"
            assert view.readonly, f"the bytes of {name!r} can be changed"
            view.release()
        try:
            opened.read("no such tensor")
        except KeyError:
            pass
        else:
            raise AssertionError("`read` gave bytes for a tensor that is not there")
    opened.close()  # closing twice is allowed


def _survives(module: Any, sound: Path, scratch: Path, damages: int) -> None:
    """Damaged copies are described or refused, nothing else happens."""
    for seed, copy in _copies(sound, scratch, damages):
        before = _files(scratch)
        try:
            error = _refused(module, copy)
        except Exception as exc:
            exc.add_note(f"damage {seed} of {sound}")
            raise
        if error is not None:
            assert str(copy) in error.message, f"the damaged file is not named: {error.message}"
            assert error.hint, f"damage {seed}: no next step is told: {error.message}"
        assert _files(scratch) == before, f"damage {seed}: a file was written"


def _copies(sound: Path, scratch: Path, count: int) -> Iterator[tuple[int, Path]]:
    copy = scratch / sound.name
    if sound.is_file():
        content = sound.read_bytes()
        for seed in range(count):
            copy.write_bytes(damaged(content, seed))
            yield seed, copy
        copy.unlink()
        return
    shutil.copytree(sound, copy)
    files = sorted(p for p in sound.rglob("*") if p.is_file())
    for seed in range(count):
        chosen = files[seed % len(files)]
        target = copy / chosen.relative_to(sound)
        target.write_bytes(damaged(chosen.read_bytes(), seed))
        yield seed, copy
        shutil.copyfile(chosen, target)
    shutil.rmtree(copy)


def _refused(module: Any, path: Path) -> ModelFileError | None:
    try:
        module.describe(path)
    except ModelFileError as exc:
        return exc
    return None


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))
