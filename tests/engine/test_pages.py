"""Weights in large pages: what a runner is told, and what it is told already stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llm_runner_router.engine import llamacpp, pages, torch
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse

from .locally import chat, engines


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_what_was_set_stays(given: str, told: str) -> None:
    environ = {"GLIBC_TUNABLES": given}
    assert pages.variables(environ, llamacpp.RUNNER) == {"GLIBC_TUNABLES": told}
    assert pages.variables(environ, torch.RUNNER) == {}


@pytest.mark.engine
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells it")
async def test_a_runner_has_it() -> None:
    async with engines() as e:
        model = resolve(parse("zoo:tiny-math"))
        await e.answer(model, chat())
        (row,) = e.residency.status()
        told = await asyncio.to_thread(Path(f"/proc/{row.pid}/environ").read_bytes)
    assert b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in told.split(b"\0")
