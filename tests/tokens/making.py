"""Small vocabularies of every kind, models around them that the engine loads, and odd texts."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.tokens.vocab import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER

WIDTH = 32

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, doesn't it? We'll see; they've seen 1234567.",
    "Größe, Ärger und Straßenbahn: 12.345,67 € — «naïve» façade… Привет, мир! ΑΒΓ αβγ",
    "日本語のテキストと中文文本，한국어 문장입니다。ภาษาไทย हिन्दी में लिखा हुआ 🎉🎉👩‍👩‍👧 é̈",
    "def f(x):\n    return {'a': x + 1, \"b\": [1, 2, 3]}\n\n\t# a comment   with   spaces\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n<html><body>I'LL 'S 't It'S</body></html>",
    "٠١٢٣ ½ Ⅳ ² 𝟘𝟙𝟚 １２３ ৪৫৬ x²+y²=z² ∑∏√ $100 ~^`|<> _under_score_ CamelCase SHOUTING",
)
PARTS = (
    *" \t\n\r\v\f", " ", "　", "\u2028", "\x85", "\u200b", "\u200d", "\ufeff", "\0", "\x1c", "\x7f",
    "  ", "   ", "\n\n", "\r\n", " \n ", "'s", "'LL", "'Re", "'ſ",
    "'ſx", "it'ſ", "न\u200dमः", "a\u200cb", "\u200d\u200d", "漢字かな", "X漢", "漢's", "\u2e80",
    " '", "'", '"', "don't", "it's",
    "a", "B", "the", " The", "HELLO", "hello", "ſ", "İ", "ß", "é", "e\u0301", "ü", "ñ", "Ж", "б",
    "α", "Ω", "א", "ع", "١", "५", "１", "½", "²", "Ⅳ", "0", "7", "42", "123", "1234", "12345678",
    "日", "本", "の", "ー", "한", "국", "中文", "ไ",
    "ท", "हि", "्", "ा", "🎉", "👩‍👩‍👧", "🇩🇪", "\u0301",
    ".", ",", "!", "?", "...", "…", "。", "，", "—", "-", "_", "/", "\\", "(", ")", "[", "]", "{",
    "}", "<", ">", "=", "+", "*", "&", "^", "%", "$", "#", "@", "~", "`", "|", ":", ";", "€", "£",
    "∑", "▁", "▁▁", "Ġ", "Ċ", "<s>", "</s>", "<unk>", "<|end|>", "<|user|>", "<extra>", "[MASK]",
    "<0x41>",
    "\U000e0001", "\ue000", "\U0001f3fb", "\u0cf3", "\U0001e5d0", "\ufffd", "ǅ", "ʰ", "ª", "ﬁ", "Å",
)  # fmt: skip


def texts(count: int, seed: int = 1) -> list[str]:
    """Texts that tokenizers disagree about, the same for one seed."""
    rng = random.Random(seed)
    found = ["", *SENTENCES, *PARTS]
    while len(found) < count:
        parts: list[str] = []
        for _ in range(rng.randint(1, 14)):
            match rng.randrange(6):
                case 0:
                    parts.append(rng.choice(rng.choice(SENTENCES).split(" ")))
                case 1:
                    parts.append(
                        chr(rng.choice((rng.randrange(0x20, 0x3000), rng.randrange(55000))))
                    )
                case 2:
                    parts.append(rng.choice(string.ascii_letters) * rng.randint(1, 9))
                case 3:
                    parts.append(" " * rng.randint(1, 6))
                case _:
                    parts.append(rng.choice(PARTS))
        found.append("".join(parts))
    return found[:count]


def corpus() -> list[str]:
    """Text to train vocabularies on, with long repeats so that merges cross every border."""
    rng = random.Random(7)
    lines = [rng.choice(SENTENCES) + rng.choice((" ", "\n", "  ")) for _ in range(60)]
    found = [*lines, *texts(400, seed=3), "  " * 40, "\n\n\n" * 20, "0123456789" * 20]
    return [line.replace("<", "(") for line in found]  # no word may be a special token too


def byte_pairs(size: int = 900, extra: Sequence[tuple[str, int]] = ()) -> dict[str, Any]:
    """Fields of a byte-level vocabulary whose merges cross words, so that every cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return pairs_of(tokenizer, extra) | {"tokenizer.ggml.model": "gpt2"}


