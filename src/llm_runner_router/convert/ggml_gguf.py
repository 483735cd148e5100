"""LLaMA files from before GGUF (GGML, GGMF, GGJT) to GGUF.

Knows: the names and the vocabulary of that time, and what those files do not say. Does not know:
how they are read (`formats/ggml.py`), the older blocks (`ggml_blocks.py`). Queries and keys lie in
the order of Meta's own weights in both formats, so rows stay where they are.

Facts from llama.cpp's former `convert-llama-ggml-to-gguf.py` and its `convert-pth-to-ggml.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_runner_router.errors import BadRequest, ModelFileError

from .base import Options, Tick, converts

if TYPE_CHECKING:
    from llm_runner_router.models.checkpoint import Checkpoint, Weight

EPS: Final = 5e-6
"""Between the 1e-6 of LLaMA and the 1e-5 of Llama 2, which the files do not tell apart; llama.cpp's
own default for them."""
CHUNK: Final = 1 << 18
"""Blocks that are rewritten at a time: 8 million weights."""
HINT: Final = "take the model as GGUF, or convert its original weights: `llmrr convert FOLDER`"
_NAMES: Final = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "attention_norm": "attn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "ffn_norm": "ffn_norm",
}
_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)\.weight\Z")
_SPACE: Final = "\u2581"
_SPECIAL: Final = (("<unk>", 2), ("<s>", 3), ("</s>", 3))
"""The first three tokens and their types, whatever the file calls them."""
_NORMAL, _CONTROL, _BYTE = 1, 3, 6
_BYTES: Final = range(3, 259)
"""Ids where SentencePiece puts the tokens of single bytes."""


@converts("ggml", "gguf", grow=1.01, speed=300e6)
def from_ggml(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A LLaMA file from before GGUF as the GGUF file `target`.

    Weights keep their type: `options.type` has no part in it. Blocks of older layouts are
    rewritten, their scales rounded to half precision.

    Raises:
        ModelFileError: the source cannot be used; names the tensor.
        BadRequest: `options.eps` or `options.context` cannot be.
        Cancelled: `tick` raised it.
    """
    from llm_runner_router.models.formats import ggml

    from .gguf_write import GGUFWriter

    if not 0 <= options.eps < 1:
        raise BadRequest(f"an `eps` of {options.eps} is no small number", param="eps")
    if not 0 <= options.context < 1 << 31:
        raise BadRequest(f"a context of {options.context} tokens cannot be", param="context")
    with ggml.open_checkpoint(source) as model:
        names = _named(source, model)
        with GGUFWriter(target, "llama") as out:
            for key, value, kind in _fields(source, model, options):
                out.field(key, value, kind)
            for name, weight in model.weights.items():
                out.tensor(names[name], _type(source, weight), weight.shape)
            out.begin()
            total, done = sum(weight.bytes for weight in model.weights.values()), 0
            for name, weight in model.weights.items():
                tick(done, total, names[name])
                for data in _data(source, weight, model.read(name)):
                    out.data(names[name], data)
                done += weight.bytes
            tick(total, total, "")
            out.finish()


# ---------------------------------------------------------------- weights


def _named(source: Path, model: Checkpoint) -> dict[str, str]:
    """The name in GGUF of each tensor; every layer is whole.

    Raises:
        ModelFileError: a tensor has no place in a Llama, or one is missing.
    """
    names: dict[str, str] = {}
    for name in model.weights:
        layer = _LAYER.match(name)
        part = layer[2] if layer else name.removesuffix(".weight")
        if part not in _NAMES or (layer is None) != (part in ("tok_embeddings", "norm", "output")):
            raise ModelFileError(
                f"`{source.name}` has the tensor `{name}`, for which a Llama has no place",
                hint=HINT,
            )
        block = f"blk.{int(layer[1])}." if layer else ""
        names[name] = f"{block}{_NAMES[part]}.weight"
    for i in range(model.info.layers):
        for part in _NAMES:
            whole = f"layers.{i}.{part}.weight"
            if part not in ("tok_embeddings", "norm", "output") and whole not in names:
                raise ModelFileError(f"`{source.name}` has no tensor `{whole}`", hint=HINT)
    if len(names) != 3 + 9 * model.info.layers or len(set(names.values())) != len(names):
        raise ModelFileError(
            f"`{source.name}` has {len(names)} tensors, more than its"
            f" {model.info.layers} layers need",
            hint=HINT,
        )
    return names


