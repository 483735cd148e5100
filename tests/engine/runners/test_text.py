"""Stop sequences, and an answer's text taken apart while it streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.engine.runners.reading import Reader
from llm_runner_router.engine.runners.stops import Stops

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": "</tool", "b": [1, 2]}}\n</tool_call>'
texts = st.text(alphabet="abc", max_size=30)


def pieces(text: str, cuts: list[int]) -> Iterator[str]:
    start = 0
    for cut in sorted({c % (len(text) + 1) for c in cuts}):
        yield text[start:cut]
        start = cut
    yield text[start:]


cuts = st.lists(st.integers(0, 1000), max_size=20)


@given(texts, st.text(alphabet="abc", min_size=1, max_size=4), cuts)
def test_a_stop_sequence_ends_the_text_wherever_it_was_cut(
    text: str, stop: str, cuts: list[int]
) -> None:
    stops = Stops([stop, ""])
    shown = "".join(stops.feed(piece) for piece in pieces(text, cuts))
    assert stops.found == (stop in text)
    if stops.found:
        assert shown == text[: text.index(stop)]
        assert stops.feed("more") == stops.end() == ""
    else:
        assert shown + stops.end() == text


@given(texts, st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4), cuts)
def test_of_several_stop_sequences_the_text_ends_before_all_that_were_met(
    text: str, words: list[str], cuts: list[int]
) -> None:
    stops = Stops(words)
    shown, read = "", ""
    for piece in pieces(text, cuts):
        shown += stops.feed(piece)
        read += piece
        if stops.found:
            break
    met = [read.index(word) for word in words if word in read]
    assert stops.found == bool(met)
    assert shown + stops.end() == (read[: min(met)] if met else text)


class Counted(str):
    """A text that counts how often a character of it is looked at."""

    looks = 0

    def __getitem__(self, at: Any) -> str:
        Counted.looks += 1
        return super().__getitem__(at)


def test_the_time_for_a_text_does_not_grow_with_its_stop_sequences_length() -> None:
    """The worst there is: almost the whole sequence, again and again."""
    word, text = Counted("a" * 1000 + "b"), ("a" * 1000 + "c") * 20
    stops = Stops([word])
    Counted.looks = 0
    shown = "".join(stops.feed(char) for char in text) + stops.end()
    assert shown == text
    assert Counted.looks < 6 * len(text)


def test_only_what_could_begin_a_stop_is_held_back() -> None:
    stops = Stops(["END."])
    assert stops.feed("The E") == "The "
    assert stops.feed("N") == ""
    assert stops.feed("d of it") == "ENd of it"


def read(text: str, cuts: list[int], **options: Any) -> dict[str, Any]:
    """What a client adds up from the deltas."""
    reader = Reader(new_id=iter("xyz").__next__, **options)
    deltas = [d for piece in pieces(text, cuts) for d in reader.feed(piece)] + reader.end()
    found: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for delta in deltas:
        for name in ("content", "reasoning_content"):
            found[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(found["calls"])
                found["calls"].append([call["id"], call["function"]["name"], ""])
            found["calls"][call["index"]][2] += call["function"]["arguments"]
    assert reader.called == len(found["calls"])
    return found


@given(cuts)
def test_calls_are_found_wherever_the_text_was_cut(cuts: list[int]) -> None:
    found = read(f"Let me see.\n{CALL}\n{CALL}\nDone.", cuts, calls=True)
    assert found["content"] == "Let me see.\nDone."
    arguments = '{"a": "</tool", "b": [1, 2]}'
    assert found["calls"] == [["x", "add", arguments], ["y", "add", arguments]]


@given(cuts)
def test_reasoning_is_told_apart(cuts: list[int]) -> None:
    found = read("<think>\nhm < ha\n</think>\n\nYes, 1 < 2.", cuts, thinks=True)
    assert found["reasoning_content"] == "\nhm < ha\n"
    assert found["content"] == "Yes, 1 < 2."
    found = read("hm</think>Yes", cuts, thinking=True)
    assert (found["reasoning_content"], found["content"]) == ("hm", "Yes")


@given(cuts)
def test_without_tools_tags_are_text(cuts: list[int]) -> None:
    assert read(CALL, cuts)["content"] == CALL


@given(cuts)
def test_a_call_whose_name_comes_last(cuts: list[int]) -> None:
    text = '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>'
    assert read(text, cuts, calls=True)["calls"] == [["y", "add", '{"a":1}']]


@pytest.mark.parametrize("text", ["<tool_call>nonsense</tool_call>", '<tool_call>{"a": 1'])
@given(cuts=cuts)
def test_what_is_no_call_is_shown_as_it_was_written(text: str, cuts: list[int]) -> None:
    found = read(text, cuts, calls=True)
    assert found["calls"] == []
    assert found["content"].startswith(text)


@given(cuts)
def test_a_forced_call_without_a_tag(cuts: list[int]) -> None:
    found = read('{"name": "add", "arguments": {"a": 1}}', cuts, calls=True, bare=True)
    assert found["calls"][0][1:] == ["add", '{"a": 1}']
    assert found["content"] == ""
