"""`llmrr tokenize` as people use it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from .conftest import Run

ZOO = Path(__file__).parents[2] / "src" / "llm_runner_router" / "zoo"


def test_ids_come_back_as_text(llmrr: Run) -> None:
    ids = llmrr("tokenize", "tiny-math", "--ids", "What", "is 12 + 30?").out
    assert llmrr("tokenize", "tiny-math", "--decode", *ids.split()).out == "What is 12 + 30?\n"
    count = llmrr("tokenize", "zoo:tiny-math", "--count", "What is 12 + 30?").out
    assert int(count) == len(ids.split())


def test_a_table_and_json(llmrr: Run) -> None:
    shown = llmrr("tokenize", "tiny-math", "hello ü")
    assert "PIECE" in shown.out
    assert "tokens" in shown.err
    found = json.loads(llmrr("tokenize", "tiny-math", "--json", "hello ü").out)
    assert found["count"] == len(found["tokens"])
    spelt = b"".join(
        t["piece"].encode() if isinstance(t["piece"], str) else bytes(t["piece"])
        for t in found["tokens"]
    )
    assert spelt.decode() == "hello ü"


def test_standard_input_and_special_tokens(llmrr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", io.StringIO("<|im_end|>"))
        plain = llmrr("tokenize", "tiny-math", "--count", *text).out
        monkeypatch.setattr(sys, "stdin", io.StringIO("<|im_end|>"))
        assert llmrr("tokenize", "tiny-math", "--count", "--special", *text).out == "1\n"
        assert int(plain) > 1


def test_a_file_and_what_is_none(llmrr: Run, tmp_path: Path) -> None:
    path = next(iter(sorted(ZOO.glob("*.gguf"))))
    assert llmrr("tokenize", str(path), "--count", "hello").code == 0
    refused = llmrr("tokenize", str(tmp_path), "hello")
    assert refused.code == 1
    assert "has no tokenizer" in refused.err
    assert "no token id" in llmrr("tokenize", "tiny-math", "--decode", "twelve").err
    assert "does not run here" in llmrr("tokenize", "auto", "hello").err
