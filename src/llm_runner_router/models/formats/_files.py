"""What every format's reader needs: bounded JSON, names that stay in their folder, mapped bytes.

Knows: files, folders, JSON, memory maps. Does not know: any model format. Files come from
strangers: a reader raises `Bad` with the reason, and the public functions of a format turn it into
a `ModelFileError` that names the file.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from msgspec import Struct

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.models.info import ModelInfo

MAX_JSON: Final = 16 * 1024 * 1024
"""Bytes of a configuration file; the largest of published models have 3 MiB."""
MAX_ENTRIES: Final = 131_072
"""Tensors in one file. The largest published model has 92 thousand in 163 files."""
MAX_QUOTES: Final = 12 * MAX_ENTRIES
"""Quotes in a JSON text: five strings per tensor, and room for metadata. Bounds what parsing it may
cost before it is parsed."""
MAX_MARKS: Final = 16 * MAX_ENTRIES
"""Commas, colons and opening brackets in a JSON text, for the same reason."""
HINT: Final = "download it again, or convert it anew"


class Bad(Exception):
    """What is wrong with a file, without the file's name; and the next step."""

    def __init__(self, reason: str, hint: str = HINT) -> None:
        super().__init__(reason)
        self.hint = hint


def refusal(path: Path, reason: object, hint: str = HINT) -> ModelFileError:
    """The error for `path`; `reason` completes the sentence after "cannot be used: "."""
    return ModelFileError(f"the model file `{path}` cannot be used: {reason}", hint=hint)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn `Bad` and the system's errors into a `ModelFileError` that names `path`.

    Raises:
        ModelFileError: in place of what was raised inside.
    """
    try:
        yield
    except Bad as exc:
        raise refusal(path, exc, exc.hint) from None
    except FileNotFoundError as exc:
        missing = exc.filename or path
        raise ModelFileError(
            f"there is no model file `{missing}`", hint="check the path, or `llmrr ls` for names"
        ) from None
    except OSError as exc:
        raise ModelFileError(
            f"cannot read the model file `{path}`: {exc.strerror or exc}",
            hint="check its permissions and its disk",
        ) from exc


# ---------------------------------------------------------------- JSON


def parse_json(text: bytes, what: str) -> Any:
    """The value of a JSON text; a key that stands twice is refused, so is NaN.

    Two programs that read a key's first and its last value see two different models, which is how
    one of them is made to check something else than the other one loads.

    Raises:
        Bad: it is no JSON, or too large in what it holds; names `what`.
    """
    marks = text.count(b",") + text.count(b":") + text.count(b"[") + text.count(b"{")
    if text.count(b'"') > MAX_QUOTES or marks > MAX_MARKS:
        raise Bad(f"{what} holds more than {MAX_ENTRIES} entries")
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as exc:
        raise Bad(f"{what} is not UTF-8 at byte {exc.start}") from None
    except RecursionError:
        raise Bad(f"{what} is nested too deeply") from None
    except ValueError as exc:  # JSONDecodeError, and integers of thousands of digits
        raise Bad(f"{what} is not JSON: {str(exc)[:200]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        left = set(found)
        for name, _ in pairs:  # in one pass: counting each name takes hours where there are many
            if name not in left:
                raise ValueError(f"the key {name[:80]!r} stands there twice")
            left.remove(name)
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def read_bytes(path: Path, limit: int = MAX_JSON) -> bytes:
    """The content of a small file.

    Raises:
        Bad: it has more than `limit` bytes, or is no regular file.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise Bad(f"`{path.name}` is not a regular file")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise Bad(f"`{path.name}` has more than {limit} bytes")
    return content


def read_object(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in a file; a missing file is an empty object.

    Raises:
        Bad: it is no JSON object, or too large.
        OSError: it cannot be read.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError:
        return {}
    value = parse_json(content, f"`{path.name}`")
    if not isinstance(value, dict):
        raise Bad(f"`{path.name}` holds no JSON object")
    return value


# ---------------------------------------------------------------- names in a folder


def inside(folder: Path, name: object, what: str) -> Path:
    """The file called `name` in `folder`, which must be there and must not lead out of it.

    A link may lead to a `blobs` folder beside the folder's parents: so the cache of Hugging Face
    lays its files out.

    Raises:
        Bad: the name is no plain relative path, leads out of the folder, or there is no such file.
    """
    if not isinstance(name, str) or not name or len(name) > 1024:
        raise Bad(f"{what} {str(name)[:80]!r} is no file name")
    parts = name.split("/")
    if "\\" in name or not name.isprintable() or os.path.isabs(name) or ":" in parts[0]:
        raise Bad(f"{what} {name[:80]!r} is no relative path")
    if any(part in ("", ".", "..") for part in parts):
        raise Bad(f"{what} {name[:80]!r} leads out of the model's folder")
    path = folder.joinpath(*parts)
    try:
        real, home = path.resolve(strict=True), folder.resolve()
    except FileNotFoundError:
        raise Bad(f"its part `{name[:200]}` is missing") from None
    except (OSError, RuntimeError, ValueError):
        raise Bad(f"{what} {name[:80]!r} cannot be followed") from None
    blobs = [parent / "blobs" for parent in list(home.parents)[:3]]
    if not real.is_relative_to(home) and real.parent not in blobs:
        raise Bad(f"{what} {name[:80]!r} is a link that leads out of the model's folder")
    if not real.is_file():
        raise Bad(f"{what} {name[:80]!r} is not a regular file")
    return path


# ---------------------------------------------------------------- mapped weights


class Place(Struct, frozen=True):
    """Where bytes lie: in which file, from which byte, how many."""

    file: Path
    start: int
    bytes: int


Source = Place | Sequence[Place] | Callable[[], bytes]
"""A tensor's bytes: a place, several to be joined, or a function that puts them together."""


class Opened:
    """A `Checkpoint` over mapped files. Files are mapped when first read."""

    def __init__(
        self,
        path: Path,
        info: ModelInfo,
        config: Mapping[str, Any],
        weights: Mapping[str, Weight],
        sources: Mapping[str, Source],
    ) -> None:
        self.path = path
        self.info = info
        self.config = config
        self.weights = weights
        self._sources = sources
        self._maps: dict[Path, mmap.mmap] = {}

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor. See `Checkpoint.read`.

        Raises:
            KeyError: there is no such tensor.
            ModelFileError: the file went away or got shorter since it was opened.
        """
        source = self._sources[name]
        with naming(self.path):
            if isinstance(source, Place):
                return self._view(source)
            if callable(source):
                return memoryview(source()).toreadonly()
            return memoryview(b"".join(self._view(place) for place in source))

    def close(self) -> None:
        """Unmap the files; views that are still in use keep theirs until they go."""
        for mapped in self._maps.values():
            try:
                mapped.close()
            except BufferError:
                pass  # someone holds a view; the last one to go unmaps it
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _view(self, place: Place) -> memoryview:
        if not place.bytes:
            return memoryview(b"")
        mapped = self._maps.get(place.file)
        if mapped is None:
            with place.file.open("rb") as file:
                try:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                except ValueError:
                    raise Bad(f"`{place.file.name}` is empty") from None
            self._maps[place.file] = mapped
        if place.start + place.bytes > len(mapped):
            raise Bad(f"`{place.file.name}` got shorter while it was open")
        return memoryview(mapped)[place.start : place.start + place.bytes]
