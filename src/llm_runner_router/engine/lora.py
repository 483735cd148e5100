"""Which LoRA adapters a request asks for, and what llama.cpp is told of them. Pure.

Knows: the field `lora` as clients write it, the adapters of a model. Does not know: files
(`adapters.py`), the engine's parameters (`llamacpp.py`).

Keys and values that were computed with one set of adapters are wrong for every other. What b11549
does about it, tried with one slot and the same prompt again:

    `lora` with other scales than the slot had    the slot's cache is dropped: right
    `lora` left out                               no adapter, but the slot's cache stays: wrong
    prompts kept in memory (`cache_ram_mib`)      found by their tokens alone: wrong
    slots saved to files                          the same
    requests with other scales in other slots     one after the other: right, but see `sets.py`

So every request to a model with adapters tells the scale of each, and such a model keeps no
prompts in memory (`fit.py`) or in files (`slots.py`). A slot that is asked with the same scales
again still has its prompt.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import Request

from . import adopted
from .adapting import spliced
from .base import Engine

FIELD: Final = "lora"
MAX_SCALE: Final = 10.0
"""Nobody trains adapters for more than a few times their own strength."""
GUIDE: Final = "docs/how-to/use-lora.md"
_SHAPE: Final = '`[{"name": "sea", "scale": 0.5}]`'


def told(request: Request, model: LocalModel) -> Request:
    """`request` with the scale of every adapter of `model`, 0 for those not asked for.

    Raises:
        BadRequest: `lora` is not what it should be, or names an adapter that there is not.
        Unsupported: the model has no adapters.
    """
    each = [{"id": id, "scale": scale} for id, scale in enumerate(scales(request, model))]
    if not model.adapters:
        return spliced(request, {}, (FIELD,)) if FIELD in request.extra else request
    return spliced(request, {FIELD: Raw(msgspec.json.encode(each))})


def scales(request: Request, model: LocalModel) -> tuple[float, ...]:
    """The scale of every adapter of `model`, in their order, as `request` asks for them.

    Raises:
        BadRequest, Unsupported: as `told`.
    """
    found = wanted(request, model)
    return tuple(found.get(adapter.name, 0.0) for adapter in model.adapters)


def wanted(request: Request, model: LocalModel) -> dict[str, float]:
    """The scales that `request` asks for, by the adapters' names.

    An entry names an adapter by `name`, or by its number in the order of the configuration
    (`id`, as llama.cpp counts them); without a `scale` it is applied as it was trained.

    Raises:
        BadRequest, Unsupported: as `told`.
    """
    raw = request.extra.get(FIELD)
    given = None if raw is None else msgspec.json.decode(raw)
    if given is None:
        return {}
    if not isinstance(given, list):
        raise _wrong(f"`{FIELD}` is a list of objects", FIELD)
    if len(given) > len(model.adapters):
        if not model.adapters:
            raise Unsupported(
                f"`{model.name}` has no LoRA adapters",
                param=FIELD,
                hint=f"give it some under `adapters:` in the configuration: {GUIDE}",
            )
        raise _wrong(f"`{FIELD}` has {len(given)} entries; there are {_known(model)}", FIELD)
    found: dict[str, float] = {}
    for i, one in enumerate(given):
        at = f"{FIELD}[{i}]"
        if not isinstance(one, dict) or set(one) - {"name", "id", "scale"}:
            raise _wrong(f"`{at}` is no object with `name` and `scale`", at)
        name = _named(one, at, model)
        if name in found:
            raise _wrong(f"`{FIELD}` has the adapter `{name}` twice", at)
        found[name] = _scale(one.get("scale", 1.0), f"{at}.scale")
    return found


def check(request: Request, model: LocalModel, engine: Engine) -> None:
    """Refuse adapters where the engine has none; a server that is adopted may know the field.

    Raises:
        Unsupported: with another way.
    """
    raw = request.extra.get(FIELD)
    if raw is None or "lora" in engine.FEATURES or engine.NAME == adopted.NAME:
        return
    if msgspec.json.decode(raw) not in (None, []):
        raise Unsupported(
            f"`{model.name}` runs on {engine.NAME}, which has no LoRA adapters",
            param=FIELD,
            hint=f"convert it to GGUF and give it `adapters:`: {GUIDE}",
        )


def chosen(request: Request, adapter: str, name: str, model: str) -> Request:
    """`request` to `name`, which is `model` with `adapter`.

    Raises:
        BadRequest: it has a `lora` of its own, so that it is not clear what is meant.
    """
    given = request.extra.get(FIELD)
    if given is not None and msgspec.json.decode(given) not in (None, []):
        raise BadRequest(
            f"`{name}` says which adapter it is, and `{FIELD}` says it again",
            param=FIELD,
            hint=f"ask `{model}` with `{FIELD}`, or leave `{FIELD}` out",
        )
    put = {FIELD: Raw(msgspec.json.encode([{"name": adapter}]))}
    return msgspec.structs.replace(request, extra={**request.extra, **put})


def _named(one: dict[str, Any], at: str, model: LocalModel) -> str:
    if ("name" in one) == ("id" in one):
        raise _wrong(f"`{at}` needs one of `name` and `id`", at)
    key = "name" if "name" in one else "id"
    word = one[key]
    if isinstance(word, int) and not isinstance(word, bool) and key == "id":
        if 0 <= word < len(model.adapters):
            return model.adapters[word].name
    elif isinstance(word, str):
        if any(adapter.name == word for adapter in model.adapters):
            return word
    else:
        kind = "a name" if key == "name" else "a number"
        raise _wrong(f"`{at}.{key}` is {kind}", f"{at}.{key}")
    raise BadRequest(
        f"`{model.name}` has no adapter {str(word)[:100]!r}; there are: {_known(model)}",
        param=f"{at}.{key}",
    )


def _scale(value: Any, at: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_SCALE:
        raise BadRequest(f"`{at}` is a number from 0 to {MAX_SCALE:g}", param=at)
    return float(value)


def _known(model: LocalModel) -> str:
    return ", ".join(f"`{adapter.name}`" for adapter in model.adapters)


def _wrong(problem: str, at: str) -> BadRequest:
    return BadRequest(problem, param=at, hint=f"for example {_SHAPE}")
