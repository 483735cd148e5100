"""Chat answers in OpenAI's JSON, made from parsed deltas. Pure.

Knows: chunks and completions. Does not know: requests on the wire, events that are passed on
untouched (`openai_json.Relay`), sockets.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from llm_runner_router.deltas import Answer, Choice
from llm_runner_router.types import GOOGLE, Delta, Finish, Request, ToolCallDelta

from .base import Reply
from .codec import check_finished, model_name
from .openai_json import DONE, UsageBody, body, frame, usage_body, usage_frame

CHUNK = "chat.completion.chunk"


class _Thought(Struct, frozen=True):
    thought_signature: str


class _Extra(Struct, frozen=True):
    """As Google's own endpoint for this format has it; clients are to send it back."""

    google: _Thought


class _Function(Struct, frozen=True, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class _CallPiece(Struct, frozen=True):
    index: int
    function: _Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    extra_content: _Extra | UnsetType = UNSET


class _Piece(Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    tool_calls: tuple[_CallPiece, ...] | UnsetType = UNSET


class _ChunkChoice(Struct, frozen=True):
    index: int
    delta: _Piece
    logprobs: Raw | None
    finish_reason: Finish | None


class _Chunk(Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: tuple[_ChunkChoice]
    usage: UnsetType | None = UNSET


class ChunkWriter:
    """Turns deltas into `chat.completion.chunk` events.

    `role` comes once per choice; a tool call's id and name come once, and a call that never got
    arguments gets `{}`, since clients parse them as JSON.
    """

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request = request
        self._reply = reply
        self._begun: set[int] = set()
        self._calls: dict[tuple[int, int], bool] = {}
        self._finished = False
        self._usage: UnsetType | None = None if request.include_usage else UNSET

    def add(self, delta: Delta) -> bytes:
        """The events for `delta`; none for one that only carries usage."""
        index = delta.index
        calls = tuple(self._call(index, piece) for piece in delta.tool_calls)
        if delta.finish is not None:
            self._finished = True
            calls += self._unargued(index)
        first = index not in self._begun
        piece = _Piece(
            role=(delta.role or "assistant") if first else UNSET,
            content=delta.text or (UNSET if calls or not first else ""),
            reasoning_content=delta.reasoning or UNSET,
            refusal=delta.refusal or UNSET,
            tool_calls=calls or UNSET,
        )
        if delta.finish is None and delta.logprobs is None and _nothing(delta, calls):
            return b""
        self._begun.add(index)
        choice = _ChunkChoice(index, piece, delta.logprobs, delta.finish)
        name = model_name(self._request, self._reply)
        return frame(
            _Chunk(self._reply.id, CHUNK, self._reply.created, name, (choice,), self._usage)
        )

    def end(self) -> bytes:
        """The usage chunk, if asked for and known, and `[DONE]`."""
        check_finished(self._finished)
        if self._request.include_usage and self._reply.usage is not None:
            return usage_frame(self._request, self._reply, CHUNK) + DONE
        return DONE

    def _call(self, choice: int, piece: ToolCallDelta) -> _CallPiece:
        key = (choice, piece.index)
        known = key in self._calls
        self._calls[key] = self._calls.get(key, False) or bool(piece.arguments)
        if known:
            return _CallPiece(piece.index, _Function(arguments=piece.arguments))
        return _CallPiece(
            piece.index,
            _Function(piece.name or "", piece.arguments),
            piece.id or call_id(self._reply, choice, piece.index),
            "function",
            _extra(piece.signature),
        )

    def _unargued(self, choice: int) -> tuple[_CallPiece, ...]:
        empty = [key for key, argued in self._calls.items() if key[0] == choice and not argued]
        for key in empty:
            self._calls[key] = True
        return tuple(_CallPiece(i, _Function(arguments="{}")) for _, i in empty)


def _nothing(delta: Delta, calls: tuple[_CallPiece, ...]) -> bool:
    """Whether `delta` has nothing a client of this format could be told."""
    return not (delta.text or delta.role or calls or delta.reasoning or delta.refusal)


def _extra(signature: str | None) -> _Extra | UnsetType:
    if signature is None or not signature.startswith(GOOGLE):
        return UNSET
    return _Extra(_Thought(signature.removeprefix(GOOGLE)))


def call_id(reply: Reply, choice: int, index: int) -> str:
    """An id for a tool call whose model gave none; the same each time it is asked for."""
    return f"call_{reply.id.rpartition('-')[2]}_{choice}_{index}"


# ---------------------------------------------------------------- whole answers


class _CallFunction(Struct, frozen=True):
    name: str
    arguments: str


class _Call(Struct, frozen=True):
    id: str
    type: Literal["function"]
    function: _CallFunction
    extra_content: _Extra | UnsetType = UNSET


class _Message(Struct, frozen=True):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: tuple[_Call, ...] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class _Choice(Struct, frozen=True):
    index: int
    message: _Message
    logprobs: Raw | None
    finish_reason: Finish | None


class _Completion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: UsageBody | UnsetType = UNSET


def completion(answer: Answer, request: Request, reply: Reply) -> bytes:
    """A whole answer as a `chat.completion`."""
    choices = tuple(_choice(choice, reply) for choice in answer.choices)
    usage = UNSET if answer.usage is None else usage_body(answer.usage)
    name = model_name(request, reply)
    return body(_Completion(reply.id, "chat.completion", reply.created, name, choices, usage))


def _choice(choice: Choice, reply: Reply) -> _Choice:
    calls = tuple(
        _Call(
            c.id or call_id(reply, choice.index, i),
            "function",
            _CallFunction(c.name, c.arguments or "{}"),
            _extra(c.signature),
        )
        for i, c in enumerate(choice.tool_calls)
    )
    message = _Message(
        role="assistant",
        content=choice.text if choice.text or not (calls or choice.refusal) else None,
        refusal=choice.refusal or None,
        tool_calls=calls or UNSET,
        reasoning_content=choice.reasoning or UNSET,
    )
    return _Choice(choice.index, message, joined_logprobs(choice.logprobs), choice.finish)


class _Logprobs(Struct, frozen=True):
    content: list[Raw] | None = None
    refusal: list[Raw] | None = None


_logprobs = msgspec.json.Decoder(_Logprobs)


def joined_logprobs(pieces: tuple[Raw, ...]) -> Raw | None:
    """The `logprobs` objects of a choice's chunks as one: their lists joined."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    content: list[Raw] = []
    refusal: list[Raw] = []
    for piece in pieces:
        found = _logprobs.decode(piece)
        content += found.content or ()
        refusal += found.refusal or ()
    return Raw(msgspec.json.encode(_Logprobs(content, refusal or None)))
