"""What the writer writes, as two readers see it: ours and that of the `gguf` package."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import numpy as np
import pytest

from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.models.formats.gguf import Skipped, describe, read_header

FIELDS: dict[str, tuple[object, int]] = {
    "general.name": ("grün", 8),
    "llama.block_count": (2, 4),
    "a.negative": (-3, 5),
    "a.large": (2**40, 10),
    "a.float": (0.5, 6),
    "a.flag": (True, 7),
}
"""Value and the number of the type it must get."""


def minimal(path: Path) -> GGUFWriter:
    out = GGUFWriter(path, "llama")
    out.tensor("t", "F32", (2, 4))
    return out


def test_both_readers_see_the_fields_and_types(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with minimal(path) as out:
        for key, (value, _) in FIELDS.items():
            out.field(key, value)  # type: ignore[arg-type]  # a table of many types
        out.field("a.tokens", ["a", "ü", b"\xff"])
        out.field("a.kinds", [1, 2, 3])
        out.field("a.scores", [0.5, -1.0])
        out.field("a.wide", [1, 2], "U64")
        out.field("a.none", [], "F32")
        out.field("a.small", 7, "U8")
        out.begin()
        out.data("t", np.zeros((2, 4), np.float32))
        out.finish()
    fields = read_header(path).fields
    theirs = gguf.GGUFReader(path).fields
    for key, (value, number) in FIELDS.items():
        assert fields[key] == value
        assert theirs[key].types == [number], key
    tokens = fields["a.tokens"]
    assert isinstance(tokens, Skipped)
    assert (tokens.type, tokens.length) == (8, 3)
    assert (fields["a.kinds"], fields["a.wide"], fields["a.none"]) == ((1, 2, 3), (1, 2), ())
    assert bytes(theirs["a.tokens"].parts[-1]) == b"\xff"
    assert theirs["a.kinds"].types == [9, 5]
    assert theirs["a.scores"].types == [9, 6]
    assert theirs["a.small"].types == [0]


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_data_in_pieces_and_any_order(tmp_path: Path, alignment: int) -> None:
    rng = np.random.default_rng(alignment)
    tensors = {f"t{i}": rng.standard_normal((i + 1, 5)).astype(np.float32) for i in range(9)}
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, "llama", alignment=alignment) as out:
        for name, values in tensors.items():
            out.tensor(name, "F32", values.shape)
        out.begin()
        pieces = [(name, row) for name, values in tensors.items() for row in values]
        order = sorted(range(len(pieces)), key=lambda i: random.Random(i).random())
        rows = {name: iter(values) for name, values in tensors.items()}
        for i in order:  # tensors interleaved; each one's own rows in order
            out.data(pieces[i][0], next(rows[pieces[i][0]]))
        out.finish()
    read_header(path)  # strict: aligned, inside the file, no overlap
    found = {t.name: np.asarray(t.data) for t in gguf.GGUFReader(path).tensors}
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert np.array_equal(found[name], values)


def test_shapes_are_numpy_order_and_sizes_come_from_the_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with GGUFWriter(path, "llama") as out:
        out.tensor("t", "Q4_K", (3, 2, 512))
        out.begin()
        out.data("t", bytes(3 * 2 * 2 * 144))
        out.finish()
    tensor = read_header(path).tensors[0]
    assert (tensor.shape, tensor.bytes, describe(path).quantisation) == ((512, 2, 3), 1728, "Q4_K")


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")

    def fail() -> None:
        with minimal(path) as out:
            out.begin()
            out.data("t", bytes(8))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"old"


def test_an_unfinished_tensor_is_refused(tmp_path: Path) -> None:
    with minimal(tmp_path / "m.gguf") as out:
        out.begin()
        out.data("t", bytes(31))
        with pytest.raises(ValueError, match="31 of 32 bytes"):
            out.finish()
        with pytest.raises(ValueError, match="given more"):
            out.data("t", bytes(2))
    assert not list(tmp_path.iterdir())


def test_what_no_sound_file_holds(tmp_path: Path) -> None:
    out = minimal(tmp_path / "m.gguf")
    for name, kind, shape, words in (
        ("t", "F32", (1,), "already"),
        ("u", "Q9_Z", (32,), "unknown type"),
        ("u", "Q4_K", (4, 32), "multiple of 256"),
        ("u", "F32", (1, 1, 1, 1, 1), "1 to 4 sizes"),
        ("u", "F32", (0, 4), "1 to 4 sizes"),
        ("u" * 64, "F32", (4,), "63 bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            out.tensor(name, kind, shape)
    with pytest.raises(ValueError, match="already"):
        out.field("general.architecture", "gemma")
    with pytest.raises(ValueError, match="does not fit U8"):
        out.field("a", 256, "U8")
    with pytest.raises(ValueError, match="say its kind"):
        out.field("a", [])
    with pytest.raises(ValueError, match="between"):
        out.data("t", b"")
    with pytest.raises(ValueError, match="power of two"):
        GGUFWriter(tmp_path / "n.gguf", "llama", alignment=24)
