"""The tokenizer in a GGUF file, id for id what the engine makes of the same text.

Knows: the kinds of vocabulary, special tokens, what goes around a text. Does not know: how each
kind encodes plain text (`bpe.py`, `spm.py`, `unigram.py`, `wordpiece.py`), files (`vocab.py`).

Compared with the engine's own `/tokenize` and `/detokenize` in the tests. What the engine can and
this cannot: RWKV, PLaMo, DNA and white-space vocabularies; those are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from llm_runner_router.errors import BadRequest, Unsupported

from .base import Detokenizer, Kind
from .bpe import BpeEncoder
from .chars import letter_bytes
from .special import Finder, Special
from .spm import SPACE, SpmEncoder
from .unigram import UnigramEncoder
from .vocab import BYTE, CONTROL, DEFAULT_EOS, NORMAL, UNKNOWN, USER, Vocab, attributes, read_vocab
from .wordpiece import WordPieceEncoder

KINDS: Final[dict[str, Kind]] = {
    "gpt2": "bpe", "gemma4": "bpe", "llama": "spm", "t5": "unigram", "bert": "wordpiece",
}  # fmt: skip
_DEFAULT_BOS: Final = {"llama": 1, "gpt2": 11, "bert": 101}
_DEFAULT_UNKNOWN: Final = {"llama": 0, "bert": 100, "t5": 2}


class Encoder(Protocol):
    """Text without special tokens to ids."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        ...


