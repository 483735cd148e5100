"""The zoo's generators: right answers pass, wrong ones fail, and training never sees the exam."""

from __future__ import annotations

import itertools
import json
from random import Random

import pytest
from zoo.mix import conversations, diet, own_tasks
from zoo.sample import Draw, Sample, Split, expand, is_held, phrasings
from zoo.tasks import FAMILIES, TASKS
from zoo.tasks.numbers import value, worked
from zoo.tasks.structured import call_text_of, parse_call

NAMES = {
    "arithmetic", "comparison", "reverse", "spell", "count_letters", "uppercase", "sort_words",
    "opposite", "plural", "greeting", "fact", "story", "extract_json", "tool_call", "tool_result",
}  # fmt: skip
TWO_BY_TWO = (
    "23 × 45 = 20 × 40 + 20 × 5 + 3 × 40 + 3 × 5 = 800 + 100 + 120 + 15"
    " = 900 + 120 + 15 = 1020 + 15 = 1035"
)
PIECES = ("lem", "on", "str", "aw", "ing", "ter")


def samples(task: str, split: Split, count: int = 300, seed: int = 3) -> list[Sample]:
    draw = Draw(Random(f"{seed}/{task}"), split, PIECES)
    return [TASKS[task](draw) for _ in range(count)]


def test_task_names_are_the_published_ones() -> None:
    assert set(TASKS) == NAMES
    assert set().union(*FAMILIES.values()) == NAMES


@pytest.mark.parametrize("task", sorted(NAMES))
@pytest.mark.parametrize("split", ["train", "held"])
def test_own_answer_passes_and_others_fail(task: str, split: Split) -> None:
    drawn = samples(task, split)
    for one in drawn:
        assert one.check(one.answer), (one.turns, one.answer)
        assert not one.check("")
        assert not one.check("I do not know")
    swapped = [
        (one, other)
        for one, other in itertools.pairwise(drawn)
        if one.answer != other.answer and one.check(other.answer)
    ]
    # Some answers are right for two questions: 4 + 4 and 2 × 4, yes and no, any Leo the cat.
    assert len(swapped) < len(drawn) * (0.35 if task in {"comparison", "greeting"} else 0.1), (
        swapped
    )


@pytest.mark.parametrize(
    ("task", "wrong"),
    [
        ("arithmetic", "1 + 1 = 2000001"),
        ("reverse", "a b c → qqqq"),
        ("count_letters", "a b c: 99 times"),
        ("story", "One sentence only."),
        ("story", "It begins. It goes on. It never"),
        ("extract_json", "{}"),
        ("extract_json", "name: Ada"),
        ("tool_call", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
        ("tool_result", '<tool_call>\n{"name": "calculator", "arguments": {}}\n</tool_call>'),
    ],
)
def test_wrong_answers_fail(task: str, wrong: str) -> None:
    assert not any(one.check(wrong) for one in samples(task, "held", 100))


@pytest.mark.parametrize("task", sorted(NAMES))
def test_train_and_held_out_are_disjoint(task: str) -> None:
    train, held = samples(task, "train", 2000), samples(task, "held", 500)
    assert not {one.pattern for one in train} & {one.pattern for one in held}
    assert not {v for one in train for v in one.values} & {v for one in held for v in one.values}
    assert len({one.pattern for one in held}) > 3


def test_held_out_side_is_fixed_by_the_hash_alone() -> None:
    assert [is_held("word", word) for word in ("lemon", "apple", "north", "ship")] == [
        is_held("word", word) for word in ("lemon", "apple", "north", "ship")
    ]
    held = sum(is_held("word", str(number)) for number in range(8000))
    assert 800 < held < 1200


def test_same_seed_same_samples() -> None:
    for task in NAMES:
        first, second = samples(task, "train", 50), samples(task, "train", 50)
        assert [(one.turns, one.answer) for one in first] == [
            (one.turns, one.answer) for one in second
        ]
        assert first != samples(task, "train", 50, seed=4)


def test_patterns_expand_and_split() -> None:
    assert expand("[a|b|] c[.|]") == ["a c.", "a c", "b c.", "b c", " c.", " c"]
    patterns = ("[a|b|c|d|e|f|g|h] {w}[.|!|?]",)
    train, held = phrasings(patterns, "train"), phrasings(patterns, "held")
    assert sorted(itertools.chain(*train, *held)) == sorted(expand(patterns[0]))


@pytest.mark.parametrize(
    ("a", "sign", "b", "text"),
    [
        (7, "+", 5, "7 + 5 = 12"),
        (347, "+", 285, "347 + 285 = 500 + 120 + 12 = 632"),
        (632, "-", 285, "632 - 285 = 400 - 50 - 3 = 347"),
        (285, "-", 632, "285 - 632 = -(400 - 50 - 3) = -347"),
        (5, "-", 12, "5 - 12 = -(10 - 3) = -7"),
        (23, "*", 45, TWO_BY_TWO),
        (904, "+", 605, "904 + 605 = 1500 + 0 + 9 = 1509"),
        (347, "*", 6, "347 × 6 = 300 × 6 + 40 × 6 + 7 × 6 = 1800 + 240 + 42 = 2040 + 42 = 2082"),
    ],
)
def test_working_is_shown_step_by_step(a: int, sign: str, b: int, text: str) -> None:
    assert worked(a, sign, b) == text


def test_every_step_of_the_working_is_true() -> None:
    for a, b in itertools.product(range(0, 1000, 37), range(0, 1000, 41)):
        for sign in "+-*":
            steps = worked(a, sign, b).replace("×", "*").split(" = ")
            assert {eval(step) for step in steps} == {value(a, sign, b)}


def test_tool_call_text_round_trips() -> None:
    text = call_text_of("weather", {"city": "Zürich"})
    assert parse_call(text) == ("weather", {"city": "Zürich"})
    assert json.loads(text.split("\n")[1])["name"] == "weather"
    assert parse_call("<tool_call>{}</tool_call>") is None
    assert parse_call("It is sunny.") is None


def test_conversations_follow_the_diet() -> None:
    for model in ("tiny-math", "tiny-text", "tiny-chat", "tiny-general"):
        draw = Draw(Random(1), "train", PIECES)
        talks = list(itertools.islice(conversations(draw, diet(model)), 400))
        seen = {one.task for talk in talks for one in talk.samples}
        assert seen == set(own_tasks(model))
        lengths = [len(talk.samples) for talk in talks]
        assert 0.2 < sum(length > 1 for length in lengths) / len(lengths) < 0.45
