"""Id for id what the engine makes of the same text: every kind of vocabulary, every pre-tokenizer.

One process of the real engine answers for all of them; the models' weights are zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.errors import BadRequest, ModelFileError, Unsupported
from llm_runner_router.tokens.gguf import GgufTokenizer, open_gguf
from llm_runner_router.tokens.pre import rows, split
from llm_runner_router.tokens.vocab import CONTROL, NORMAL, vocab_of

from . import making
from .engine import apart, ask, tokenized

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120), pytest.mark.xdist_group("tokens")]

TEXTS = making.texts(240)
MANY = making.texts(2000, seed=2)
WHOLE = ("", "hi", "<s>hi</s>", " hi <extra> ho ")

ZOO = Path(__file__).parents[2] / "src" / "llm_runner_router" / "zoo"


def distinct_rows() -> dict[str, str]:
    """One name for every way to cut."""
    found: dict[Any, str] = {}
    for name, row in rows().items():
        found.setdefault((row.split, row.flags), name)
    return {f"pre-{name}": name for name in found.values()}


def vocabularies() -> dict[str, dict[str, Any]]:
    pairs = making.byte_pairs(extra=making.SPECIALS)
    pieces = making.sentence_pieces()
    phi = dict(pieces) | {"general.name": "Phi-3 mini"}
    phi["tokenizer.ggml.tokens"] = [*pieces["tokenizer.ggml.tokens"], "<|endoftext|>"]
    phi["tokenizer.ggml.token_type"] = [*pieces["tokenizer.ggml.token_type"], CONTROL]
    phi["tokenizer.ggml.scores"] = [*pieces["tokenizer.ggml.scores"], 0.0]
    raw = making.raw_pairs()
    merged = {f"tokenizer.ggml.{k}": True for k in ("add_space_prefix", "remove_extra_whitespaces")}
    charsmap = making.charsmap(
        {"ﬁ": "fi", "Å": "A\u030a", "½": "1/2", "\u3000": " ", "\xa0": " ", "é": "é", "ab": "X",
         "abc": "YZ", "🎉": ":)", "١": ""}
    )  # fmt: skip
    overridden = dict(pairs)
    names = ["<|im_end|>", "<|fim_prefix|>", "<|channel|>", "<|call|>", "<|return|>", "<|end|>"]
    tokens, types = overridden["tokenizer.ggml.tokens"], overridden["tokenizer.ggml.token_type"]
    fresh = [name for name in names if name not in tokens]
    overridden["tokenizer.ggml.tokens"] = [*tokens, *fresh]
    overridden["tokenizer.ggml.token_type"] = [*types, *[NORMAL] * len(fresh)]
    by_pre = {key: pairs | {"tokenizer.ggml.pre": name} for key, name in distinct_rows().items()}
    return by_pre | {
        "spm": pieces,
        "spm-no-prefix": pieces | {"tokenizer.ggml.add_space_prefix": False},
        "spm-eos": pieces
        | {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_bos_token": False},
        "spm-phi3": phi,
        "unigram": making.unigrams(),
        "unigram-merged": making.unigrams() | merged,
        "unigram-mapped": making.unigrams(charsmap=charsmap) | merged,
        "bert": making.word_pieces(),
        "bert-cased": making.word_pieces(**{"tokenizer.ggml.normalizer.lowercase": False}),
        "gemma4": raw | {"tokenizer.ggml.model": "gemma4"},
        "mmbert": raw | {"tokenizer.ggml.pre": "mmbert"},
        "names": overridden,
    }


KEYS = [
    *distinct_rows(), "spm", "spm-no-prefix", "spm-eos", "spm-phi3", "unigram", "unigram-merged",
    "unigram-mapped", "bert", "bert-cased", "gemma4", "mmbert", "names",
]  # fmt: skip


class Compared:
    """The models, and what the engine said of them."""

    def __init__(self, folder: Path) -> None:
        jobs, self.paths = [], {}
        for key, fields in vocabularies().items():
            self.paths[key] = making.write_model(folder / f"{key}.gguf", fields)
            size = len(fields["tokenizer.ggml.tokens"])
            special = [tokenized(TEXTS, parse_special=on) for on in (False, True)]
            whole = [["/tokenize", {"content": t, "add_special": True}] for t in WHOLE]
            pieces = [["/detokenize", {"tokens": [i]}] for i in range(size)]
            jobs.append({"path": str(self.paths[key]), "calls": [*special, *whole, *pieces]})
        self.answers = dict(zip(self.paths, ask(jobs, folder), strict=True))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return Compared(tmp_path_factory.mktemp("tokens"))


def test_every_kind_is_compared(compared: Compared) -> None:
    assert list(compared.paths) == KEYS
    ways = [str(compared.answers[key][0]) for key in distinct_rows()]
    assert len(set(ways)) >= len(ways) - 8, "the texts tell the pre-tokenizers apart"


@pytest.mark.parametrize("key", KEYS)
def test_ids_are_the_engines(compared: Compared, key: str) -> None:
    tokenizer = open_gguf(compared.paths[key])
    plain, special, *rest = compared.answers[key]
    for on, answer in ((False, plain), (True, special)):
        for text, ids in zip(TEXTS, apart(answer), strict=True):
            assert tokenizer.encode(text, special=on) == ids, (on, text)
    for text, answer in zip(WHOLE, rest, strict=False):
        found = tokenizer.encode(text, special=True, add_bos=None)
        assert found == answer["tokens"], text


@pytest.mark.parametrize("key", KEYS)
def test_pieces_are_the_engines(compared: Compared, key: str) -> None:
    tokenizer = open_gguf(compared.paths[key])
    answers = compared.answers[key][2 + len(WHOLE) :]
    assert len(answers) == tokenizer.size
    for id, answer in enumerate(answers):
        assert tokenizer.piece(id).decode("utf-8", "replace") == answer["content"], id


@pytest.mark.parametrize("key", KEYS)
def test_a_stream_gives_the_whole_text_and_no_half_characters(compared: Compared, key: str) -> None:
    tokenizer = open_gguf(compared.paths[key])
    for text in TEXTS[:120]:
        ids = tokenizer.encode(text, special=True)
        stream = tokenizer.stream()
        parts = [stream.feed(id) for id in ids]
        assert "".join([*parts, stream.close()]) == tokenizer.decode(ids)
        if "\ufffd" not in tokenizer.decode(ids):
            assert "\ufffd" not in "".join(parts)


@pytest.mark.parametrize("key", ["pre-llama3", "pre-qwen2", "spm", "spm-no-prefix"])
def test_text_comes_back(compared: Compared, key: str) -> None:
    tokenizer = open_gguf(compared.paths[key])
    for text in TEXTS:
        if key.startswith("spm") and ("▁" in text or "<" in text):
            continue  # the same as a space there; and a space is put after added tokens
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_the_zoo_is_as_the_engine_has_it(tmp_path: Path) -> None:
    paths = sorted(ZOO.glob("*.gguf"))
    calls = [tokenized(MANY, parse_special=on) for on in (False, True)]
    answers = ask([{"path": str(path), "calls": calls} for path in paths], tmp_path)
    for path, found in zip(paths, answers, strict=True):
        tokenizer = open_gguf(path)
        for on, answer in zip((False, True), found, strict=True):
            for text, ids in zip(MANY, apart(answer), strict=True):
                assert tokenizer.encode(text, special=on) == ids, (path.name, on, text)


def test_cutting_loses_nothing() -> None:
    for row in set(rows().values()):
        for text in TEXTS:
            assert "".join(split(row, text)) == text


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"model": "rwkv"}, Unsupported, "rwkv"),
        ({"pre": "of-tomorrow"}, Unsupported, "of-tomorrow"),
        ({"tokens": []}, ModelFileError, "no `tokenizer.ggml.tokens`"),
        ({"tokens": ["a", "b", "a"]}, ModelFileError, "same name"),
        ({"token_type": [1]}, ModelFileError, "token_type"),
    ],
)
def test_what_cannot_be_used_is_said(
    changed: dict[str, Any], error: type[Exception], says: str
) -> None:
    fields = {"model": "gpt2", "tokens": ["a", "b", "ab"], "merges": ["a b"]} | changed
    named = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    with pytest.raises(error, match=says):
        GgufTokenizer(vocab_of(named, "x.gguf"))


def test_ids_out_of_range_are_refused() -> None:
    tokenizer = open_gguf(next(iter(sorted(ZOO.glob("*.gguf")))))
    for id in (-1, tokenizer.size, 2**40):
        with pytest.raises(BadRequest, match="is no token"):
            tokenizer.decode([id])
        with pytest.raises(BadRequest, match="is no token"):
            tokenizer.decode([id], skip_special=False)


def test_a_long_line_without_spaces_takes_no_quadratic_time(compared: Compared) -> None:
    for key in ("gemma4", "spm", "pre-qwen2"):
        tokenizer = open_gguf(compared.paths[key])
        text = "ab" * 20_000
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
