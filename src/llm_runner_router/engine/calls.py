"""Reads one forced tool call out of an answer's text while it streams. Pure.

Knows: the two shapes `llamacpp.py` forces, `<tool_call>{"name": …, "arguments": …}</tool_call>` and
the same without the tag. Does not know: who wrote it or who reads it.
"""

from __future__ import annotations

import re

import msgspec

from llm_runner_router.types import ToolCallDelta

_HEAD = re.compile(
    r'\s*(?:<tool_call>\s*)?\{\s*"name":\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments":\s*', re.DOTALL
)


class CallReader:
    """Text in, pieces of a call out; `complete` says whether the arguments were closed.

    Args:
        id: the call's id.
    """

    def __init__(self, id: str) -> None:
        self._id = id
        self._head: str | None = ""
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self.complete = False

    def feed(self, text: str) -> tuple[ToolCallDelta, ...]:
        """Take more text; the name comes in one piece, the arguments as they are written."""
        if self._head is None:
            return self._arguments(text)
        self._head += text
        found = _HEAD.match(self._head)
        if found is None:
            return ()
        rest, self._head = self._head[found.end() :], None
        name: str = msgspec.json.decode(found[1], type=str)
        return (ToolCallDelta(0, id=self._id, name=name), *self._arguments(rest))

    def _arguments(self, text: str) -> tuple[ToolCallDelta, ...]:
        """What of `text` belongs to the arguments: all until their outermost bracket closes."""
        if self._depth == 0:
            text = text.lstrip()  # before the arguments' first bracket
        if self.complete or not text:
            return ()
        for i, char in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = char == "\\"
                self._quoted = char != '"'
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.complete = True
                    return (ToolCallDelta(0, arguments=text[: i + 1]),)
        return (ToolCallDelta(0, arguments=text),)
