"""A vocabulary as a GGUF file has it, and what the engine makes of its tokens when it loads it.

Knows: `tokenizer.*` of GGUF, defaults and corrections of llama.cpp b11549 (`src/llama-vocab.cpp`).
Does not know: how text is encoded.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats.gguf import read_header

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in a file."""

_WIDTHS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    10: "Q", 11: "q", 12: "d"
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_WANTED: Final = {"general.name", "general.architecture"}
_LONG: Final = {f"tokenizer.ggml.{k}" for k in ("tokens", "merges", "scores", "token_type")} | {
    "tokenizer.ggml.precompiled_charsmap"
}

DEFAULT_EOS: Final = {"llama": 2, "gpt2": 11, "t5": 1}
"""What ends a text where a file does not say it."""
CLOSING: Final = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>"
    " <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance>"
    " <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[ <|ifm|im_end|>".split()
)
"""Names that make a token a control token that ends an answer, whatever the file calls it."""
FILLING: Final = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE>"
    " <|code_prefix|> <|prefix|> <|plamo:fim_prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF>"
    " <|code_suffix|> <|suffix|> <|plamo:fim_suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID>"
    " <|code_middle|> <|middle|> <|plamo:fim_middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|> <|plamo:file_separator|>",
}
"""Names of tokens for filling in the middle; control tokens too where the file names none."""
_OLD_FILLING: Final = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}
SHOWN: Final = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
"""Tokens of the Harmony format that are always text."""


class Vocab(Struct, frozen=True):
    """What a file says of its tokens. `types` and `scores` are as long as `tokens`."""

    model: str
    """`gpt2`, `llama`, `bert`, `t5` …"""
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    charsmap: bytes = b""
    pre: str = ""
    options: dict[str, Any] = {}
    """The short values below `tokenizer.ggml.`, without that prefix."""
    name: str = ""
    architecture: str = ""
    source: str = ""
    """Where it comes from, for messages."""

    def id(self, key: str, default: int | None = None) -> int | None:
        """The token id in the option `key`; the default if it says none or a wrong one."""
        value = self.options.get(f"{key}_token_id", default)
        if not isinstance(value, int) or isinstance(value, bool):
            return default
        return value if 0 <= value < len(self.tokens) else None

    def flag(self, key: str, default: bool) -> bool:
        """The truth value of the option `key`."""
        value = self.options.get(key, default)
        return value if isinstance(value, bool) else default


def read_vocab(path: Path) -> Vocab:
    """The vocabulary in the GGUF file `path`; no weight is read.

    Raises:
        ModelFileError: the file is not sound, has no vocabulary, or one that is not well formed.
    """
    read_header(path)  # every count, length and offset is checked there
    found: dict[str, Any] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _read(data, found)
        except (struct.error, KeyError, OverflowError) as exc:
            raise ModelFileError(
                f"the vocabulary of `{path}` cannot be read: {exc}",
                hint="download the file again, or convert it anew",
            ) from exc
    return vocab_of(found, str(path))


def vocab_of(fields: dict[str, Any], source: str) -> Vocab:
    """A vocabulary from metadata.

    Args:
        fields: keys as in GGUF, arrays as sequences.
        source: the file, for messages.

    Raises:
        ModelFileError: no tokens, arrays of different lengths, or two tokens of one name.
    """
    prefix = "tokenizer.ggml."
    # The engine reads strings up to a zero byte, and names tokens without one.
    texts = [text.partition("\0")[0] for text in fields.get(prefix + "tokens", ())]
    tokens = tuple(text or f"[EMPTY_{i}]" for i, text in enumerate(texts))
    problem = ""
    if not tokens:
        problem = "it has no `tokenizer.ggml.tokens`"
    types, scores = fields.get(prefix + "token_type", ()), fields.get(prefix + "scores", ())
    for key, values in (("token_type", types), ("scores", scores)):
        if values and len(values) < len(tokens):
            problem = f"it has {len(tokens)} tokens, but {len(values)} in `{prefix}{key}`"
    if len(set(tokens)) != len(tokens):
        problem = "two of its tokens have the same name"
    if problem:
        raise ModelFileError(
            f"the vocabulary of `{source}` cannot be used: {problem}",
            hint="convert the model anew, with its tokenizer",
        )
    short = {
        key.removeprefix(prefix): value
        for key, value in fields.items()
        if key.startswith(prefix) and key not in _LONG
    }
    return Vocab(
        model=str(fields.get(prefix + "model", "")),
        tokens=tokens,
        types=tuple(types[: len(tokens)]) or (NORMAL,) * len(tokens),
        scores=tuple(map(float, scores[: len(tokens)])) or (0.0,) * len(tokens),
        merges=tuple(m.partition("\0")[0] for m in fields.get(prefix + "merges", ())),
        charsmap=bytes(b & 255 for b in fields.get(prefix + "precompiled_charsmap", ())),
        pre=str(fields.get(prefix + "pre", "")),
        options=short,
        name=str(fields.get("general.name", "")),
        architecture=str(fields.get("general.architecture", "")),
        source=source,
    )


