"""What answers say about a model."""

from __future__ import annotations

import math

import pytest

from llm_runner_router.cli import deep_judge
from llm_runner_router.cli.deep_judge import Foretold, Said

GOOD = Said("It is Paris.", "stop", (b"It", b" is", b" Paris."), (-0.1, -0.2, -0.1))
UNSURE = tuple([-math.log(600)] * 3)


def judged(first: Said, second: Said | None = None) -> tuple[str, str]:
    found = deep_judge.answer("mock", (first, second or first), 1000)
    return found.state, found.detail


def test_a_sound_answer() -> None:
    assert judged(GOOD) == ("ok", "mock: 'It is Paris.', ends by itself, the same twice")
    assert judged(Said("It is", "length"))[0] == "ok"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (Said(" \n", "stop"), "it says nothing"),
        (Said("a\ufffd", "stop"), "not valid UTF-8"),
        (Said("a", "stop", (b"a", b"\xe2\x82"), (-0.1, -0.1)), "not valid UTF-8"),
        (Said("Paris<|im_end|>", "length"), "writes `<|im_end|>` as text"),
        (Said("Paris</s>[INST]", "length"), "writes `</s>`, `[INST]` as text"),
        (Said("the" * 8, "length", (b"the",) * 8, (-0.1,) * 8), "repeats one token"),
        (Said("Paris", "content_filter"), "ends with 'content_filter'"),
        (Said("abc", "stop", (b"a", b"b", b"c"), UNSURE), "as unsure as if it guessed"),
    ],
)
def test_an_odd_answer(said: Said, says: str) -> None:
    state, detail = judged(said)
    assert state == "odd"
    assert says in detail


def test_what_is_no_fault() -> None:
    cut = Said("a", "length", (b"a", b"\xe2\x82"), (-0.1, -0.1))
    assert judged(cut)[0] == "ok", "the limit cut a character"
    assert judged(Said("ha ha", "stop", (b"ha",) * 7, (-0.1,) * 7))[0] == "ok"
    assert judged(Said("<think>hm</think>a < b", "stop"))[0] == "ok"


def test_two_answers_that_differ() -> None:
    other = Said("It is Rome.", "stop", (b"It", b" is", b" Rome."), (-0.1, -0.2, -0.1))
    state, detail = judged(GOOD, other)
    assert (state, "a second time it says 'It is Rome.'" in detail) == ("odd", True)
    again = Said("It is Paris.", "stop", (b"It is", b" Paris."), (-0.1, -0.2))
    assert judged(GOOD, again)[0] == "odd", "the same text by other tokens"


@pytest.mark.parametrize("value", [None, math.nan, -math.inf])
def test_numbers_that_are_none(value: float | None) -> None:
    state, detail = judged(Said("::", "length", (b":", b":"), (-0.1, value)))
    assert (state, "NaN" in detail) == ("bad", True)


def foretold(value: float) -> Foretold:
    return Foretold(100 * math.log(value), 100, 400)


def test_perplexity() -> None:
    fine = deep_judge.perplexity(foretold(16), 1000, None)
    assert (fine.state, fine.detail) == ("ok", "16 on English prose, 1.00 bits per byte")
    chance = deep_judge.perplexity(foretold(1000), 1000, None)
    assert (chance.state, "as good as random" in chance.detail) == ("odd", True)
    assert deep_judge.perplexity(foretold(499), 1000, None).state == "ok"
    assert deep_judge.perplexity(foretold(501), 1000, None).state == "odd"
    assert deep_judge.perplexity(foretold(1000), 0, None).state == "ok", "nothing to compare with"
    assert deep_judge.perplexity(Foretold(math.nan, 9, 9), 1000, GOOD).state == "bad"


def test_a_model_of_other_texts_is_no_random_one() -> None:
    assert deep_judge.perplexity(foretold(1e6), 1000, GOOD).state == "ok"
    endless = Said(GOOD.text, "length", GOOD.tokens, GOOD.logprobs)
    assert deep_judge.perplexity(foretold(1e6), 1000, endless).state == "odd"
    unsure = Said(GOOD.text, "stop", GOOD.tokens, UNSURE)
    assert deep_judge.perplexity(foretold(1e6), 1000, unsure).state == "odd"


@pytest.mark.parametrize(
    ("rows", "state", "says"),
    [
        (((1.0, 0.0), (0.8, 0.6), (0.0, 1.0)), "ok", "0.80 to the same, 0.00 to another"),
        (((1.0, 0.0), (0.0, 1.0), (0.8, 0.6)), "odd", "no nearer"),
        (((2.0, 0.0), (1.6, 1.2), (0.0, 2.0)), "odd", "the length 2, not 1"),
        (((1.0, 0.0), (math.nan, 0.6), (0.0, 1.0)), "bad", "not finite"),
        (((0.0, 0.0), (0.8, 0.6), (0.0, 1.0)), "bad", "nothing but zeros"),
    ],
)
def test_vectors(rows: tuple[tuple[float, ...], ...], state: str, says: str) -> None:
    found = deep_judge.vectors("mock", rows)
    assert (found.state, says in found.detail) == (state, True), found.detail


@pytest.mark.parametrize(
    ("scores", "state"),
    [((2.0, 0.5, -1.0), "ok"), ((0.5, 0.5, 0.1), "odd"), ((0.5, math.inf, 0.1), "bad")],
)
def test_rankings(scores: tuple[float, ...], state: str) -> None:
    assert deep_judge.ranking("mock", scores).state == state
