"""Quantising whole files: what is kept, what changes, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_runner_router.convert import kernels, mixes
from llm_runner_router.convert import quantize as module
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.convert.quantize import quantize
from llm_runner_router.errors import BadRequest, ModelFileError, RunnerError
from llm_runner_router.models.formats import gguf

from .building import DONOR, Shape, random_weights, write

ERRORS = {
    "Q8_0": 0.007, "Q6_K": 0.022, "Q5_K_M": 0.05, "Q4_K_M": 0.1, "Q4_K_S": 0.1, "Q4_0": 0.11,
    "IQ4_NL": 0.1, "Q3_K_M": 0.19, "Q2_K": 0.33,
}  # fmt: skip
"""Largest relative error of any matrix in each mix, for normal weights."""


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    with gguf.open_checkpoint(path) as model:
        return {n: (w.dtype, bytes(model.read(n))) for n, w in model.weights.items()}


@pytest.mark.parametrize("mix", sorted(ERRORS))
def test_a_mix_in_full(tmp_path: Path, mix: str) -> None:
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    weights = write(source)
    report = quantize(source, target, mix)
    with gguf.open_checkpoint(source) as a, gguf.open_checkpoint(target) as b:
        planned = mixes.plan(
            mixes.MIXES[mix],
            module.shape_of(a),
            [mixes.Item(w.name, w.dtype, w.shape) for w in a.weights.values()],
        )
        assert {n: w.dtype for n, w in b.weights.items()} == planned
        kept = {k: a.config[k] for k in a.config}
        added = {"general.file_type": mixes.MIXES[mix].file_type, "general.quantization_version": 2}
        assert {k: b.config[k] for k in b.config} == kept | added
    assert report.after == sum(len(data) for _, data in contents(target).values())
    assert report.before == source.stat().st_size - gguf.read_header(source).data
    for made in report.tensors:
        matrix = weights[made.name]
        if matrix.ndim == 1:
            assert (made.after, made.error) == ("F32", 0.0)
            continue
        assert 0 < made.error < ERRORS[mix]
        back = kernels.dequantize(made.after, contents(target)[made.name][1], matrix.shape)
        error = np.linalg.norm(back - matrix) / np.linalg.norm(matrix)
        assert made.error == pytest.approx(float(error), rel=1e-3)


def test_a_zoo_model_whose_rows_fit_no_large_block(tmp_path: Path) -> None:
    target = tmp_path / "b.gguf"
    report = quantize(DONOR, target, "Q4_K_M")
    assert set(report.types) >= {"Q5_0", "Q8_0", "F32"}
    assert report.after < report.before
    assert gguf.describe(target).quantisation in ("Q5_0", "Q8_0")


def test_threads_and_slabs_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.gguf"
    write(source, kind="BF16")
    quantize(source, tmp_path / "one.gguf", "Q4_K_M")
    monkeypatch.setattr(module, "SLAB_WEIGHTS", 4096)
    monkeypatch.setattr(kernels, "BLOCK_WEIGHTS", 1024)
    quantize(source, tmp_path / "many.gguf", "Q4_K_M", threads=3)
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_the_parts_of_a_split_model_become_one_file(tmp_path: Path) -> None:
    whole = tmp_path / "a.gguf"
    write(whole)
    with gguf.open_checkpoint(whole) as model:
        names = list(model.weights)
        for part, some in ((1, names[:7]), (2, names[7:])):
            path = tmp_path / f"s-{part:05d}-of-00002.gguf"
            with GGUFWriter(path, "llama") as out:
                out.field("split.no", part - 1, "U16")
                out.field("split.count", 2, "U16")
                for key in ("block_count", "attention.head_count", "attention.head_count_kv"):
                    out.field(f"llama.{key}", model.config[f"llama.{key}"])
                for name in some:
                    out.tensor(name, model.weights[name].dtype, model.weights[name].shape)
                out.begin()
                for name in some:
                    out.data(name, model.read(name))
                out.finish()
    quantize(tmp_path / "s-00001-of-00002.gguf", tmp_path / "joined.gguf", "Q4_K_M")
    quantize(whole, tmp_path / "direct.gguf", "Q4_K_M")
    assert contents(tmp_path / "joined.gguf") == contents(tmp_path / "direct.gguf")
    assert not [k for k in gguf.read_header(tmp_path / "joined.gguf").fields if "split" in k]


def test_each_expert_is_weighed_by_its_own_importance(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    weights = write(source, Shape(experts=3))
    name = "blk.0.ffn_up_exps.weight"
    importance = np.ones((3, 256), np.float32)
    importance[1, :64] = 1000.0
    quantize(source, tmp_path / "even.gguf", "Q2_K", imatrix={name: np.ones_like(importance)})
    report = quantize(source, tmp_path / "b.gguf", "Q2_K", imatrix={name: importance}, threads=2)
    kind, data = contents(tmp_path / "b.gguf")[name]
    even = contents(tmp_path / "even.gguf")[name][1]
    one = len(data) // 3
    assert kind == "Q2_K"
    assert [data[i * one :][:one] == even[i * one :][:one] for i in range(3)] == [True, False, True]
    back = kernels.dequantize(kind, data, weights[name].shape)
    change = np.square(back - weights[name]) * importance[:, None]
    whole = np.square(weights[name]) * importance[:, None]
    made = next(t for t in report.tensors if t.name == name)
    assert made.weighted == pytest.approx(float(np.sqrt(change.sum() / whole.sum())), rel=1e-3)


def test_what_is_quantised_already_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    write(source, kind="Q4_0")
    with pytest.raises(ModelFileError, match="quantised already") as caught:
        quantize(source, tmp_path / "b.gguf", "Q4_K_M")
    assert "--requantize" in str(caught.value.hint)
    assert quantize(source, tmp_path / "b.gguf", "Q4_K_M", requantize=True).types["Q4_K"]
    assert quantize(source, tmp_path / "c.gguf", "Q6_K", requantize=True).mix == "Q6_K"


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    def make(name: str, size: tuple[int, ...], rng: np.random.Generator) -> Any:
        made = random_weights(name, size, rng)
        if name == "blk.1.ffn_up.weight":
            made[300, 7] = np.nan
        return made

    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    bad = Shape()
    with pytest.raises(ValueError, match="finite"):
        write(source, bad, "F16", make)
    _write_unchecked(source, make)
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_up.*not finite"):
        quantize(source, target, "Q4_K_M", threads=2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def _write_unchecked(path: Path, make: Any) -> None:
    name, size = "blk.1.ffn_up.weight", (512, 256)
    with GGUFWriter(path, "llama") as out:
        out.tensor(name, "F32", size)
        out.begin()
        out.data(name, make(name, size, np.random.default_rng(0)))
        out.finish()


def test_stopping_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    write(source)
    seen: list[tuple[int, int, str]] = []

    def tick(done: int, total: int, what: str) -> None:
        seen.append((done, total, what))
        if len(seen) == 5:
            raise RunnerError("enough")

    with pytest.raises(RunnerError, match="enough"):
        quantize(source, tmp_path / "b.gguf", "Q4_0", tick=tick)
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    assert seen[0][0] == 0
    assert 0 < seen[-1][0] < seen[-1][1]


def test_an_importance_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    write(source)
    for wrong in (np.ones(255, np.float32), np.full(256, np.nan, np.float32)):
        with pytest.raises(ModelFileError, match="does not fit"):
            quantize(source, tmp_path / "b.gguf", "Q4_K_M", imatrix={"blk.0.attn_q.weight": wrong})
    assert not (tmp_path / "b.gguf").exists()


def test_wrong_calls(tmp_path: Path) -> None:
    source = tmp_path / "a.gguf"
    write(source)
    with pytest.raises(BadRequest, match="onto itself"):
        quantize(source, source, "Q4_0")
    with pytest.raises(BadRequest, match="no quantisation `Q9`") as caught:
        quantize(source, tmp_path / "b.gguf", "Q9")
    assert "Q4_K_M" in str(caught.value.hint)
