"""A language model of random weights, large enough that decoding is bound by memory.

Knows: the GGUF container (version 3), the Llama tensor names, the block layouts of the types below
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, ggml's `ggml-common.h`). Takes tokenizer
and chat template from a zoo model. What the model says is noise; its speed is that of a real one of
its size.
"""

from __future__ import annotations

import mmap
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from msgspec import Struct

from .proc import BenchError

Quant = Literal["F16", "Q8_0", "Q4_0", "Q4_K_M"]
"""`Q4_K_M` is a mix: Q4_K, with Q6_K for the output, half of the values and half of the MLPs' last
matrices."""


class _Kind(Struct, frozen=True):
    """A tensor type: its number in the file, and its blocks."""

    number: int
    weights: int
    bytes: int
    spread: float = 1.0
    """Standard deviation of uniformly random weights before the scale."""


_KINDS: dict[str, _Kind] = {
    "F32": _Kind(0, 1, 4),
    "F16": _Kind(1, 1, 2),
    "Q4_0": _Kind(2, 32, 18, 4.6),
    "Q8_0": _Kind(8, 32, 34, 73.9),
    "Q4_K": _Kind(12, 256, 144, 4.6),
    "Q6_K": _Kind(14, 256, 210, 18.5),
}
_FILE_TYPE: dict[str, int] = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_ALIGN = 32


class Shape(Struct, frozen=True):
    """A Llama model. The default has 138 million parameters."""

    width: int = 768
    layers: int = 22
    hidden: int = 2048
    heads: int = 12
    kv_heads: int = 4
    context: int = 4096


SMALL = Shape(width=256, layers=4, hidden=1024, heads=4, kv_heads=4)
"""Four million parameters and the vocabulary's: a draft model for the default shape."""

ONE_B = Shape(width=2048, layers=16, hidden=8192, heads=32, kv_heads=8)
"""The layers of Llama 3.2 1B, 973 million weights; its vocabulary is the donor's."""


class _Tensor(Struct, frozen=True):
    name: str
    dims: tuple[int, ...]
    """Innermost first, as in the file."""
    kind: str

    @property
    def size(self) -> int:
        """Bytes without padding."""
        kind = _KINDS[self.kind]
        return self.weights // kind.weights * kind.bytes

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        n = 1
        for dim in self.dims:
            n *= dim
        return n


class Made(Struct, frozen=True):
    """What was written."""

    path: Path
    parameters: int
    touched: int
    """Bytes of weights that one decoded token reads: all but the input embedding."""


class Cycle(Struct, frozen=True):
    """A text that repeats itself, for a model that can write nothing else.

    What attention and the MLPs find is computed in full and then weighed with zeros, so the next
    token depends on the last one alone, and time is that of any model of the size.
    """

    length: int = 50
    """Tokens until it begins again."""
    every: int = 0
    """One of so many tokens is followed by another than without this; 0: none. A draft model
    that is wrong that often."""


def write(
    path: Path,
    donor: Path,
    quant: Quant,
    shape: Shape | None = None,
    seed: int = 1,
    cycle: Cycle | None = None,
) -> Made:
    """Write a model to `path`; `donor` is a GGUF whose tokenizer it gets.

    Raises:
        BenchError: `donor` is no GGUF of version 3.
    """
    shape = shape or Shape()
    kept = [(key, raw) for key, raw in _pairs(donor) if key.startswith(b"tokenizer.")]
    tokens = _tokens(donor)
    tensors = _tensors(shape, len(tokens), quant, cycle is not None)
    rng = random.Random(seed)
    with path.open("wb") as out:
        _head(out, shape, len(tokens), quant, kept, tensors)
        for tensor in tensors:
            written = 0
            if cycle is None:
                pieces = _weights(tensor, tokens, rng)
            else:
                pieces = _cyclic(tensor, tokens, rng, cycle)
            for piece in pieces:
                written += out.write(piece)
            out.write(b"\0" * (-written % _ALIGN))
    weights = [t for t in tensors if t.name != "token_embd.weight"]
    count = sum(t.weights for t in tensors if len(t.dims) == 2)
    return Made(path, count, sum(t.size for t in weights))


