"""A forced call is read from the text however it is cut into pieces."""

from __future__ import annotations

import random

import pytest

from llm_runner_router.engine.calls import CallReader
from llm_runner_router.types import ToolCallDelta

ARGUMENTS = '{"city": "S\\"ã}o {Paulo", "list": [1, {"a": "]"}], "e": "\\\\"}'
PLAIN = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
TAGGED = f"<tool_call>\n{PLAIN}\n</tool_call>"


def read(pieces: list[str]) -> tuple[list[ToolCallDelta], CallReader]:
    reader = CallReader("call_1")
    return [delta for piece in pieces for delta in reader.feed(piece)], reader


@pytest.mark.parametrize("text", [PLAIN, TAGGED, " " + TAGGED])
def test_any_cut_gives_the_same_call(text: str) -> None:
    rng = random.Random(5)
    for turn in range(200):
        cuts = sorted(rng.sample(range(1, len(text)), rng.randrange(12))) if turn else []
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        deltas, reader = read(pieces)
        assert (deltas[0].id, deltas[0].name) == ("call_1", "get_weather")
        assert all(d.id is None and d.name is None for d in deltas[1:])
        assert "".join(d.arguments for d in deltas) == ARGUMENTS, pieces
        assert reader.complete


def test_a_name_with_quotes_is_unescaped() -> None:
    deltas, _ = read(['{"name": "a\\"b", "arguments": {}}'])
    assert deltas[0].name == 'a"b'
    assert deltas[1].arguments == "{}"


def test_a_cut_off_call_gives_what_there_is() -> None:
    deltas, reader = read([TAGGED[:60]])
    assert deltas[0].name == "get_weather"
    assert ARGUMENTS.startswith("".join(d.arguments for d in deltas))
    assert not reader.complete


def test_no_name_no_call() -> None:
    assert read(["<tool_call>\n", '{"na'])[0] == []
