"""Whether a model's tensors fit each other and what the model says of itself. Reads headers only.

Knows: how layers are numbered in names, and which facts give which sizes. Does not know: numbers
(`convert/deepcheck.py` looks at those), tokenizers, engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

from msgspec import Struct

from .checkpoint import Weight
from .info import ModelInfo
from .inspect import class_of

_LAYER: Final = re.compile(r"^(.*?\b(?:layers?|blk|h|blocks?))\.(\d{1,5})\.(.+)$")
_EMBEDDINGS: Final = (
    "token_embd.weight", "embed_tokens.weight", "wte.weight", "tok_embeddings.weight",
    "word_embeddings.weight", "embed_in.weight",
)  # fmt: skip
_MOST: Final = 20
"""Problems that are told of one kind; the rest is counted."""


class Finding(Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    """What was looked at, for example `layers`."""
    state: Literal["ok", "odd", "bad", "skip"]
    """`odd` is unusual and may be meant; `bad` is not usable as it is; `skip` was not looked at."""
    detail: str


def structure(info: ModelInfo, weights: Mapping[str, Weight]) -> Iterator[Finding]:
    """What the names and shapes of the tensors say.

    Args:
        info: what `describe` says of the model.
        weights: of its checkpoint.
    """
    yield from _embedding(info, weights)
    yield from _layers(info, weights)
    if info.notes:
        yield Finding("notes", "odd", "; ".join(info.notes))


def _embedding(info: ModelInfo, weights: Mapping[str, Weight]) -> Iterator[Finding]:
    found = next((w for n, w in weights.items() if n.endswith(_EMBEDDINGS)), None)
    if found is None or len(found.shape) != 2:
        if info.architecture != "unknown":
            yield Finding("embedding", "odd", "no tensor has the name of an embedding")
        return
    rows, columns = found.shape
    packed = found.dtype == "U32"
    if info.width and columns != info.width and not packed:
        yield Finding(
            "embedding", "bad", f"`{found.name}` is {columns} wide, the model {info.width}"
        )
    elif info.vocabulary and rows < info.vocabulary:
        detail = f"`{found.name}` has {rows} rows for {info.vocabulary} tokens"
        yield Finding("embedding", "bad", detail)
    else:
        more = f", {rows - info.vocabulary} to spare" if rows > info.vocabulary > 0 else ""
        yield Finding("embedding", "ok", f"{rows} rows of {columns}{more}")


def _layers(info: ModelInfo, weights: Mapping[str, Weight]) -> Iterator[Finding]:
    """Every layer has the tensors that the others have, with the same shapes."""
    stacks: dict[str, dict[int, dict[str, Weight]]] = {}
    for name, weight in weights.items():
        if (match := _LAYER.match(name)) is not None:
            layers = stacks.setdefault(match[1], {})
            layers.setdefault(int(match[2]), {})[match[3]] = weight
    if not stacks:
        if info.layers:
            yield Finding("layers", "odd", f"{info.layers} are claimed, no name has a number")
        return
    stem, layers = max(stacks.items(), key=lambda item: len(item[1]))
    claimed = info.layers or max(layers) + 1
    # The header may claim any number; a few behind the last one that is there tell as much.
    missing = [n for n in range(min(claimed, max(layers) + _MOST + 2)) if n not in layers]
    if missing:
        few = ", ".join(map(str, missing[:_MOST]))
        yield Finding("layers", "bad", f"of {claimed} layers `{stem}` lacks {few}")
    problems = [*_missing(layers), *_shapes(layers)]
    yield from problems[:_MOST]
    if len(problems) > _MOST:
        yield Finding("layers", "odd", f"and {len(problems) - _MOST} more of this kind")
    if not missing and not problems:
        tensors = sum(len(layer) for layer in layers.values())
        yield Finding("layers", "ok", f"{len(layers)} alike, {tensors} tensors")


def _missing(layers: Mapping[int, Mapping[str, Weight]]) -> Iterator[Finding]:
    """A tensor that nine of ten layers have is missed in the others; else layers are of kinds."""
    counts: dict[str, int] = {}
    for layer in layers.values():
        for name in layer:
            counts[name] = counts.get(name, 0) + 1
    for name, count in counts.items():
        if count == len(layers):
            continue
        lacking = [number for number, layer in layers.items() if name not in layer]
        state: Literal["odd", "bad"] = "bad" if count * 10 >= len(layers) * 9 else "odd"
        few = ", ".join(map(str, sorted(lacking)[:_MOST]))
        yield Finding("layers", state, f"`{name}` is in {count} of {len(layers)}; without: {few}")


def _shapes(layers: Mapping[int, Mapping[str, Weight]]) -> Iterator[Finding]:
    shapes: dict[str, dict[tuple[int, ...], list[int]]] = {}
    for number, layer in layers.items():
        for name, weight in layer.items():
            shapes.setdefault(name, {}).setdefault(weight.shape, []).append(number)
    for name, found in shapes.items():
        if len(found) > 1:
            # Heads and widths of some families differ per layer; a norm's length never does.
            state: Literal["odd", "bad"] = "bad" if class_of(name) == "norm" else "odd"
            told = "; ".join(f"{shape} in {len(at)}" for shape, at in list(found.items())[:4])
            yield Finding("layers", state, f"`{name}` has different shapes: {told}")
