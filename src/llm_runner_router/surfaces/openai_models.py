"""OpenAI's model list: `ModelCard`s to bytes. Pure, no sockets.

Knows: `GET /v1/models` and `GET /v1/models/{id}`. Does not know: where cards come from, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from llm_runner_router.types import ModelCard

from .openai_json import body, error

__all__ = ["encode_list", "encode_one", "error"]


class _Model(Struct, frozen=True):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    """`local`, `remote`, or what the name does: `auto`, `fallback` …"""
    description: str | UnsetType = UNSET
    context_length: int | UnsetType = UNSET


class _List(Struct, frozen=True):
    object: Literal["list"]
    data: list[_Model]


def encode_list(cards: Sequence[ModelCard], created: int) -> bytes:
    """Every model; `created` is in Unix seconds, since clients insist on one."""
    return body(_List("list", [_model(card, created) for card in cards]))


def encode_one(card: ModelCard, created: int) -> bytes:
    """One model."""
    return body(_model(card, created))


def _model(card: ModelCard, created: int) -> _Model:
    return _Model(
        id=card.name,
        object="model",
        created=created,
        owned_by=card.strategy or ("local" if card.local else "remote"),
        description=card.description or UNSET,
        context_length=card.context or UNSET,
    )
