"""GGUF as a checkpoint: equal to the reader of the `gguf` package, quick on long vocabularies."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.formats._gguf_metadata import Metadata
from llm_runner_router.models.resolve import ZOO


def string(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return string(key.encode()) + struct.pack("<I", kind) + payload


def file_of(*pairs: bytes, tensors: tuple[bytes, ...] = (), data: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


LLAMA = pair("general.architecture", 8, string(b"llama"))


@pytest.mark.parametrize("name", ["tiny-math", "tiny-general"])
def test_equal_to_the_reader_of_the_gguf_package(name: str) -> None:
    path = ZOO / f"{name}.gguf"
    reference = GGUFReader(path)
    with gguf.open_checkpoint(path) as opened:
        assert list(opened.weights) == [t.name for t in reference.tensors]
        for tensor in reference.tensors:
            weight = opened.weights[tensor.name]
            assert weight.dtype == tensor.tensor_type.name
            assert list(weight.shape) == [int(n) for n in reversed(tensor.shape)]
            assert opened.read(tensor.name).tobytes() == tensor.data.tobytes()
        for key, field in reference.fields.items():
            if key.startswith("GGUF."):
                continue
            value = opened.config[key]
            expected = field.contents()
            assert (list(value) if isinstance(value, tuple) else value) == expected, key
        assert opened.info.tokenizer.partition(":")[0] == "bpe"
        assert opened.info.tied


def test_an_entry_can_be_copied_as_it_is() -> None:
    path = ZOO / "tiny-math.gguf"
    with gguf.open_checkpoint(path) as opened:
        assert isinstance(opened.config, Metadata)
        raw = opened.config.raw("tokenizer.ggml.tokens")
        tokens = opened.config["tokenizer.ggml.tokens"]
        payload = struct.pack("<IQ", 8, len(tokens)) + b"".join(string(t.encode()) for t in tokens)
        assert raw == pair("tokenizer.ggml.tokens", 9, payload)
        assert opened.config.length("tokenizer.ggml.tokens") == len(tokens)
        assert opened.config.length("general.architecture") == 0


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tokens = [b"a", b"\xff\xfe", "ß".encode()]
    payload = struct.pack("<IQ", 8, 3) + b"".join(string(t) for t in tokens)
    path.write_bytes(file_of(LLAMA, pair("tokenizer.ggml.tokens", 9, payload)))
    with gguf.open_checkpoint(path) as opened:
        read = opened.config["tokenizer.ggml.tokens"]
    assert [t.encode("utf-8", "surrogateescape") for t in read] == tokens


def test_long_arrays_of_numbers_are_read_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    scores = np.arange(10_000, dtype="<f4")
    payload = struct.pack("<IQ", 6, 10_000) + scores.tobytes()
    path.write_bytes(file_of(LLAMA, pair("tokenizer.ggml.scores", 9, payload)))
    with gguf.open_checkpoint(path) as opened:
        assert list(opened.config["tokenizer.ggml.scores"]) == scores.tolist()
        path.write_bytes(file_of(LLAMA))
        with pytest.raises(ModelFileError, match="got shorter"):
            opened.config["tokenizer.ggml.scores"]


def test_tensors_of_all_parts_are_found(tmp_path: Path) -> None:
    def tensor(name: bytes) -> bytes:
        return string(name) + struct.pack("<IQIQ", 1, 8, 0, 0)

    count = pair("split.count", 4, struct.pack("<I", 2))
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    first.write_bytes(file_of(LLAMA, count, tensors=(tensor(b"a"),), data=bytes(32)))
    second.write_bytes(file_of(count, tensors=(tensor(b"b"),), data=bytes(range(32))))
    with gguf.open_checkpoint(first) as opened:
        assert list(opened.weights) == ["a", "b"]
        assert opened.read("b").tobytes() == bytes(range(32))
        assert opened.info.parameters == 16
    second.write_bytes(file_of(count, tensors=(tensor(b"a"),), data=bytes(32)))
    with pytest.raises(ModelFileError, match="tensor of the same name"):
        gguf.open_checkpoint(first)


def test_the_purpose_of_a_model(tmp_path: Path) -> None:
    def task(architecture: bytes, pooling: int | None) -> str:
        pairs = [pair("general.architecture", 8, string(architecture))]
        if pooling is not None:
            key = f"{architecture.decode()}.pooling_type"
            pairs.append(pair(key, 4, struct.pack("<I", pooling)))
        path = tmp_path / "a.gguf"
        path.write_bytes(file_of(*pairs))
        return gguf.describe(path).task

    assert task(b"llama", None) == "generate"
    assert task(b"qwen3", 3) == "embed"
    assert task(b"nomic-bert", None) == "embed"
    assert task(b"bert", 4) == "rerank"


@pytest.mark.long
def test_a_header_of_600_thousand_strings_is_quick(tmp_path: Path) -> None:
    """A figure, bounded loosely: it was 19 s with the reader of the `gguf` package."""
    path = tmp_path / "long.gguf"
    many = b"".join(string(b"token %d" % i) for i in range(300_000))
    array = struct.pack("<IQ", 8, 300_000) + many
    path.write_bytes(
        file_of(
            LLAMA,
            pair("tokenizer.ggml.tokens", 9, array),
            pair("tokenizer.ggml.merges", 9, array),
        )
    )
    start = time.perf_counter()
    assert gguf.describe(path).vocabulary == 300_000
    assert time.perf_counter() - start < 2
