"""Answers in the JSON of OpenAI's Responses API, made from parsed deltas. Pure.

Knows: the response object, its items, the events of a stream, errors. Does not know: requests on
the wire, sockets, what is stored.

Thoughts are `reasoning` items with their text; a provider's signature under them travels as
`encrypted_content` and comes back with the item (`responses_read.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import OPENAI, Delta, Finish, Request, ToolCallDelta, Usage

from .base import Reply
from .codec import EventRelay, check_finished, model_name
from .responses_read import SEALED, SIGNED

DIALECT = "openai_responses"
_DEFAULTS: dict[str, Any] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request, with what stands there if the client said nothing."""
_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded", 504: "server_error"}
_encode = msgspec.json.Encoder().encode


class Told(Struct, frozen=True):
    """What the writer of a response has to know beside the request."""

    id: str
    """Of the response, where it is written here."""
    fields: dict[str, Raw]
    """The client's own, for those that a response repeats."""
    keep: Callable[[bytes], None] | None = None
    """Takes the finished response object; None: nobody keeps it."""


def head(told: Told, request: Request, reply: Reply, status: str) -> dict[str, Any]:
    """The response object without output."""
    given = told.fields
    echoed = {
        name: given[name] if name in given and bytes(given[name]) != b"null" else default
        for name, default in _DEFAULTS.items()
    }
    return {
        "id": told.id,
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model_name(request, reply),
        "output": [],
        "usage": None,
        **echoed,
    }


def _number(told: Told) -> str:
    return told.id.removeprefix("resp_")


def _call_id(told: Told, index: int) -> str:
    """An id for a call whose model gave none; the same each time it is asked for."""
    return f"call_{_number(told)}_{index}"


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _ended(whole: dict[str, Any], finish: Finish | None, usage: Usage | None) -> dict[str, Any]:
    """`whole` with how it ended."""
    why = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish or "")
    whole["status"] = "incomplete" if why else "completed"
    whole["incomplete_details"] = {"reason": why} if why else None
    whole["usage"] = _usage(usage)
    return whole


def failed(whole: dict[str, Any], exc: RunnerError) -> dict[str, Any]:
    """`whole` with why it failed."""
    whole["status"] = "failed"
    whole["error"] = {"code": _CODES.get(exc.status, "server_error"), "message": str(exc)}
    return whole


# ---------------------------------------------------------------- whole answers


def response(answer: Answer, told: Told, request: Request, reply: Reply) -> bytes:
    """A whole answer as a response object."""
    choice = answer.choices[0]
    whole = head(told, request, reply, "completed")
    items = _items(choice, told)
    whole["output"] = items
    return _encode(_ended(whole, choice.finish, answer.usage))


def _items(choice: Choice, told: Told) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    number = _number(told)
    for data in choice.redacted:
        id = f"rs_{number}_{len(items)}"
        items.append(_reasoning(id, "", SEALED + data))
    if choice.reasoning or choice.signature:
        sealed = _sealed(choice.signature)
        items.append(_reasoning(f"rs_{number}_{len(items)}", choice.reasoning, sealed))
    content = []
    if choice.text:
        content.append(_text_part(choice.text, _logprobs(choice.logprobs)))
    if choice.refusal:
        content.append({"type": "refusal", "refusal": choice.refusal})
    if content or not (choice.tool_calls or items):
        message = _message(f"msg_{number}_{len(items)}", "completed")
        items.append({**message, "content": content or [_text_part("", [])]})
    for i, call in enumerate(choice.tool_calls):
        id = f"fc_{number}_{len(items)}"
        called = _call(id, call.id or _call_id(told, i), call.name, "completed", call.signature)
        items.append({**called, "arguments": call.arguments or "{}"})
    return items


def _sealed(signature: str) -> str | None:
    """A signature as `encrypted_content`; what OpenAI sealed is it already."""
    if signature.startswith(OPENAI):
        return signature.removeprefix(OPENAI)
    return SIGNED + signature if signature else None


