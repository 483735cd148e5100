"""Long texts embedded at the same time with llama.cpp: each has room beside the others."""

from __future__ import annotations

import asyncio

import pytest

from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import EmbedRequest

from .locally import CALL, engines

TEXTS = tuple(f"{i} " + "one word and then " * (150 + i) for i in range(6))
"""Each nearly as long as the context of 1,024 tokens."""


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_as_many_long_texts_as_come() -> None:
    model = resolve(parse("zoo:tiny-general"))
    async with engines(slots=4) as e:
        target = e.target(model)
        found = await asyncio.gather(
            *(target.embed(EmbedRequest("m", TEXTS), CALL) for _ in range(3))
        )
        alone = [await target.embed(EmbedRequest("m", (text,)), CALL) for text in TEXTS]
    # Q8_0 weights: other batches, other roundings.
    for each in found:
        for vector, one in zip(each.vectors, alone, strict=True):
            assert vector == pytest.approx(one.vectors[0], abs=2e-3)
