"""Answers in the JSON and the frames of Bedrock's Converse API, made from parsed deltas. Pure.

Knows: messages, the events of a stream, errors as AWS names them. Does not know: requests on the
wire, sockets.
"""

from __future__ import annotations

import binascii
import time
from base64 import b64decode, b64encode
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.errors import RunnerError
from llm_runner_router.eventstream import write
from llm_runner_router.types import Delta, Finish, Request, ToolCallDelta, Usage

from .base import Reply
from .codec import check_finished
from .exchange import Headers

DIALECT = "bedrock_converse"
_STOPS: dict[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
    "error": "malformed_model_output",
}
_ERRORS = {
    400: "ValidationException",
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    429: "ThrottlingException",
    502: "ModelErrorException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
_EXCEPTIONS = {
    "ValidationException": "validationException",
    "ThrottlingException": "throttlingException",
    "ServiceUnavailableException": "serviceUnavailableException",
    "InternalServerException": "internalServerException",
}
"""Those that a stream may end with; all others are the model's."""
_encode = msgspec.json.Encoder().encode


def kind_of(exc: RunnerError) -> str:
    """What AWS would call the error."""
    other = "ValidationException" if exc.status < 500 else "InternalServerException"
    return _ERRORS.get(exc.status, other)


def marks(exc: RunnerError) -> Headers:
    """The header that says what an error is called."""
    return [(b"x-amzn-errortype", kind_of(exc).encode())]


def error(exc: RunnerError) -> bytes:
    """`{"message": …}`; the hint is part of the message."""
    return _encode({"message": str(exc)})


def stream_error(exc: RunnerError) -> bytes:
    """The error as an exception; nothing follows it, in particular no `messageStop`."""
    kind = _EXCEPTIONS.get(kind_of(exc), "modelStreamErrorException")
    headers = {":exception-type": kind, ":content-type": "application/json"}
    return write({**headers, ":message-type": "exception"}, error(exc))


def _event(kind: str, **fields: Any) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return write(headers, _encode(fields))


def _usage(usage: Usage | None) -> dict[str, int]:
    """`inputTokens` is there what no cache had part in."""
    told = usage or Usage()
    found = {
        "inputTokens": told.prompt_tokens - told.cached_tokens - told.cache_write_tokens,
        "outputTokens": told.completion_tokens,
        "totalTokens": told.total_tokens,
    }
    if told.cached_tokens or told.cache_write_tokens:
        found["cacheReadInputTokens"] = told.cached_tokens
        found["cacheWriteInputTokens"] = told.cache_write_tokens
    return found


def _end(finish: Finish | None, stopped_by: str | None) -> dict[str, Any]:
    if stopped_by is not None and finish == "stop":
        more = {"stop_sequence": stopped_by}
        return {"stopReason": "stop_sequence", "additionalModelResponseFields": more}
    return {"stopReason": _STOPS[finish or "stop"]}


def _blob(data: str) -> str:
    """A text where only base64 may stand: as it is if it is that, else wrapped."""
    try:
        b64decode(data, validate=True)
        return data
    except (binascii.Error, ValueError):
        return b64encode(data.encode()).decode()


def _call_id(reply: Reply, index: int) -> str:
    """An id for a call whose model gave none; the same each time it is asked for."""
    return f"tooluse_{reply.id.rpartition('-')[2]}_{index}"


class Relay:
    """Passes upstream's frames on untouched; a delta without `wire` belongs to the one before."""

    def __init__(self) -> None:
        self._finished = False

    def add(self, delta: Delta) -> bytes:
        """The bytes to send for `delta`; may be empty."""
        if delta.finish is not None:
            self._finished = True
        return b"" if delta.wire is None else delta.wire.data

    def end(self) -> bytes:
        """Nothing: upstream's own `metadata` has passed.

        Raises:
            StreamBroken: there was no reason to stop.
        """
        check_finished(self._finished)
        return b""


class EventWriter:
    """Turns deltas into the events of a message.

    Text and thoughts are blocks one after the other, which begin with their first piece. Calls may
    be written in turns by their upstream, so their blocks stay open until the end.
    """

    def __init__(self, request: Request, reply: Reply) -> None:
        self._reply = reply
        self._since = time.perf_counter()
        self._begun = False
        self._blocks = 0
        self._open: str | None = None
        """`text` or `reasoningContent`: the kind of the block that is being written."""
        self._calls: dict[int, int] = {}
        self._finish: Finish | None = None
        self._stopped_by: str | None = None

    def add(self, delta: Delta) -> bytes:
        """The events for `delta`."""
        out: list[bytes] = []
        if not self._begun:
            self._begun = True
            out.append(_event("messageStart", role="assistant"))
        if delta.reasoning:
            self._say(out, "reasoningContent", {"text": delta.reasoning})
        if delta.signature:
            self._say(out, "reasoningContent", {"signature": delta.signature})
        if delta.redacted:
            self._close(out)
            self._say(out, "reasoningContent", {"redactedContent": _blob(delta.redacted)})
            self._close(out)
        if delta.text or delta.refusal:
            self._say(out, "text", delta.text or delta.refusal)
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
        out += [_event("contentBlockStop", contentBlockIndex=i) for i in self._calls.values()]
        out.append(_event("messageStop", **_end(self._finish, self._stopped_by)))
        passed = round(1000 * (time.perf_counter() - self._since))
        metrics = {"latencyMs": passed}
        out.append(_event("metadata", usage=_usage(self._reply.usage), metrics=metrics))
        return b"".join(out)

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            self._open = None
            out.append(_event("contentBlockStop", contentBlockIndex=self._current))

    def _say(self, out: list[bytes], kind: str, piece: str | dict[str, str]) -> None:
        if self._open != kind:
            self._close(out)
            self._current, self._blocks = self._blocks, self._blocks + 1
            self._open = kind
        out.append(
            _event("contentBlockDelta", contentBlockIndex=self._current, delta={kind: piece})
        )

    def _call(self, out: list[bytes], call: ToolCallDelta) -> None:
        index = self._calls.get(call.index)
        if index is None:
            if call.signature:
                self._say(out, "reasoningContent", {"signature": call.signature})
            self._close(out)
            index = self._calls[call.index] = self._blocks
            self._blocks += 1
            id = call.id or _call_id(self._reply, call.index)
            use = {"toolUse": {"toolUseId": id, "name": call.name or ""}}
            out.append(_event("contentBlockStart", contentBlockIndex=index, start=use))
        if call.arguments:
            piece = {"toolUse": {"input": call.arguments}}
            out.append(_event("contentBlockDelta", contentBlockIndex=index, delta=piece))


def message(answer: Answer, seconds: float, reply: Reply) -> bytes:
    """A whole answer; of several choices the first. `seconds`: how long it took."""
    choice = answer.choices[0]
    return _encode(
        {
            "output": {"message": {"role": "assistant", "content": _content(choice, reply)}},
            **_end(choice.finish, choice.stopped_by),
            "usage": _usage(answer.usage),
            "metrics": {"latencyMs": round(1000 * seconds)},
        }
    )


def _content(choice: Choice, reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    # Where calls are signed, this format has the signature on a thought.
    signed = (call.signature for call in choice.tool_calls if call.signature)
    signature = choice.signature or next(signed, "")
    if choice.reasoning or signature:
        thought = {"text": choice.reasoning}
        if signature:
            thought["signature"] = signature
        blocks.append({"reasoningContent": {"reasoningText": thought}})
    for data in choice.redacted:
        blocks.append({"reasoningContent": {"redactedContent": _blob(data)}})
    if choice.text or choice.refusal:
        blocks.append({"text": choice.text or choice.refusal})
    for i, call in enumerate(choice.tool_calls):
        use = {"toolUseId": call.id or _call_id(reply, i), "name": call.name}
        blocks.append({"toolUse": {**use, "input": _input(call.arguments)}})
    return blocks


def _input(arguments: str) -> Raw | dict[str, Any]:
    """The input of a call is an object there; what is none is kept as a text inside of one."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        value = None
    if isinstance(value, dict):
        return Raw((arguments or "{}").encode())
    return {"arguments": arguments}


def count(tokens: int) -> bytes:
    """`{"inputTokens": n}`."""
    return _encode({"inputTokens": tokens})
