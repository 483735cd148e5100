"""Which format a file or folder has, by its content and never by its name alone.

Knows: that each format can recognise its own, in which order to ask where several may, and that
installed packages add formats (entry points `llm_runner_router.models.formats`, with the contract
of `formats/__init__.py`). Does not know: any format; what else a file may be is in `looks.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Final

from msgspec import Struct

from llm_runner_router import plugins
from llm_runner_router.errors import ConfigError, ModelFileError

from . import formats
from .checkpoint import Checkpoint
from .info import PARTS, ModelInfo
from .looks import looks_like

KIND: Final = "models.formats"
AUTO: Final = "auto"
"""In place of a format's name: told by the content."""
HEAD: Final = 4096
"""Bytes of a file that a format may look at to recognise it."""
_ORDER: Final = ("gguf", "mlx", "safetensors", "pytorch", "onnx", "openvino", "tfjs", "ggml")
"""The more particular and the safer first: a folder may hold one model in several formats."""


class Format(Struct, frozen=True):
    """A format that recognised a file: its name, and what it can do with it."""

    name: str
    describe: Callable[[Path], ModelInfo]
    open_checkpoint: Callable[[Path], Checkpoint] | None = None
    """None where the format gives no weights to convert."""


def detect(path: Path) -> Format:
    """The format of `path`, a file or the folder of a model.

    Recognising is no check: `describe` may still refuse what it finds.

    Raises:
        ModelFileError: it is missing or unreadable, or no format knows it; says what it looks like.
    """
    head = _head(path)
    for name, module in _own():
        if module.sniff(path, head):
            return _format(name, module)
    troubles: list[str] = []
    for name in sorted(set(plugins.names(KIND)) - {name for name, _ in _own()}):
        try:
            module = plugins.load(KIND, name)
            if hasattr(module, "sniff") and module.sniff(path, head):
                return _format(name, module)
        except ConfigError as exc:
            troubles.append(exc.message)
        except Exception as exc:  # foreign code; the next format may still know the file
            troubles.append(f"the plugin {name!r} failed: {type(exc).__name__}: {exc}")
    what, hint = looks_like(path, head)
    raise ModelFileError(
        f"`{path}` is no model in a known format: {what}"
        + "".join(f"; {trouble}" for trouble in troubles),
        hint=hint,
    )


def trail(path: Path) -> tuple[str, ...]:
    """Which formats were asked about `path`, up to the one that knew it, in words.

    Raises:
        ModelFileError: it is missing or unreadable.
    """
    head = _head(path)
    seen = "a folder" if path.is_dir() else f"a file that begins with {head[:8]!r}"
    asked = [f"it is {seen}"]
    for name, module in _own():
        if module.sniff(path, head):
            return (*asked, f"`{name}` knows it")
        asked.append(f"`{name}` does not know it")
    return tuple(asked)


def describe(path: Path, format: str = AUTO) -> ModelInfo:
    """The facts of the model at `path`, whatever its format.

    Args:
        format: the name of one, ours or a plugin's, to read the file as that and nothing else.

    Raises:
        ModelFileError: as `detect`, or the file is not sound.
        ConfigError: there is no such format.
    """
    found = detect(path) if format == AUTO else _named(format)
    return found.describe(path)


def check_whole(path: Path, info: ModelInfo) -> None:
    """See that it is a model, not what goes with one.

    Args:
        path: the file or folder, for the message.
        info: what `describe` says of it.

    Raises:
        ModelFileError: it is an adapter, a projector or an importance matrix; with the next step.
    """
    if info.part:
        what, step = PARTS[info.part]
        raise ModelFileError(f"`{path}` is {what}", hint=step)


def open_checkpoint(path: Path) -> Checkpoint:
    """The weights of the model at `path`, whatever its format.

    Raises:
        ModelFileError: as `describe`, or the format gives no weights.
    """
    found = detect(path)
    if found.open_checkpoint is None:
        raise ModelFileError(
            f"the weights of `{path}` cannot be read: the format `{found.name}` gives none",
            hint=f"`llmrr inspect {path}` tells what can run it",
        )
    return found.open_checkpoint(path)


def _own() -> Iterator[tuple[str, Any]]:
    """Our formats, each imported only when those before it did not recognise the file."""
    found = {m.name for m in iter_modules(formats.__path__) if not m.name.startswith("_")}
    for name in (*_ORDER, *sorted(found.difference(_ORDER))):
        if name in found:
            module = plugins.load(KIND, name)
            if hasattr(module, "sniff"):  # the rest are helpers
                yield name, module


def _named(name: str) -> Format:
    module = plugins.load(KIND, name)
    if not hasattr(module, "describe"):
        known = ", ".join(name for name, _ in _own())
        raise ConfigError(f"there is no format called {name!r}", hint=f"known: {known}")
    return _format(name, module)


def _format(name: str, module: Any) -> Format:
    return Format(name, module.describe, getattr(module, "open_checkpoint", None))


def _head(path: Path) -> bytes:
    """The first bytes of a file; none of a folder.

    Raises:
        ModelFileError: there is nothing, it is no regular file, or it cannot be read.
    """
    try:
        if path.is_dir():
            return b""
        if path.exists() and not path.is_file():
            raise ModelFileError(
                f"`{path}` is neither a file nor a folder", hint="name a model file or its folder"
            )
        with path.open("rb") as file:
            return file.read(HEAD)
    except FileNotFoundError:
        raise ModelFileError(
            f"there is no model file `{path}`", hint="check the path, or `llmrr ls` for names"
        ) from None
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise ModelFileError(
            f"cannot read the model file `{path}`: {exc}", hint="check its permissions"
        ) from exc
