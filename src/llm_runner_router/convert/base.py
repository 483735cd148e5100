"""What a converter is: a function with a mark on it, its options, and how it says how far it is.

Knows: the mark `@converts`, the values handed to a converter, and how converters are found. Does
not know: what any converter does (each in a module of this folder), which of them to run in which
order (`plan.py`), where files go (`run.py`).

A converter is a function

    @converts("safetensors", "gguf", grow=1.0, speed=150e6)
    def convert(source: Path, target: Path, options: Options, tick: Tick) -> None

in any module of this folder, or one that an installed package offers under the entry point group
`llm_runner_router.convert`. It reads `source`, writes `target` (which does not exist yet, in a
folder that nobody else uses), and calls `tick` between tensors; `tick` raises to stop it. Modules
with converters import heavy libraries inside functions, because planning imports them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from llm_runner_router.errors import BadRequest, RunnerError

from .plan import Converter

GROUP: Final = "llm_runner_router.convert"
TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""Types that converters write; `q4_0` for ONNX only, as smaller GGUF files are the business of
`quantize`."""


class Options(Struct, frozen=True):
    """What the caller may choose."""

    type: str = "f16"
    """Type of the matrices: one of `TYPES`. Vectors and routers stay F32."""
    quantize: str = ""
    """A mix of `mixes.MIXES` that a GGUF result is quantised to at the end; empty for none. A job
    takes `dynamic` too: the best for this machine."""
    eps: float = 0.0
    """What is added under the root of RMS norms, for files from before GGUF, which do not say it;
    0 for the default of `ggml_gguf.py`."""
    context: int = 0
    """Tokens of context, for the same files; 0 for the default."""
    base: str = ""
    """For an adapter: the settings of the model that it changes (`peft.base_settings`)."""


class Tick(Protocol):
    """Called often with how much of the step is done; raises `Cancelled` to stop the work."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """`done` of `total` bytes of weights are written; `what` is next."""
        ...


class Cancelled(RunnerError):
    """The caller no longer wants the conversion; nothing is left behind."""

    type = "cancelled"
    default_code = "conversion_cancelled"


class Convert(Protocol):
    """A converter's signature."""

    def __call__(self, source: Path, target: Path, options: Options, tick: Tick) -> None:
        """Write `target` from `source`.

        Raises:
            ModelFileError: the source cannot be used; names the file and the tensor or field.
            Cancelled: `tick` raised it.
        """
        ...


class Found(Struct, frozen=True):
    """A converter and the facts on it."""

    facts: Converter
    run: Convert


_MARK: Final = "_llmrr_converter"


def converts(
    have: str, want: str, *, grow: float = 1.0, speed: float = 100e6, exact: bool = True
) -> Callable[[Convert], Convert]:
    """Mark a function as the converter from one kind of model to another.

    Args:
        have: the kind it reads, for example `safetensors`.
        want: the kind it writes, for example `gguf`.
        grow: bytes written per byte read, at most, with the default options.
        speed: bytes read per second on one ordinary core, for estimates.
        exact: the numbers stay what they were, apart from the chosen type.
    """
    facts = Converter(have=have, want=want, grow=grow, speed=speed, exact=exact)

    def mark(function: Convert) -> Convert:
        setattr(function, _MARK, facts)
        return function

    return mark


def found() -> tuple[Found, ...]:
    """Every converter of this folder and of installed packages; ours come first.

    Raises:
        ConfigError: a plugin cannot be imported.
    """
    from llm_runner_router.plugins import load

    converters: list[Found] = []
    for name in _modules():
        module = import_module(f"{__package__}.{name}")
        converters += _marked(vars(module).values())
    for point in entry_points(group=GROUP):
        thing = load("convert", point.name)
        converters += _marked([thing] if hasattr(thing, _MARK) else vars(thing).values())
    return tuple(converters)


def pick(converter: Converter, among: tuple[Found, ...]) -> Convert:
    """The function that belongs to `converter`.

    Raises:
        BadRequest: it is not among them.
    """
    for one in among:
        if one.facts == converter:
            return one.run
    raise BadRequest(f"there is no converter from `{converter.have}` to `{converter.want}`")


def _modules() -> list[str]:
    """Names of our modules with a converter in them, told from their text.

    Not by importing all: the kernels of this folder import numpy, which a plan does not need.
    """
    here = Path(__file__).parent
    return sorted(
        path.stem
        for path in here.glob("*.py")
        if not path.stem.startswith("_")
        and path != Path(__file__)
        and re.search(rb"^ *@converts\(", path.read_bytes(), re.MULTILINE)
    )


def _marked(things: Iterable[object]) -> list[Found]:
    """The converters among `things`, and in the tuples among them."""
    unique: dict[int, Found] = {}
    for thing in things:
        for one in thing if isinstance(thing, tuple) else (thing,):
            if callable(one) and hasattr(one, _MARK):
                unique[id(one)] = Found(getattr(one, _MARK), one)
    return list(unique.values())