# ---------------------------------------------------------------- what is in it


def _tensors(shape: Shape, vocab: int, quant: Quant, cyclic: bool) -> list[_Tensor]:
    width, kv = shape.width, shape.width // shape.heads * shape.kv_heads
    plain, fine = ("Q4_K", "Q6_K") if quant == "Q4_K_M" else (quant, quant)
    found = [_Tensor("token_embd.weight", (width, vocab), "F16" if cyclic else plain)]
    for i in range(shape.layers):
        parts: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (width, kv),
            "attn_v": (width, kv),
            "attn_output": (width, width),
            "ffn_norm": (width,),
            "ffn_gate": (width, shape.hidden),
            "ffn_up": (width, shape.hidden),
            "ffn_down": (shape.hidden, width),
        }
        for name, dims in parts.items():
            kind = "F32" if len(dims) == 1 else plain
            if name in ("attn_v", "ffn_down") and i % 2:
                kind = fine
            found.append(_Tensor(f"blk.{i}.{name}.weight", dims, kind))
    found.append(_Tensor("output_norm.weight", (width,), "F32"))
    found.append(_Tensor("output.weight", (width, vocab), "F16" if cyclic else fine))
    return found


def _cyclic(
    tensor: _Tensor, tokens: Sequence[bytes], rng: random.Random, cycle: Cycle
) -> Iterator[bytes]:
    """The weights of a model that writes `cycle`: a token's row in the output is the embedding of
    the one before it."""
    if tensor.name.endswith(("attn_output.weight", "ffn_down.weight")):
        yield b"\0" * tensor.size
        return
    if tensor.name not in ("token_embd.weight", "output.weight"):
        yield from _weights(tensor, tokens, rng)
        return
    width = tensor.dims[0]
    before = _before(tokens, cycle) if tensor.name == "output.weight" else range(len(tokens))
    for token in before:
        if token is None:
            yield b"\0" * (2 * width)
            continue
        # The same in both tensors, whatever was drawn in between.
        own = random.Random(token)
        yield struct.pack(f"<{width}e", *(own.choice((-1.0, 1.0)) for _ in range(width)))


def _before(tokens: Sequence[bytes], cycle: Cycle) -> list[int | None]:
    """For every token the one that it follows; None if it follows none."""
    around = [i for i, token in enumerate(tokens) if _printable(token)][: cycle.length]
    found: list[int | None] = [None] * len(tokens)
    for at, token in enumerate(around):
        wrong = cycle.every and at % cycle.every == 0
        found[around[(at + 1) % len(around)]] = None if wrong else token
    return found


