"""Packed model files unpacked: one file or one folder, written as it streams by.

Knows: where members go, and what must hold before and while they are written: room on the disk, the
kind that the archive seemed to hold. Does not know: containers (`models/formats/_archive.py`, which
refuses what leads out of the folder, grows without bound, is damaged or encrypted). Memory does not
grow with the file.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from llm_runner_router.errors import EngineError, ModelFileError
from llm_runner_router.models.formats import packed

from . import companions
from .base import Convert, Options, Tick, converts
from .plan import PACKED

if TYPE_CHECKING:
    from llm_runner_router.models.formats.packed import Content, Inside, Member

PIECE: Final = 4 << 20
ROOM: Final = 64 << 20
"""Bytes that stay free on the disk."""
LOOK: Final = 256 << 20
"""Bytes written between two looks at what is free."""
_CODE: Final = (".py", ".pyc", ".sh", ".exe", ".so", ".dll")
"""Files that are left behind: nothing of a model is ever run."""
_ABOUT: Final = (".md", ".txt", ".pdf", ".png", ".jpg", ".sha256")
_PLAIN: Final = ("license", "licence", "notice", "readme", "sha256sums", ".gitattributes")
"""Endings and names of files that tell of a model and are no part of it."""
_NAMES: Final = {
    "safetensors": "model.safetensors",
    "mlx": "model.safetensors",
    "pytorch": "pytorch_model.bin",
    "onnx": "model.onnx",
    "tfjs": "model.json",
}
"""What a single file is called in the folder that it becomes."""


KINDS: Final = (
    *("gguf", "bitnet-gguf", "ggml", "safetensors", "mlx"),
    *("pytorch", "onnx", "onnx-genai", "tfjs", "peft"),
)
"""What may be packed."""


def _converter(kind: str) -> Convert:
    @converts(f"{PACKED}{kind}", kind, grow=1.5, speed=150e6)
    def run(source: Path, target: Path, options: Options, tick: Tick) -> None:
        """See `unpack`."""
        unpack(source, target, kind, tick)

    return run


CONVERTERS: Final = tuple(map(_converter, KINDS))


def unpack(source: Path, target: Path, kind: str, tick: Tick) -> None:
    """The model in `source` as the file or folder `target`.

    Args:
        source: the packed file.
        target: does not exist yet; a file for kinds of `plan.FILES`, else a folder.
        kind: what must be in it.
        tick: told bytes of `source`.

    Raises:
        ModelFileError: it is damaged, holds something else, or something in it is refused.
        EngineError: the disk has too little room.
        Cancelled: `tick` raised it.
    """
    found = packed.inside(source)
    _check_room(target.parent, _needed(source, found))
    _Unpacking(source, target, found, tick).run()
    _check_kind(source, target, kind)


def _needed(source: Path, found: Inside) -> int:
    """Bytes that it will take at least."""
    size = source.stat().st_size
    if found.container.compression == "gzip":
        with source.open("rb") as file:  # the size of the last part, without its upper half
            file.seek(-4, os.SEEK_END)
            size = max(size, int.from_bytes(file.read(4), "little"))
    return max(size, found.declared)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + ROOM:
        raise EngineError(
            f"`{folder}` has {free >> 20} MiB free, and unpacking needs"
            f" {(needed + ROOM) >> 20} MiB or more",
            hint="free some room, or unpack it on another disk",
        )


def _check_kind(source: Path, target: Path, kind: str) -> None:
    """It is what it seemed to be, now that all of it is there."""
    from .run import kind_of

    try:
        got = kind_of(target)
    except ModelFileError as exc:  # it names a place that is gone by then
        why = exc.message.rpartition(": ")[2]
        hint = "unpack it, and name the model in it"
        raise packed.refusal(source, f"what is in it makes no model: {why}", hint) from exc
    if got != kind:
        nested = got.startswith(PACKED)
        raise ModelFileError(
            f"`{source}` holds {'another packed file' if nested else f'`{got}`'}, not `{kind}`"
            " alone",
            hint="unpack it, and name the model in it",
        )


class _Unpacking:
    """One pass over a packed file."""

    def __init__(self, source: Path, target: Path, found: Inside, tick: Tick) -> None:
        self._source = source
        self._target = target
        self._found = found
        self._tick = tick
        self._total = source.stat().st_size
        self._since = 0
        self._written = False

    def run(self) -> None:
        """Read all of it, so that every sum is compared, and write what belongs to the model."""
        single = self._found.kind in packed.FILES
        if not single:
            self._target.mkdir()
        for member, content in packed.members(self._source, self._found):
            self._tell(member, content)
            place = self._file(member, content) if single else self._place(member)
            if place is not None:
                with place.open("xb") as file:
                    self._write(file, member, content)
        if not single:
            _lifted(self._target)
            if not self._found.container.kind:
                companions.copy(self._source, self._target)
        elif not self._written:
            raise packed.refusal(self._source, f"`{self._found.main[:80]}` is not in it any more")
        self._tick(self._total, self._total, "")

    def _tell(self, member: Member, content: Content) -> None:
        self._tick(min(content.consumed, self._total), self._total, member.name)

    def _file(self, member: Member, content: Content) -> Path | None:
        """Where the model of one file goes; no other file is written."""
        if member.name == self._found.main:
            self._written = True
            return self._target
        if content.read(4) == b"GGUF":
            raise packed.refusal(self._source, "there is more than one GGUF file in it")
        return None

    def _place(self, member: Member) -> Path | None:
        if member.name.lower().endswith(_CODE):
            return None
        if not self._found.container.kind:
            return self._target / _NAMES.get(self._found.kind, "model.bin")
        place = self._target / member.name
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _write(self, file: BinaryIO, member: Member, content: Content) -> None:
        while piece := content.read(PIECE):
            file.write(piece)
            self._since += len(piece)
            if self._since > LOOK:
                self._since = 0
                _check_room(self._target.parent, 0)
            self._tell(member, content)


def _lifted(folder: Path) -> None:
    """A folder that holds another one and nothing else of a model becomes that.

    Texts about it, a licence above all, move into it.
    """
    while True:
        files = [path for path in folder.iterdir() if not path.is_dir()]
        inner = [path for path in folder.iterdir() if path.is_dir()]
        if len(inner) != 1 or not all(_is_about(path) for path in files):
            return
        for path in files:
            if not (inner[0] / path.name).exists():
                path.rename(inner[0] / path.name)
        aside = folder.with_name(f"{folder.name}.inner")
        os.replace(inner[0], aside)
        shutil.rmtree(folder)
        os.replace(aside, folder)


def _is_about(path: Path) -> bool:
    return path.suffix.lower() in _ABOUT or path.name.lower() in _PLAIN
