"""Sizes and durations as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router import units


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1kb", 1000), ("1 KiB", 1024), ("1.5MiB", 1572864), ("2T", 2 * 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1 XB", "1 2", "4GiBs", "1e3"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        units.parse_size(text)
    assert not re.search(units.SIZE_PATTERN, text), "the schema and the parser must agree"


@pytest.mark.parametrize("text", ["", "x", "-1s", "1 y", "5m x", "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.parse_duration(text)
    assert not re.search(units.DURATION_PATTERN, text), "the schema and the parser must agree"


@given(st.from_regex(units.SIZE_PATTERN, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_the_schema_allows_only_sizes(text: str) -> None:
    assert units.parse_size(text) >= 0


@given(st.from_regex(units.DURATION_PATTERN, fullmatch=True, alphabet=st.characters(codec="ascii")))
def test_the_schema_allows_only_durations(text: str) -> None:
    assert units.parse_duration(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.85, "850 ms"),
        (1, "1 s"),
        (1.26, "1.3 s"),
        (59, "59 s"),
        (61, "1 m 1 s"),
        (7800, "2 h 10 m"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (4096, "4.0 KiB"), (3 * 1024**4, "3.0 TiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert units.format_size(size) == text
