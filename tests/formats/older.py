"""Writes Llamas as the programs of 2023 did, from a GGUF file, with a SentencePiece vocabulary.

Files from before GGUF know one vocabulary, with `<unk>`, `<s>` and `</s>` first and 256 bytes after
them. The rows of a byte-level BPE are put into that order, so that the same text has the same
pieces under other numbers: `order` tells them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tests.convert.models import alphabet

from llm_runner_router.convert import arrays, kernels
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.formats.gguf_types import KINDS

Array = NDArray[np.float32]
MAGICS: Final = {
    "ggml": (b"lmgg", None),
    "ggmf": (b"fmgg", 1),
    "ggjt1": (b"tjgg", 1),
    "ggjt2": (b"tjgg", 2),
    "ggjt3": (b"tjgg", 3),
}
CODES: Final = {kind.name: number for number, kind in KINDS.items()}
PARTS: Final = {
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "attn_norm": "attention_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_norm": "ffn_norm",
}


def as_ggml(source: Path, target: Path, *, form: str = "ggjt3", kind: str = "F16") -> Path:
    """Write the GGUF file `source`, a Llama with byte-level BPE, as the file `target`.

    Args:
        form: a key of `MAGICS`.
        kind: the type of its matrices, one that `form` had.
    """
    magic, version = MAGICS[form]
    with gguf.open_checkpoint(source) as model, target.open("wb") as file:
        config: Any = model.config
        words = _words(config)
        ids = order(source)
        file.write(magic + (b"" if version is None else struct.pack("<I", version)))
        width, heads = config["llama.embedding_length"], config["llama.attention.head_count"]
        layers, head = config["llama.block_count"], width // heads
        file.write(struct.pack("<7I", len(ids), width, 256, heads, layers, head, 1))
        for place, number in enumerate(ids):
            file.write(struct.pack("<I", len(words[number])) + words[number])
            if form != "ggml":
                file.write(struct.pack("<f", -float(max(0, place - 259))))
        tensors = {n: _array(model, n, w) for n, w in model.weights.items()}
        embedding = tensors.pop("token_embd.weight")[ids]
        output = tensors.pop("output.weight", None)
        _tensor(file, form, "tok_embeddings", embedding, kind)
        _tensor(file, form, "norm", tensors.pop("output_norm.weight"), kind)
        _tensor(file, form, "output", embedding if output is None else output[ids], kind)
        for name, array in tensors.items():
            _, layer, part, _ = name.split(".")
            _tensor(file, form, f"layers.{layer}.{PARTS[part]}", array, kind)
    return target


def order(source: Path) -> list[int]:
    """For each token of the written file the id that it has in `source`."""
    with gguf.open_checkpoint(source) as model:
        words = _words(model.config)
    single = {word: i for i, word in enumerate(words) if len(word) == 1}
    # A space stands among the words: text has U+2581 for it, which is no byte.
    bytes_of = [single[bytes([b])] for b in range(256) if b != 32]
    first = [0, 1, 2, *bytes_of]
    rest = [i for i in range(len(words)) if i not in set(first) and i != single[b" "]]
    return [*first, rest[0], single[b" "], *rest[1:]]


def _words(config: Any) -> list[bytes]:
    letters = {letter: byte for byte, letter in enumerate(_letters())}
    words = [
        bytes(letters[c] for c in token) if set(token) <= letters.keys() else token.encode()
        for token in config["tokenizer.ggml.tokens"]
    ]
    # A piece of a character, which only a vocabulary of bytes has, becomes its number.
    return [w if len(w) == 1 or _is_text(w) else f"[{i}]".encode() for i, w in enumerate(words)]


def _is_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def _letters() -> list[str]:
    """GPT-2's letter of each byte, by the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    numbers = plain + [b for b in range(256) if b not in plain]
    return [letter for _, letter in sorted(zip(numbers, alphabet(), strict=True))]


def _array(model: Any, name: str, weight: Any) -> Array:
    return arrays.decode(model.read(name), weight.dtype, weight.shape)