def _reasoning(id: str, text: str, sealed: str | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": id, "type": "reasoning", "summary": []}
    if text:
        item["content"] = [{"type": "reasoning_text", "text": text}]
    if sealed is not None:
        item["encrypted_content"] = sealed
    return item


def _message(id: str, status: str) -> dict[str, Any]:
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": []}


def _call(
    id: str, call: str, name: str, status: str, signature: str | None = None
) -> dict[str, Any]:
    signed = {"llmrr_signature": signature} if signature else {}
    return {
        **signed,
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": call,
        "name": name,
        "arguments": "",
    }


def _text_part(text: str, logprobs: list[Raw]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class _Logprobs(Struct, frozen=True):
    content: list[Raw] | None = None


_logprobs_of = msgspec.json.Decoder(_Logprobs)


def _logprobs(pieces: tuple[Raw, ...]) -> list[Raw]:
    """The tokens of chats' `logprobs` objects."""
    found: list[Raw] = []
    for piece in pieces:
        found += _logprobs_of.decode(piece).content or ()
    return found


# ---------------------------------------------------------------- streams


class _End(Struct, frozen=True):
    response: Raw = Raw(b"")


_end = msgspec.json.Decoder(_End)
_ENDS = (b"response.completed", b"response.incomplete", b"response.failed")


class Relay(EventRelay):
    """Keeps the response that the last event tells of."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def passed(self, kind: bytes, data: bytes) -> None:
        """Keep the response of the last event."""
        if kind in _ENDS and self._told.keep is not None:
            self._told.keep(bytes(_end.decode(data).response))


def error_fields(exc: RunnerError) -> dict[str, Any]:
    """What an `error` event says.

    OpenAI documents the fields side by side; its own client raises only if there is an `error`
    object, and a stream that broke must not look like one that ended.
    """
    told = {"code": exc.code or exc.type, "message": str(exc), "param": exc.param}
    return {**told, "error": {**told, "type": exc.type}}


class EventWriter:
    """Turns deltas into the events of a response.

    Thoughts and words are items one after the other. Calls may be written in turns by their
    upstream, so their items stay open until the end.
    """

    def __init__(self, told: Told, request: Request, reply: Reply) -> None:
        self._told = told
        self._request = request
        self._reply = reply
        self._sequence = 0
        self._whole: dict[str, Any] | None = None
        self._output: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._calls: dict[int, _OpenCall] = {}
        self._finish: Finish | None = None

    def add(self, delta: Delta) -> bytes:
        """The events for `delta`."""
        out: list[bytes] = []
        if self._whole is None:
            self._begin(out)
        if delta.redacted:
            self._sealed(out, delta.redacted)
        if delta.reasoning or delta.signature:
            self._think(out, delta)
        if delta.text:
            self._say(out, "output_text", delta.text, delta.logprobs)
        if delta.refusal:
            self._say(out, "refusal", delta.refusal, None)
        for call in delta.tool_calls:
            self._call(out, call)
        if delta.finish is not None:
            self._finish = delta.finish
        return b"".join(out)

    def end(self) -> bytes:
        """What closes the response; its usage is known by now.

        Raises:
            StreamBroken: there was no reason to stop.
        """
        check_finished(self._finish is not None)
        out: list[bytes] = []
        if not self._output:
            self._say(out, "output_text", "", None)
        self._close(out)
        for call in self._calls.values():
            self._close_call(out, call)
        assert self._whole is not None
        whole = _ended(self._whole, self._finish, self._reply.usage)
        whole["output"] = self._output
        whole["model"] = model_name(self._request, self._reply)
        self._last(out, whole)
        return b"".join(out)

    def fail(self, exc: RunnerError) -> bytes:
        """What tells of a failure after the beginning; nothing follows it."""
        out: list[bytes] = []
        self._event(out, "error", **error_fields(exc))
        whole = self._whole or head(self._told, self._request, self._reply, "failed")
        whole["output"] = [
            {**item, "status": "incomplete"} if item.get("status") == "in_progress" else item
            for item in self._output
        ]
        self._last(out, failed(whole, exc))
        return b"".join(out)

    def _last(self, out: list[bytes], whole: dict[str, Any]) -> None:
        """The event that ends the stream; its response is the one that is kept."""
        data = _encode(whole)
        if self._told.keep is not None:
            self._told.keep(data)
        self._event(out, f"response.{whole['status']}", response=Raw(data))

    def _event(self, out: list[bytes], kind: str, **fields: Any) -> None:
        data = _encode({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))

    def _begin(self, out: list[bytes]) -> None:
        self._whole = head(self._told, self._request, self._reply, "in_progress")
        self._event(out, "response.created", response=self._whole)
        self._event(out, "response.in_progress", response=self._whole)

    def _item(self, out: list[bytes], item: dict[str, Any]) -> int:
        index = len(self._output)
        self._output.append(item)
        self._event(out, "response.output_item.added", output_index=index, item=item)
        return index

    def _done(self, out: list[bytes], index: int, item: dict[str, Any]) -> None:
        self._output[index] = item
        self._event(out, "response.output_item.done", output_index=index, item=item)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{_number(self._told)}_{len(self._output)}"

    # ------------------------------------------------------------ thoughts and words

    def _sealed(self, out: list[bytes], data: str) -> None:
        self._close(out)
        item = _reasoning(self._id("rs"), "", SEALED + data)
        self._done(out, self._item(out, item), item)

    def _think(self, out: list[bytes], delta: Delta) -> None:
        opened = self._opened(out, "reasoning_text")
        if delta.reasoning:
            opened.text.append(delta.reasoning)
            where = opened.where()
            self._event(out, "response.reasoning_text.delta", **where, delta=delta.reasoning)
        opened.signature += delta.signature

    def _say(self, out: list[bytes], kind: str, text: str, logprobs: Raw | None) -> None:
        opened = self._opened(out, kind)
        opened.text.append(text)
        if kind == "refusal":
            self._event(out, "response.refusal.delta", **opened.where(), delta=text)
            return
        tokens = [] if logprobs is None else _logprobs((logprobs,))
        opened.logprobs += tokens
        if text or tokens:
            where = opened.where()
            self._event(out, "response.output_text.delta", **where, delta=text, logprobs=tokens)

    def _opened(self, out: list[bytes], kind: str) -> _Open:
        """The part of that kind that is being written."""
        opened = self._open
        if opened is not None and opened.kind == kind:
            return opened
        same = opened is not None and "reasoning_text" not in (kind, opened.kind)
        if opened is not None and same:  # a refusal after words is one more part of the message
            self._close_part(out, opened)
            opened = _Open(kind, opened.item, opened.index, opened.parts)
        else:
            self._close(out)
            if kind == "reasoning_text":
                item = _reasoning(self._id("rs"), "", None)
            else:
                item = _message(self._id("msg"), "in_progress")
            opened = _Open(kind, item, self._item(out, item), [])
        self._open = opened
        part = opened.part()
        self._event(out, "response.content_part.added", **opened.where(), part=part)
        return opened

    def _close_part(self, out: list[bytes], opened: _Open) -> None:
        text = "".join(opened.text)
        where, part = opened.where(), opened.part()
        if opened.kind == "refusal":
            self._event(out, "response.refusal.done", **where, refusal=text)
        elif opened.kind == "reasoning_text":
            self._event(out, "response.reasoning_text.done", **where, text=text)
        else:
            tokens = opened.logprobs
            self._event(out, "response.output_text.done", **where, text=text, logprobs=tokens)
        self._event(out, "response.content_part.done", **where, part=part)
        opened.parts.append(part)

    def _close(self, out: list[bytes]) -> None:
        opened, self._open = self._open, None
        if opened is None:
            return
        self._close_part(out, opened)
        item = {**opened.item, "content": opened.parts}
        if opened.kind != "reasoning_text":
            item["status"] = "completed"
        elif opened.signature:
            item["encrypted_content"] = _sealed(opened.signature)
        self._done(out, opened.index, item)

    # ------------------------------------------------------------ calls

    def _call(self, out: list[bytes], piece: ToolCallDelta) -> None:
        call = self._calls.get(piece.index)
        if call is None:
            self._close(out)
            id = piece.id or _call_id(self._told, piece.index)
            name = piece.name or ""
            item = _call(self._id("fc"), id, name, "in_progress", piece.signature)
            call = self._calls[piece.index] = _OpenCall(item, self._item(out, item))
        if piece.arguments:
            self._argue(out, call, piece.arguments)

    def _argue(self, out: list[bytes], call: _OpenCall, text: str) -> None:
        call.arguments.append(text)
        where = {"item_id": call.item["id"], "output_index": call.index}
        self._event(out, "response.function_call_arguments.delta", **where, delta=text)

    def _close_call(self, out: list[bytes], call: _OpenCall) -> None:
        if not call.arguments:
            self._argue(out, call, "{}")  # clients parse it as JSON
        arguments = "".join(call.arguments)
        where = {"item_id": call.item["id"], "output_index": call.index}
        told = {"name": call.item["name"], "arguments": arguments}
        self._event(out, "response.function_call_arguments.done", **where, **told)
        item = {**call.item, "status": "completed", "arguments": arguments}
        self._done(out, call.index, item)


class _Open:
    """A part of a message or of a thought while it is written."""

    __slots__ = ("index", "item", "kind", "logprobs", "parts", "signature", "text")

    def __init__(
        self, kind: str, item: dict[str, Any], index: int, parts: list[dict[str, Any]]
    ) -> None:
        self.kind = kind
        self.item = item
        self.index = index
        self.parts = parts
        self.text: list[str] = []
        self.logprobs: list[Raw] = []
        self.signature = ""

    def where(self) -> dict[str, Any]:
        """The fields by which an event says what it is of."""
        return {
            "item_id": self.item["id"],
            "output_index": self.index,
            "content_index": len(self.parts),
        }

    def part(self) -> dict[str, Any]:
        """The part as far as it is written."""
        text = "".join(self.text)
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        if self.kind == "reasoning_text":
            return {"type": "reasoning_text", "text": text}
        return _text_part(text, self.logprobs)


class _OpenCall:
    """A call while it is written."""

    __slots__ = ("arguments", "index", "item")

    def __init__(self, item: dict[str, Any], index: int) -> None:
        self.item = item
        self.index = index
        self.arguments: list[str] = []