def pairs_of(tokenizer: Tokenizer, extra: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """The vocabulary and merges of a trained tokenizer, and `extra` tokens after them."""
    import json

    data = json.loads(tokenizer.to_str())["model"]
    names = sorted(data["vocab"], key=data["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["merges"]]
    return {
        "tokenizer.ggml.tokens": [*names, *(name for name, _ in extra)],
        "tokenizer.ggml.token_type": [*(NORMAL for _ in names), *(kind for _, kind in extra)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(names),
        "tokenizer.ggml.eos_token_id": len(names) + 1,
    }


SPECIALS = (("<s>", CONTROL), ("</s>", CONTROL), ("<|user|>", CONTROL), ("<|end|>", USER),
            ("<extra>", USER), ("<unk>", UNKNOWN), ("<unused1>", UNUSED))  # fmt: skip


def sentence_pieces(size: int = 700, seed: int = 5) -> dict[str, Any]:
    """Fields of a SentencePiece vocabulary of the joining kind."""
    rng = random.Random(seed)
    lines = [line.replace(" ", "▁") for line in corpus()]
    letters = sorted({c for line in SENTENCES for c in line.replace(" ", "▁")} | set("▁\nabc"))
    whole = {
        line[a : a + n]
        for line in lines
        for a in (rng.randrange(max(1, len(line))) for _ in range(12))
        for n in (2, 2, 3, 3, 4, 5, 6)
    }
    words = sorted(w for w in whole if len(w) > 1 and w.isprintable())[: size * 9]
    chosen = rng.sample(words, min(size, len(words)))
    # Every piece can be reached: all its beginnings are pieces too.
    pieces = sorted({w[:n] for w in chosen for n in range(2, len(w) + 1)})
    rng.shuffle(pieces)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    known = [*pieces, *(c for c in letters if c not in pieces)]
    scores = [0.0] * len(names) + [-float(rng.randrange(len(known))) for _ in known]
    added = [("<|user|>", CONTROL), ("<|end|>", USER), ("<extra>", USER)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*names, *known, *(n for n, _ in added)],
        "tokenizer.ggml.token_type": [*kinds, *[NORMAL] * len(known), *(k for _, k in added)],
        "tokenizer.ggml.scores": [*scores, *[0.0] * len(added)],
    }


def unigrams(size: int = 500, charsmap: bytes = b"") -> dict[str, Any]:
    """Fields of a SentencePiece vocabulary of the unigram kind."""
    tokenizer = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(vocab_size=size, show_progress=False, unk_token="<unk>")
    lines = ["▁" + line.replace(" ", "▁") for line in corpus() if line.isprintable()]
    tokenizer.train_from_iterator(lines, trainer)
    import json

    pieces = [(n, s) for n, s in json.loads(tokenizer.to_str())["model"]["vocab"] if n != "<unk>"]
    names = ["<pad>", "</s>", "<unk>", *(n for n, _ in pieces), "<extra>", "<|user|>"]
    kinds = [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * len(pieces), USER, CONTROL]
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, *(s for _, s in pieces), 0.0, 0.0],
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
    }
    return fields | ({"tokenizer.ggml.precompiled_charsmap": list(charsmap)} if charsmap else {})


def word_pieces(**options: Any) -> dict[str, Any]:
    """Fields of a BERT vocabulary: `▁` begins words."""
    rng = random.Random(11)
    words = {w.lower() for line in corpus() for w in line.split() if w.isalnum()}
    starts = {"▁" + w[:n] for w in words for n in (1, 2, 3, len(w))}
    rest = {w[a : a + n] for w in words for a in range(1, len(w)) for n in (1, 2, 3)}
    letters = {"▁" + c for c in string.punctuation + string.digits}
    known = sorted((starts | rest | letters) - {""})
    known = rng.sample(known, len(known))
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [CONTROL, UNKNOWN, *[CONTROL] * 3, *[NORMAL] * len(known)],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
    } | options


