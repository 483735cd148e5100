"""Whether a chat template only ever appends: a conversation that goes on begins as it did before.

Knows: a few conversations, and how to ask a runner what it makes of them. Does not know: templates;
the engine's own rendering is looked at, so its deviations count, too.

Most templates append. Mistral's put the tools, and some the system message, before the last
question; those of models that think leave out the thoughts of earlier turns. Where a template does
not append, equal messages are not equal tokens, and `kept.py` promises nothing.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any, Final

from llm_runner_router.errors import EngineError

from .kept import Seen
from .live import Endpoint
from .prefixes import MESSAGE
from .private import call

SECONDS: Final = 2.0
"""Deadline of a question."""
_TIMES = re.compile(r"%-?[HIMSTXcRrpf]")
"""A template that writes down the time of day."""


def _say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


_CALL = {
    "id": "call00000",  # nine letters and digits: some templates insist on it
    "type": "function",
    "function": {"name": "look", "arguments": '{"at": "Lisbon"}'},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}
_TURNS = (
    _say("user", "Where is Aveiro?"),
    _say("assistant", "South of Braga."),
    _say("user", "And what of Coimbra?"),
    _say("assistant", "Not far from Douro."),
    _say("user", "Name Evora, too."),
)
_SYSTEM = _say("system", "You answer from Faro.")
PLAIN: Final = (_TURNS[:3], (_SYSTEM, *_TURNS))
"""Conversations whose beginnings, each up to a question, are looked at."""
WITH_TOOLS: Final = (
    _SYSTEM,
    _TURNS[0],
    _say("assistant", "", tool_calls=[_CALL]),
    _say("tool", "Guarda is sunny.", tool_call_id="call00000"),
    *_TURNS[1:],
)
"""The same with tools; a model without them may refuse this one."""


def beginnings(conversation: tuple[dict[str, Any], ...]) -> list[tuple[dict[str, Any], ...]]:
    """The parts of a conversation that a client would send one after the other."""
    ends = [i + 1 for i, turn in enumerate(conversation) if turn["role"] in ("user", "tool")]
    return [conversation[:end] for end in ends]


def judged(rendered: list[tuple[tuple[dict[str, Any], ...], str]]) -> Seen:
    """What follows from the texts that beginnings of one conversation became, shortest first."""
    tail, before, head = 0, "", 0
    for turns, text in rendered:
        end = _end(turns, text)
        if end is None or not text.startswith(before):
            return Seen(False)
        tail, before = max(tail, len(text[end:].encode())), text[:end]
        head = max(head, len(text.partition(turns[0]["content"])[0].encode()))
    return Seen(tail <= MESSAGE, tail, head)


def _end(turns: tuple[dict[str, Any], ...], text: str) -> int | None:
    """Where the last message ends in `text`; None if they are not all there, in order, and near
    each other."""
    end, called = 0, False
    for turn in turns:
        if not turn["content"]:
            called = True  # the call stands here, and may be longer
            continue
        at = text.find(turn["content"], end)
        if at < 0 or (end and not called and len(text[end:at].encode()) > MESSAGE):
            return None
        end, called = at + len(turn["content"]), turn["role"] == "system"  # tools may follow it
    return end


async def look(at: Endpoint, template: str) -> Seen:
    """Ask the runner at `at`, which has `template`.

    Raises:
        EngineError: it did not answer.
    """
    if "datetime" in template or ("strftime" in template and _TIMES.search(template)):
        return Seen(False)
    seen = [await _look(at, conversation, []) for conversation in PLAIN]
    # One that takes no tools refuses all requests that have some.
    with contextlib.suppress(EngineError):
        seen.append(await _look(at, WITH_TOOLS, [_TOOL]))
    if not all(one.appends for one in seen):
        return Seen(False)
    return Seen(True, max(one.tail for one in seen), max(one.head or 0 for one in seen[:2]))


async def _look(at: Endpoint, conversation: tuple[dict[str, Any], ...], tools: list[Any]) -> Seen:
    rendered = []
    for turns in beginnings(conversation):
        body: dict[str, Any] = {"messages": list(turns)}
        if tools:
            body["tools"] = tools
        address = at.base_url.removesuffix("/v1")
        found = await call(address, at.api_key, "POST", "/apply-template", body, seconds=SECONDS)
        if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
            raise EngineError("the runner does not say what its template makes of messages")
        rendered.append((turns, found["prompt"]))
    return judged(rendered)
