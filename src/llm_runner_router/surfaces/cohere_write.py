"""Answers in Cohere's JSON, made from parsed deltas. Pure.

Knows: chats, the events of a stream, models, errors. Does not know: requests on the wire, sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Delta, Finish, ModelCard, Request, ToolCallDelta, Usage

from .base import Reply
from .codec import check_finished

DIALECT = "cohere_chat"
_REASONS: dict[Finish, str] = {
    "stop": "COMPLETE",
    "length": "MAX_TOKENS",
    "tool_calls": "TOOL_CALL",
    "content_filter": "ERROR_TOXIC",
    "error": "ERROR",
}
_encode = msgspec.json.Encoder().encode


def error(exc: RunnerError) -> bytes:
    """`{"message": …}`; the hint is part of the message, the id is the header `x-request-id`."""
    return _encode({"message": str(exc)})


def stream_error(exc: RunnerError) -> bytes:
    """The end of a stream that failed."""
    reason = "TIMEOUT" if exc.status == 504 else "ERROR"
    return _event("message-end", delta={"error": str(exc), "finish_reason": reason})


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _message(kind: str, index: int, **message: Any) -> bytes:
    return _event(kind, index=index, delta={"message": message})


def _usage(usage: Usage | None) -> dict[str, Any]:
    told = usage or Usage()
    counts = {"input_tokens": told.prompt_tokens, "output_tokens": told.completion_tokens}
    return {"billed_units": counts, "tokens": counts, "cached_tokens": told.cached_tokens}


def _reason(finish: Finish | None, stopped_by: str | None) -> str:
    if stopped_by is not None and finish == "stop":
        return "STOP_SEQUENCE"
    return _REASONS[finish or "stop"]


def _call_id(reply: Reply, index: int) -> str:
    """An id for a call whose model gave none; the same each time it is asked for."""
    return f"call_{reply.id.rpartition('-')[2]}_{index}"


class _Token(Struct):
    token: str
    logprob: float


class _Told(Struct):
    content: list[_Token] | None = None


_told = msgspec.json.Decoder(_Told).decode


def _logprobs(told: Raw) -> list[dict[str, Any]]:
    """An item for each token. Their numbers in the vocabulary are not told by other dialects."""
    return [
        {"text": one.token, "token_ids": [], "logprobs": [one.logprob]}
        for one in _told(told).content or ()
    ]


# ---------------------------------------------------------------- streams


class EventWriter:
    """Turns deltas into the events of a chat.

    Clients keep one call at a time, so a call begins when the one before is whole. Where upstream
    writes several in turns, the later ones wait for the end.
    """

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._begun = False
        self._blocks = 0
        self._open: str | None = None
        """`text` or `thinking`: the kind of the block that is being written."""
        self._calls: dict[int, int] = {}
        self._calling: int | None = None
        """The call that is being written, by its place in the stream."""
        self._arguments: list[str] = []
        """Of that call."""
        self._waiting: dict[int, list[ToolCallDelta]] = {}
        self._finish: Finish | None = None
        self._stopped_by: str | None = None

    def add(self, delta: Delta) -> bytes:
        """The events for `delta`."""
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            out.append(self._start())
        if delta.reasoning:
            self._say(out, "thinking", delta.reasoning, None)
        if delta.text or delta.refusal:
            self._say(out, "text", delta.text or delta.refusal, delta.logprobs)
        for call in delta.tool_calls:
            self._call(out, call)
        if delta.finish is not None:
            self._finish, self._stopped_by = delta.finish, delta.stopped_by
        return b"".join(out)

    def end(self) -> bytes:
        """What closes the chat; its usage is known by now.

        Raises:
            StreamBroken: there was no reason to finish.
        """
        check_finished(self._finish is not None)
        out: list[bytes] = []
        for pieces in self._waiting.values():
            for piece in pieces:
                self._write(out, piece)
        self._close(out)
        self._close_call(out)
        reason = _reason(self._finish, self._stopped_by)
        told = {"finish_reason": reason, "usage": _usage(self._reply.usage)}
        out.append(_event("message-end", id=self._reply.id, delta=told))
        return b"".join(out)

    def _start(self) -> bytes:
        empty: dict[str, Any] = {"content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        delta = {"message": {"role": "assistant", **empty}}
        return _event("message-start", id=self._reply.id, delta=delta)

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            self._open = None
            out.append(_event("content-end", index=self._blocks - 1))

    def _close_call(self, out: list[bytes]) -> None:
        if self._calling is not None:
            out.append(_event("tool-call-end", index=self._calling))
            self._calling = None
            self._arguments.clear()

    def _say(self, out: list[bytes], kind: str, text: str, logprobs: Raw | None) -> None:
        if self._open != kind:
            self._close(out)
            if self._whole():
                self._close_call(out)
            self._open = kind
            self._blocks += 1
            out.append(
                _message("content-start", self._blocks - 1, content={"type": kind, kind: ""})
            )
        event: dict[str, Any] = {"delta": {"message": {"content": {kind: text}}}}
        items = _logprobs(logprobs) if logprobs is not None else []
        if items:  # one for each event, there
            values = [value for item in items for value in item["logprobs"]]
            event["logprobs"] = {"text": text, "token_ids": [], "logprobs": values}
        out.append(_event("content-delta", index=self._blocks - 1, **event))

    def _whole(self) -> bool:
        """The call that is being written, if there is one, has all of its arguments."""
        if self._calling is None:
            return True
        try:
            msgspec.json.decode("".join(self._arguments))
        except msgspec.DecodeError:
            return False
        return True

    def _call(self, out: list[bytes], call: ToolCallDelta) -> None:
        if call.index in self._waiting:
            self._waiting[call.index].append(call)
        elif call.index in self._calls or self._whole():
            self._write(out, call)
        else:
            self._waiting[call.index] = [call]

    def _write(self, out: list[bytes], call: ToolCallDelta) -> None:
        index = self._calls.get(call.index)
        if index is None:
            self._close(out)
            self._close_call(out)
            index = self._calls[call.index] = self._calling = len(self._calls)
            id = call.id or _call_id(self._reply, call.index)
            function = {"name": call.name or "", "arguments": ""}
            begun = {"id": id, "type": "function", "function": function}
            out.append(_message("tool-call-start", index, tool_calls=begun))
        if call.arguments:
            self._arguments.append(call.arguments)
            piece = {"function": {"arguments": call.arguments}}
            out.append(_message("tool-call-delta", index, tool_calls=piece))


# ---------------------------------------------------------------- whole answers


def response(answer: Answer, request: Request, reply: Reply) -> bytes:
    """A whole answer; of several choices the first."""
    choice = answer.choices[0]
    message: dict[str, Any] = {"role": "assistant"}
    content = _content(choice)
    if content:
        message["content"] = content
    if choice.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id or _call_id(reply, i),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for i, call in enumerate(choice.tool_calls)
        ]
    found: dict[str, Any] = {
        "id": reply.id,
        "finish_reason": _reason(choice.finish, choice.stopped_by),
        "message": message,
        "usage": _usage(answer.usage),
    }
    logprobs = [item for told in choice.logprobs for item in _logprobs(told)]
    if logprobs:
        found["logprobs"] = logprobs
    return _encode(found)


def _content(choice: Choice) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append({"type": "thinking", "thinking": choice.reasoning})
    text = choice.text or choice.refusal
    if text or not choice.tool_calls:
        content.append({"type": "text", "text": text})
    return content


# ---------------------------------------------------------------- models


def model(card: ModelCard, created: int) -> bytes:
    """One model."""
    return _encode(_model(card))


def models(cards: Sequence[ModelCard], created: int) -> bytes:
    """All models, on one page."""
    return _encode({"models": [_model(card) for card in cards]})


def _model(card: ModelCard) -> dict[str, Any]:
    can = card.capabilities
    embeds = ["embed"] if can.embeddings else []
    # A provider's model that embeds does nothing else; one that runs here may do both.
    endpoints = embeds if embeds and not card.local else ["chat", *embeds]
    features = {"tools": can.tools, "json_schema": can.json, "vision": can.images}
    return {
        "name": card.name,
        "endpoints": endpoints,
        "finetuned": False,
        "context_length": card.context,
        "default_endpoints": [],
        "features": [name for name, has in features.items() if has],
    }
