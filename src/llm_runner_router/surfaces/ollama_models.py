"""What Ollama's own API tells of models: lists, details, what is loaded. Pure.

Knows: the JSON of `/api/tags`, `/api/show` and `/api/ps`. Does not know: where models lie, sockets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from llm_runner_router.types import Capabilities

from .base import Described, Loaded
from .ollama_write import stamp

VERSION = "0.33.0"
"""The version of Ollama whose API is spoken here; its clients ask before they use what is new."""
_PREFIX = "ollama:"
_FOREVER = 4_102_444_800.0
"""What a model expires at that is kept for ever: the year 2100."""
_encode = msgspec.json.Encoder().encode


def shown(name: str) -> str:
    """A model's name as clients of Ollama know it."""
    return name.removeprefix(_PREFIX)


def spellings(name: str) -> tuple[str, ...]:
    """What a client of Ollama may mean by `name`, likeliest first."""
    bare = name.removesuffix(":latest")
    found = (name, bare, _PREFIX + name, _PREFIX + bare)
    return tuple(dict.fromkeys(found))


def _count(number: int) -> str:
    """`7.6B`, `135M`, `1.2M`, `900`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.{0 if number >= 100 * size else 1}f}{unit}"
    return str(number)


def tags(models: Sequence[Described]) -> bytes:
    """The answer of `/api/tags`."""
    return _encode({"models": [_listed(model) for model in models]})


def _listed(model: Described) -> dict[str, Any]:
    name = shown(model.card.name)
    return {
        "name": name,
        "model": name,
        "modified_at": stamp(model.modified),
        "size": model.info.bytes if model.info is not None else 0,
        "digest": _digest(model),
        "details": _details(model),
    }


def _digest(model: Described) -> str:
    """The content's, where it is known; else one that stands for the name."""
    return model.digest or hashlib.sha256(model.card.name.encode()).hexdigest()


def _details(model: Described) -> dict[str, Any]:
    info, card = model.info, model.card
    if info is None:
        family = card.strategy or ("adopted" if card.local else "remote")
        return {
            "parent_model": "",
            "format": "",
            "family": family,
            "families": [family],
            "parameter_size": _count(card.parameters) if card.parameters else "",
            "quantization_level": "",
        }
    return {
        "parent_model": "",
        "format": info.format,
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": _count(info.parameters),
        "quantization_level": info.quantisation,
    }


def show(model: Described) -> bytes:
    """The answer of `/api/show`."""
    info, card = model.info, model.card
    facts: dict[str, Any] = {}
    if info is not None:
        arch = info.architecture
        facts = {
            "general.architecture": arch,
            "general.parameter_count": info.parameters,
            f"{arch}.context_length": info.context,
            f"{arch}.block_count": info.layers,
            f"{arch}.embedding_length": info.width,
            f"{arch}.attention.head_count": info.heads,
            f"{arch}.attention.head_count_kv": info.kv_heads,
        }
    elif card.context:
        facts = {"general.architecture": "remote", "remote.context_length": card.context}
    template = (info.chat_template if info is not None else None) or ""
    return _encode(
        {
            "modelfile": f"FROM {shown(card.name)}\n",
            "parameters": "",
            "template": template,
            "license": card.license,
            "details": _details(model),
            "model_info": facts,
            "capabilities": _capabilities(model, template),
            "modified_at": stamp(model.modified),
        }
    )


def _capabilities(model: Described, template: str) -> list[str]:
    info, can = model.info, model.card.capabilities
    if info is not None and info.task != "generate":
        return ["embedding"] if info.task == "embed" else []
    found = ["completion"]
    found += [word for word, has in _words(can) if has]
    if "enable_thinking" in template or "reasoning_effort" in template:
        found.append("thinking")
    return found


def _words(can: Capabilities) -> tuple[tuple[str, bool], ...]:
    return (("tools", can.tools), ("vision", can.images), ("embedding", can.embeddings))


def ps(loaded: Sequence[tuple[Loaded, Described | None]], now: float) -> bytes:
    """The answer of `/api/ps`; `now` in Unix seconds."""
    models = []
    for row, model in loaded:
        name = shown(row.name)
        expires = _FOREVER if row.expires_in is None else now + row.expires_in
        models.append(
            {
                "name": name,
                "model": name,
                "size": row.memory or row.reserved,
                "digest": _digest(model) if model is not None else "",
                "details": _details(model) if model is not None else {},
                "expires_at": stamp(expires),
                "size_vram": 0,
                "context_length": row.context,
            }
        )
    return _encode({"models": models})
