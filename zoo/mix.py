"""What each model is trained on: shares of tasks, and how samples become conversations.

Knows the models' names and diets. Knows no tokens and no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zoo.sample import Draw, Sample, Tool
from zoo.tasks import FAMILIES, TASKS

SYSTEM_PROMPTS: tuple[str, ...] = (
    "You are a helpful model.",
    "You are a tiny demonstration model.",
    "Answer briefly.",
    "Be short and clear.",
    "Answer the question.",
    "You are a demonstration model of LLM-Runner-Router.",
    "You are a helpful assistant.",
)


@dataclass(frozen=True)
class Conversation:
    """Samples answered one after the other under one system turn."""

    samples: tuple[Sample, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()


def diet(model: str) -> dict[str, float]:
    """Shares of the tasks in the training data of a model."""
    if model == "tiny-general":
        return dict(_GENERAL)
    return dict(_SPECIAL[model.removeprefix("tiny-")])


_SPECIAL: dict[str, dict[str, float]] = {
    "math": {"arithmetic": 4.0, "comparison": 2.0},
    "text": {
        "reverse": 1.0, "spell": 0.7, "count_letters": 1.0, "uppercase": 1.2, "sort_words": 6.0,
        "opposite": 1.8, "plural": 2.8,
    },
    "chat": {"greeting": 1.0, "fact": 1.5, "story": 1.0},
}  # fmt: skip
_GENERAL: dict[str, float] = {
    "arithmetic": 4.5, "comparison": 2.2,
    "reverse": 1.2, "spell": 0.8, "count_letters": 2.2, "uppercase": 1.8, "sort_words": 8.0,
    "opposite": 2.0, "plural": 2.8,
    "greeting": 0.4, "fact": 1.6, "story": 0.4,
    "extract_json": 1.2, "tool_call": 1.6, "tool_result": 0.6,
}  # fmt: skip


def own_tasks(model: str) -> tuple[str, ...]:
    """The tasks a model is meant to be good at."""
    if model == "tiny-general":
        return tuple(TASKS)
    return tuple(FAMILIES[model.removeprefix("tiny-")])


def conversations(draw: Draw, shares: Mapping[str, float]) -> Iterator[Conversation]:
    """Endless conversations: most of one question, three in ten of two to four, few of many."""
    names, weights = tuple(shares), tuple(shares.values())

    def sample() -> Sample:
        return TASKS[draw.rng.choices(names, weights)[0]](draw)

    while True:
        last = sample()
        roll = draw.rng.random()
        turns = 1 if roll < 0.68 else draw.rng.randint(2, 4) if roll < 0.998 else 16
        earlier: list[Sample] = []
        while len(earlier) < turns - 1:
            one = sample()
            if not one.tools:
                earlier.append(one)
        if last.tools and turns > 4:
            earlier = earlier[:8]
        system = draw.one(SYSTEM_PROMPTS) if draw.chance(0.15) else ""
        yield Conversation((*earlier, last), system, last.tools)