def _weights(tensor: _Tensor, tokens: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    if tensor.kind == "F32":
        yield struct.pack("<f", 1.0) * tensor.dims[0]
        return
    inner, rows = tensor.dims
    kind = _KINDS[tensor.kind]
    blocks = inner // kind.weights
    nothing = b"\0" * (blocks * kind.bytes)
    draw = _rows(tensor.kind, blocks, 1.0 / (inner**0.5 * kind.spread), rng)
    for row in range(rows):
        # Tokens that are not printable ASCII get no weight, so the greedy choice never ends the
        # answer and never leaves half a character.
        if tensor.name == "output.weight" and not _printable(tokens[row]):
            yield nothing
            continue
        yield next(draw)


def _rows(kind: str, blocks: int, scale: float, rng: random.Random) -> Iterator[bytes]:
    """Rows of random weights of the type, each of `blocks` blocks."""
    if kind == "F16":  # random bits would have infinities among them
        pool = struct.pack(f"<{1 << 16}e", *(rng.gauss(0.0, scale) for _ in range(1 << 16)))
        while True:
            at = rng.randrange((1 << 16) - blocks) * 2
            yield pool[at : at + blocks * 2]
    before, noise, after = {
        "Q4_0": (struct.pack("<e", scale), 16, b""),
        "Q8_0": (struct.pack("<e", scale), 32, b""),
        # Scale 1 and offset 1 for each of eight parts; 7.5 is the middle of 0…15.
        "Q4_K": (struct.pack("<ee", scale, 7.5 * scale) + b"\1" * 8 + b"\x11" * 4, 128, b""),
        "Q6_K": (b"", 192, b"\1" * 16 + struct.pack("<e", scale)),
    }[kind]
    while True:
        row = rng.randbytes(blocks * noise)
        parts = (row[i : i + noise] for i in range(0, len(row), noise))
        yield b"".join(before + part + after for part in parts)


def _printable(token: bytes) -> bool:
    text = token.decode().replace("Ġ", "_")  # a leading space, in GPT-2's spelling
    return text.isascii() and text.isprintable() and not text.startswith("<")


# ---------------------------------------------------------------- the container


def _head(
    out: BinaryIO,
    shape: Shape,
    vocab: int,
    quant: Quant,
    kept: Sequence[tuple[bytes, bytes]],
    tensors: Sequence[_Tensor],
) -> None:
    numbers = {
        "general.file_type": _FILE_TYPE[quant],
        "general.quantization_version": 2,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.width // shape.heads,
        "llama.vocab_size": vocab,
    }
    pairs = [
        _string(b"general.architecture") + struct.pack("<I", _STRING) + _string(b"llama"),
        _string(b"general.name") + struct.pack("<I", _STRING) + _string(b"random-weights"),
        _string(b"llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
        *(_string(key.encode()) + struct.pack("<II", 4, n) for key, n in numbers.items()),
        *(_string(key) + raw for key, raw in kept),
    ]
    out.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)))
    out.write(b"".join(pairs))
    at = 0
    for tensor in tensors:
        out.write(_string(tensor.name.encode()) + struct.pack("<I", len(tensor.dims)))
        out.write(
            struct.pack(f"<{len(tensor.dims)}QIQ", *tensor.dims, _KINDS[tensor.kind].number, at)
        )
        at += tensor.size + -tensor.size % _ALIGN
    out.write(b"\0" * (-out.tell() % _ALIGN))


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Key and raw value (type and content) of every metadata pair. Only for files of ours."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF" or struct.unpack_from("<I", data, 4)[0] != 3:
            raise BenchError(f"{path.name} is no GGUF file of version 3")
        count = struct.unpack_from("<Q", data, 16)[0]
        at = 24
        for _ in range(count):
            length = struct.unpack_from("<Q", data, at)[0]
            key = data[at + 8 : at + 8 + length]
            start = at + 8 + length
            kind = struct.unpack_from("<I", data, start)[0]
            at = _after(data, start + 4, kind)
            yield key, data[start:at]


def _after(data: mmap.mmap, at: int, kind: int) -> int:
    if kind in _SCALARS:
        return at + struct.calcsize(_SCALARS[kind])
    if kind == _STRING:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != _ARRAY:
        raise BenchError(f"unknown GGUF value type: {kind}")
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SCALARS:
        return at + struct.calcsize(_SCALARS[inner]) * int(count)
    for _ in range(count):
        at = _after(data, at, inner)
    return at


def _tokens(path: Path) -> list[bytes]:
    raw = next((raw for key, raw in _pairs(path) if key == b"tokenizer.ggml.tokens"), None)
    if raw is None:
        raise BenchError(f"{path.name} has no tokenizer")
    count, at, found = struct.unpack_from("<Q", raw, 8)[0], 16, []
    for _ in range(count):
        length = struct.unpack_from("<Q", raw, at)[0]
        found.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return found
