"""Drawing tokens, against the definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.engine.runners.sampling import (
    Logits,
    Sampler,
    Settings,
    likeliest,
    log_softmax,
    softmax,
)

OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
"""Nothing is left out and nothing is sharpened."""
EXAMPLE = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))


def drawn(logits: Logits, count: int = 400, **settings: Any) -> dict[int, int]:
    """How often each token comes in `count` draws, each with its own seed."""
    found: dict[int, int] = {}
    for seed in range(count):
        given: dict[str, Any] = {**OPEN, "seed": seed, **settings}
        token = Sampler(Settings(**given)).draw(logits)
        found[token] = found.get(token, 0) + 1
    return found


floats = st.floats(-50, 50, width=32)


@given(st.lists(floats, min_size=1, max_size=40), st.integers(0, 2**32))
def test_without_temperature_the_likeliest_is_drawn(values: list[float], seed: int) -> None:
    logits = np.array(values, np.float32)
    settings = Settings(temperature=0.0, seed=seed, top_k=1, top_p=0.1)
    assert Sampler(settings).draw(logits) == int(np.argmax(logits))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-40},
        {"temperature": 5e-324},
        {"bias": {1: 1e300}, "temperature": 1e-3},
        {"bias": {1: 3e38, 2: 1e300}},
        {"bias": {token: float("-inf") for token in range(5)}},
        {"repeat_penalty": 1e-300},
    ],
)
def test_extreme_settings_draw_a_token(settings: dict[str, Any]) -> None:
    sampler = Sampler(Settings(**{**OPEN, "seed": 1, **settings}), (0, 1))
    assert 0 <= sampler.draw(EXAMPLE + 3) < len(EXAMPLE)


def test_a_temperature_next_to_zero_is_zero() -> None:
    assert drawn(EXAMPLE, 20, temperature=1e-40) == {0: 20}


def test_the_logits_are_left_as_they_are() -> None:
    logits = EXAMPLE.copy()
    settings = Settings(bias={0: -5.0}, presence_penalty=1.0)
    Sampler(settings, (1, 2)).draw(logits, np.array([True, True, False, True, True]))
    assert (logits == EXAMPLE).all()


def test_equal_seeds_draw_equally_and_others_do_not() -> None:
    def answer(seed: int | None) -> list[int]:
        sampler = Sampler(Settings(seed=seed, temperature=1.5))
        return [sampler.draw(EXAMPLE) for _ in range(40)]

    assert answer(7) == answer(7)
    assert answer(7) != answer(8)
    assert answer(None) != answer(None)


def test_draws_follow_the_probabilities() -> None:
    found = drawn(EXAMPLE, 2000)
    shares = [found.get(token, 0) / 2000 for token in range(5)]
    assert shares == pytest.approx([0.5, 0.2, 0.15, 0.1, 0.05], abs=0.04)


def test_temperature_flattens() -> None:
    hot, cold = drawn(EXAMPLE, temperature=4.0), drawn(EXAMPLE, temperature=0.3)
    assert hot[0] < 200 < 350 < cold[0]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.84}, {0, 1, 2}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 4, "min_p": 0.15}, {0, 1, 2, 3}),
        ({"bias": {0: float("-inf"), 4: 50.0}, "top_k": 1}, {4}),
    ],
)
def test_what_may_be_drawn(settings: dict[str, Any], kept: set[int]) -> None:
    assert set(drawn(EXAMPLE, **settings)) == kept


def test_penalties_as_llama_cpp_has_them() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    settings = Settings(
        temperature=0.0, repeat_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5
    )
    sampler = Sampler(settings, (0, 0, 1))
    # 0: 2 / 2 - 2 · 0.5 - 0.25, 1: -2 · 2 - 0.5 - 0.25, 2: as it was
    assert sampler._penalised(logits, None).tolist() == [-0.25, -4.75, 1.0]
    assert sampler.draw(logits) == 2
    assert sampler._penalised(logits, None).tolist() == [-0.25, -4.75, -0.25], "a draw counts"


def test_only_what_is_allowed_is_drawn() -> None:
    allowed = np.array([False, False, True, True, False])
    for seed in range(50):
        assert Sampler(Settings(seed=seed)).draw(EXAMPLE, allowed) in (2, 3)
    assert Sampler(Settings(temperature=0.0)).draw(EXAMPLE, allowed) == 2
    with pytest.raises(ValueError, match="no token"):
        Sampler(Settings()).draw(EXAMPLE, np.zeros(5, np.bool_))


@given(st.lists(floats, min_size=1, max_size=40))
def test_probabilities_add_up(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    assert softmax(logits).sum() == pytest.approx(1.0)
    assert np.exp(log_softmax(logits)) == pytest.approx(softmax(logits))
    best = likeliest(log_softmax(logits), 3)
    assert len(best) == min(3, len(values))
    assert best[0] == int(np.argmax(logits)) or logits[best[0]] == logits.max()


def test_what_is_no_number_is_no_answer() -> None:
    logits = np.array([0.0, np.nan, 1.0], np.float32)
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="NaN"):
            Sampler(Settings(temperature=temperature)).draw(logits)


@pytest.mark.parametrize("size", [3, 7])
def test_a_mask_may_be_shorter_or_longer_than_the_logits(size: int) -> None:
    """Models give a round number of logits, tokenizers have as many tokens as they have."""
    allowed = np.zeros(size, np.bool_)
    allowed[1] = True
    logits = np.array([3.0, 0.0, 1.0, 2.0, 9.0], np.float32)
    assert Sampler(Settings(temperature=0.0)).draw(logits, allowed) == 1


def test_penalties_look_back_as_far_as_is_asked() -> None:
    logits = np.array([3.0, 2.9, 0.0], np.float32)
    for last, drawn in ((0, 0), (1, 0), (2, 1), (-1, 1)):
        settings = Settings(temperature=0.0, presence_penalty=1.0, last=last)
        assert Sampler(settings, [0, 2]).draw(logits) == drawn
