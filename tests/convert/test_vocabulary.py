"""Tokenizers: the converted vocabulary cuts texts in llama.cpp as the original cuts them."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.convert import pretokenizers, sentencepiece, vocabulary
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.errors import ModelFileError, Unsupported

from .asking import ask
from .models import alphabet, byte_level, write_json

TEXTS = [
    "The quick brown fox, don't you THINK'S it? 12345 1,000.50",
    "  two spaces\n\n\nthree lines \t tab  end ",
    "naïve café – “quotes” … 日本語のテキスト ひらがな 한국어 Привет МИР",
    "def f(x):\n    return x**2 + y_1  # comment\r\n",
    "emoji 👩‍👩‍👧 🤷🏽 <tag> {json: [1, 2]}",
    "",
    "a",
]
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|"
DIGITS = {"type": "Digits", "individual_digits": True}
GPT2: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                        "use_regex": True}  # fmt: skip
PRE: dict[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (GPT2, False),
    "smollm": ({"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}, False),
    "qwen2": (byte_level({"Regex": WORD + r"\p{N}" + TAIL}), False),
    "llama-bpe": (byte_level({"Regex": WORD + r"\p{N}{1,3}" + TAIL}), True),
    "dbrx": (byte_level({"Regex": WORD + r"\p{N}{1,3}" + TAIL}), False),
    "tekken": (
        byte_level({"Regex": CASED + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"}),
        True,
    ),
}

MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm", "attn_output_norm", "layer_output_norm")

pytestmark = pytest.mark.engine


def small_gguf(folder: Path, found: vocabulary.Vocabulary) -> Path:
    """A model of zeros around a vocabulary: the engine only cuts texts with it."""
    path = folder / "vocabulary.gguf"
    rows, width = len(found.tokens), 32
    bert = found.model == "bert"
    name = "bert" if bert else "llama"
    shapes = {"token_embd.weight": (rows, width), "output_norm.weight": (width,)}
    if bert:
        shapes = {"token_embd.weight": (rows, width), "position_embd.weight": (512, width),
                  "token_embd_norm.weight": (width,), "token_embd_norm.bias": (width,)}  # fmt: skip
    norms = NORMS[2:] if bert else NORMS[:2]
    shapes |= {f"blk.0.{part}.weight": (width, width) for part in MATRICES}
    shapes |= {f"blk.0.{part}.weight": (width,) for part in norms}
    shapes |= {f"blk.0.{part}.bias": (width,) for part in norms if bert}
    if bert:
        del shapes["blk.0.ffn_gate.weight"]
    settings: dict[str, Any] = {
        "context_length": 512,
        "embedding_length": width,
        "block_count": 1,
        "feed_forward_length": width,
        "attention.head_count": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    if bert:
        settings |= {"attention.layer_norm_epsilon": 1e-5, "attention.causal": False}
        settings |= {"pooling_type": 1}
    with GGUFWriter(path, name) as writer:
        for key, value in settings.items():
            writer.field(f"{name}.{key}", value)
        writer.field("tokenizer.ggml.token_type_count", 1)
        for key, value, kind in found.fields():
            writer.field(key, value, kind)  # type: ignore[arg-type]  # kinds are the writer's names
        for tensor, shape in shapes.items():
            writer.tensor(tensor, "F32", shape)
        writer.begin()
        for tensor, shape in shapes.items():
            writer.data(tensor, bytes(4 * math.prod(shape)))
        writer.finish()
    return path


def check(folder: Path, rows: int, texts: list[str] = TEXTS) -> vocabulary.Vocabulary:
    """Both sides cut `texts` alike."""
    from tokenizers import Tokenizer

    found = vocabulary.read(folder, rows, {})
    gguf = small_gguf(folder, found)
    theirs = ask(gguf, texts=texts, embed=found.model == "bert")["texts"]
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text, ids in zip(texts, theirs, strict=True):
        assert ids == original.encode(text).ids, f"{text!r}: {original.encode(text).tokens}"
    return found


def trained(pre: dict[str, Any], *, whole: bool) -> dict[str, Any]:
    """A byte-level BPE trained on the texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    content = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = pre
    tokenizer = Tokenizer.from_str(json.dumps(content))
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    model["ignore_merges"] = whole
    return model


@pytest.mark.parametrize("name", PRE)
def test_byte_level_vocabularies_cut_alike(name: str, tmp_path: Path) -> None:
    pre, whole = PRE[name]
    model = trained(pre, whole=whole)
    size = len(model["vocab"])
    added = [(size, "<|begin|>", True), (size + 1, "<tool>", False)]
    post = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [size],
                                         "tokens": ["<|begin|>"]}},
    }  # fmt: skip
    post["pair"] = [*post["single"], {"Sequence": {"id": "B", "type_id": 1}}]
    write_json(tmp_path, model, added=added, pre_tokenizer=pre, post_processor=post)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|begin|>"}')
    found = check(tmp_path, size + 9, [*TEXTS, "before<tool>after<|begin|>"])
    assert found.pre == name
    assert found.special == {"bos": size}
    assert found.flags == {"add_bos_token": True, "add_eos_token": False}
    assert found.types[size : size + 3] == [vocabulary.CONTROL, vocabulary.USER_DEFINED,
                                            vocabulary.UNUSED]  # fmt: skip


