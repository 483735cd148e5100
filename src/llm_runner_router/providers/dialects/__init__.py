"""The dialects of upstreams by name; each is imported when it is first asked for.

Knows: which there are. Does not know: anything about them.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from .base import Dialect

DIALECTS = {
    "openai": "OpenAI",
    "anthropic": "Anthropic",
    "gemini": "Gemini",
    "responses": "Responses",
    "cohere": "Cohere",
    "bedrock": "Bedrock",
}
"""Name, which is the module's too, and class."""


@cache
def find(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        KeyError: there is none.
    """
    made = getattr(import_module(f".{name}", __package__), DIALECTS[name])()
    assert isinstance(made, Dialect)
    return made
