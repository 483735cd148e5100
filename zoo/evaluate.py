"""Measures accuracy per task on held-out questions: `python -m zoo.evaluate`.

Knows how to ask the torch weights here; the GGUF files are asked through `zoo.engine`. Every answer
is judged by its sample's own program, decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from zoo import tokenizer
from zoo.chat import END, prompt_text
from zoo.model import Llama
from zoo.sample import Draw, Sample
from zoo.tasks import TASKS

LIMIT = 128
ROWS = 50


def questions(task: str, count: int, seed: int = 7) -> list[Sample]:
    """The same held-out questions for everyone who asks with this count and seed."""
    draw = Draw(Random(f"{seed}/{task}"), "held")
    return [TASKS[task](draw) for _ in range(count)]


def torch_answers(model: Llama, samples: list[Sample]) -> list[str]:
    """Greedy answers of the torch weights."""
    words = tokenizer.load()
    stop = words.token_to_id(END)
    answers: list[str] = []
    for start in range(0, len(samples), ROWS):
        group = samples[start : start + ROWS]
        prompts = [words.encode(prompt_text("", one.tools, one.turns)).ids for one in group]
        outputs = model.generate(prompts, LIMIT, stop)
        answers += [words.decode(ids, skip_special_tokens=True) for ids in outputs]
    return answers


def torch_scores(model: Llama, tasks: Iterable[str], count: int) -> dict[str, float]:
    """Accuracy per task of the torch weights on held-out questions."""
    scores = {}
    for task in tasks:
        samples = questions(task, count)
        answers = torch_answers(model, samples)
        right = sum(one.check(text) for one, text in zip(samples, answers, strict=True))
        scores[task] = right / count
    return scores


def line(scores: dict[str, float]) -> str:
    """Scores on one line."""
    return " ".join(f"{task} {score:.0%}" for task, score in scores.items())
