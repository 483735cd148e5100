"""From the kind of model there is to the kind that is wanted: the cheapest chain of converters.

Knows: the names of kinds, and costs. Does not know: files, what a converter does. Pure: the
converters are handed in, so a plan can be made, shown and tested without any file.

A kind is a format together with how it is laid out on disk:

    gguf         one file                         bitnet-gguf   one file with types of bitnet.cpp
    safetensors  a folder as on Hugging Face      pytorch       the same with pickled weights
    mlx          the same with MLX's quantisation tfjs          `model.json` and its shards
    onnx         a graph                          onnx-genai    a folder for onnxruntime-genai
    ggml         the files before GGUF            peft          a folder with a LoRA adapter
    gguf-adapter one file with a LoRA adapter    packed-…      one of these in a packed file

Plugins may add kinds; a kind is any name that a converter reads or writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from llm_runner_router.errors import Unsupported

KINDS: Final[dict[str, str]] = {
    "gguf": "one GGUF file, for llama.cpp",
    "bitnet-gguf": "a GGUF file with the types of bitnet.cpp",
    "safetensors": "a Hugging Face folder with safetensors",
    "pytorch": "a Hugging Face folder with PyTorch weights",
    "mlx": "a folder of MLX",
    "tfjs": "a model of TensorFlow.js",
    "onnx": "an ONNX graph",
    "onnx-genai": "a folder for onnxruntime-genai",
    "ggml": "a file from before GGUF",
    "peft": "a folder with a LoRA adapter of PEFT",
    "gguf-adapter": "a GGUF file with a LoRA adapter",
}
PACKED: Final = "packed-"
"""Begins the kind of a model in an archive, or in a file that is only compressed."""
FILES: Final = frozenset({"gguf", "bitnet-gguf", "ggml", "gguf-adapter"})
"""Kinds that are one file; the others are folders."""
STEP_COST: Final = 1.0
"""Seconds counted for each step besides its work: of two equal ways the shorter one is taken."""
LOSS_COST: Final = 3600.0
"""Seconds an inexact step counts as: taken only where no exact way exists."""


class Converter(Struct, frozen=True):
    """Facts on a converter: what it reads and writes, and what that costs."""

    have: str
    want: str
    grow: float = 1.0
    """Bytes written per byte read, at most."""
    speed: float = 100e6
    """Bytes read per second."""
    exact: bool = True


class Step(Struct, frozen=True):
    """One conversion of a plan."""

    converter: Converter
    bytes: int
    """Disk space its result takes, estimated."""
    seconds: float
    """Time it takes, estimated."""

    @property
    def have(self) -> str:
        """The kind it reads."""
        return self.converter.have

    @property
    def want(self) -> str:
        """The kind it writes."""
        return self.converter.want


def plan(
    have: str, want: str, *, size: int = 0, registry: Iterable[Converter] = ()
) -> tuple[Step, ...]:
    """The cheapest chain of converters; empty if nothing has to be done.

    Dijkstra's algorithm over kinds: at most one visit per kind, so it ends whatever is registered.
    The cost of a step grows with the bytes that the steps before it made, so a way over a larger
    intermediate file is compared honestly.

    Args:
        have: the kind there is.
        want: the kind wanted.
        size: bytes of the source, for the estimates.
        registry: what can be converted.

    Raises:
        Unsupported: no chain leads there; says how far one gets.
    """
    if have == want:
        return ()
    by_kind: dict[str, list[Converter]] = {}
    for one in registry:
        by_kind.setdefault(one.have, []).append(one)
    ways: list[tuple[float, int, int, str, tuple[Step, ...]]] = [(0.0, 0, size, have, ())]
    done: set[str] = set()
    order = 0  # equal costs are settled by who came first, never by comparing steps
    while ways:
        cost, _, held, kind, steps = heappop(ways)
        if kind == want:
            return steps
        if kind in done:
            continue
        done.add(kind)
        for one in by_kind.get(kind, ()):
            if one.want not in done:
                step = _step(one, held)
                order += 1
                spent = cost + _cost(step)
                heappush(ways, (spent, order, step.bytes, one.want, (*steps, step)))
    raise _no_way(have, want, done, by_kind)


def disk(steps: Sequence[Step]) -> int:
    """Bytes that must be free: results of all steps, because each is read while the next grows."""
    return sum(step.bytes for step in steps)


def _step(converter: Converter, size: int) -> Step:
    seconds = size / converter.speed if converter.speed > 0 else 0.0
    return Step(converter, bytes=int(size * converter.grow), seconds=seconds)


def _cost(step: Step) -> float:
    return STEP_COST + step.seconds + (0.0 if step.converter.exact else LOSS_COST)


def _no_way(
    have: str, want: str, reached: set[str], by_kind: dict[str, list[Converter]]
) -> Unsupported:
    makers = {c.have for many in by_kind.values() for c in many if c.want == want}
    sources = sorted(kind for kind in makers if not kind.startswith(PACKED))
    known = {c.want for many in by_kind.values() for c in many} | set(by_kind) | set(KINDS)
    if want not in known:
        return Unsupported(
            f"there is no kind of model called `{want}`",
            param="to",
            hint=f"known: {', '.join(sorted(known))}",
        )
    if not sources:
        return Unsupported(
            f"nothing here writes `{want}`", param="to", hint="`llmrr convert --help`"
        )
    others = sorted(reached - {have})
    hint = f"`{have}` can become {_words(others)}" if others else f"nothing here reads `{have}`"
    return Unsupported(
        f"no conversion leads from `{have}` to `{want}`, which is made from {_words(sources)}",
        param="to",
        hint=hint,
    )


def _words(kinds: Sequence[str]) -> str:
    return ", ".join(f"`{kind}`" for kind in kinds)
