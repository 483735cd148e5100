"""The exam: held-out questions, and the share of right answers. Greedy answers of torch weights.

Every answer is judged by its sample's own program. Knows no files and no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from zoo import tokenizer
from zoo.chat import prompt_text
from zoo.model import Llama
from zoo.sample import Draw, Sample
from zoo.tasks import TASKS

WATCHED = 7
"""Seed of the questions that the trainer shows its progress with; formats and mixes were chosen by
them, so they are no fair exam."""
UNSEEN = 20261301
"""Seed of the questions that model cards are measured on, and nothing else."""
LIMIT = 128
ROWS = 50

Answers = Callable[[list[Sample]], list[str]]


def questions(task: str, count: int, seed: int = WATCHED) -> list[Sample]:
    """The same held-out questions for everyone who asks with this count and seed."""
    draw = Draw(Random(f"{seed}/{task}"), "held")
    return [TASKS[task](draw) for _ in range(count)]


def scores(
    answers: Answers, tasks: Iterable[str], count: int, seed: int = WATCHED
) -> dict[str, float]:
    """Share of right answers per task."""
    result = {}
    for task in tasks:
        samples = questions(task, count, seed)
        pairs = zip(samples, answers(samples), strict=True)
        result[task] = sum(one.check(text) for one, text in pairs) / count
    return result


def torch_answers(model: Llama, samples: list[Sample]) -> list[str]:
    """Greedy answers of the torch weights."""
    words = tokenizer.load()
    stop = tokenizer.end_of_turn(words)
    answers: list[str] = []
    for start in range(0, len(samples), ROWS):
        group = samples[start : start + ROWS]
        prompts = [words.encode(prompt_text("", one.tools, one.turns)).ids for one in group]
        outputs = model.generate(prompts, LIMIT, stop)
        answers += [words.decode(ids, skip_special_tokens=True) for ids in outputs]
    return answers


def torch_scores(model: Llama, tasks: Iterable[str], count: int) -> dict[str, float]:
    """Accuracy per task of the torch weights."""
    return scores(lambda samples: torch_answers(model, samples), tasks, count)


def line(measured: dict[str, float]) -> str:
    """Scores on one line."""
    return " ".join(f"{task} {score:.0%}" for task, score in measured.items())
