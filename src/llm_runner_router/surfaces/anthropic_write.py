"""Answers in Anthropic's JSON, made from parsed deltas. Pure.

Knows: messages, the events of a stream, errors. Does not know: requests on the wire, sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Delta, Finish, ModelCard, Request, ToolCallDelta, Usage

from .base import Reply
from .codec import check_finished, model_name

DIALECT = "anthropic_messages"
_STOPS: dict[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "error": "end_turn",
}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_encode = msgspec.json.Encoder().encode


def error(exc: RunnerError) -> bytes:
    """`{"type": "error", "error": {type, message}}`; the hint is part of the message."""
    kind = _ERRORS.get(exc.status, "invalid_request_error" if exc.status < 500 else "api_error")
    return _encode({"type": "error", "error": {"type": kind, "message": str(exc)}})


def stream_error(exc: RunnerError) -> bytes:
    """The error as an event; nothing follows it, in particular no `message_stop`."""
    return b"event: error\ndata: " + error(exc) + b"\n\n"


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _usage(usage: Usage | None) -> dict[str, Any]:
    """`input_tokens` is there what no cache had part in."""
    told = usage or Usage()
    found: dict[str, Any] = {
        "input_tokens": told.prompt_tokens - told.cached_tokens - told.cache_write_tokens,
        "cache_creation_input_tokens": told.cache_write_tokens,
        "cache_read_input_tokens": told.cached_tokens,
        "output_tokens": told.completion_tokens,
    }
    if told.reasoning_tokens:
        found["output_tokens_details"] = {"thinking_tokens": told.reasoning_tokens}
    return found


def _stop(finish: Finish | None, stopped_by: str | None) -> str:
    if stopped_by is not None and finish == "stop":
        return "stop_sequence"
    return _STOPS[finish or "stop"]


def _id(reply: Reply) -> str:
    return "msg_" + reply.id.rpartition("-")[2]


def call_id(reply: Reply, index: int) -> str:
    """An id for a call whose model gave none; the same each time it is asked for."""
    return f"toolu_{reply.id.rpartition('-')[2]}_{index}"


class EventWriter:
    """Turns deltas into the events of a message.

    Text and thoughts are blocks one after the other. Calls may be written in turns by their
    upstream, so their blocks stay open until the end.
    """

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._begun = False
        self._blocks = 0
        self._open: str | None = None
        """`text` or `thinking`: the kind of the block that is being written."""
        self._calls: dict[int, int] = {}
        self._finish: Finish | None = None
        self._stopped_by: str | None = None

    def add(self, delta: Delta) -> bytes:
        """The events for `delta`."""
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            out.append(self._start())
        if delta.reasoning:
            self._say(out, "thinking", {"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.signature:
            self._say(out, "thinking", {"type": "signature_delta", "signature": delta.signature})
        if delta.redacted:
            self._close(out)
            block = {"type": "redacted_thinking", "data": delta.redacted}
            self._begin(out, block)
            out.append(_event("content_block_stop", index=self._blocks - 1))
        if delta.text or delta.refusal:
            self._say(out, "text", {"type": "text_delta", "text": delta.text or delta.refusal})
        for call in delta.tool_calls:
            self._call(out, call)
        if delta.finish is not None:
            self._finish, self._stopped_by = delta.finish, delta.stopped_by
        return b"".join(out)

    def end(self) -> bytes:
        """What closes the message; its usage is known by now.

        Raises:
            StreamBroken: there was no reason to stop.
        """
        check_finished(self._finish is not None)
        out: list[bytes] = []
        self._close(out)
        out += [_event("content_block_stop", index=i) for i in self._calls.values()]
        stopped = self._stopped_by if self._finish == "stop" else None
        told = {"stop_reason": _stop(self._finish, stopped), "stop_sequence": stopped}
        out.append(_event("message_delta", delta=told, usage=_usage(self._reply.usage)))
        out.append(_event("message_stop"))
        return b"".join(out)

    def _start(self) -> bytes:
        message: dict[str, Any] = {
            "id": _id(self._reply),
            "type": "message",
            "role": "assistant",
            "model": model_name(self._request, self._reply),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(self._reply.usage),
        }
        return _event("message_start", message=message)

    def _begin(self, out: list[bytes], block: dict[str, Any]) -> int:
        index, self._blocks = self._blocks, self._blocks + 1
        out.append(_event("content_block_start", index=index, content_block=block))
        return index

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            self._open = None
            out.append(_event("content_block_stop", index=self._current))

    def _say(self, out: list[bytes], kind: str, piece: dict[str, str]) -> None:
        if self._open != kind:
            self._close(out)
            empty = {"type": "text", "text": ""}
            if kind == "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
            self._current = self._begin(out, empty)
            self._open = kind
        out.append(_event("content_block_delta", index=self._current, delta=piece))

    def _call(self, out: list[bytes], call: ToolCallDelta) -> None:
        index = self._calls.get(call.index)
        if index is None:
            if call.signature:
                signed = {"type": "signature_delta", "signature": call.signature}
                self._say(out, "thinking", signed)
            self._close(out)
            id = call.id or call_id(self._reply, call.index)
            block = {"type": "tool_use", "id": id, "name": call.name or "", "input": {}}
            index = self._calls[call.index] = self._begin(out, block)
        if call.arguments:
            piece = {"type": "input_json_delta", "partial_json": call.arguments}
            out.append(_event("content_block_delta", index=index, delta=piece))


def message(answer: Answer, request: Request, reply: Reply) -> bytes:
    """A whole answer as a message; of several choices the first."""
    choice = answer.choices[0]
    stopped = choice.stopped_by if choice.finish == "stop" else None
    return _encode(
        {
            "id": _id(reply),
            "type": "message",
            "role": "assistant",
            "model": model_name(request, reply),
            "content": _content(choice, reply),
            "stop_reason": _stop(choice.finish, stopped),
            "stop_sequence": stopped,
            "usage": _usage(answer.usage),
        }
    )


def _content(choice: Choice, reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    # Where calls are signed, this format has the signature on a thought.
    signed = (call.signature for call in choice.tool_calls if call.signature)
    signature = choice.signature or next(signed, "")
    if choice.reasoning or signature:
        thought = {"type": "thinking", "thinking": choice.reasoning}
        blocks.append({**thought, "signature": signature})
    blocks += [{"type": "redacted_thinking", "data": data} for data in choice.redacted]
    if choice.text or choice.refusal:
        blocks.append({"type": "text", "text": choice.text or choice.refusal})
    for i, call in enumerate(choice.tool_calls):
        use = {"type": "tool_use", "id": call.id or call_id(reply, i), "name": call.name}
        blocks.append({**use, "input": _input(call.arguments)})
    return blocks


def model(card: ModelCard, created: int) -> bytes:
    """One model; `created` is in Unix seconds."""
    return _encode(_model(card, created))


def _model(card: ModelCard, created: int) -> dict[str, Any]:
    return {
        "type": "model",
        "id": card.name,
        "display_name": card.description or card.name,
        "created_at": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": card.context or None,
        "max_tokens": card.max_output or None,
    }


def models(cards: Sequence[ModelCard], created: int) -> bytes:
    """All models, on one page."""
    data = [_model(card, created) for card in cards]
    ids = [one["id"] for one in data] or [None]
    return _encode({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})


def _input(arguments: str) -> Raw | dict[str, Any]:
    """The input of a call is an object there; what is none is kept as a text inside of one."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        value = None
    if isinstance(value, dict):
        return Raw((arguments or "{}").encode())
    return {"arguments": arguments}