_KINDS = {"scores": "F32", "token_type": "I32", "precompiled_charsmap": "U8"}


def write_model(path: Path, fields: dict[str, Any], *, template: str | None = None) -> Path:
    """A model of one layer, all zeros, with that vocabulary; a vocabulary is all it is good for."""
    rows = len(fields["tokenizer.ggml.tokens"])
    shapes = {
        "token_embd.weight": (rows, WIDTH),
        "output_norm.weight": (WIDTH,),
        "blk.0.attn_norm.weight": (WIDTH,),
        "blk.0.ffn_norm.weight": (WIDTH,),
        **{f"blk.0.attn_{n}.weight": (WIDTH, WIDTH) for n in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{n}.weight": (WIDTH, WIDTH) for n in ("gate", "up", "down")},
    }
    sizes = {"block_count": 1, "context_length": 256, "embedding_length": WIDTH}
    sizes |= {"feed_forward_length": WIDTH, "attention.head_count": 1, "vocab_size": rows}
    with GGUFWriter(path, "llama") as out:
        for key, value in sizes.items():
            out.field(f"llama.{key}", value)
        out.field("llama.attention.layer_norm_rms_epsilon", 1e-5)
        for key, value in fields.items():
            kind: Any = _KINDS.get(key.rpartition(".")[2])
            out.field(key, value, kind) if kind else out.field(key, value)
        if template is not None:
            out.field("tokenizer.chat_template", template)
        for name, shape in shapes.items():
            out.tensor(name, "F32", shape)
        out.begin()
        for name, shape in shapes.items():
            out.data(name, np.zeros(shape, np.float32))
        out.finish()
    return path


def raw_pairs(size: int = 700) -> dict[str, Any]:
    """Fields of a vocabulary that joins plain characters over spaces, as Gemma's does."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, max_token_length=8)
    lines = [part for line in corpus() for part in line.replace(" ", "▁").split("\n") if part]
    tokenizer.train_from_iterator(lines, trainer)
    extra = [("<s>", CONTROL), ("</s>", CONTROL), ("<|end|>", USER), ("<extra>", USER)]
    extra += [("\n" * n, NORMAL) for n in (1, 2, 3)] + [(f"<0x{b:02X}>", BYTE) for b in range(256)]
    return pairs_of(tokenizer, extra) | {"tokenizer.ggml.model": "gpt2"}


def charsmap(replaced: dict[str, str]) -> bytes:
    """SentencePiece's compiled map of characters for a few replacements: a double array."""
    texts = b"".join(new.encode() + b"\0" for new in replaced.values())
    starts, at = {}, 0
    for old, new in replaced.items():
        starts[old.encode()] = at
        at += len(new.encode()) + 1
    children: dict[bytes, set[int]] = {}
    for key in starts:
        for n in range(len(key)):
            children.setdefault(key[:n], set()).add(key[n])
    units = [0] * (256 * (2 + len(children) + len(starts)))
    taken: set[int] = {0}
    places = {b"": 0}
    free = 256
    for prefix in sorted(children, key=len):
        node = places[prefix]
        if prefix in starts:
            base = node ^ free  # the value lies at this offset, under the byte 0
            units[node] |= 1 << 8
        else:
            base = node ^ free
        units[node] |= base << 10
        if prefix in starts:
            units[free] = starts[prefix] | 1 << 31
        for byte in children[prefix]:
            places[prefix + bytes((byte,))] = free ^ byte
            units[free ^ byte] |= byte
        taken.add(free)
        free += 256
    for key, start in starts.items():
        if key not in children:
            node = places[key]
            units[node] |= (node ^ free) << 10 | 1 << 8
            units[free] = start | 1 << 31
            free += 256
    blob = b"".join(u.to_bytes(4, "little") for u in units[:free])
    return len(blob).to_bytes(4, "little") + blob + texts
