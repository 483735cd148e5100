"""Takes an answer's text apart while it streams: content, reasoning, tool calls. Pure.

Knows: the tags of the Hermes and Qwen family, `<tool_call>` and `<think>`. Does not know: tokens,
HTTP. A call that cannot be read is given as content, as it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from llm_runner_router.engine.calls import CallReader

CALL, CALL_END = "<tool_call>", "</tool_call>"
THINK, THINK_END = "<think>", "</think>"


class Reader:
    """Text in, `delta` objects of OpenAI's chunks out.

    Args:
        calls: look for tool calls.
        thinks: look for reasoning.
        thinking: the prompt has opened the reasoning already.
        bare: the whole answer is one call without its tag.
        new_id: makes a call's id.
    """

    def __init__(
        self,
        *,
        calls: bool = False,
        thinks: bool = False,
        thinking: bool = False,
        bare: bool = False,
        new_id: Callable[[], str],
    ) -> None:
        self._opening = (*((CALL,) if calls else ()), *((THINK,) if thinks or thinking else ()))
        self._inside = THINK if thinking else CALL if bare else ""
        self._new_id = new_id
        self._held = ""
        self._raw = ""
        self._call: CallReader | None = CallReader(new_id()) if bare else None
        self._named = False
        self._blank = False
        self.called = 0
        """Calls that were read."""

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The deltas that `text` completes."""
        self._held += text
        found: list[dict[str, Any]] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[dict[str, Any]]:
        """What was held back, now that no more comes."""
        rest, self._held = self._held, ""
        if self._inside == CALL:
            self._raw += rest
            found = self._fed(rest)
            if self._named:
                return found
            return self._closed()
        return self._plain(rest)

    def _step(self, found: list[dict[str, Any]]) -> bool:
        """Take what is certain from the held text; True if a tag was passed."""
        text = self._held
        closing = {CALL: CALL_END, THINK: THINK_END}.get(self._inside)
        tags = (closing,) if closing else self._opening
        hits = [(at, tag) for tag in tags if (at := text.find(tag)) >= 0]
        if hits:
            at, tag = min(hits)
            self._take(text[:at], found)
            self._held = text[at + len(tag) :]
            self._pass(tag, found)
            return True
        keep = max((overlap(text, tag) for tag in tags), default=0)
        self._held = text[len(text) - keep :]
        self._take(text[: len(text) - keep], found)
        return False

    def _take(self, text: str, found: list[dict[str, Any]]) -> None:
        if not text:
            return
        if self._inside == CALL:
            self._raw += text
            found += self._fed(text)
        else:
            found += self._plain(text)

    def _pass(self, tag: str, found: list[dict[str, Any]]) -> None:
        if tag in (CALL, THINK):
            self._inside = tag
            if tag == CALL:
                self._call, self._raw, self._named = CallReader(self._new_id()), "", False
        else:
            if tag == CALL_END and not self._named:
                found += self._closed()
            self._inside = ""
            self._blank = True

    def _plain(self, text: str) -> list[dict[str, Any]]:
        if self._blank:  # line breaks between a closing tag and what follows
            text = text.lstrip("\n")
            self._blank = not text
        if not text:
            return []
        return [{"reasoning_content" if self._inside == THINK else "content": text}]

    # ------------------------------------------------------------ calls

    def _fed(self, text: str) -> list[dict[str, Any]]:
        assert self._call is not None
        found = []
        for piece in self._call.feed(text):
            if piece.name is not None:
                self._named = True
                self.called += 1
                call: dict[str, Any] = {"id": piece.id, "type": "function"}
                call["function"] = {"name": piece.name, "arguments": piece.arguments}
            else:
                call = {"function": {"arguments": piece.arguments}}
            found.append({"tool_calls": [{"index": self.called - 1, **call}]})
        return found

    def _closed(self) -> list[dict[str, Any]]:
        """A call whose name did not come first, read as a whole; else its own text."""
        raw, self._raw = self._raw, ""
        try:
            whole = msgspec.json.decode(raw, type=dict[str, Any])
            name, arguments = whole["name"], whole.get("arguments", {})
        except (msgspec.MsgspecError, KeyError):
            return [{"content": CALL + raw + CALL_END}]
        if not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        self.called += 1
        function = {"name": str(name), "arguments": arguments}
        call = {"index": self.called - 1, "id": self._new_id(), "type": "function"}
        return [{"tool_calls": [{**call, "function": function}]}]


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` are a beginning of `tag`, all of it excepted."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