class GgufTokenizer:
    """A `Tokenizer` of a `Vocab`. See `base.Tokenizer`."""

    def __init__(self, vocab: Vocab) -> None:
        """Raises:
        Unsupported: a kind of vocabulary or a pre-tokenizer that is not known here.
        ModelFileError: the vocabulary lacks what its kind needs.
        """
        if vocab.model not in KINDS:
            known = ", ".join(f"`{name}`" for name in KINDS)
            raise Unsupported(
                f"the kind of vocabulary `{vocab.model}` of `{vocab.source}` is not known here",
                hint=f"known are {known}; load the model and count with the engine",
            )
        self.kind: Kind = KINDS[vocab.model]
        self.size = len(vocab.tokens)
        self._vocab = vocab
        self._attrs = attributes(vocab)
        row_flags = self._encoders(vocab)
        default_bos = None if "no-bos" in row_flags else _DEFAULT_BOS.get(vocab.model)
        self.bos = vocab.id("bos", default_bos)
        self.eos = vocab.id("eos", DEFAULT_EOS.get(vocab.model))
        self._sep = vocab.id("seperator", 102 if self.kind == "wordpiece" else None)
        spm = self.kind == "spm"
        self._adds_bos = vocab.flag("add_bos_token", spm or "bos" in row_flags)
        if vocab.model == "gemma4" or {"lines", "bos"} <= set(row_flags):
            self._adds_bos = True  # the engine overrides the files of this family
        self._adds_eos = vocab.flag("add_eos_token", self.kind == "unigram")
        self._prefix = spm and vocab.flag("add_space_prefix", True)
        self._strips = self._prefix or self.kind in ("unigram", "wordpiece")
        self._finder = Finder(self._specials())

    def _encoders(self, vocab: Vocab) -> tuple[str, ...]:
        """Make the encoder; the flags of its pre-tokenizer."""
        self._encoder: Encoder
        self._letters = False
        unknown = vocab.id("unknown", _DEFAULT_UNKNOWN.get(vocab.model)) or 0
        if self.kind == "bpe":
            bpe = BpeEncoder(vocab)
            self._encoder = bpe
            self._letters = "spaces" not in bpe.row.flags
            return bpe.row.flags
        if self.kind == "spm":
            self._encoder = SpmEncoder(vocab)
        elif self.kind == "unigram":
            self._encoder = UnigramEncoder(vocab, unknown)
        else:
            self._encoder = WordPieceEncoder(vocab, unknown)
        return ()

    def _specials(self) -> list[Special]:
        vocab = self._vocab
        phi = any(name in vocab.name.lower() for name in ("phi-3", "phi3"))
        mask = _mask(vocab)
        found = []
        for id, (text, attrs) in enumerate(zip(vocab.tokens, self._attrs, strict=True)):
            right = phi and text not in ("<unk>", "<s>", "<|endoftext|>")
            if attrs & {CONTROL, USER, UNKNOWN}:
                always = not attrs & {CONTROL, UNKNOWN}
                found.append(Special(id, text, always, left=text == mask, right=right))
        return found

    # ------------------------------------------------------------ there

    def encode(
        self, text: str, *, special: bool = False, add_bos: bool | None = False
    ) -> list[int]:
        """See `base.Tokenizer`."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = []
        after_special = True
        for piece in self._finder.split(text, special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encoder.encode(
                    f" {piece}" if self._prefix and after_special else piece
                )
            after_special = isinstance(piece, int)
        return ids if add_bos is False else self._around(ids, add_bos)

    def _around(self, ids: list[int], add_bos: bool | None) -> list[int]:
        if self.kind == "wordpiece":
            front, back = self.bos, self._sep
        else:
            front = self.bos if add_bos or self._adds_bos else None
            back = self.eos if self._adds_eos else None
        before = [] if front is None else [front]
        return [*before, *ids] if back is None else [*before, *ids, back]

    def count(self, text: str) -> int:
        """See `base.Tokenizer`."""
        return len(self.encode(text))

    # ------------------------------------------------------------ and back

    def is_special(self, id: int) -> bool:
        """See `base.Tokenizer`."""
        return bool(self._attrs[self._checked(id)] & {CONTROL, UNKNOWN})

    def piece(self, id: int) -> bytes:
        """See `base.Tokenizer`."""
        return self._pieces[self._checked(id)]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `base.Tokenizer`."""
        return b"".join([self._pieces[self._checked(id)] for id in ids])

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """See `base.Tokenizer`. The space that encoding put before the text is taken away."""
        checked = [self._checked(id) for id in ids]
        kept = [self._pieces[i] for i in checked if not (skip_special and self.is_special(i))]
        if self._strips and (first := next((i for i, p in enumerate(kept) if p), None)) is not None:
            kept[first] = kept[first].removeprefix(b" ")
        return b"".join(kept).decode("utf-8", "replace")

    def stream(self) -> Detokenizer:
        """See `base.Tokenizer`."""
        return Detokenizer(self, strip=self._strips)

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.size:
            raise BadRequest(f"{id} is no token: ids are 0 to {self.size - 1}", param="tokens")
        return id

    @cached_property
    def _pieces(self) -> list[bytes]:
        pairs = zip(self._vocab.tokens, self._attrs, strict=True)
        return [self._piece(text, attrs) for text, attrs in pairs]

    def _piece(self, text: str, attrs: frozenset[int]) -> bytes:
        if attrs & {UNKNOWN, CONTROL, USER}:
            return text.encode("utf-8", "surrogateescape")
        if NORMAL in attrs:
            if self._letters:
                return _spelt(text)
            return text.replace(SPACE, " ").encode("utf-8", "surrogateescape")
        if BYTE in attrs:
            try:
                return bytes((int(text[3:5], 16),))
            except ValueError:
                return b"\0"
        return b""


def _spelt(text: str) -> bytes:
    """The bytes whose GPT-2 letters are `text`; a letter of no byte is told as the engine tells."""
    known = letter_bytes()
    out = bytearray()
    for char in text:
        if char in known:
            out.append(known[char])
        else:
            raw = char.encode("utf-8", "surrogateescape")
            out += b"[UNK_BYTE_0x" + raw.hex().encode() + text.encode("utf-8", "replace") + b"]"
    return bytes(out)


def _mask(vocab: Vocab) -> str:
    """The mask token that eats the space before it, if the model has one."""
    names = ("jina-v2-de", "jina-v2-es", "jina-v2-code", "mmbert")
    if any(n in vocab.pre for n in names) or any(
        n in vocab.architecture for n in ("nomic-bert-moe", "jina-bert-v3")
    ):
        return "<mask>"
    return "[MASK]" if "modern-bert" in vocab.name.lower() else ""


def open_gguf(path: Path) -> GgufTokenizer:
    """The tokenizer of the GGUF file `path`; no weight is read.

    Raises:
        ModelFileError, Unsupported
    """
    return GgufTokenizer(read_vocab(path))
