"""Small model files, made by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

ZOO = Path(__file__).parents[3] / "zoo" / "models"
"""The demonstration models as Hugging Face lays them out."""

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "U32": 4}


def safetensors(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    metadata: dict[str, str] | None = None,
    data: bytes | None = None,
) -> bytes:
    """A sound file of tensors filled with counted bytes, or with `data`."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, size = end, SIZES[dtype]
        for length in shape:
            size *= length
        end += size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return framed(json.dumps(header), bytes(i % 251 for i in range(end)) if data is None else data)


def framed(header: str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with this header, whatever it says."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data
