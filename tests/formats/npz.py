"""A format as another package would add it: NumPy's archive of weights in a model's folder.

Knows: `weights.npz` beside a `config.json`, and how it becomes safetensors. Does not know: engines.
`installed` makes it a distribution with entry points, for this process and those that it starts.
"""

from __future__ import annotations

import importlib
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from llm_runner_router.convert.base import Options, Tick, converts
from llm_runner_router.convert.torch_files import write_safetensors
from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.models.info import ModelInfo

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "zoo" / "models" / "tiny-chat"
FILE = "weights.npz"
TYPES = {"<f2": "F16", "<f4": "F32"}
MOST = 1 << 30
"""Bytes of weights that this package opens."""
ENTRIES = """\
[llm_runner_router.models.formats]
npz = tests.formats.npz
[llm_runner_router.convert]
npz = tests.formats.npz
"""


def sniff(path: Path, head: bytes) -> bool:
    """Whether it is a folder with both files."""
    return not head and (path / FILE).is_file() and (path / "config.json").is_file()


def describe(path: Path) -> ModelInfo:
    """The facts.

    Raises:
        ModelFileError: a file is missing or damaged.
    """
    with open_checkpoint(path) as opened:
        return opened.info


class Archive:
    """The arrays, in memory."""

    def __init__(self, path: Path, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.path, self.config = path, config
        self._arrays = arrays
        self.weights = {
            name: Weight(name, TYPES[a.dtype.str], a.shape, a.nbytes) for name, a in arrays.items()
        }
        self.info = ModelInfo(
            format="npz",
            architecture=str(config["model_type"]),
            parameters=sum(a.size for a in arrays.values()),
            bytes=(path / FILE).stat().st_size,
            tensors=len(arrays),
        )

    def read(self, name: str) -> memoryview:
        """The bytes of a tensor."""
        return memoryview(self._arrays[name].tobytes())

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_checkpoint(path: Path) -> Archive:
    """The weights.

    Raises:
        ModelFileError: as `describe`.
    """
    try:
        config: dict[str, Any] = msgspec.json.decode((path / "config.json").read_bytes())
        with zipfile.ZipFile(path / FILE) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST:
                raise ValueError(f"it holds more than {MOST} bytes")
        with np.load(path / FILE, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        return Archive(path, config, arrays)
    except Exception as exc:  # whatever the bytes are
        raise ModelFileError(
            f"`{path}` is no archive of weights: {exc}", hint="save it again"
        ) from exc


def written(folder: Path) -> Path:
    """The zoo's model in this format."""
    from safetensors.numpy import load_file

    target = folder / "model"
    shutil.copytree(ZOO, target, ignore=shutil.ignore_patterns("*.safetensors"))
    arrays: dict[str, Any] = load_file(ZOO / "model.safetensors")
    np.savez(target / FILE, **arrays)
    return target


@converts("npz", "safetensors")
def to_safetensors(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """The folder with safetensors in place of the archive."""
    from llm_runner_router.convert import companions

    with open_checkpoint(source) as checkpoint:
        write_safetensors(checkpoint, target, tick)
    companions.copy(source, target)


@contextmanager
def installed(folder: Path) -> Iterator[str]:
    """While it lasts the package is installed; the `PYTHONPATH` with which others see it.

    Args:
        folder: for its metadata.
    """
    info = folder / "npz_models-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: npz-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    root = str(ROOT)
    paths = [p for p in (str(folder), root) if p not in sys.path]
    sys.path[:0] = paths
    importlib.invalidate_caches()
    try:
        yield f"{folder}:{root}"
    finally:
        for path in paths:
            sys.path.remove(path)
        importlib.invalidate_caches()
