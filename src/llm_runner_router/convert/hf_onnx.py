"""Hugging Face folders to ONNX: decoders for onnxruntime-genai, encoders as plain graphs.

Knows: the files of both layouts, `genai_config.json`. Does not know: what a layer computes
(`onnx_decoder.py`, `onnx_encoder.py`), inference. Nothing of torch or transformers is used; the
package `onnx` writes the graph.

The layout and the names of values are those of onnxruntime-genai's own model builder, so that its
tools read what is written here; unlike it, logits are computed of the last position only, which
saves `4 * vocabulary` bytes per token of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.checkpoint import Checkpoint

from . import companions, onnx_decoder, onnx_encoder, onnx_shape
from .base import Options, Tick, converts
from .onnx_graph import Graph
from .onnx_shape import DecoderShape


@converts("safetensors", "onnx-genai", grow=2.1, speed=60e6)
def decoder(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """Write the folder `target` for onnxruntime-genai.

    `options.type` is one of `onnx_graph.TYPES`. With `f16` and `bf16` weights are rounded to that
    in the file and computed in F32, so an F16 checkpoint answers as it does in transformers' F32.

    Raises:
        Unsupported: an architecture, feature or type that is not converted.
        ModelFileError: the source cannot be used; names the tensor or field.
        ConfigError: the package `onnx` is not installed.
    """
    with _open(source) as checkpoint:
        shape = onnx_shape.read(checkpoint.config)
        target.mkdir(parents=True, exist_ok=True)
        with Graph(target, checkpoint, options.type, _progress(checkpoint, tick)) as graph:
            onnx_decoder.build(graph, shape)
            graph.save("llm-runner-router")
        companions.copy(source, target)
        config = genai_config(shape, checkpoint.config, _json(source / "generation_config.json"))
        _write(target / "genai_config.json", msgspec.json.format(msgspec.json.encode(config)))


@converts("safetensors", "onnx", grow=2.1, speed=60e6)
def encoder(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """Write the folder `target` with the graph of an embedding model or a reranker.

    Matrices are F32, F16 or BF16; other values of `options.type` give F16.

    Raises:
        Unsupported: an architecture or feature that is not converted.
        ModelFileError: the source cannot be used; names the tensor or field.
        ConfigError: the package `onnx` is not installed.
    """
    with _open(source) as checkpoint:
        shape = onnx_encoder.read(checkpoint.config)
        target.mkdir(parents=True, exist_ok=True)
        type = options.type if options.type in ("f32", "bf16") else "f16"
        with Graph(target, checkpoint, type, _progress(checkpoint, tick)) as graph:
            onnx_encoder.build(graph, shape)
            graph.save("llm-runner-router")
        companions.copy(source, target)


def genai_config(
    shape: DecoderShape, config: Mapping[str, Any], generation: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `genai_config.json`.

    Token ids come from `generation_config.json` where it has them: chat models end a turn with
    another token than a text.
    """

    def token(name: str) -> Any:
        return generation.get(name, config.get(name))

    ends = token("eos_token_id")
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    padding = token("pad_token_id")
    past, present = "past_key_values.%d", "present.%d"
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": shape.head,
        "hidden_size": shape.width,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": f"{past}.key",
            "past_value_names": f"{past}.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": f"{present}.key",
            "present_value_names": f"{present}.value",
        },
        "num_attention_heads": shape.heads,
        "num_hidden_layers": len(shape.layers),
        "num_key_value_heads": shape.kv_heads,
    }
    model = {
        "type": shape.family.type,
        "bos_token_id": token("bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": padding if padding is not None else first_end,
        "context_length": shape.context,
        "vocab_size": shape.vocabulary,
        "decoder": decoder,
    }
    search = {
        "max_length": shape.context,
        "do_sample": bool(generation.get("do_sample", False)),
        "temperature": generation.get("temperature") or 1.0,
        "top_k": generation.get("top_k") or 50,
        "top_p": generation.get("top_p") or 1.0,
        "repetition_penalty": generation.get("repetition_penalty") or 1.0,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    model = {name: value for name, value in model.items() if value is not None}
    return {"model": model, "search": search}


# ---------------------------------------------------------------- files


def _open(source: Path) -> Checkpoint:
    from llm_runner_router.models.formats.safetensors import open_checkpoint

    return open_checkpoint(source)


class _Progress:
    """Counts bytes of the source, however the graph counts values."""

    def __init__(self, total: int, tick: Tick) -> None:
        self.total = total
        self.done = 0
        self.tick = tick

    def __call__(self, count: int, what: str) -> None:
        self.done = min(self.total, self.done + count)
        self.tick(self.done, self.total, what)


def _progress(checkpoint: Checkpoint, tick: Tick) -> _Progress:
    return _Progress(sum(weight.bytes for weight in checkpoint.weights.values()), tick)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, OSError) as exc:
        raise ModelFileError(
            f"{path} is not JSON: {exc}", hint="download it again, or remove it"
        ) from exc
    return found if isinstance(found, dict) else {}


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
