"""The header reader on sound files, on each kind of damage, and on thousands of random damages."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.resolve import ZOO, zoo_models

U32, STRING, ARRAY = 4, 8, 9


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


PAIRS = (
    pair("general.architecture", STRING, text("llama")),
    u32("llama.context_length", 512),
    u32("llama.block_count", 2),
    u32("llama.embedding_length", 64),
    u32("llama.attention.head_count", 4),
    pair("llama.attention.head_count_kv", ARRAY, struct.pack("<IQ2I", U32, 2, 1, 2)),
    pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("b")),
    pair("tokenizer.chat_template", STRING, text("{{ messages }}")),
)
TENSORS = (tensor("a", (64, 2), 8, 0), tensor("b", (8,), 0, 160))


def build(
    pairs: tuple[bytes, ...] = PAIRS,
    tensors: tuple[bytes, ...] = TENSORS,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 192,
    alignment: int = 32,
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def put(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return put


def test_a_sound_file(write: Callable[[bytes], Path]) -> None:
    info = gguf.describe(write(build()))
    assert (info.architecture, info.context, info.layers, info.width) == ("llama", 512, 2, 64)
    assert (info.heads, info.kv_heads, info.key_length, info.vocabulary) == (4, 2, 16, 2)
    assert info.parameters == 64 * 2 + 8
    assert info.quantisation == "Q8_0"
    assert info.chat_template == "{{ messages }}"
    assert info.bytes == len(build())


def test_the_zoo_is_sound() -> None:
    for model in zoo_models():
        assert model.info.architecture == "llama", model.name
        assert model.info.context >= 512, model.name
        assert model.info.chat_template, model.name
        assert model.info.bytes == model.path.stat().st_size, model.name


DAMAGES = {
    "no magic": (b"GGML" + build()[4:], "not a GGUF file"),
    "too short": (b"GGUF\x03", "too few"),
    "version 1": (build(version=1), "version 1"),
    "big-endian": (build(version=0x03000000), "big-endian"),
    "too many tensors": (build(counts=(2**62, 8)), "more than the file can hold"),
    "too many pairs": (build(counts=(2, 2**60)), "more than the file can hold"),
    "a pair too many": (build(counts=(2, 9)), ""),
    "long string": (
        build((*PAIRS, pair("x", STRING, struct.pack("<Q", 2**40)))),
        "more than",
    ),
    "the 60-byte file": (
        build((pair("x", ARRAY, struct.pack("<IQ", STRING, 2**63)),), ()),
        "more than the file can hold",
    ),
    "long array": (
        build((*PAIRS, pair("x", ARRAY, struct.pack("<IQ", U32, 2**61)))),
        "more than the file can hold",
    ),
    "nested array": (build((*PAIRS, pair("x", ARRAY, struct.pack("<IQ", ARRAY, 1)))), "array"),
    "unknown value": (
        build(
            (*PAIRS, pair("x", 99, b"")),
        ),
        "unknown type 99",
    ),
    "key twice": (build((*PAIRS, u32("llama.block_count", 1))), "twice"),
    "alignment 0": (build((*PAIRS, u32("general.alignment", 0))), "alignment"),
    "alignment 48": (build((*PAIRS, u32("general.alignment", 48))), "alignment"),
    "alignment huge": (build((*PAIRS, u32("general.alignment", 2**31))), "alignment"),
    "no architecture": (build(PAIRS[1:]), "architecture"),
    "cut short": (build(data=64), "cut short"),
    "no dimensions": (build(tensors=(tensor("a", (), 0, 0),)), "dimensions"),
    "five dimensions": (build(tensors=(tensor("a", (1, 1, 1, 1, 1), 0, 0),)), "dimensions"),
    "empty dimension": (build(tensors=(tensor("a", (0,), 0, 0),)), "larger than"),
    "product wraps": (build(tensors=(tensor("a", (2**33, 2**33), 0, 0),)), "larger than"),
    "unknown tensor type": (build(tensors=(tensor("a", (8,), 77, 0),)), "type 77"),
    "removed tensor type": (build(tensors=(tensor("a", (128,), 31, 0),)), "removed from llama.cpp"),
    "BitNet tensor": (build(tensors=(tensor("a", (10**9,), 36, 0),)), "larger than"),
    "part of a block": (build(tensors=(tensor("a", (33,), 8, 0),)), "multiple of 32"),
    "unaligned": (build(tensors=(tensor("a", (8,), 0, 4),)), "aligned"),
    "far away": (build(tensors=(tensor("a", (8,), 0, 2**62),)), "cut short"),
    "overlap": (build(tensors=(TENSORS[0], tensor("b", (8,), 0, 32))), "overlap"),
    "same name": (build(tensors=(TENSORS[0], tensor("a", (8,), 0, 160))), "same name"),
    "scores too few": (
        build((*PAIRS, pair("tokenizer.ggml.scores", ARRAY, struct.pack("<IQf", 6, 1, 0.0)))),
        "2 tokens",
    ),
    "one of several": (build((*PAIRS, u32("split.count", 3))), "one of 3 parts"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(write: Callable[[bytes], Path], name: str) -> None:
    content, words = DAMAGES[name]
    path = write(content)
    with pytest.raises(ModelFileError) as caught:
        gguf.describe(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model file .*absent\.gguf"):
        gguf.describe(tmp_path / "absent.gguf")


def test_parts_of_a_split_file_must_be_there(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(build((*PAIRS, u32("split.count", 2))))
    second = tmp_path / "m-00002-of-00002.gguf"
    with pytest.raises(ModelFileError, match="00002-of-00002"):
        gguf.describe(first)
    second.write_bytes(build(PAIRS[:1], ()))
    assert gguf.describe(first).bytes == first.stat().st_size + second.stat().st_size


def test_a_sparse_file_buys_no_time(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    many = pair("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", STRING, 3_000_000))
    path.write_bytes(build(pairs=(many,), data=0))
    with path.open("r+b") as file:
        file.truncate(30_000_000)
    with pytest.raises(ModelFileError, match="3000000 strings"):
        gguf.describe(path)
    path.write_bytes(build(counts=(1, 10**6)))
    with path.open("r+b") as file:
        file.truncate(30_000_000)
    with pytest.raises(ModelFileError, match="1000000 metadata entries"):
        gguf.describe(path)


def test_many_small_arrays_do_not_fill_the_memory(tmp_path: Path) -> None:
    numbers = struct.pack("<IQ", U32, 4096) + bytes(4 * 4096)
    path = tmp_path / "arrays.gguf"
    path.write_bytes(build(pairs=tuple(pair(f"a{i}", ARRAY, numbers) for i in range(500))))
    with pytest.raises(ModelFileError, match="its metadata takes more than"):
        gguf.describe(path)


def test_random_damage_never_escapes(write: Callable[[bytes], Path]) -> None:
    """Any bytes give facts or a ModelFileError, never another exception."""
    rng = random.Random(7)
    real = bytearray((ZOO / "tiny-math.gguf").read_bytes()[:40_000])
    small = bytearray(build())
    refused = 0
    for turn in range(1500):
        content = bytearray(real if turn % 10 == 0 else small)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(min(len(content), 700))
            content[at] = rng.choice((0, 255, 1, 128, rng.randrange(256)))
        del content[rng.randrange(1, len(content)) if rng.random() < 0.2 else len(content) :]
        try:
            gguf.describe(write(bytes(content)))
        except ModelFileError:
            refused += 1
    assert refused > 500
