"""`llmrr quantize`, as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_runner_router.models.formats.gguf import describe
from llm_runner_router.models.resolve import ZOO

from .conftest import Run

SOURCE = ZOO / "tiny-math.gguf"
TEXT = "What is 3 + 4? It is 7. What is 5 + 6? It is 11. " * 12


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "math-Q8_0.gguf"
    path.write_bytes(SOURCE.read_bytes())
    return path


def test_a_file_beside_the_source_and_a_table(llmrr: Run, source: Path) -> None:
    done = llmrr("quantize", str(source), "--type", "q4_k_m", "--threads", "2")
    assert done.code == 0, done.err
    assert describe(source.with_name("math-Q4_K_M.gguf")).types["Q5_0"] > 0
    assert "bits per weight" in done.out
    rows = [line.split() for line in done.out.splitlines() if line.startswith("ffn_up")]
    assert rows[0][1] == "Q5_0"
    assert rows[0][-1].endswith("%")


@pytest.mark.engine
def test_calibrated_and_measured(llmrr: Run, source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    target = tmp_path / "b.gguf"
    done = llmrr(
        "quantize", str(source), str(target), "--type", "Q4_0", "--json", "--threads", "1",
        "--calibrate", str(text), "--perplexity", str(text),
    )  # fmt: skip
    assert done.code == 0, done.err
    said = json.loads(done.out)
    assert said["after"] < said["before"]
    before, after = said["perplexity"]["before"], said["perplexity"]["after"]
    assert before["tokens"] == after["tokens"] > 100
    assert 1 < after["value"] < 1.5 * before["value"]
    assert any(t["weighted"] for t in said["tensors"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.gguf", "math-Q8_0.gguf", "text"]


def test_a_type_where_the_file_should_be_is_told(llmrr: Run, source: Path) -> None:
    done = llmrr("quantize", str(source), "q4_k_m")
    assert done.code == 2
    assert "is a type, not a file" in done.err
    assert f"--type q4_k_m {source}" in done.err


def test_dynamic_says_why(llmrr: Run, source: Path) -> None:
    done = llmrr("quantize", str(source))
    # So small a model fits anywhere at eight bits, which it has.
    assert done.code == 1
    assert "best taken as it is" in done.err
    assert "--type Q4_K_M" in done.err


def test_refusals(llmrr: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.gguf"
    target.write_bytes(b"mine")
    done = llmrr("quantize", str(source), str(target), "--type", "Q4_0")
    assert (done.code, target.read_bytes()) == (1, b"mine")
    assert "--force" in done.err
    assert llmrr("quantize", str(source), str(target), "--type", "Q4_0", "--force").code == 0
    done = llmrr("quantize", str(target), "--type", "Q4_K_M")
    assert "--requantize" in done.err
    done = llmrr("quantize", str(tmp_path), "--type", "Q4_0")
    assert "llmrr convert" in done.err
    done = llmrr("quantize", str(source), "--type", "Q9")
    assert "no quantisation `Q9`" in done.err
