"""The registry of tasks: its exact names, in families. Adding a task is adding a line here."""

from __future__ import annotations

from collections.abc import Callable

from zoo.sample import Draw, Sample
from zoo.tasks.letters import count_letters, reverse, sort_words, spell, uppercase
from zoo.tasks.meaning import opposite, plural
from zoo.tasks.numbers import arithmetic, comparison
from zoo.tasks.structured import extract_json, tool_call, tool_result
from zoo.tasks.talk import fact, greeting, story

Maker = Callable[[Draw], Sample]

FAMILIES: dict[str, dict[str, Maker]] = {
    "math": {"arithmetic": arithmetic, "comparison": comparison},
    "text": {
        "reverse": reverse,
        "spell": spell,
        "count_letters": count_letters,
        "uppercase": uppercase,
        "sort_words": sort_words,
        "opposite": opposite,
        "plural": plural,
    },
    "chat": {"greeting": greeting, "fact": fact, "story": story},
    "structured": {
        "extract_json": extract_json,
        "tool_call": tool_call,
        "tool_result": tool_result,
    },
}
TASKS: dict[str, Maker] = {
    name: make for family in FAMILIES.values() for name, make in family.items()
}
