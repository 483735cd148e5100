"""What is to be known of a model once it is asked for: memory, pins, groups. Pure.

Knows: the settings. Does not know: processes, who is loaded.
"""

from __future__ import annotations

from llm_runner_router.config import Engine as Settings
from llm_runner_router.models.info import LocalModel

from . import adopted, base, llamacpp
from .effects import Group
from .fit import Placement, Wanted, kv_bytes
from .kept import Kept
from .live import Known, Purpose, purpose_of
from .speculate import Guesses

RECURRENT = frozenset(
    ("arwkv7", "falcon-h1", "granitehybrid", "jamba", "kimi-linear", "lfm2", "lfm2moe", "mamba",
     "mamba2", "nemotron_h", "nemotron_h_moe", "plamo2", "qwen35", "qwen35moe", "qwen3next",
     "rwkv6", "rwkv6qwen2", "rwkv7")
)  # fmt: skip
"""Architectures of llama.cpp with layers that keep one state for all of a text: it cannot be cut
back to a common beginning."""


def known(
    model: LocalModel, purpose: Purpose, engine: base.Engine, settings: Settings, *, budget: int
) -> Known:
    """`model` for `purpose`, placed within `budget` bytes as `engine` counts them."""
    first = "chat" if "one_process" in engine.FEATURES else purpose_of(model)
    pinned = purpose == first and _is_named(model.name, settings.pin)
    placement = _place(model, purpose, engine, settings, budget)
    return Known(model, purpose, engine, placement, pinned, _groups(model.name, settings))


def serves(known: Known, purpose: Purpose) -> bool:
    """A process for `known` does what `purpose` asks for."""
    return known.purpose == purpose or "one_process" in known.engine.FEATURES


def is_fast(known: Known) -> bool:
    """Its runner is llama.cpp with a model that answers: its slots can be saved, it can guess."""
    return known.engine.RUNNER == llamacpp.RUNNER and known.purpose == "chat"


def kept(known: Known, guesses: Guesses) -> Kept | None:
    """The prompts of a new runner, none yet; None where what it keeps of them is not known.

    A sliding window and a state cannot be cut back to a common beginning, so how much is of use
    depends on more than the beginning.
    """
    info, place, draft = known.model.info, known.placement, known.model.draft
    if known.engine.NAME == adopted.NAME:
        return Kept(place.slots, shared=True)
    if not is_fast(known) or info.window or info.architecture in RECURRENT:
        return None
    per_token = kv_bytes(info, 1, place.kv_type)
    if guesses == "draft" and draft is not None:
        per_token += kv_bytes(draft.info, 1)
    found = Kept(place.slots, room=place.prompt_cache, per_token=per_token, context=place.context)
    found.seen = known.seen
    return found


def _place(
    model: LocalModel, purpose: Purpose, engine: base.Engine, settings: Settings, budget: int
) -> Placement:
    # One process may serve every purpose; a model that does not write keeps no cache in any.
    embed = purpose != "chat" or model.info.task != "generate"
    drafts = settings.speculate in ("auto", "draft") and not embed
    wanted = Wanted(
        slots=settings.slots,
        budget=budget,
        context=settings.context,
        embed=embed,
        kv_type=settings.kv_type,
        options=model.options,
        draft=model.draft.info if model.draft is not None and drafts else None,
        adapters=() if embed else tuple(adapter.bytes for adapter in model.adapters),
    )
    return engine.place(model.info, wanted)


def _groups(name: str, settings: Settings) -> tuple[Group, ...]:
    return tuple(
        Group(title, group.at_once)
        for title, group in settings.groups.items()
        if _is_named(name, group.models)
    )


def _is_named(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.removeprefix("zoo:") in names
