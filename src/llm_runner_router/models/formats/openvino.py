"""Recognises OpenVINO's intermediate representation: an XML graph with its weights beside it.

Knows: the root element and the files beside it. Does not know: the graph; the XML is not parsed (a
document can be made to grow without bound), only its beginning is looked at.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from llm_runner_router.models.info import ModelInfo

from ._files import Bad, naming
from ._hub import checked_info, facts

_NAMES: Final = ("openvino_model.xml", "openvino_language_model.xml", "model.xml")
_ROOT = re.compile(rb'<net\s[^>]{0,400}?\bversion="(\d{1,4})"')
_NET = re.compile(rb"^(\xef\xbb\xbf)?\s*(<\?xml[^>]{0,200}\?>\s*)?<net\s")


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` is such a graph, or a folder with one under its usual name."""
    if not head:
        return path.is_dir() and _main(path) is not None
    return _NET.match(head) is not None


def describe(path: Path) -> ModelInfo:
    """The facts of the files beside it, and how to come to a file that runs here.

    Raises:
        ModelFileError: it, or the file of its weights, is missing or no graph.
    """
    with naming(path):
        file = path
        if path.is_dir():
            main = _main(path)
            if main is None:
                raise Bad("the folder has no OpenVINO graph under a usual name")
            file = main
        with file.open("rb") as opened:
            head = opened.read(4096)
        version = _ROOT.search(head) if _NET.match(head) else None
        if version is None:
            raise Bad("it does not begin with `<net` and a version: it is no OpenVINO graph")
        weights = file.with_suffix(".bin")
        if not weights.is_file():
            raise Bad(f"its weights `{weights.name}` are missing")
        return _info(file, weights, int(version.group(1)))


def _main(folder: Path) -> Path | None:
    return next((folder / name for name in _NAMES if (folder / name).is_file()), None)


def _info(file: Path, weights: Path, version: int) -> ModelInfo:
    fields: dict[str, Any] = facts(file.parent)[1]
    notes = (
        *fields.pop("notes"),
        f"OpenVINO IR {version}; no engine here runs it: use the model it was exported from,"
        " in safetensors, GGUF or ONNX",
    )
    return checked_info(
        format="openvino", bytes=file.stat().st_size + weights.stat().st_size, notes=notes, **fields
    )
