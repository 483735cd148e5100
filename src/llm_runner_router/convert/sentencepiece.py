"""Reads `tokenizer.model`, SentencePiece's protobuf message, without its library.

Knows: the few fields that matter and the wire format of protobuf, bounded by the file. Does not
know: how text is cut. Fields: `sentencepiece_model.proto` of google/sentencepiece, release 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError

MAX_FILE: Final = 256 * 1024 * 1024
MAX_PIECES: Final = 1_500_000
UNIGRAM, BPE = 1, 2
"""Values of `TrainerSpec.model_type`."""


class Piece(Struct, frozen=True):
    """A piece of text, its score, and its type (numbers as in GGUF's `token_type`)."""

    text: str
    score: float
    type: int


class SentencePieceModel(Struct, frozen=True):
    """What a model file says."""

    pieces: tuple[Piece, ...]
    kind: int
    """`UNIGRAM` or `BPE`."""
    charsmap: bytes
    """Normalisation of characters, as a compiled table."""
    prefix: bool
    """A space is put before the text."""
    squeeze: bool
    """Runs of spaces become one."""


class _Bad(Exception):
    """What is wrong, without the file's name."""


def read(path: Path) -> SentencePieceModel:
    """The model in the file `path`.

    Raises:
        ModelFileError: it is missing, too large or not such a message.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise _Bad(f"it has more than {MAX_FILE} bytes")
        return _model(memoryview(path.read_bytes()))
    except OSError as exc:
        raise ModelFileError(f"cannot read `{path}`: {exc.strerror}") from exc
    except (_Bad, UnicodeDecodeError) as exc:
        raise ModelFileError(
            f"`{path}` is not a SentencePiece model: {exc}", hint="download it again"
        ) from None


def _model(data: memoryview) -> SentencePieceModel:
    pieces: list[Piece] = []
    kind, charsmap, prefix, squeeze = UNIGRAM, b"", True, True
    for number, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            pieces.append(_piece(value))
            if len(pieces) > MAX_PIECES:
                raise _Bad(f"it has more than {MAX_PIECES} pieces")
        elif number == 2 and isinstance(value, memoryview):
            trainer = dict(_fields(value))
            kind = _number(trainer.get(3, UNIGRAM))
        elif number == 3 and isinstance(value, memoryview):
            normalizer = dict(_fields(value))
            table = normalizer.get(2, b"")
            charsmap = bytes(table) if not isinstance(table, int) else b""
            prefix = bool(_number(normalizer.get(3, 1)))
            squeeze = bool(_number(normalizer.get(4, 1)))
    if not pieces:
        raise _Bad("it has no pieces")
    return SentencePieceModel(tuple(pieces), kind, charsmap, prefix, squeeze)


def _piece(data: memoryview) -> Piece:
    fields = dict(_fields(data))
    text, score = fields.get(1, b""), fields.get(2, 0.0)
    if isinstance(text, int):
        raise _Bad("a piece's text is a number")
    if isinstance(score, memoryview) and len(score) == 4:
        score = struct.unpack("<f", score)[0]
    if not isinstance(score, float):
        raise _Bad("a piece's score is no number")
    return Piece(bytes(text).decode("utf-8"), score, _number(fields.get(3, 1)))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: varints as numbers, everything else as its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _Bad(f"a field has the wire type {wire}")
        if length > len(data) - at:
            raise _Bad("a field is longer than the file")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _Bad("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _Bad("a number has more than ten bytes")


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise _Bad("a field that counts is not a number")
    return value
