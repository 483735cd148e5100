"""Runs a plan: step after step in a folder of its own, and the result in its place at the end.

Knows: the disk (room, folders, renaming), how steps follow each other. Does not know: what a step
does (`base.py` finds it), processes (`job.py`). Whoever reads the target sees the whole model or
none; a conversion that failed, was stopped or was killed leaves no target, and what a killed one
left beside it is removed by the next.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.errors import BadRequest, EngineError, ModelFileError
from llm_runner_router.models import detect
from llm_runner_router.models.formats import packed
from llm_runner_router.models.formats.gguf_types import BITNET
from llm_runner_router.models.locks import FileLock

from .base import Cancelled, Found, Options, Tick, found, pick
from .plan import FILES, PACKED, Step, disk, plan

ROOM: Final = 64 * 1024 * 1024
"""Bytes that stay free besides the estimate: headers, and what others write meanwhile."""
_ENDS: Final = (
    *(".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx"),
    *(".zip", ".tar", ".tgz", ".txz", ".gz", ".xz", ".bz2", ".zst"),
)
"""Endings that are no part of a model's name."""
LONG: Final = 50
"""Characters of it: four bytes each and an ending are no more than a file's name may have."""
DRAFT: Final = ".converting"
"""Ending of the folder in which a conversion works; with `.lock` behind it, of its owner's lock."""


class Progress(Struct, frozen=True):
    """How far a conversion is."""

    step: int
    """Counted from 1."""
    steps: int
    have: str
    want: str
    done: int
    """Bytes of this step that are written, of `total`."""
    total: int
    what: str = ""
    """The tensor that is next."""


class Result(Struct, frozen=True):
    """A conversion that is done."""

    path: Path
    have: str
    want: str
    bytes: int


Report = Callable[[Progress], None]


def quiet(progress: Progress) -> None:
    """Tell nobody."""


def kind_of(path: Path) -> str:
    """The kind of the model at `path`, in the words of `plan.py`.

    Raises:
        ModelFileError: no format knows it.
    """
    found = detect.detect(path)
    name = found.name
    if name == "packed":
        return f"{PACKED}{packed.inside(path).kind}"
    if name == "onnx":
        folder = path if path.is_dir() else path.parent
        return "onnx-genai" if (folder / "genai_config.json").is_file() else "onnx"
    if name == "gguf" or (name in ("safetensors", "pytorch") and _has_adapter(path)):
        info = found.describe(path)
        if info.part == "adapter":
            return "gguf-adapter" if name == "gguf" else "peft"
        detect.check_whole(path, info)
        if set(BITNET.values()) & info.types.keys():
            return "bitnet-gguf"
    return name


def _has_adapter(path: Path) -> bool:
    return ((path if path.is_dir() else path.parent) / "adapter_config.json").is_file()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def steps_for(
    source: Path, want: str, *, have: str = "", among: tuple[Found, ...] | None = None
) -> tuple[Step, ...]:
    """The steps from `source` to the kind `want`.

    Raises:
        Unsupported: no chain of converters leads there.
        ModelFileError: no format knows the source.
    """
    known = found() if among is None else among
    facts = [one.facts for one in known]
    return plan(have or kind_of(source), want, size=size_of(source), registry=facts)


def convert(
    source: Path,
    target: Path,
    want: str,
    *,
    options: Options | None = None,
    report: Report = quiet,
    cancelled: Callable[[], bool] = lambda: False,
    overwrite: bool = False,
) -> Result:
    """Convert the model at `source` to the kind `want` at `target`.

    Args:
        source: a file or folder; it is only read.
        target: the file, or for kinds that are folders the folder, that will be there.
        want: the kind, as in `plan.KINDS`.
        options: what the caller may choose.
        report: told how far it is, between tensors.
        cancelled: asked between tensors whether to stop.
        overwrite: replace what stands at `target`.

    Raises:
        BadRequest: the target exists, or is the source.
        Unsupported: no way leads there, or a converter has no place for something.
        ModelFileError: the source cannot be used.
        EngineError: the disk has too little room, or cannot be written.
        Cancelled: `cancelled` said so.
    """
    have = kind_of(source)
    among = found()
    steps = steps_for(source, want, have=have, among=among)
    options = options or Options()
    mix = options.quantize
    if mix and want != "gguf":
        raise BadRequest(f"`{want}` is not quantised here", hint="convert to `gguf`")
    _check_target(source, target, overwrite=overwrite, done=not steps and not mix, want=want)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        _check_room(target.parent, disk(steps) + (size_of(source) if mix else 0))
    except OSError as exc:
        raise _disk(target.parent, exc) from exc
    with _drafting(target) as draft:
        last, name = source, _called(source)
        works = [(s.have, s.want, pick(s.converter, among)) for s in steps]
        if mix:
            works.append((want, want, _quantise))
        for number, (before, after, work) in enumerate(works, 1):
            place = draft / str(number) / f"{name}{'.gguf' if after in FILES else ''}"
            place.parent.mkdir()
            now = Progress(number, len(works), before, after, 0, 0)
            work(last, place, options, _ticking(now, report, cancelled))
            if number > 1:
                _remove(last)
            last = place
        if overwrite or not target.exists():  # another may have been quicker with the same
            _put(last, target, draft)
    return Result(target, have, want, size_of(target))


