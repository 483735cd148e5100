"""What a dialect is: how to ask an upstream of some kind, and how to read what it answers. Pure.

Knows: the contract, and how it is noted what became of a request's parameters. Does not know: any
dialect, sockets, keys.

A request of the same dialect as the upstream's goes out as it came (`RequestWire`), and its answer
comes back as it is (`Wire`). Everything else is written from the parsed form; what the upstream
cannot do is noted in a `Receipt`, never left out in silence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadResponse, RunnerError, Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.types import (
    Delta,
    Embeddings,
    EmbedRequest,
    Mark,
    Request,
    TokenizeRequest,
)

Header = Callable[[str], str | None]
"""Looks up a response header, whatever its case."""

MAX_TOKENS = 4096
"""The limit on an answer for upstreams that want one, where the model's own is not known."""


class Quirks(Struct, frozen=True):
    """How a host differs from the reference of its dialect."""

    max_tokens: Literal["max_tokens", "max_completion_tokens"] | None = None
    """OpenAI: the only name it takes for the limit; None: it takes the one the client used."""
    stream_options: bool = True
    """OpenAI: it knows `stream_options.include_usage`; without it accounts of streams are
    estimates."""
    drop: tuple[str, ...] = ()
    """Fields it answers with an error."""
    top_k: bool = False
    """OpenAI: it takes `top_k`, which is not in the reference."""
    signatures: bool = False
    """OpenAI: it signs calls in `extra_content.google`, and wants that back."""
    json_schema: bool = True
    """Gemini: it takes JSON Schemas; without it they are written as Google's own."""
    max_output: int = 0
    """Tokens that the model can write at most, 0 = unknown."""


PLAIN = Quirks()


class WireRequest(Struct, frozen=True):
    """A request, ready to be sent."""

    path: str
    """Below the base URL."""
    body: bytes
    dialect: str = ""
    """The dialect of the answer, as `Wire.dialect` names it."""
    headers: tuple[tuple[str, str], ...] = ()
    """Beyond those of the account."""


_numbers = msgspec.json.Decoder(dict[str, Raw])
_number = msgspec.json.Decoder(int)


def number(body: bytes, name: str) -> int:
    """The number that is called `name` in a body.

    Raises:
        BadResponse: there is none.
    """
    try:
        return _number.decode(_numbers.decode(body)[name])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError):
        raise BadResponse(f"an answer without `{name}`") from None


class Events(Protocol):
    """Reads the payloads of one answer's stream, in order."""

    done: bool
    """The upstream said that the stream is over; nothing after it counts."""

    def feed(self, payload: bytes) -> tuple[Delta, ...]:
        """The deltas of one payload. A payload that raises has changed nothing.

        Raises:
            BadResponse: not what the dialect allows; may be skipped.
            RunnerError: it is an error.
        """
        ...


class Framing(Protocol):
    """Cuts the bytes of a stream into payloads."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The payloads that `chunk` completes, in order.

        Raises:
            BadResponse: the bytes are no such stream, or a payload is too long.
        """
        ...

    def end(self) -> list[bytes]:
        """What is left when the bytes are over."""
        ...


class Dialect(ABC):
    """How one kind of upstream is talked to. Without state: one object serves all targets."""

    name: ClassVar[str]
    """As `dialect` in `hosts.toml` names it."""
    accept: ClassVar[str] = "text/event-stream"
    """The media type of a stream."""
    embed_tasks: ClassVar[bool] = False
    """It can be told what vectors are for (`EmbedRequest.task`)."""
    most_inputs: ClassVar[int] = 0
    """Inputs of one request for vectors; more are asked for in several. 0: as many as there are."""

    @abstractmethod
    def build(self, request: Request, model: str, quirks: Quirks, receipt: Receipt) -> WireRequest:
        """`request` for an upstream that calls the model `model`.

        Raises:
            Unsupported: it cannot be asked at all there; `param` says what is in the way.
        """

    @abstractmethod
    def events(self, wire: WireRequest) -> Events:
        """A reader for the stream that answers `wire`."""

    def framing(self) -> Framing:
        """What cuts a stream of this dialect into payloads: server-sent events."""
        return SSEParser()

    @abstractmethod
    def parse_body(self, body: bytes, wire: WireRequest) -> tuple[Delta, ...]:
        """The deltas of a whole answer, one or more per choice; the first carries it as `Wire`.

        Raises:
            BadResponse: not an answer.
            RunnerError: an error although the status said otherwise.
        """

    @abstractmethod
    def parse_error(self, status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
        """The error that a response of `status` (not 200) means; `now`: seconds since 1970."""

    def build_count(self, request: TokenizeRequest, model: str, receipt: Receipt) -> WireRequest:
        """A request for the number of tokens of a prompt.

        Raises:
            Unsupported: hosts of this dialect do not tell it.
        """
        raise Unsupported(f"hosts of the dialect `{self.name}` count no tokens", param="model")

    def parse_count(self, body: bytes) -> int:
        """The number that a host told.

        Raises:
            BadResponse: not that.
        """
        raise AssertionError("`build_count` has refused to ask")

    def build_embed(self, request: EmbedRequest, model: str) -> WireRequest:
        """A request for embeddings.

        Raises:
            Unsupported: this dialect has none.
        """
        raise Unsupported(f"hosts of the dialect `{self.name}` give no embeddings", param="model")

    def embed_marks(self, request: EmbedRequest) -> dict[str, Mark]:
        """What became of the parameters of a request for vectors."""
        if request.task is None or self.embed_tasks:
            return {}
        return {"taskType": Mark("dropped", "vectors are the same there whatever they are for")}

    def parse_embed(self, body: bytes, count: int) -> Embeddings:
        """The vectors of `count` inputs.

        Raises:
            BadResponse: not that.
        """
        raise AssertionError("`build_embed` has refused to ask")