def test_a_vocabulary_of_sentencepiece_as_json_cuts_alike(tmp_path: Path) -> None:
    """As Llama 2's: merges on text with U+2581 for spaces, bytes where a letter is unknown."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=520, show_progress=False, special_tokens=names,
                                  limit_alphabet=60)  # fmt: skip
    tokenizer.train_from_iterator([t.replace("\n", " ") for t in TEXTS] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    texts = [text for text in TEXTS if text]
    found = check(tmp_path, len(content["model"]["vocab"]), texts)
    assert found.model == "llama"
    assert found.types[:4] == [vocabulary.UNKNOWN, *[vocabulary.CONTROL] * 2, vocabulary.BYTE]


def test_a_unigram_vocabulary_cuts_alike(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=200, show_progress=False, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    texts = [TEXTS[0], "naïve café – the brown fox", "a"]
    found = check(tmp_path, tokenizer.get_vocab_size(), texts)
    assert found.model == "t5"
    assert found.types[3] == vocabulary.UNKNOWN


def test_a_wordpiece_vocabulary_cuts_alike(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, show_progress=False, special_tokens=names)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    settings = {f"{role}_token": word for role, word in roles.items()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = check(tmp_path, tokenizer.get_vocab_size(), [TEXTS[0], "naïve café quick", "a"])
    assert found.special == {"unk": 1, "sep": 3, "pad": 0, "cls": 2, "mask": 4, "bos": 2}


# ---------------------------------------------------------------- tokenizer.model


def message(*fields: tuple[int, Any]) -> bytes:
    """A protobuf message: numbers as varints, floats as 32 bits, bytes with their length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def model_file(folder: Path, content: dict[str, Any]) -> Path:
    """`tokenizer.model` with the pieces and scores that belong to a BPE in JSON."""
    ranks = {left + right: i for i, (left, right) in enumerate(content["model"]["merges"])}
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    pieces = [
        (1, message((1, w.encode()), (2, -float(ranks.get(w, len(ranks)))),
                    (3, kinds.get(w, 6 if w.startswith("<0x") else 1))))
        for w in words
    ]  # fmt: skip
    path = folder / "tokenizer.model"
    path.write_bytes(message(*pieces, (2, message((3, sentencepiece.BPE))), (3, message((3, 1)))))
    return path


def test_tokenizer_model_gives_the_same_as_its_json(tmp_path: Path) -> None:
    test_a_vocabulary_of_sentencepiece_as_json_cuts_alike(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_bytes())
    rows = len(content["model"]["vocab"])
    model_file(tmp_path, content)
    found = check(tmp_path, rows, [text for text in TEXTS if text])
    assert found.scores is not None
    assert found.flags["add_space_prefix"]


@pytest.mark.parametrize("cut", [1, 7, 50, 500])
def test_a_cut_tokenizer_model_is_refused(cut: int, tmp_path: Path) -> None:
    pieces = [(1, message((1, b"abc"), (2, -1.0), (3, 1)))] * 100
    path = tmp_path / "tokenizer.model"
    path.write_bytes(message(*pieces)[:-cut])
    if cut % 14 == 0:  # between two pieces nothing is wrong
        return
    with pytest.raises(ModelFileError, match=r"tokenizer\.model"):
        sentencepiece.read(path)


# ---------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("written", "same"),
    [
        (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{N}{1}", r"'(?i:[sdmt]|ll|ve|re)|\p{N}"),
        (r"\p{L}++|\s*[\r\n]", r"\p{L}+|\s*[\r\n]+"),
        ("[^\r\n]?", r"[^\r\n]?"),
    ],
)
def test_spellings_of_one_rule_are_one(written: str, same: str) -> None:
    assert pretokenizers.canonical(written) == pretokenizers.canonical(same)


def test_rules_that_differ_stay_different() -> None:
    rules = [WORD + r"\p{N}" + TAIL, WORD + r"\p{N}{1,3}" + TAIL, WORD + r"\p{N}+" + TAIL]
    assert len({pretokenizers.canonical(rule) for rule in rules}) == 3


def test_an_unknown_pre_tokenizer_is_told() -> None:
    steps = byte_level({"Regex": r"\p{Lu}+|\p{Ll}+"})
    with pytest.raises(Unsupported) as refused:
        pretokenizers.name_of({"pre_tokenizer": steps, "model": {}})
    assert r"\\p{Lu}+|\\p{Ll}+'" in refused.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": -1}}}, "`vocab` is no object of ids"),
        ({"model": None}, "no `model`"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["abc"]}}, "is no pair"),
        ({"model": {"type": "BPE", "vocab": {"a": 99}}, "pre_tokenizer": GPT2}, "id 99"),
    ],
)
def test_a_broken_tokenizer_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(change))
    with pytest.raises(ModelFileError) as refused:
        vocabulary.read(tmp_path, 10, {})
    assert message in refused.value.message


def test_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no `tokenizer\.json`"):
        vocabulary.read(tmp_path, 10, {})


def test_two_tokens_of_one_text_get_two_names(tmp_path: Path) -> None:
    letters = {letter: i for i, letter in enumerate(alphabet())}
    model = {"type": "BPE", "vocab": letters, "merges": []}
    write_json(tmp_path, model, added=[(256, "!", False)], pre_tokenizer=GPT2)
    found = vocabulary.read(tmp_path, 258, {})
    assert len(set(found.tokens)) == 258
    shutil.rmtree(tmp_path)
