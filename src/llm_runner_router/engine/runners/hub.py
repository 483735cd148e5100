"""The small files of a Hugging Face folder, as a runner needs them.

Knows: `config.json`, `generation_config.json`, `tokenizer_config.json`, chat templates,
sentence-transformers' pooling. Does not know: weights, any inference library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models import sentence

from .refusal import Refusal

POOLINGS = ("mean", "cls", "last", "max")


def folder_of(path: str) -> Path:
    """The folder of a model that is named by itself or by a file in it."""
    found = Path(path)
    return found if found.is_dir() else found.parent


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file; empty if there is no such file.

    Raises:
        Refusal: it is not JSON.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Refusal(f"{path} is not JSON: {exc}") from exc
    return found if isinstance(found, dict) else {}


def refuse_code(folder: Path) -> None:
    """Refuse a model that brings code.

    Raises:
        Refusal: it does; names the field.
    """
    for name in ("config.json", "tokenizer_config.json"):
        wanted = read_json(folder / name).get("auto_map")
        if wanted:
            raise Refusal(
                f"`auto_map` in {name} asks to run code that comes with the model ({wanted}), which"
                " is never done; use a converted copy, or a model whose code the engine has"
            )


def ends(folder: Path) -> list[int]:
    """Tokens that end an answer: of `generation_config.json`, else of `config.json`."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        if found is not None:
            return [int(token) for token in (found if isinstance(found, list) else [found])]
    return []


def template(folder: Path) -> str | None:
    """The chat template in Jinja: a file of its own, or in `tokenizer_config.json`."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def variables(folder: Path) -> dict[str, Any]:
    """What the template is given beside the messages: `bos_token` and the like."""
    settings = read_json(folder / "tokenizer_config.json")
    return {
        name: value.get("content", "") if isinstance(value, dict) else value
        for name in ("bos_token", "eos_token", "pad_token")
        if (value := settings.get(name))
    }


class Behind(Struct, frozen=True):
    """What follows an encoder until there is a vector."""

    pooling: str = sentence.MEAN
    """`mean`, `cls`, `last` or `max`."""
    dense: tuple[tuple[NDArray[np.float32], NDArray[np.float32] | None, str], ...] = ()
    """Of each linear layer the weights (outputs, inputs), the bias, and the activation."""

    def vectors(self, found: NDArray[Any]) -> NDArray[np.float32]:
        """Vectors of length one, shape (texts, width), of pooled ones."""
        for weight, bias, activation in self.dense:
            found = found @ weight.T
            found = found if bias is None else found + bias
            found = np.tanh(found) if activation == "tanh" else found
        lengths = np.linalg.norm(found, axis=-1, keepdims=True)
        return np.asarray(found / np.maximum(lengths, 1e-12), np.float32)


def behind(folder: Path) -> Behind:
    """What sentence-transformers says of a folder; without its files the mean of the tokens.

    Raises:
        Refusal: something that is not computed here; names it.
    """
    try:
        said = sentence.read(folder)
        how = said.pooling or sentence.MEAN
        if how not in POOLINGS or said.others:
            wanted = said.others[0] if said.others else how
            raise Refusal(f"the model's vectors need `{wanted}`, which is not computed here")
        return Behind(how, tuple(_dense(one) for one in said.dense))
    except ModelFileError as exc:
        raise Refusal(exc.message) from exc


def _dense(layer: sentence.Dense) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, str]:
    from llm_runner_router.convert.arrays import decode

    if layer.activation not in ("identity", "tanh"):
        raise Refusal(f"a dense layer has the activation `{layer.activation}`, not computed here")
    with sentence.opened(layer) as weights:
        arrays = {
            name: decode(weights.read(name), weight.dtype, weight.shape).copy()
            for name, weight in weights.weights.items()
        }
    return arrays["linear.weight"], arrays.get("linear.bias"), layer.activation


def pooled(hidden: NDArray[Any], mask: NDArray[Any], how: str) -> NDArray[Any]:
    """One vector per text, shape (texts, width), of `hidden` (texts, tokens, width).

    Args:
        hidden: what the model gives for every token.
        mask: 1 for tokens, 0 for padding at the end; shape (texts, tokens).
        how: `mean`, `cls`, `last` or `max`.
    """
    if how == "cls":
        found: NDArray[Any] = hidden[:, 0]
        return found
    if how == "last":
        found = hidden[np.arange(len(hidden)), mask.sum(1) - 1]
        return found
    wide = mask[..., None].astype(hidden.dtype)
    if how == "max":
        found = np.where(wide == 0, -np.inf, hidden).max(1)
        return found
    found = (hidden * wide).sum(1) / wide.sum(1)
    return found
