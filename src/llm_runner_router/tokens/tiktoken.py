"""Tokenizers of tiktoken's rank files (`cl100k_base.tiktoken` …), read from disk alone.

Knows: the lines of a rank file, the expressions and special tokens of the encodings by name. Does
not know: where files come from. Needs the extra `tiktoken`.

Names and expressions are facts from https://github.com/openai/tiktoken (`openai_public.py`) and,
for `qwen`, from https://huggingface.co/Qwen/Qwen-7B (`tokenization_qwen.py`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import BadRequest, ModelFileError, Unsupported

from .base import Detokenizer, Kind
from .hf import read_bounded

_GPT2: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_CL100K: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_O200K: Final = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip
_QWEN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Encoding(Struct, frozen=True):
    """How an encoding cuts text, and its special tokens by id."""

    pattern: str
    special: dict[str, int]


_FIM: Final = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
ENCODINGS: Final = {
    "r50k_base": Encoding(_GPT2, {"<|endoftext|>": 50256}),
    "p50k_base": Encoding(_GPT2, {"<|endoftext|>": 50256}),
    "cl100k_base": Encoding(_CL100K, {"<|endoftext|>": 100257, **_FIM, "<|endofprompt|>": 100276}),
    "o200k_base": Encoding(_O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "qwen": Encoding(
        _QWEN, {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    ),
}
"""By the name of the file without `.tiktoken`."""


class TiktokenTokenizer:
    """A `Tokenizer` around a `tiktoken.Encoding`. See `base.Tokenizer`."""

    kind: Kind = "tiktoken"
    bos: int | None = None

    def __init__(self, engine: Any, special: dict[str, int]) -> None:
        self._engine = engine
        self._special = {id: name for name, id in special.items()}
        self.size: int = engine.max_token_value + 1
        self.eos = special.get("<|endoftext|>")

    def encode(
        self, text: str, *, special: bool = False, add_bos: bool | None = False
    ) -> list[int]:
        """See `base.Tokenizer`; these vocabularies put nothing around a text."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        if not special:
            return list(self._engine.encode_ordinary(text))
        return list(self._engine.encode(text, allowed_special="all"))

    def count(self, text: str) -> int:
        """See `base.Tokenizer`."""
        return len(self._engine.encode_ordinary(text))

    def piece(self, id: int) -> bytes:
        """See `base.Tokenizer`."""
        name = self._special.get(id)
        if name is not None:
            return name.encode()
        try:
            return bytes(self._engine.decode_single_token_bytes(id))
        except (KeyError, OverflowError):
            raise BadRequest(
                f"{id} is no token of this vocabulary of {self.size}", param="tokens"
            ) from None

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `base.Tokenizer`."""
        return b"".join([self.piece(id) for id in ids])

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """See `base.Tokenizer`."""
        kept = [self.piece(i) for i in ids if not (skip_special and self.is_special(i))]
        return b"".join(kept).decode("utf-8", "replace")

    def is_special(self, id: int) -> bool:
        """See `base.Tokenizer`."""
        return id in self._special

    def stream(self) -> Detokenizer:
        """See `base.Tokenizer`."""
        return Detokenizer(self, strip=False)


def open_tiktoken(path: Path) -> TiktokenTokenizer:
    """The rank file `path`; its name says which encoding it is.

    Raises:
        ModelFileError: it is no rank file.
        Unsupported: its name is of no known encoding, or the extra is not installed.
    """
    name = path.name.removesuffix(".tiktoken")
    encoding = ENCODINGS.get(name)
    if encoding is None:
        raise Unsupported(
            f"`{path}` is a rank file of the unknown encoding `{name}`",
            hint="name it after its encoding: " + ", ".join(f"{n}.tiktoken" for n in ENCODINGS),
        )
    try:
        import tiktoken
    except ModuleNotFoundError:
        raise Unsupported(
            "rank files need the package tiktoken",
            hint="pip install 'llm-runner-router[tiktoken]'",
        ) from None
    ranks = _ranks(path)
    special = {n: id for n, id in encoding.special.items() if id not in ranks.values()}
    return TiktokenTokenizer(
        tiktoken.Encoding(
            name, pat_str=encoding.pattern, mergeable_ranks=ranks, special_tokens=special
        ),
        special,
    )


def _ranks(path: Path) -> dict[bytes, int]:
    """Lines of base64 and a number."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bounded(path).splitlines(), 1):
        if line:
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except (ValueError, binascii.Error) as exc:
                raise ModelFileError(
                    f"line {number} of `{path}` is no token and rank: {exc}",
                    hint="download the file again",
                ) from exc
    if len(ranks) < 256 or len(set(ranks.values())) != len(ranks):
        raise ModelFileError(
            f"`{path}` is no rank file: {len(ranks)} tokens, or two of one rank",
            hint="download the file again",
        )
    return ranks