def _type(source: Path, weight: Weight) -> str:
    """The type in GGUF.

    Raises:
        ModelFileError: it has none.
    """
    from llm_runner_router.models.formats.gguf_types import KINDS

    from . import ggml_blocks

    if weight.dtype in {kind.name for kind in KINDS.values()}:
        return weight.dtype
    found = ggml_blocks.becomes(weight.dtype)
    if not found:
        raise ModelFileError(
            f"the tensor `{weight.name}` of `{source.name}` has the type {weight.dtype}, which"
            " llama.cpp had for some weeks of 2023; its blocks have no form in GGUF",
            hint=HINT,
        )
    return found


def _data(source: Path, weight: Weight, data: memoryview) -> Iterator[Any]:
    """The bytes of a tensor in its type of GGUF, a part at a time."""
    from . import ggml_blocks

    if not ggml_blocks.becomes(weight.dtype):
        yield data
        return
    count = 1
    for length in weight.shape:
        count *= length
    step = CHUNK * (weight.bytes // (count // ggml_blocks.BLOCK))
    for start in range(0, weight.bytes, step):
        try:
            yield ggml_blocks.rewrite(weight.dtype, data[start : start + step])
        except ValueError as exc:
            raise ModelFileError(
                f"the tensor `{weight.name}` of `{source.name}` ({weight.dtype}) cannot be"
                f" rewritten: {exc}; it is damaged, or of the first weeks of March 2023, when"
                " scales lay elsewhere",
                hint=HINT,
            ) from None


# ---------------------------------------------------------------- fields


def _fields(source: Path, model: Checkpoint, options: Options) -> Iterator[tuple[str, Any, Any]]:
    config = model.config
    yield "general.name", source.stem, None
    yield "general.file_type", config["general.file_type"], "U32"
    yield "general.quantization_version", 2, "U32"
    for key, value in config.items():
        if key.startswith("llama.") and key != "llama.context_length":
            yield key, value, "U32"
    yield "llama.context_length", options.context or config["llama.context_length"], "U32"
    yield (
        "llama.feed_forward_length",
        model.weights["layers.0.feed_forward.w1.weight"].shape[0],
        "U32",
    )
    yield "llama.attention.layer_norm_rms_epsilon", options.eps or EPS, "F32"
    yield "llama.vocab_size", model.info.vocabulary, "U32"
    yield from _vocabulary(config)


def _vocabulary(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """SentencePiece's tokens as GGUF has them.

    The oldest files have no scores. Those of LLaMA's vocabulary are minus the number of the merge
    that made a token, and its tokens lie in that order.
    """
    words: tuple[str, ...] = config["tokenizer.ggml.tokens"]
    scores = config["tokenizer.ggml.scores"] or [
        -float(max(0, i - _BYTES.stop)) for i in range(len(words))
    ]
    tokens: list[bytes] = []
    types: list[int] = []
    seen: set[bytes] = set()
    for i, word in enumerate(words):
        text, kind = _token(i, word)
        raw = text.encode("utf-8", "surrogateescape")
        while raw in seen:  # the engine ends itself over two tokens of one text
            raw += b"[%d]" % i
        seen.add(raw)
        tokens.append(raw)
        types.append(kind)
    prefix = "tokenizer.ggml."
    yield prefix + "model", "llama", None
    yield prefix + "pre", "default", None
    yield prefix + "tokens", tokens, "STRING"
    yield prefix + "scores", list(scores), "F32"
    yield prefix + "token_type", types, "I32"
    for role, number in (("unknown", 0), ("bos", 1), ("eos", 2)):
        yield f"{prefix}{role}_token_id", number, "U32"
    yield prefix + "add_bos_token", True, None
    yield prefix + "add_eos_token", False, None
    yield prefix + "add_space_prefix", True, None


def _token(number: int, word: str) -> tuple[str, int]:
    """A token and its type."""
    if number < len(_SPECIAL):
        return _SPECIAL[number]
    raw = word.encode("utf-8", "surrogateescape")
    if not raw:
        return f"[PAD{number}]", _CONTROL
    if len(raw) == 1 and number in _BYTES:
        return f"<0x{raw[0]:02X}>", _BYTE
    return word.replace(" ", _SPACE), _NORMAL