def _called(source: Path) -> str:
    """A model's name by that of its file or folder, which converters write down.

    Steps on the way have it too: the second one would else take the name of a draft.
    """
    name = source.absolute().name
    while not source.is_dir() and name.lower().endswith(_ENDS):
        name = name[: name.rindex(".")]
    return name[:LONG] or "model"


def _ticking(now: Progress, report: Report, cancelled: Callable[[], bool]) -> Tick:
    def tick(done: int, total: int, what: str) -> None:
        if cancelled():
            raise Cancelled("the conversion was stopped")
        report(replace(now, done=done, total=total, what=what))

    return tick


def _quantise(source: Path, target: Path, options: Options, tick: Tick) -> None:
    from .quantize import quantize

    quantize(source, target, options.quantize, threads=threads(), tick=tick)


def threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@contextmanager
def _drafting(target: Path) -> Iterator[Path]:
    """A folder to work in, beside `target`, that is gone afterwards.

    Its owner holds a lock, which goes with the owner however that ends. A process id would not do:
    they are used again, and mean another process in another container.

    Raises:
        EngineError: the disk refuses it, or refused something inside.
    """
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}{DRAFT}")
    lock = FileLock(_owner(draft), patience=0)
    try:
        with lock:
            try:
                draft.mkdir()
                yield draft
            finally:
                shutil.rmtree(draft, ignore_errors=True)
                with suppress(PermissionError):  # Windows keeps a file that is open
                    lock.path.unlink(missing_ok=True)
    except OSError as exc:
        raise _disk(target.parent, exc) from exc


def _owner(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def sweep(target: Path) -> None:
    """Remove what conversions to `target` left whose process is gone."""
    for draft in target.parent.glob(f".{glob.escape(target.name)}.*{DRAFT}"):
        lock = FileLock(_owner(draft))
        if lock.take():
            shutil.rmtree(draft, ignore_errors=True)
            with suppress(PermissionError):  # Windows keeps a file that is open
                lock.path.unlink(missing_ok=True)
            lock.free()


def _check_target(source: Path, target: Path, *, overwrite: bool, done: bool, want: str) -> None:
    if done:
        raise BadRequest(
            f"`{source}` is `{want}` already", hint="`llmrr quantize` changes the type of weights"
        )
    if target.exists() and (
        source.samefile(target) or target.resolve() in source.resolve().parents
    ):
        raise BadRequest(f"`{target}` is the source itself", hint="name another target")
    if target.exists() and not overwrite:
        raise BadRequest(f"`{target}` exists", hint="name another target, or add `--force`")
    if target.exists() and target.is_dir() != (want not in FILES):
        what = "a folder" if target.is_dir() else "a file"
        raise BadRequest(f"`{target}` is {what}, which `{want}` is not", hint="name another target")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + ROOM:
        raise EngineError(
            f"`{folder}` has {free >> 20} MiB free, and the conversion may need"
            f" {(needed + ROOM) >> 20} MiB",
            hint="free some room, or name a target on another disk",
        )


def _put(last: Path, target: Path, draft: Path) -> None:
    """The finished model in its place. A folder in its place steps aside first."""
    if not last.exists():
        raise ModelFileError(f"the conversion wrote nothing to `{last}`")
    if target.is_dir():
        target.rename(draft / "replaced")
    os.replace(last, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _disk(folder: Path, exc: OSError) -> EngineError:
    return EngineError(
        f"the conversion could not write below `{folder}`: {exc.strerror or exc}",
        hint="check that the folder can be written and that the disk has room",
    )
