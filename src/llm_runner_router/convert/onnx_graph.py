"""A graph of ONNX being written: nodes in memory, weights straight to a file beside it.

Knows: the `onnx` package, external data, weights in each of our types. Does not know: models.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_runner_router.errors import ConfigError, Unsupported
from llm_runner_router.models.checkpoint import Checkpoint

from . import onnx_weights
from .onnx_weights import BLOCK, Rows

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray

OPSET: Final = 21
IR_VERSION: Final = 10
ORT: Final = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0")
"""Types of matrices. `f16` and `bf16` are types in the file: on a CPU it is computed in F32. `q8_0`
and `q4_0` have the blocks of these GGUF types with F32 scales."""
ALIGN: Final = 4096
"""Weights start at pages, so that they can be mapped."""
SMALL: Final = 4096
"""Weights of at most so many bytes stand in the graph itself."""

Progress = Callable[[int, str], None]
"""Told how many bytes of the source were used, and for what."""


def library() -> Any:
    """The `onnx` package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnx
    except ImportError as exc:
        raise ConfigError(
            "writing ONNX needs the package `onnx`",
            hint="`pip install 'llm-runner-router[onnx]'`",
        ) from exc
    return onnx


class Graph:
    """Collects a graph; a context manager that closes its data file.

    Names of values are the names of the nodes that make them, so that each can be found again in
    the file. Methods that add a node return the name of its first output.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, type: str, progress: Progress) -> None:
        """`folder` gets `model.onnx` and `model.onnx.data`.

        Raises:
            Unsupported: an unknown `type`.
            ConfigError: the package `onnx` is not installed.
        """
        if type not in TYPES:
            raise Unsupported(
                f"ONNX is not written in type `{type}`",
                param="type",
                hint=f"one of {', '.join(TYPES)}",
            )
        self.onnx = library()
        self.checkpoint = checkpoint
        self.type = type
        self._progress = progress
        self._path = folder / "model.onnx"
        self._data = (folder / "model.onnx.data").open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, *exc: object) -> None:
        self._data.close()

    # ------------------------------------------------------------ nodes

    def input(self, name: str, type: str, shape: Sequence[int | str]) -> str:
        """An input; `type` is a name of `TensorProto`, for example `INT64`."""
        self._inputs.append(self._value(name, type, shape))
        return name

    def output(self, name: str, type: str, shape: Sequence[int | str]) -> None:
        """An output: a value of this name is computed by a node."""
        self._outputs.append(self._value(name, type, shape))

    def _value(self, name: str, type: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
        kind = getattr(self.onnx.TensorProto, type)
        found: onnx.ValueInfoProto = self.onnx.helper.make_tensor_value_info(name, kind, shape)
        return found

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        *,
        domain: str = "",
        outputs: Sequence[str] | None = None,
        **attributes: Any,
    ) -> str:
        """One operation; its only output is called `name` unless `outputs` says otherwise."""
        made = list(outputs) if outputs is not None else [name]
        self._nodes.append(
            self.onnx.helper.make_node(
                operator, list(inputs), made, name=name, domain=domain, **attributes
            )
        )
        return made[0]

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """A value of ours, written once per name; large ones go to the data file."""
        if name not in self._weights:
            self._put(name, str(values.dtype), values.shape, [values.tobytes()])
        return name

    def ints(self, *values: int) -> str:
        """A vector of 64-bit numbers."""
        import numpy as np

        return self.constant(f"ints/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """An F32 scalar."""
        import numpy as np

        return self.constant(f"number/{value!r}", np.array(value, np.float32))

    # ------------------------------------------------------------ weights

    def vector(self, name: str, *names: str, plus: float = 0.0) -> str:
        """The tensors `names` one after the other as one F32 vector called `name`."""
        import numpy as np

        parts = [onnx_weights.whole(self.checkpoint, one) for one in names]
        values = np.concatenate(
            [onnx_weights.floats(self.checkpoint, part).ravel() for part in parts]
        )
        self._progress(2 * values.size, name)
        return self.constant(name, values + np.float32(plus))

    def matrix(self, name: str, parts: Sequence[Rows], *, turned: bool = False) -> str:
        """Rows of the checkpoint as one matrix in F32, stored in a float type.

        With `turned`, its rows become columns; it is held in memory for that.
        """
        import numpy as np

        type = self.type if self.type in ("f32", "f16", "bf16") else "f32"
        stored = name if type == "f32" else f"{name}/{type}"
        count, width = sum(part.count for part in parts), parts[0].width
        chunks = onnx_weights.pieces(self.checkpoint, parts)
        if turned:
            chunks = iter([np.concatenate(list(chunks)).T.copy()])
        if stored not in self._weights:
            kind = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[type]
            shape = (width, count) if turned else (count, width)
            self._put(stored, kind, shape, (self._bytes(c, type, name) for c in chunks))
            if type != "f32":
                # Computed once when the model is loaded.
                self.node("Cast", [stored], name, to=self.onnx.TensorProto.FLOAT)
        return name

    def _bytes(self, values: NDArray[np.float32], type: str, name: str) -> bytes:
        self._progress(2 * values.size, name)
        if type == "f16":
            return onnx_weights.half(values, name)
        return onnx_weights.brain(values) if type == "bf16" else values.tobytes()

    def coded(self, name: str, parts: Sequence[Rows], bits: int) -> tuple[str, str]:
        """Rows as blocks of `bits`: the names of codes and scales."""
        import numpy as np

        codes, scales = f"{name}/codes{bits}", f"{name}/scales{bits}"
        if codes not in self._weights:
            count = sum(part.count for part in parts)
            groups = -(-parts[0].width // BLOCK)
            kept: list[NDArray[np.float32]] = []

            def pack() -> Iterable[bytes]:
                for values in onnx_weights.pieces(self.checkpoint, parts):
                    self._progress(2 * values.size, name)
                    packed, scale = onnx_weights.blocks(values, bits)
                    kept.append(scale)
                    yield packed.tobytes()

            self._put(codes, "uint8", (count, groups, BLOCK * bits // 8), pack())
            self.constant(scales, np.concatenate(kept))
        return codes, scales

    def linear(self, x: str, name: str, parts: Sequence[Rows], *, bits: int | None = None) -> str:
        """`x` times the transpose of a matrix whose rows are `parts`: `[…, width]` → `[…, rows]`.

        `bits` is for a matrix that is not to have the graph's own number of bits.
        """
        count, width = sum(part.count for part in parts), parts[0].width
        bits = bits or {"q8_0": 8, "q4_0": 4}.get(self.type)
        if bits is None:
            weight = self.matrix(f"{name}.weight", parts)
            # Rows stay as they are in the checkpoint, and an embedding can be shared.
            return self.node("FusedMatMul", [x, weight], name, domain=ORT, transB=1)
        codes, scales = self.coded(f"{name}.weight", parts, bits)
        return self.node(
            "MatMulNBits",
            [x, codes, scales],
            name,
            domain=ORT,
            K=width,
            N=count,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=4,  # activations in 8 bits, as llama.cpp has them too
        )

    def _put(self, name: str, kind: str, shape: Sequence[int], chunks: Iterable[bytes]) -> None:
        tensor = self.onnx.TensorProto()
        tensor.name = name
        tensor.data_type = _types(self.onnx)[kind]
        tensor.dims.extend(shape)
        held = list(chunks) if _count(shape) * 4 <= SMALL else None
        if held is not None:
            tensor.raw_data = b"".join(held)
        else:
            self._data.write(b"\0" * (-self._data.tell() % ALIGN))
            start = self._data.tell()
            for chunk in chunks:
                self._data.write(chunk)
            tensor.data_location = self.onnx.TensorProto.EXTERNAL
            facts = {
                "location": Path(self._data.name).name,
                "offset": start,
                "length": self._data.tell() - start,
            }
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))
        self._weights[name] = tensor

    # ------------------------------------------------------------ file

    def save(self, producer: str) -> None:
        """Write `model.onnx`; the graph is checked by ONNX's own rules where they apply."""
        helper = self.onnx.helper
        graph = helper.make_graph(
            self._nodes, "model", self._inputs, self._outputs, list(self._weights.values())
        )
        model = helper.make_model(
            graph,
            producer_name=producer,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(ORT, 1)],
        )
        self._data.flush()
        os.fsync(self._data.fileno())
        with self._path.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())


def _count(shape: Sequence[int]) -> int:
    found = 1
    for one in shape:
        found *= one
    return found


def _types(onnx: Any) -> dict[str, int]:
    kinds = onnx.TensorProto
    return {
        "float32": kinds.FLOAT,
        "float16": kinds.FLOAT16,
        "bfloat16": kinds.BFLOAT16,
        "uint8": kinds.UINT8,
        "int64": kinds.INT64,
    }
