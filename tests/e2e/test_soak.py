"""Thousands of requests through a real server: memory, descriptors and records stay in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psutil
import pytest
from openai import AsyncOpenAI

from .served import Served, served

pytestmark = [pytest.mark.engine, pytest.mark.long]

REQUESTS = 3000
AT_ONCE = 8
WARM = 600
"""Requests after which memory must have found its level."""
GROWTH = 12 * 1024 * 1024
"""Bytes the gateway may grow in the rest."""
PROMPTS = ("What is 12 + 30?", "Reverse the word lemon.", "Hello!", "Tell me a short story.")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "home") as running:
        yield running


async def one(client: AsyncOpenAI, number: int, rng: Random) -> bool:
    """One request, streamed or not; every fifth reader leaves early. Whether it was read whole."""
    asked = {
        "model": rng.choice(("auto", "auto:speed", "zoo:tiny-math", "zoo:tiny-chat")),
        "messages": [{"role": "user", "content": rng.choice(PROMPTS)}],
        "max_tokens": 24,
    }
    if number % 2:
        await client.chat.completions.create(**asked)  # type: ignore[call-overload]  # a dict of options
        return True
    stream = await client.chat.completions.create(**asked, stream=True)  # type: ignore[call-overload]  # as above
    leaves = number % 5 == 0
    async for _ in stream:
        if leaves:
            break
    await stream.close()
    return not leaves


@pytest.mark.timeout(900)
async def test_nothing_grows(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    rng = Random(1)
    numbers = iter(range(REQUESTS))
    levels: list[tuple[int, int]] = []
    whole = 0

    async def work(client: AsyncOpenAI) -> None:
        nonlocal whole
        for number in numbers:
            whole += await one(client, number, rng)
            if number in (WARM, REQUESTS - 1):
                levels.append((process.memory_info().rss, process.num_fds()))

    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key=server.key, max_retries=0
    ) as client:
        await asyncio.gather(*(work(client) for _ in range(AT_ONCE)))
    (rss_before, fds_before), (rss_after, fds_after) = levels
    grown = f"rss {rss_before >> 20} -> {rss_after >> 20} MiB, fds {fds_before} -> {fds_after}"
    assert rss_after - rss_before < GROWTH, grown
    assert fds_after <= fds_before + AT_ONCE, grown
    assert server.stop() == 0, server.log()
    lines = [
        json.loads(line)
        for path in (server.home / "records").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) == REQUESTS, "every request is recorded exactly once"
    assert len({line["id"] for line in lines}) == REQUESTS
    assert sum(line["status"] == 200 for line in lines) >= whole
    assert {line["status"] for line in lines} <= {200, 499}
