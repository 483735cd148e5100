"""The bytes a benchmark sends and expects: OpenAI chat bodies, answers and event streams.

Knows: the wire of one host, fixed texts, how a finished stream is checked. Does not know sockets
or clocks. The model's name says what the mock upstream does: `stream-200-5000` streams 200 pieces
of text 5,000 µs apart, `stream-200-5000-70000` the same after thinking for 70 ms, any other name
16 pieces without a pause.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec
from msgspec import Struct

PIECE = 24
"""Characters of text in one piece of a stream: about six tokens, as hosts send them when busy."""
ANSWER = "The mock upstream always gives this same answer. " * 16
_NAME = re.compile(r"stream-(\d+)-(\d+)(?:-(\d+))?$")
_SCENARIO = re.compile(rb'"model"\s*:\s*"((?:[^"\\]|\\.)*)"')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = re.compile(rb'"include_usage"\s*:\s*true')


class Asked(Struct, frozen=True):
    """What a request body asks of the mock upstream."""

    model: str
    stream: bool
    usage: bool


class Script(Struct, frozen=True):
    """How a stream goes: `chunks` pieces of text, `gap` seconds before each of them.

    `think` are the seconds before the head of the response.
    """

    chunks: int = 16
    gap: float = 0.0
    think: float = 0.0

    @property
    def model(self) -> str:
        """The model name that asks for this script."""
        name = f"stream-{self.chunks}-{round(self.gap * 1e6)}"
        return f"{name}-{round(self.think * 1e6)}" if self.think else name

    @property
    def text(self) -> str:
        """The whole text of the stream."""
        return "".join(piece(i) for i in range(self.chunks))


def script_of(model: str) -> Script:
    """The script that a model name stands for."""
    found = _NAME.match(model)
    if found is None:
        return Script()
    return Script(int(found[1]), int(found[2]) / 1e6, int(found[3] or 0) / 1e6)


def piece(index: int) -> str:
    """The text of one piece; numbered, so that a lost or doubled piece shows."""
    return f"{index:06d} ".ljust(PIECE, ".")


def asked(body: bytes) -> Asked:
    """What a body asks for. Searched, not parsed: the mock must be faster than what it measures."""
    model = _SCENARIO.search(body)
    return Asked(
        model[1].decode() if model else "",
        _STREAM.search(body) is not None,
        _USAGE.search(body) is not None,
    )


def request_body(model: str, *, size: int = 0, stream: bool = False, usage: bool = True) -> bytes:
    """A chat request of about `size` bytes of JSON."""
    body = {
        "model": model,
        "messages": [
            {"role": "system", "content": "Answer shortly."},
            {"role": "user", "content": "Say it again. "},
        ],
        "temperature": 0.5,
        "max_tokens": 256,
    }
    if stream:
        body["stream"] = True
        if usage:
            body["stream_options"] = {"include_usage": True}
    missing = size - len(msgspec.json.encode(body))
    if missing > 0:
        words = ("benchmark text " * (missing // 15 + 1))[:missing]
        body["messages"][1]["content"] += words  # type: ignore[index]  # built above
    return msgspec.json.encode(body)


@lru_cache(maxsize=256)
def answer_body(model: str) -> bytes:
    """The plain answer."""
    message = {"role": "assistant", "content": ANSWER, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return msgspec.json.encode(
        {
            "id": "chatcmpl-mock",
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": model,
            "choices": [choice],
            "usage": _usage(176),
            "system_fingerprint": "fp_mock",
        }
    )


@lru_cache(maxsize=256)
def stream_events(model: str, usage: bool) -> tuple[bytes, ...]:
    """The events of a stream, each with its blank line; `[DONE]` is the last.

    In order: the role, the pieces of text, the finish reason, the usage if asked for, the end.
    """
    script = script_of(model)
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece(i)}, None) for i in range(script.chunks)]
    deltas.append(({}, "stop"))
    events = [_event(model, delta, finish, usage) for delta, finish in deltas]
    if usage:
        tail = {**_head(model), "choices": [], "usage": _usage(script.chunks)}
        events.append(b"data: " + msgspec.json.encode(tail) + b"\n\n")
    return (*events, b"data: [DONE]\n\n")


def _event(model: str, delta: dict[str, str], finish: str | None, usage: bool) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    event: dict[str, object] = {**_head(model), "choices": [choice]}
    if usage:
        event["usage"] = None
    return b"data: " + msgspec.json.encode(event) + b"\n\n"


def _head(model: str) -> dict[str, object]:
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": model,
        "system_fingerprint": "fp_mock",
    }


def _usage(completion: int) -> dict[str, object]:
    return {
        "prompt_tokens": 25,
        "completion_tokens": completion,
        "total_tokens": 25 + completion,
    }


# ---------------------------------------------------------------- checking what came


class _Delta(Struct):
    content: str | None = None


class _Choice(Struct):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


_chunks = msgspec.json.Decoder(_Chunk)


def fault_of_stream(data: bytes, text: str, *, usage: bool) -> str | None:
    """What is wrong with a finished event stream; None if it is whole.

    Args:
        data: all bytes of the response's body.
        text: what its pieces must add up to; empty accepts any text.
        usage: a usage chunk must be there.
    """
    events = [line[5:].strip() for line in data.split(b"\n") if line.startswith(b"data:")]
    if not events or events[-1] != b"[DONE]":
        return "stream without [DONE]"
    try:
        chunks = [_chunks.decode(event) for event in events[:-1]]
    except msgspec.MsgspecError as exc:
        return f"event is no chunk: {exc}"
    choices = [choice for chunk in chunks for choice in chunk.choices]
    if sum(choice.finish_reason is not None for choice in choices) != 1:
        return "stream without exactly one finish reason"
    if usage and not any(chunk.usage for chunk in chunks):
        return "stream without usage"
    if text and "".join(choice.delta.content or "" for choice in choices) != text:
        return "stream with wrong text"
    return None


def tokens(data: bytes) -> tuple[int, int]:
    """Prompt and completion tokens that a stream says it used; 0 if it does not say."""
    at = data.rfind(b'"usage":{')
    if at < 0:
        return (0, 0)
    start = data.rfind(b"data:", 0, at) + 5
    try:
        usage = _chunks.decode(data[start : data.find(b"\n", at)]).usage or _Usage()
    except msgspec.MsgspecError:
        return (0, 0)
    return (usage.prompt_tokens, usage.completion_tokens)


def fault_of_body(data: bytes, text: str) -> str | None:
    """What is wrong with a plain answer; None if it is whole and holds `text`."""
    if not data.rstrip().endswith(b"}"):
        return "body is cut off"
    return None if text.encode() in data else "body with wrong text"
