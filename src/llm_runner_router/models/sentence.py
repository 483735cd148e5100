"""What sentence-transformers puts behind an encoder: how it pools, which dense layers follow.

Knows: `modules.json`, the `config.json` of each module, and the prefixes of
`config_sentence_transformers.json`, in the spellings of its versions 2 to 5. Does not know:
weights, engines. What is not known here is listed by name, so that whoever runs the model can
refuse it rather than give other vectors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from llm_runner_router.errors import ModelFileError

from .checkpoint import Checkpoint
from .formats import _files

MEAN: Final = "mean"
"""How an encoder pools that does not say it, as sentence-transformers takes it."""
_MODES: Final = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean_tokens": "weightedmean",
}
"""Ends of `pooling_mode_…`, and what they are called here."""
_PASSED: Final = frozenset({"Transformer", "Normalize"})
"""Modules that need nothing: the encoder itself, and the division by the length, which every engine
does here anyway."""
MOST: Final = 1 << 20
"""Numbers in a vector, at most."""
WEIGHTS: Final = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of a dense layer's weights."""
MAX_PROMPT: Final = 4096
MAX_PROMPTS: Final = 64


class Dense(Struct, frozen=True):
    """A linear layer behind the pooling."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool = True
    activation: str = "tanh"
    """The last part of its class's name in small letters: `identity`, `tanh`, …"""


class Modules(Struct, frozen=True):
    """What follows an encoder."""

    pooling: str = ""
    """`mean`, `cls`, `last`, `max`, …; several joined by `+`; empty where nothing says it."""
    dense: tuple[Dense, ...] = ()
    others: tuple[str, ...] = ()
    """Classes of modules that are none of these."""
    prompts: dict[str, str] = {}
    """Prefixes by what a text is: `query`, `document`, …"""


def read(folder: Path) -> Modules:
    """The modules of the model in `folder`; all empty where it names none.

    Raises:
        ModelFileError: a file is no JSON, too large, or names a place outside the folder.
    """
    with _files.naming(folder):
        return look(folder)


def look(folder: Path) -> Modules:
    """As `read`, for readers that name the file themselves.

    Raises:
        Bad: as `read`.
        OSError: a file cannot be read.
    """
    found = Modules(prompts=_prompts(folder))
    pooling = ""
    dense: list[Dense] = []
    others: list[str] = []
    for kind, place in _listed(folder):
        said = _files.read_object(place / "config.json")
        if kind == "Pooling":
            pooling = _pooling(said)
        elif kind == "Dense":
            dense.append(_dense(place, said))
        elif kind not in _PASSED:
            others.append(kind)
    return msgspec.structs.replace(found, pooling=pooling, dense=tuple(dense), others=tuple(others))


def _listed(folder: Path) -> list[tuple[str, Path]]:
    """Class and folder of each module; without `modules.json` the pooling's usual folder."""
    path = folder / "modules.json"
    if not path.is_file():
        usual = folder / "1_Pooling"
        return [("Pooling", usual)] if (usual / "config.json").is_file() else []
    modules = _files.parse_json(_files.read_bytes(path, _files.MAX_JSON), "`modules.json`")
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise _files.Bad("`modules.json` is no list of objects")
    found = []
    for one in modules:
        place = (folder / str(one.get("path", ""))).resolve()
        if not place.is_relative_to(folder.resolve()):
            raise _files.Bad(f"`modules.json` names a place outside its folder: `{place}`")
        found.append((str(one.get("type", "")).rpartition(".")[2][:80], place))
    return found


def _pooling(said: dict[str, Any]) -> str:
    mode = said.get("pooling_mode")
    if mode is not None:
        modes = mode if isinstance(mode, list) else [mode]
        return "+".join(_MODES.get(str(one), str(one)[:40]) for one in modes)
    return "+".join(kind for key, kind in _MODES.items() if said.get(f"pooling_mode_{key}") is True)


def _dense(place: Path, said: dict[str, Any]) -> Dense:
    sizes: list[int] = []
    for key in ("in_features", "out_features"):
        size = said.get(key)
        if type(size) is not int or not 0 < size <= MOST:
            raise _files.Bad(f"`{key}` in `{place.name}/config.json` is {size!r:.40}, no size")
        sizes.append(size)
    activation = str(said.get("activation_function") or "tanh").rpartition(".")[2][:80].lower()
    return Dense(place, sizes[0], sizes[1], said.get("bias") is not False, activation)


def _prompts(folder: Path) -> dict[str, str]:
    said = _files.read_object(folder / "config_sentence_transformers.json").get("prompts")
    if not isinstance(said, dict):
        return {}
    return {
        str(name)[:80]: text[:MAX_PROMPT]
        for name, text in list(said.items())[:MAX_PROMPTS]
        if isinstance(text, str) and text
    }


def notes(found: Modules) -> tuple[str, ...]:
    """What a reader of the facts should know, in words."""
    said = []
    if found.prompts:
        shown = ", ".join(f"{name} {text[:60]!r}" for name, text in found.prompts.items())
        said.append(f"texts begin with a prefix, which whoever asks puts there: {shown}")
    if found.others:
        said.append(f"its vectors need {', '.join(found.others)}, which no engine here computes")
    return tuple(said)


def opened(layer: Dense) -> Checkpoint:
    """The weights of a dense layer: `linear.weight` (outputs, inputs) and `linear.bias`.

    Raises:
        ModelFileError: they are missing, have another shape, or something else is with them.
    """
    from . import detect

    path = next((p for name in WEIGHTS if (p := layer.folder / name).is_file()), None)
    if path is None:
        raise ModelFileError(
            f"`{layer.folder}` has no weights", hint="download it again; it is incomplete"
        )
    found = detect.open_checkpoint(path)
    shapes: dict[str, tuple[int, ...]] = {"linear.weight": (layer.outputs, layer.inputs)}
    if layer.bias:
        shapes["linear.bias"] = (layer.outputs,)
    given = {name: weight.shape for name, weight in found.weights.items()}
    if given != shapes:
        found.close()
        raise ModelFileError(
            f"`{path}` has the tensors {str(given)[:200]}; a linear layer from {layer.inputs} to"
            f" {layer.outputs} has {shapes}",
            hint="download it again",
        )
    return found