def _tensor(file: Any, form: str, name: str, array: Array, kind: str) -> None:
    kind = kind if array.ndim == 2 else "F32"
    whole = f"{name}.weight".encode()
    file.write(struct.pack("<3I", array.ndim, len(whole), CODES[kind]))
    file.write(struct.pack(f"<{array.ndim}I", *reversed(array.shape)) + whole)
    if form.startswith("ggjt"):
        file.write(bytes(-file.tell() % 32))
    if form == "ggjt3" or kind in ("F32", "F16"):
        file.write(kernels.quantize(kind, array.reshape(-1, array.shape[-1])).tobytes())
    else:
        file.write(packed(array, form, kind))


def packed(array: Array, form: str, kind: str) -> bytes:
    """Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0 as GGJT 1 or 2 had it, a block at a time and plainly."""
    out = bytearray()
    for block in array.reshape(-1, 32):
        codes, scales = coded(block, kind)
        wide = "f" if kind in ("Q4_0", "Q4_1", "Q8_0") else "e"
        out += struct.pack(f"<{len(scales)}{wide}", *scales)
        if kind == "Q8_0":
            out += struct.pack("<32b", *codes)
            continue
        if kind.startswith("Q5"):
            out += struct.pack("<I", sum((code >> 4) << i for i, code in enumerate(codes)))
        pairs = [(2 * j, 2 * j + 1) if form != "ggjt2" else (j, j + 16) for j in range(16)]
        out += bytes((codes[low] & 15) | (codes[high] & 15) << 4 for low, high in pairs)
    return bytes(out)


def coded(block: Array, kind: str) -> tuple[list[int], list[float]]:
    """The codes of 32 weights and their scales: weight = scale · (code - middle), or + least."""
    bits = int(kind[1])
    if kind == "Q8_0":
        scale = float(np.abs(block).max()) / 127
        return [round(float(x) / scale) if scale else 0 for x in block], [scale]
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    if kind.endswith("_0"):
        largest = float(block[np.abs(block).argmax()])
        scale = largest / -middle
        near = [round(float(x) / scale) + middle if scale else middle for x in block]
        return [min(top, code) for code in near], [scale]
    least = float(block.min())
    scale = (float(block.max()) - least) / top
    return [round((float(x) - least) / scale) if scale else 0 for x in block], [scale, least]


def as_spm_gguf(source: Path, target: Path, *, eps: float = 5e-6) -> Path:
    """The same model and vocabulary as `as_ggml` writes, as a GGUF file of today."""
    from llm_runner_router.convert.gguf_write import GGUFWriter

    ids = order(source)
    with gguf.open_checkpoint(source) as model, GGUFWriter(target, "llama") as out:
        config: Any = model.config
        for key in config:
            if key.startswith("llama.") and "epsilon" not in key and "context" not in key:
                out.field(key, config[key])
        out.field("llama.attention.layer_norm_rms_epsilon", eps)
        out.field("llama.context_length", 2048)
        words = [_words(config)[i] for i in ids]
        named = ["<unk>", "<s>", "</s>", *(f"<0x{word[0]:02X}>" for word in words[3:258])]
        named += [word.decode("utf-8", "surrogateescape").replace(" ", "▁") for word in words[258:]]
        texts = [text.encode("utf-8", "surrogateescape") for text in named]
        out.field("tokenizer.ggml.model", "llama")
        out.field("tokenizer.ggml.tokens", texts)
        out.field(
            "tokenizer.ggml.scores", [-float(max(0, i - 259)) for i in range(len(ids))], "F32"
        )
        types = [2, 3, 3, *[6] * 255, *[1] * (len(ids) - 258)]
        out.field("tokenizer.ggml.token_type", types, "I32")
        for role, number in (("unknown", 0), ("bos", 1), ("eos", 2)):
            out.field(f"tokenizer.ggml.{role}_token_id", number)
        arrays_ = {n: _array(model, n, w) for n, w in model.weights.items()}
        kinds = {n: w.dtype for n, w in model.weights.items()}
        arrays_["token_embd.weight"] = arrays_["token_embd.weight"][ids]
        arrays_["output.weight"] = arrays_["token_embd.weight"]
        kinds["output.weight"] = kinds["token_embd.weight"]
        for name, array in arrays_.items():
            out.tensor(name, kinds[name], array.shape)
        out.begin()
        for name, array in arrays_.items():
            out.data(name, kernels.quantize(kinds[name], array.reshape(-1, array.shape[-1])))
        out.finish()
    return target
