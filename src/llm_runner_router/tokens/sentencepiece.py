"""SentencePiece's own `tokenizer.model` as a `Vocab`, so that one encoder serves both files.

Knows: the few fields of the protocol buffer that matter
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto): pieces with
score and type, the kind of model, ids of special tokens, the normalizer. Does not know: encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from llm_runner_router.errors import ModelFileError, Unsupported

from .vocab import Vocab, vocab_of

MAX_FILE: Final = 64 * 1024 * 1024
_KINDS: Final = {1: "t5", 2: "llama"}


class _Bad(Exception):
    """What is wrong, without the file's name."""


def read_sentencepiece(path: Path) -> Vocab:
    """The vocabulary of `path`.

    Raises:
        ModelFileError: it is too large or no such file at all.
        Unsupported: it splits text in words or characters.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise _Bad(f"it has more than {MAX_FILE} bytes")
        fields = _fields(path.read_bytes(), str(path))
    except (_Bad, struct.error, UnicodeDecodeError, IndexError) as exc:
        raise ModelFileError(
            f"`{path}` is no SentencePiece model: {exc}", hint="download it again"
        ) from exc
    return vocab_of(fields, str(path))


def _fields(data: bytes, source: str) -> dict[str, Any]:
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _message(data):
        if number == 1:
            piece = dict(_message(_bytes(value)))
            tokens.append(_bytes(piece.get(1, b"")).decode("utf-8"))
            scores.append(struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))[0])
            types.append(int(piece.get(3, 1)))
        elif number == 2:
            trainer = dict(_message(_bytes(value)))
        elif number == 3:
            normalizer = dict(_message(_bytes(value)))
    if not tokens:
        raise _Bad("it has no pieces")
    kind = trainer.get(3, 1)
    if kind not in _KINDS:
        raise Unsupported(
            f"`{source}` is a SentencePiece model of words or characters, which is not known here",
            hint="use the tokenizer.json of the model",
        )
    prefix = "tokenizer.ggml."
    fields: dict[str, Any] = {
        f"{prefix}model": _KINDS[kind],
        f"{prefix}tokens": tokens,
        f"{prefix}scores": scores,
        f"{prefix}token_type": types,
        f"{prefix}precompiled_charsmap": _bytes(normalizer.get(2, b"")),
        f"{prefix}add_space_prefix": bool(normalizer.get(3, 1)),
        f"{prefix}remove_extra_whitespaces": bool(normalizer.get(4, 1)),
    }
    for key, number, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2)):
        id = _signed(trainer.get(number, default))
        if id >= 0:
            fields[f"{prefix}{key}_token_id"] = id
    return fields


def _signed(value: Any) -> int:
    number = int(value)
    return number - (1 << 64) if number >> 63 else number


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise _Bad("a number stands where bytes belong")
    return value


def _message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of one message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        else:
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise _Bad(f"a field has the unknown wire type {wire}")
            if size > len(data) - at:
                raise _Bad("a field reaches past the end")
            value, at = data[at : at + size], at + size
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _Bad("a number has more than ten bytes")
