"""The documents about routing: their code runs, their numbers are those of the source."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

from llm_runner_router.config import Objective
from llm_runner_router.strategies import auto, choose, stats

DOCS = Path(__file__).resolve().parents[2] / "docs"


async def test_the_example_of_a_strategy_passes_its_test() -> None:
    text = (DOCS / "how-to" / "write-a-strategy.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(block, "write-a-strategy.md", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        assert inspect.iscoroutinefunction(test)
        await test()


def test_the_objectives_and_their_weights() -> None:
    text = (DOCS / "concepts" / "routing.md").read_text("utf-8")
    for objective in get_args(Objective):
        assert f"`{objective}`" in text, f"{objective} is not described"
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+ \| [\d.]+) \|", text, re.MULTILINE))
    told = {name: tuple(map(float, row.split("|"))) for name, row in rows.items()}
    assert told == choose._WEIGHTS


def test_the_numbers_in_the_text() -> None:
    text = " ".join((DOCS / "concepts" / "routing.md").read_text("utf-8").split())
    assert f"After {stats.FAILURES} failures in a row" in text
    assert f"rests for {stats.FIRST_REST:g} seconds" in text
    assert stats.LONGEST_REST == 60, "the text says a minute"
    assert auto.ATTEMPTS == 3, "the text says three models in all"
