"""Recognises the files from before GGUF: GGML, GGMF and GGJT, and reads LLaMA models in them.

Knows: the layout that llama.cpp wrote until August 2023, for LLaMA. Does not know: the blocks of
each version and the other architectures of that time (`_ggml_kinds.py`), which used the same magic
numbers with other headers; they are named and refused.

    magic u32 · version u32 (not GGML) · vocab, width, mult, heads, layers, rotation, type u32 each
    vocab times: length u32 · bytes · score f32 (not GGML)
    tensors until the end: dims u32 · length of name u32 · type u32 · ne u32×dims · name
                           · padding to 32 (GGJT) · data

The metadata are given under the keys that GGUF has for them, so that converting is copying.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, Final

from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from ._files import MAX_ENTRIES, Bad, Opened, Place, Source, naming
from ._ggml_kinds import LAYOUTS, stranger
from ._hub import checked_info
from ._parts import count

CONTEXT: Final = 2048
"""Tokens that LLaMA 1 and Llama 2 in this format were at least trained for; the file is silent."""
_MAGICS: Final = {
    b"lmgg": "GGML",
    b"fmgg": "GGMF",
    b"tjgg": "GGJT",
    b"algg": "GGLA",
    b"ccgg": "GGCC",
}
_MAX_VOCABULARY: Final = 1_000_000
_MAX_WORD: Final = 4096
_WAY: Final = (
    "download the model as GGUF; or convert its original weights: `llmrr convert FOLDER model.gguf`"
)
_OTHERS: Final = (
    "look for the model as GGUF, or for its original weights (a folder with safetensors), which"
    " `llmrr inspect FOLDER --why` finds an engine for"
)


def sniff(path: Path, head: bytes) -> bool:
    """Whether `path` begins with one of the magic numbers; on disk they are turned round."""
    return head[:4] in _MAGICS


def describe(path: Path) -> ModelInfo:
    """The facts of a LLaMA model in one of these files.

    Raises:
        ModelFileError: it is damaged or of another architecture; says which, and how to come to a
            file that can be used.
    """
    with naming(path):
        return _File(path).info


def open_checkpoint(path: Path) -> Checkpoint:
    """The weights under their names of that time (`layers.0.attention.wq.weight`).

    Quantised ones have the type of GGUF where their blocks are the same, else one of `LAYOUTS`.
    `config` has the keys of GGUF; its tokens are as in the file, bytes that are no UTF-8 with
    `surrogateescape`.

    Raises:
        ModelFileError: as `describe`.
    """
    with naming(path):
        file = _File(path)
    return Opened(path, file.info, file.config, file.weights, file.sources)


class _File:
    """One file, read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.weights: dict[str, Weight] = {}
        self.sources: dict[str, Source] = {}
        self.config: dict[str, Any] = {}
        with path.open("rb") as file:
            self._size = file.seek(0, 2)
            if self._size < 32:
                raise Bad(f"it has {self._size} bytes, too few for a model", _WAY)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._data, self._at = data, 4
                try:
                    self._read(_MAGICS.get(data[:4], ""))
                except Bad:
                    if not (what := stranger(data)):
                        raise
                    raise Bad(
                        f"it holds a model of another kind than LLaMA: {what}, in a format of 2023"
                        " that only the program it was made for reads",
                        _OTHERS,
                    ) from None

    def _read(self, kind: str) -> None:
        if kind == "GGLA":
            raise Bad("it is a LoRA adapter in a format of 2023, not a model", _WAY)
        self.kind, self.version = kind, 0 if kind == "GGML" else self._numbers(1)[0]
        if self.version not in {"GGML": (0,), "GGMF": (1,), "GGJT": (1, 2, 3)}.get(kind, ()):
            raise Bad(f"it is {kind or 'no GGML'} in the unknown version {self.version}", _WAY)
        self._layout = self.version if kind == "GGJT" else 1
        names = ("vocab", "width", "mult", "heads", "layers", "rotation", "type")
        self.sizes = dict(zip(names, self._numbers(7), strict=True))
        limits = {"vocab": _MAX_VOCABULARY, "width": 65_536, "heads": 1024, "layers": 1024}
        for name, most in limits.items():
            if not 0 < self.sizes[name] <= most:
                raise Bad(
                    f"as a LLaMA model it would have {self.sizes[name]} for its {name}: it is"
                    " damaged, or a model of another kind, which this format does not tell",
                    _WAY,
                )
        if self.sizes["width"] % self.sizes["heads"]:
            raise Bad("its width is no multiple of its heads: it is no LLaMA model", _WAY)
        tokens, scores = self._vocabulary()
        while self._at < self._size:
            self._tensor()
        self._facts(tokens, scores)

    def _vocabulary(self) -> tuple[list[str], list[float]]:
        tokens: list[str] = []
        scores: list[float] = []
        for _ in range(self.sizes["vocab"]):
            length = self._numbers(1)[0]
            if length > _MAX_WORD:
                raise Bad(f"a token of {length} bytes: it is damaged, or no LLaMA model", _WAY)
            tokens.append(self._take(length).decode("utf-8", "surrogateescape"))
            if self.kind != "GGML":
                scores.append(struct.unpack("<f", self._take(4))[0])
        return tokens, scores

    def _tensor(self) -> None:
        dims, length, code = self._numbers(3)
        if not 1 <= dims <= 2 or length > 256:
            raise Bad(f"a tensor of {dims} dimensions at byte {self._at}: it is damaged", _WAY)
        shape = self._numbers(dims)
        name = self._take(length).decode("utf-8", "replace")
        if code not in LAYOUTS[self._layout]:
            raise Bad(
                f"the tensor {name[:80]!r} has the type {code}, which {self.kind} {self.version}"
                " did not have",
                _WAY,
            )
        kind, block, width = LAYOUTS[self._layout][code]
        number = shape[0] * (shape[1] if dims == 2 else 1)
        if not number or shape[0] % block or number // block * width > self._size:
            raise Bad(f"the tensor {name[:80]!r} of shape {shape} does not fit the file", _WAY)
        size = number // block * width
        if self.kind == "GGJT":
            self._at = -(-self._at // 32) * 32
        if self._at + size > self._size:
            raise Bad(f"it is cut short inside of the tensor {name[:80]!r}", _WAY)
        if name in self.weights or len(self.weights) >= MAX_ENTRIES:
            raise Bad(f"the tensor {name[:80]!r} stands there twice", _WAY)
        self.weights[name] = Weight(name, kind, tuple(reversed(shape)), size)
        self.sources[name] = Place(self._path, self._at, size)
        self._at += size

    def _facts(self, tokens: list[str], scores: list[float]) -> None:
        width, heads = self.sizes["width"], self.sizes["heads"]
        missing = {"tok_embeddings.weight", "norm.weight", "output.weight"} - self.weights.keys()
        if missing:
            raise Bad(f"it lacks the tensor {min(missing)!r}: it is no LLaMA model", _WAY)
        have = self.weights["tok_embeddings.weight"].shape
        if have != (self.sizes["vocab"], width):
            part = have[-1] < width
            raise Bad(
                f"its embedding is {have}, not ({self.sizes['vocab']}, {width})"
                + (
                    ": it is one of several parts, which only programs of 2023 join" if part else ""
                ),
                _WAY,
            )
        keys = self.weights.get("layers.0.attention.wk.weight")
        kv_heads = max(1, keys.shape[0] * heads // width) if keys is not None else heads
        self.config = {
            "general.architecture": "llama",
            "general.file_type": self.sizes["type"],
            "llama.block_count": self.sizes["layers"],
            "llama.embedding_length": width,
            "llama.attention.head_count": heads,
            "llama.attention.head_count_kv": kv_heads,
            "llama.rope.dimension_count": self.sizes["rotation"],
            "llama.context_length": CONTEXT,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tuple(tokens),
            "tokenizer.ggml.scores": tuple(scores),
        }
        self.info = checked_info(
            format="ggml",
            architecture="llama",
            name=self._path.stem,
            bytes=self._size,
            context=CONTEXT,
            layers=self.sizes["layers"],
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            key_length=width // heads,
            value_length=width // heads,
            vocabulary=len(tokens),
            tokenizer="spm",
            notes=(f"{self.kind} {self.version}, from before GGUF: converted when it is loaded",),
            **count(self.weights.values()),
        )

    def _numbers(self, number: int) -> tuple[int, ...]:
        return struct.unpack(f"<{number}I", self._take(4 * number))

    def _take(self, size: int) -> bytes:
        if self._at + size > self._size:
            raise Bad(
                f"it ends at byte {self._size}, inside its header: it is cut short, or a model of"
                " another kind than LLaMA",
                _WAY,
            )
        found = self._data[self._at : self._at + size]
        self._at += size
        return found
