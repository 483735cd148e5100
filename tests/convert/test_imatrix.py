"""Files of importance matrices: both forms of llama.cpp, and damage."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from llm_runner_router.convert.imatrix import Entry, Imatrix, read, write
from llm_runner_router.errors import ModelFileError, RunnerError

MATRIX = Imatrix(
    {
        "blk.0.attn_q.weight": Entry(np.arange(8, dtype=np.float32)[None], np.array([4])),
        "blk.0.ffn_up_exps.weight": Entry(np.full((3, 8), 6, np.float32), np.array([2, 0, 3])),
    },
    ("text",),
    5,
    512,
)


def older(entries: dict[str, tuple[int, list[float]]]) -> bytes:
    """The binary form: calls and means × calls."""
    parts = [struct.pack("<i", len(entries))]
    for name, (calls, values) in entries.items():
        raw = name.encode()
        parts.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, len(values)))
        parts.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(parts)


def test_there_and_back(tmp_path: Path) -> None:
    write(tmp_path / "i.gguf", MATRIX)
    found = read(tmp_path / "i.gguf")
    assert (found.chunks, found.chunk) == (5, 512)
    weights = found.weights
    assert weights["blk.0.attn_q.weight"].tolist() == [[i / 4 for i in range(8)]]
    # An expert that saw nothing has no opinion.
    assert weights["blk.0.ffn_up_exps.weight"][:, 0].tolist() == [3, 1, 2]


def test_the_gguf_package_sees_llama_cpps_names(tmp_path: Path) -> None:
    write(tmp_path / "i.gguf", MATRIX)
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert bytes(reader.fields["general.type"].parts[-1]) == b"imatrix"
    names = {t.name for t in reader.tensors}
    assert {"blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"} <= names
    assert int(reader.fields["imatrix.chunk_count"].parts[-1][0]) == 5


def test_the_older_form(tmp_path: Path) -> None:
    (tmp_path / "i.dat").write_bytes(older({"a": (4, [4.0, 8.0]), "b": (0, [1.0])}))
    weights = read(tmp_path / "i.dat").weights
    assert weights["a"].tolist() == [[1, 2]]
    assert weights["b"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (struct.pack("<i", -1), "-1 entries"),
        (struct.pack("<ii", 1, 1 << 30), "a name at byte 4"),
        (older({"a": (1, [1.0])})[:-2], "more than the file holds"),
        (older({"a": (1, [float("nan")])}), "no sums of squares"),
        (older({"a": (1, [-1.0])}), "no sums of squares"),
    ],
)
def test_damage(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        read(path)
    assert caught.value.hint


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    from .building import DONOR

    with pytest.raises(ModelFileError, match="another kind"):
        read(DONOR)
    with pytest.raises(ModelFileError, match="No such file"):
        read(tmp_path / "none")


def test_two_thousand_random_damages(tmp_path: Path) -> None:
    write(tmp_path / "i.gguf", MATRIX)
    forms = [(tmp_path / "i.gguf").read_bytes(), older({"a": (4, [4.0, 8.0]), "b": (2, [1.0])})]
    rng, path = random.Random(7), tmp_path / "x"
    for round_ in range(2000):
        content = bytearray(forms[round_ % 2])
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.choice((0, 1, 127, 128, 255))
        path.write_bytes(content[: rng.randint(1, len(content))])
        try:
            assert read(path).entries
        except RunnerError:
            pass
