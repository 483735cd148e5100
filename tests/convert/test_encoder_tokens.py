"""Tokenizers of encoders: llama.cpp and our own reader cut texts as transformers cuts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

from llm_runner_router.convert import around, vocabulary
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.errors import Unsupported
from llm_runner_router.tokens.gguf import open_gguf

from . import encoders
from .asking import ask
from .test_vocabulary import message

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("transformers")]

TEXTS = [*encoders.TEXTS, " leading and trailing ", "two\n\nlines\tand a tab", "emoji 🤷🏽", "a"]


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm", "gemma"])
def test_texts_are_cut_alike(kind: str, tmp_path: Path) -> None:
    _, tokenizer = encoders.make(kind, tmp_path)
    gguf = tmp_path / "model.gguf"
    from_safetensors(tmp_path, gguf, Options(type="f32"), lambda done, total, what: None)
    engine = ask(gguf, texts=TEXTS, embed=True)["texts"]
    own = open_gguf(gguf)
    for text, ids in zip(TEXTS, engine, strict=True):
        expected = tokenizer(text)["input_ids"]
        assert ids == expected, tokenizer.convert_ids_to_tokens(expected)
        assert own.encode(text, add_bos=None) == expected


def test_sentencepiece_alone_is_read_as_fairseq_counted(tmp_path: Path) -> None:
    """As XLM-R was published first: no `tokenizer.json`."""
    tokenizer = encoders.tokenizer("xlm")
    tokenizer.save_pretrained(tmp_path)
    config = {"model_type": "xlm-roberta"}
    rows = len(tokenizer)
    expected = vocabulary.read(tmp_path, rows, config, pairs=True)
    content = json.loads((tmp_path / "tokenizer.json").read_bytes())
    words = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    words += [(word, score, 1) for word, score in content["model"]["vocab"][4:-1]]
    pieces = [(1, message((1, w.encode()), (2, s), (3, kind))) for w, s, kind in words]
    table = (2, expected.charsmap)
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(message(*pieces, (2, message((3, 1))), (3, message(table))))
    (tmp_path / "tokenizer.json").unlink()
    assert vocabulary.read(tmp_path, rows, config, pairs=True) == expected
    with pytest.raises(Unsupported, match="XLM-RoBERTa only"):
        vocabulary.read(tmp_path, rows, {"model_type": "camembert"})


CLS = {"SpecialToken": {"id": "<c>", "type_id": 0}}
SEP = {"SpecialToken": {"id": "<e>", "type_id": 0}}
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


def template(*pair: dict[str, Any]) -> dict[str, Any]:
    named = {"<c>": {"id": "<c>", "ids": [5], "tokens": ["<c>"]},
             "<e>": {"id": "<e>", "ids": [6], "tokens": ["<e>"]}}  # fmt: skip
    single = [CLS, A, SEP]
    return {"type": "TemplateProcessing", "single": single, "pair": list(pair),
            "special_tokens": named}  # fmt: skip


@pytest.mark.parametrize(
    ("post", "flags"),
    [
        (template(CLS, A, SEP, B, SEP), (True, True, False)),
        (template(CLS, A, SEP, SEP, B, SEP), (True, True, True)),
        (template(A, SEP, B), (False, False, True)),
        (template(A, B), (False, False, False)),
        ({"type": "BertProcessing", "cls": ["<c>", 5], "sep": ["<e>", 6]}, (True, True, False)),
        ({"type": "RobertaProcessing", "cls": ["<c>", 5], "sep": ["<e>", 6]}, (True, True, True)),
    ],
)
def test_two_texts_are_put_together_by_flags(
    post: dict[str, Any], flags: tuple[bool, bool, bool]
) -> None:
    laid = around.layouts(post, {})
    assert laid is not None
    special, switched = around.paired(laid[1])
    assert tuple(switched.values()) == flags
    assert set(special.values()) <= {5, 6}


@pytest.mark.parametrize(
    "pair", [(CLS, A, B, SEP), (CLS, A, SEP, SEP, SEP, B, SEP), (CLS, A, CLS, B, SEP), (A,), ()]
)
def test_what_no_flags_say_is_refused(pair: tuple[dict[str, Any], ...]) -> None:
    laid = around.layouts(template(*pair), {})
    assert laid is not None
    with pytest.raises(Unsupported, match="a query and a document together"):
        around.paired(laid[1])