def _read(data: mmap.mmap, found: dict[str, Any]) -> None:
    """Walk the pairs of a header that was checked, and keep those that matter here."""
    pairs = struct.unpack_from("<Q", data, 16)[0]
    at = 24
    for _ in range(pairs):
        raw, at = _bytes(data, at)
        key = raw.decode("utf-8", "replace")
        kind = struct.unpack_from("<I", data, at)[0]
        wanted = key in _WANTED or key.startswith("tokenizer.")
        value, at = _value(data, at + 4, kind, wanted)
        if wanted:
            found[key] = value


def _value(data: mmap.mmap, at: int, kind: int, wanted: bool) -> tuple[Any, int]:
    if kind == _STRING:
        raw, at = _bytes(data, at)
        return raw.decode("utf-8", "surrogateescape"), at
    if kind != _ARRAY:
        code = "<" + _WIDTHS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind != _STRING:
        code = f"<{length}{_WIDTHS[kind]}"
        size = struct.calcsize(code)
        return (struct.unpack_from(code, data, at) if wanted else None), at + size
    texts = []
    unpack, head = struct.Struct("<Q").unpack_from, 8
    for _ in range(length):
        end = at + head + unpack(data, at)[0]
        if wanted:
            texts.append(data[at + head : end].decode("utf-8", "surrogateescape"))
        at = end
    return texts, at


def _bytes(data: mmap.mmap, at: int) -> tuple[bytes, int]:
    end = at + 8 + struct.unpack_from("<Q", data, at)[0]
    return data[at + 8 : end], end


def attributes(vocab: Vocab) -> list[frozenset[int]]:
    """What each token is: its type in the file, with the engine's corrections by name.

    A token may be of two types afterwards: one called `<|im_end|>` is a control token whatever the
    file says, and a text one at that.
    """
    kinds = {t: frozenset((t if 1 <= t <= 6 else 0,)) for t in set(vocab.types)}
    attrs = [kinds[t] for t in vocab.types]
    ids = {text: i for i, text in enumerate(vocab.tokens)}
    filling = [
        set(names.split())
        for key, names in FILLING.items()
        if vocab.id(key) is None and vocab.id(_OLD_FILLING.get(key, "")) is None
    ]
    for names in filling:
        found = [ids[name] for name in names if name in ids]
        for id in found[:1]:
            attrs[id] |= {CONTROL}
    ending = {ids[name] for name in CLOSING if name in ids}
    for id in ending:
        attrs[id] |= {CONTROL}
    for name in SHOWN:
        if name in ids:
            attrs[ids[name]] = frozenset((USER,))
    eos = vocab.id("eos", DEFAULT_EOS.get(vocab.model))
    ending |= {i for i in (eos, vocab.id("eot"), vocab.id("eom")) if i is not None}
    names = {vocab.tokens[i] for i in ending}
    calls = bool({"<|call|>", "<|calls|>"} & names)
    if "<|end|>" in names and calls and {"<|return|>", "<|flush|>"} & names:
        attrs[ids["<|end|>"]] = frozenset((USER,))
    if "</s>" in names and {"<|tool_response>", "<|plamo:eos|>"} & names:
        attrs[ids["</s>"]] = frozenset((NORMAL,))
    return attrs
