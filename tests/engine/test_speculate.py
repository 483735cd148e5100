"""When guessing ahead pays, and that it changes speed only."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.engine.speculate import ENOUGH, Pace, Timings, pays, read, wanted
from llm_runner_router.engine.threads import TINY
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse

from .endless import endless, go_on
from .locally import chat, engines, until


@pytest.mark.parametrize(
    ("pace", "worth"),
    [
        (Pace(), False),
        (Pace(reading=400.0), False),
        (Pace(400.0, 100.0), True),
        (Pace(200.0, 100.0), False),
        (Pace(400.0, 100.0, ENOUGH - 1, 0), True),
        (Pace(400.0, 100.0, ENOUGH, 0), False),
        (Pace(400.0, 100.0, 1000, 250), False),
        (Pace(400.0, 100.0, 1000, 300), True),
        (Pace(120.0, 100.0, 1000, 1000), True),
        (Pace(100.0, 100.0, 1000, 1000), False),
    ],
)
def test_what_was_measured_decides(pace: Pace, worth: bool) -> None:
    assert pays(pace) == worth
    assert wanted("auto", pace, TINY + 1) == ("ngram" if worth else "")
    assert not wanted("auto", pace, TINY)
    assert wanted("ngram", pace, 1)
    assert not wanted("off", pace, TINY + 1)


def test_short_prompts_single_tokens_and_guessed_answers_tell_no_speed() -> None:
    pace = Pace().after(Timings(prompt_n=10, prompt_per_second=9.0, predicted_n=1))
    assert pace == Pace()
    pace = pace.after(Timings(100, 400.0, 50, 80.0))
    assert (pace.reading, pace.writing) == (400.0, 80.0)
    pace = pace.after(Timings(0, 0.0, 50, 500.0, draft_n=40, draft_n_accepted=30))
    assert (pace.writing, pace.guessed, pace.right) == (80.0, 40, 30)
    assert (pace.after(Timings(100, 300.0, 50, 90.0)).reading or 0) == pytest.approx(370)


def test_timings_that_cannot_be_read_tell_nothing() -> None:
    assert read(Raw(b'{"prompt_n": "x"}')) is None
    assert read(Raw(b'{"draft_n": 3, "more": 1}')) == Timings(draft_n=3)


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_guesses_are_made_and_the_greedy_answer_stays() -> None:
    math = resolve(parse("zoo:tiny-math"))
    going_on = {"ignore_eos": Raw(b"true")}  # small models begin to repeat themselves
    request = msgspec.structs.replace(chat("One two three. " * 9, max_tokens=300), extra=going_on)
    texts, guessed = [], []
    for mode in ("off", "ngram"):
        async with engines(speculate=mode) as e:
            texts.append((await e.answer(math, request)).text)
            (row,) = e.residency.status()
            assert row.guesses == (mode == "ngram")
            guessed.append(row.guessed)
    assert texts[0] == texts[1]
    assert guessed[0] == 0
    assert guessed[1] > 0


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_a_runner_is_replaced_once_guessing_turns_out_to_pay(tmp_path: Path) -> None:
    small = endless(tmp_path, context=1024)
    info = msgspec.structs.replace(small.info, bytes=1 << 26)
    model = msgspec.structs.replace(small, info=info)
    async with engines() as e:
        await e.answer(model, go_on(4))
        (before,) = e.residency.status()
        assert not before.guesses
        known = e.residency._known[f"chat {model.name}"]
        known.pace = Pace(400.0, 50.0)
        e.residency._review()
        await until(lambda: any(row.guesses for row in e.residency.status()))
        await e.gone(before.pid or 0)
        known.pace = Pace(400.0, 50.0, 1000, 10)
        e.residency._review()
        await until(lambda: [row.guesses for row in e.residency.status()] == [False])
