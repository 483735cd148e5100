"""Files that ask for far more time or memory than they have bytes: refused, or read in bounds.

Where time is the question the sizes are such that a loop in a loop would take hours; nothing is
measured.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import onnx, pytorch, tfjs
from llm_runner_router.models.formats import safetensors as reader
from llm_runner_router.models.formats._files import Bad
from llm_runner_router.models.formats._pickle import Pickle

from .building import framed, safetensors

MIB = 1 << 20


@contextmanager
def within(most: int) -> Iterator[None]:
    """The block keeps fewer than `most` bytes in memory at a time."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most


def refused(describe: Callable[[Path], object], path: Path, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        describe(path)


def test_the_last_of_many_keys_stands_twice(tmp_path: Path) -> None:
    keys = [f'"{n}":1' for n in range(200_000)]
    path = tmp_path / "model.safetensors"
    path.write_bytes(framed("{" + ",".join([*keys, keys[-1]]) + "}"))
    refused(reader.describe, path, "the key '199999' stands there twice")


def test_many_empty_weights_in_many_shards(tmp_path: Path) -> None:
    shards = [f"s{n}" for n in range(4000)]
    for shard in shards:
        (tmp_path / shard).touch()
    weights = [{"name": f"w{n}", "shape": [0], "dtype": "float32"} for n in range(100_000)]
    manifest = [{"paths": shards, "weights": weights}]
    model = {"format": "layers-model", "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    assert tfjs.describe(tmp_path).tensors == 100_000


def test_a_weight_over_shards_of_which_some_are_empty(tmp_path: Path) -> None:
    sizes = (3, 0, 4, 0, 0, 1, 8)
    content = bytes(range(sum(sizes)))
    at = 0
    for number, size in enumerate(sizes):
        (tmp_path / f"s{number}").write_bytes(content[at : at + size])
        at += size
    weights = [
        {"name": "a", "shape": [2], "dtype": "uint8"},
        {"name": "none", "shape": [0], "dtype": "float32"},
        {"name": "b", "shape": [6], "dtype": "uint8"},
        {"name": "c", "shape": [2], "dtype": "float32"},
    ]
    manifest = [{"paths": [f"s{n}" for n in range(len(sizes))], "weights": weights}]
    model = {"format": "graph-model", "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    with tfjs.open_checkpoint(tmp_path) as opened:
        assert opened.read("none").tobytes() == b""
        assert b"".join(opened.read(n).tobytes() for n in ("a", "b", "c")) == content


def test_a_template_whose_name_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors({"a": ("F32", (1,))}))
    config = {"chat_template": [{"name": ["x"], "template": "hello"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert reader.describe(tmp_path).chat_template == "hello"


# ---------------------------------------------------------------- ONNX


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def graph(path: Path, *tensors: bytes, more: bytes = b"") -> Path:
    path.write_bytes(b"\x08\x08" + field(7, b"".join(field(5, t) for t in tensors)) + more)
    return path


def typed(name: bytes, count: int, numbers: bytes) -> bytes:
    """A tensor of 32-bit integers whose numbers are packed and not raw."""
    return field(1, varint(count)) + b"\x10\x06" + field(8, name) + field(5, numbers)


def test_a_tensor_of_a_million_dimensions(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", field(1, b"\1" * 160) * 10_000 + b"\x10\x06" + field(8, b"x"))
    with within(MIB):
        refused(onnx.describe, path, "more than 16 sizes")


def test_numbers_that_are_not_raw_wait_until_they_are_read(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", typed(b"x", 1 << 20, b"\1" * (1 << 20)))
    with within(4 * MIB):
        assert onnx.describe(path).parameters == 1 << 20
    small = graph(tmp_path / "b.onnx", typed(b"x", 3, varint(300) + b"\1" + varint((1 << 64) - 2)))
    with onnx.open_checkpoint(small) as opened:
        assert struct.unpack("<3i", opened.read("x")) == (300, 1, -2)


@pytest.mark.parametrize("numbers", [b"\1\1", b"\1\1\1\1", b"\1\1\x81", b""])
def test_numbers_that_are_not_raw_are_counted(tmp_path: Path, numbers: bytes) -> None:
    refused(onnx.describe, graph(tmp_path / "a.onnx", typed(b"x", 3, numbers)), "takes 12 bytes")


def test_numbers_that_are_not_raw_are_few_together(tmp_path: Path) -> None:
    path = graph(
        tmp_path / "a.onnx", *(typed(b"%d" % n, 6 * MIB, bytes(6 * MIB)) for n in range(3))
    )
    refused(onnx.describe, path, "bytes of numbers in it are not raw")


def test_names_of_a_mebibyte(tmp_path: Path) -> None:
    refused(onnx.describe, graph(tmp_path / "a.onnx", typed(b"x" * MIB, 1, b"\1")), "too long")


def test_thousands_of_operator_sets(tmp_path: Path) -> None:
    path = graph(tmp_path / "a.onnx", typed(b"x", 1, b"\1"), more=field(8, b"\x10\x11") * 1000)
    refused(onnx.describe, path, "more than 64 sets of operators")


# ---------------------------------------------------------------- pickles


def test_dictionaries_copied_from_one_long_list() -> None:
    pairs = b"".join(b"J" + struct.pack("<i", n) + b"N\x86" for n in range(100_000))
    calls = b"h\x01h\x00\x85R0" * 100
    code = b"\x80\x02](" + pairs + b"eq\x00ccollections\nOrderedDict\nq\x01" + calls + b"."
    with within(64 * MIB), pytest.raises(Bad, match="copies more than"):
        Pickle(code).load()


def test_a_long_text_in_a_file_of_the_older_form(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    head = io.BytesIO()
    for value in (pytorch._MAGIC, 1001, {"little_endian": True}):
        pickle.dump(value, head, protocol=2)
    with path.open("wb") as file:
        file.write(head.getvalue() + b"\x80\x02\x8d" + struct.pack("<Q", 1 << 30))
        file.truncate(1 << 31)  # sparse: it takes no space
    with within(MIB):
        refused(pytorch.describe, path, "its description has more than")
