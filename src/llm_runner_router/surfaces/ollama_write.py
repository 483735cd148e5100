"""Answers in the JSON of Ollama's own API, made from parsed deltas. Pure but for the clock.

Knows: the lines of a stream, whole answers, durations in nanoseconds, errors. Does not know:
requests on the wire, sockets, models' files (`ollama_models.py`).

A call of a function comes whole here: its pieces are kept until the answer is over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.deltas import Collector
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Delta, Embeddings, Finish, Request

from .base import Reply
from .codec import check_finished, note

_REASONS: dict[Finish, str] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "stop",
    "content_filter": "content_filter",
    "error": "stop",
}
_encode = msgspec.json.Encoder().encode


def error(exc: RunnerError) -> bytes:
    """`{"error": "…"}`; the hint is part of the text."""
    return _encode({"error": str(exc)})


def stream_error(exc: RunnerError) -> bytes:
    """The error as a line; nothing follows it, in particular no line that is `done`."""
    return error(exc) + b"\n"


def stamp(seconds: float) -> str:
    """Unix seconds as this API writes an instant."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class _Timings(Struct, frozen=True):
    """What llama-server says of an answer, in milliseconds."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


_timings = msgspec.json.Decoder(_Timings)


class _Logprobs(Struct, frozen=True):
    content: list[Raw] | None = None


_logprobs = msgspec.json.Decoder(_Logprobs)


class Codec:
    """Encodes the answer to one question; see `http.Codec`.

    Args:
        form: `chat` has a message in each line, `generate` a `response`.
        model: the name that the client used.
    """

    def __init__(self, form: Literal["chat", "generate"], model: str) -> None:
        self._form = form
        self._model = model
        self._began = time.perf_counter()
        self._first: float | None = None

    def encode(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        """Lines of JSON, or one body, as the request wants.

        Raises:
            StreamBroken: the deltas ended without a `finish`.
            RunnerError: whatever the deltas raise.
        """
        lines = self._lines(deltas, request, reply)
        return lines if request.stream else self._whole(deltas, request, reply)

    def error(self, exc: RunnerError) -> bytes:
        """See `error`."""
        return error(exc)

    def stream_error(self, exc: RunnerError) -> bytes:
        """See `stream_error`."""
        return stream_error(exc)

    # ------------------------------------------------------------ streams

    async def _lines(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        collector = Collector()
        async for delta in deltas:
            note(reply, delta)
            self._first = self._first or time.perf_counter()
            # The text is on its way already; kept are the calls and the end.
            collector.add(msgspec.structs.replace(delta, text="", reasoning="", wire=None))
            text = delta.text or delta.refusal
            if text or delta.reasoning:
                line = self._line(text, delta.reasoning)
                if request.sampling.logprobs and delta.logprobs is not None:
                    line["logprobs"] = _logprobs.decode(delta.logprobs).content or []
                yield _encode(line) + b"\n"
        answer = collector.answer()
        choice = answer.choices[0] if answer.choices else None
        check_finished(choice is not None and choice.finish is not None)
        assert choice is not None
        calls = _calls(choice.tool_calls)
        if calls and self._form == "chat":
            line = self._line("", "")
            line["message"]["tool_calls"] = calls
            yield _encode(line) + b"\n"
        last = self._line("", "")
        yield _encode({**last, **self._end(choice.finish, reply)}) + b"\n"

    def _line(self, text: str, thinking: str) -> dict[str, Any]:
        line: dict[str, Any] = {
            "model": self._model,
            "created_at": stamp(time.time()),
            "done": False,
        }
        if self._form == "generate":
            line["response"] = text
            if thinking:
                line["thinking"] = thinking
            return line
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        line["message"] = message
        return line

    def _end(self, finish: Finish | None, reply: Reply) -> dict[str, Any]:
        """What the last line says; durations that nobody measured are left out."""
        now = time.perf_counter()
        end: dict[str, Any] = {
            "done": True,
            "done_reason": _REASONS[finish or "stop"],
            "total_duration": _nanoseconds(now - self._began),
        }
        if reply.usage is not None:
            end["prompt_eval_count"] = reply.usage.prompt_tokens
            end["eval_count"] = reply.usage.completion_tokens
        if reply.timings is not None:
            told = _timings.decode(reply.timings)
            end["prompt_eval_duration"] = _nanoseconds(told.prompt_ms / 1e3)
            end["eval_duration"] = _nanoseconds(told.predicted_ms / 1e3)
        elif self._first is not None:
            end["prompt_eval_duration"] = _nanoseconds(self._first - self._began)
            end["eval_duration"] = _nanoseconds(now - self._first)
        return end

    # ------------------------------------------------------------ whole answers

    async def _whole(
        self, deltas: AsyncIterator[Delta], request: Request, reply: Reply
    ) -> AsyncIterator[bytes]:
        collector = Collector()
        async for delta in deltas:
            note(reply, delta)
            self._first = self._first or time.perf_counter()
            collector.add(delta)
        answer = collector.answer()
        check_finished(any(choice.finish for choice in answer.choices))
        choice = answer.choices[0]
        line = self._line(choice.text or choice.refusal, choice.reasoning)
        calls = _calls(choice.tool_calls)
        if calls and self._form == "chat":
            line["message"]["tool_calls"] = calls
        if request.sampling.logprobs:
            pieces = (_logprobs.decode(piece).content or () for piece in choice.logprobs)
            line["logprobs"] = [token for tokens in pieces for token in tokens]
        yield _encode({**line, **self._end(choice.finish, reply)})


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def _calls(calls: Any) -> list[dict[str, Any]]:
    return [
        {"function": {"index": i, "name": call.name, "arguments": _arguments(call.arguments)}}
        for i, call in enumerate(calls)
    ]


def _arguments(arguments: str) -> Any:
    """An object, which arguments are here; what is none is kept as a text inside of one."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}


# ---------------------------------------------------------------- beside answers


def loaded(model: str, form: Literal["chat", "generate"], *, unloaded: bool) -> bytes:
    """What is answered to a request that asks for nothing but the model."""
    told: dict[str, Any] = {"model": model, "created_at": stamp(time.time())}
    if form == "chat":
        told["message"] = {"role": "assistant", "content": ""}
    else:
        told["response"] = ""
    reason = "unload" if unloaded else "load"
    return _encode({**told, "done": True, "done_reason": reason})


def vectors(found: Embeddings, model: str, seconds: float) -> bytes:
    """The answer of `/api/embed`."""
    return _encode(
        {
            "model": model,
            "embeddings": found.vectors,
            "total_duration": _nanoseconds(seconds),
            "prompt_eval_count": found.usage.prompt_tokens,
        }
    )


def vector(found: Embeddings) -> bytes:
    """The answer of `/api/embeddings`, which has one; it is empty where nothing was asked."""
    return _encode({"embedding": found.vectors[0] if found.vectors else ()})
