"""The values that travel through the product, and the two protocols that answer them.

Knows: requests, messages, deltas, usage, model cards, calls. Does not know: any wire format,
any transport, any engine. Every value is a frozen `msgspec.Struct`; a surface decodes bytes into
a `Request` once, a `Target` answers it with `Delta`s, a surface encodes those once.

The one mutable thing is `Trace`, the notebook a request carries along.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, runtime_checkable

import msgspec
from msgspec import Raw, Struct

from .parts import GOOGLE as GOOGLE
from .parts import OPENAI as OPENAI
from .parts import SIGNERS as SIGNERS
from .parts import AudioPart as AudioPart
from .parts import FileData as FileData
from .parts import FilePart as FilePart
from .parts import ForeignPart as ForeignPart
from .parts import ImagePart as ImagePart
from .parts import ImageURL as ImageURL
from .parts import InputAudio as InputAudio
from .parts import Message as Message
from .parts import Part as Part
from .parts import RedactedPart as RedactedPart
from .parts import RefusalPart as RefusalPart
from .parts import Role as Role
from .parts import TextPart as TextPart
from .parts import ThinkingPart as ThinkingPart
from .parts import Tool as Tool
from .parts import ToolCall as ToolCall

Finish = Literal["stop", "length", "tool_calls", "content_filter", "error"]
Modality = Literal["text", "image", "audio"]
Task = str
"""A kind of work, for example `arithmetic` or `tool_call`; the keys of `ModelCard.scores`."""


# ---------------------------------------------------------------- what is asked


class ResponseFormat(Struct, frozen=True):
    """What shape the answer must have. `schema` is a JSON Schema, kept as it came."""

    type: Literal["text", "json_object", "json_schema"]
    schema: Raw | None = None
    name: str | None = None
    strict: bool | None = None


class Sampling(Struct, frozen=True):
    """How to draw the answer. None means the target's own default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int | None = None
    top_k: int | None = None


class Reasoning(Struct, frozen=True):
    """How much a model is to think before it answers."""

    effort: str | None = None
    """`none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`; None: the model's default."""
    budget: int | None = None
    """Tokens to think at most; 0 for none."""
    shown: bool | None = None
    """Whether the thoughts, or a summary of them, are part of the answer."""


class RequestWire(Struct, frozen=True):
    """The request as the client sent it: top-level JSON fields with untouched values.

    A target of the same dialect forwards these bytes and replaces only what it must
    (`model`, `stream_options`), so fields nobody has modelled survive.
    """

    dialect: str
    fields: dict[str, Raw]


class Request(Struct, frozen=True, weakref=True):
    """One question to a model. Chat has `messages`; a raw completion has `prompt`.

    `model` is the name the client used; strategies pass the request on unchanged and each leaf
    target puts its own model name on the wire.
    """

    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    suffix: str | None = None
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    """`auto`, `none`, `required`, or the name of one function prefixed with `function:`."""
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    sampling: Sampling = Sampling()
    stream: bool = False
    include_usage: bool = False
    reasoning: Reasoning | None = None
    service_tier: str | None = None
    """Which queue of the provider's: `auto`, `default`, `flex`, `priority`."""
    user: str | None = None
    strict: bool = False
    """Refuse rather than leave out what a target cannot do (`Origin.fidelity`)."""
    fallbacks: tuple[str, ...] = ()
    """Model names to try, in order, when `model` cannot answer (request field `fallbacks`)."""
    cache: bool = False
    """An equal earlier answer may be given again, and this one kept for that."""
    extra: dict[str, Raw] = {}
    """Fields of the client's dialect that have no name here, by field name."""
    wire: RequestWire | None = None


class EmbedRequest(Struct, frozen=True):
    """Texts (or token-id lists) to embed."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    user: str | None = None
    task: str | None = None
    """What the vectors are for, in Google's words: `RETRIEVAL_QUERY`, `RETRIEVAL_DOCUMENT`, …"""


class RerankRequest(Struct, frozen=True):
    """A query and the documents to order by how well each answers it."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int | None = None
    """How many of the best are wanted; None is all of them."""


class TokenizeRequest(Struct, frozen=True):
    """A text, or a conversation, to cut into tokens without asking the model."""

    model: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    special: bool = False
    """Names of control tokens in `text` are read as those tokens."""
    around: bool = False
    """`text` gets the tokens around it that the model wants around a whole prompt."""
    add_generation_prompt: bool = True
    """The conversation ends where the answer begins."""


# ---------------------------------------------------------------- what is answered


class Tokenized(Struct, frozen=True):
    """Tokens of a text: ids, and the bytes of each; control tokens by their names."""

    model: str
    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]
    context: int = 0
    """Tokens that the model was made for at once; zero where its file does not say."""


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one answer. Cached and reasoning tokens are parts of the two totals."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, read from a cache."""
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt, written to a cache that has a price for it."""

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class ToolCallDelta(Struct, frozen=True):
    """A piece of a tool call: `id` and `name` come once, `arguments` in fragments to join."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str | None = None
    """Comes once; see `ToolCall`."""


class Price(Struct, frozen=True, gc=False):
    """US dollars per one million tokens. `cached` None means cached input costs like input."""

    input: float = 0.0
    """US dollars per million tokens of the prompt."""
    output: float = 0.0
    """US dollars per million tokens of the answer."""
    cached: float | None = None
    """US dollars per million prompt tokens read from a cache; default is `input`."""
    cache_write: float | None = None
    """US dollars per million prompt tokens written to a cache; default is `input`."""

    def cost(self, usage: Usage) -> float:
        """US dollars for `usage`."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_write is None else self.cache_write
        fresh = usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens
        dollars = fresh * self.input + usage.cached_tokens * cached
        dollars += usage.cache_write_tokens * written
        return (dollars + usage.completion_tokens * self.output) / 1e6


class Mark(Struct, frozen=True):
    """What became of one parameter of a request on its way to a target of another kind."""

    fate: Literal["translated", "emulated", "dropped"]
    how: str = ""
    """In words: into what, by what means, why."""


class Origin(Struct, frozen=True):
    """Who answered. A leaf target puts it on its first delta, so a race cannot mix it up."""

    target: str
    """The target's name as configured, for example `openai/gpt-4o-mini` or `zoo:tiny-math`."""
    model: str
    """The model name on the leaf's own wire."""
    local: bool = False
    price: Price | None = None
    fidelity: dict[str, Mark] = {}
    """What became of the request's parameters, by path; those not here were honoured as they
    are."""
    expected: int | None = None
    """Tokens of the prompt that a local runner was known to have before it was asked; what it then
    did not compute is `Usage.cached_tokens`."""

    def cost(self, usage: Usage | None) -> float | None:
        """US dollars; 0 for an unpriced local model, None while price or usage is not known."""
        if usage is None:
            return None
        if self.price is not None:
            return self.price.cost(usage)
        return 0.0 if self.local else None


class Wire(Struct, frozen=True):
    """What came from upstream, byte for byte, so that an equal dialect can be relayed untouched.

    `event`: the payload of one SSE event (without `data: `). `body`: a whole response; it stands
    on the first delta of a non-streamed answer and covers all its deltas.
    """

    dialect: str
    form: Literal["event", "body"]
    data: bytes


class Delta(Struct, frozen=True):
    """A piece of an answer. Every field may be empty; `index` says which of the `n` choices.

    A stream ends cleanly only if every choice had a `finish`; the end of the iterator without
    one is a broken stream, and the leaf target raises `StreamBroken` instead of ending.
    """

    index: int = 0
    role: str | None = None
    text: str = ""
    reasoning: str = ""
    signature: str = ""
    """Closes a block of reasoning: the provider's proof that the thoughts are its own."""
    redacted: str = ""
    """A whole block of reasoning that only the provider can read."""
    refusal: str = ""
    citations: tuple[Raw, ...] = ()
    """Where the text of this choice comes from, each in the form of its dialect."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    finish: Finish | None = None
    stopped_by: str | None = None
    """With `finish`: the stop sequence that ended the answer, if the target tells."""
    usage: Usage | None = None
    """Of the whole answer so far, all choices; the last one counts."""
    logprobs: Raw | None = None
    timings: Raw | None = None
    """llama-server's own `timings` object, on the last delta of a local model."""
    origin: Origin | None = None
    wire: Wire | None = None


class Embeddings(Struct, frozen=True):
    """One vector per input, in order; all of one length."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    origin: Origin | None = None


class Ranked(Struct, frozen=True, gc=False):
    """One document's place in a ranking."""

    index: int
    """Which of the request's documents, from 0."""
    score: float
    """The model's own number; greater is better. Compare scores of one model only."""


class Ranking(Struct, frozen=True):
    """The documents of a request, the best first; equal scores keep the request's order."""

    results: tuple[Ranked, ...]
    usage: Usage
    origin: Origin | None = None


# ---------------------------------------------------------------- what is known of a model


class Capabilities(Struct, frozen=True, gc=False):
    """Hard abilities; a request that needs one it lacks is not sent there."""

    tools: bool = False
    """Can call functions."""
    json: bool = False
    """Can be held to a JSON Schema."""
    images: bool = False
    """Takes images in messages."""
    audio: bool = False
    """Takes sound in messages."""
    embeddings: bool = False
    """Turns texts into vectors."""
    logprobs: bool = False
    """Can say how likely each token was."""


class ModelCard(Struct, frozen=True):
    """Facts about one model, for the router and for `show`.

    `context` is in tokens, 0 = unknown (no limit is enforced here). `scores` maps a task to the
    share of right answers, 0…1. `speed` is decode tokens per second as measured or published.
    """

    name: str
    local: bool = False
    strategy: str = ""
    """What a name that stands for several models does: `auto`, `fallback`, `race`, `weighted`."""
    description: str = ""
    context: int = 0
    max_output: int = 0
    parameters: int = 0
    price: Price | None = None
    capabilities: Capabilities = Capabilities()
    scores: dict[Task, float] = {}
    speed: float | None = None
    first_token: float | None = None
    """Typical seconds to the first token."""
    license: str = ""
    source: str = ""
    """Where these facts come from, with a date."""


# ---------------------------------------------------------------- the call and its notebook


class Outlook(Struct, frozen=True, gc=False):
    """What is known of a request at a local target before it is sent there."""

    prompt_tokens: int | None = None
    """About how many tokens the prompt has; None if the target cannot tell better than others."""
    cached_tokens: int | None = None
    """Of those, what its runner has and need not read, at least; None if that is not known."""
    reading: float | None = None
    """Tokens of a prompt that it reads in a second, as measured."""
    loading: float = 0.0
    """Seconds until its runner answers: none if it is loaded."""


class Candidate(Struct, frozen=True):
    """One option a router weighed. `rejected` is the hard constraint it failed, if any."""

    name: str
    score: float = 0.0
    quality: float | None = None
    cost: float | None = None
    """Expected US dollars for this request."""
    seconds: float | None = None
    """Expected seconds to the whole answer."""
    prompt_tokens: int | None = None
    """About how many tokens the prompt has there, where `cached_tokens` is known."""
    cached_tokens: int | None = None
    """Tokens of the prompt that its runner has and need not read, at least."""
    rejected: str | None = None


class Decision(Struct, frozen=True):
    """Which target a strategy chose and why, in words for people and numbers for tests."""

    strategy: str
    chosen: str
    reason: str
    task: Task | None = None
    confidence: float | None = None
    candidates: tuple[Candidate, ...] = ()


class Attempt(Struct, frozen=True):
    """One try at one leaf target. Times are seconds since the call started."""

    target: str
    started: float
    ended: float
    outcome: str
    """`ok`, `cancelled`, or the class name of the error."""
    message: str = ""


class Trace:
    """What happened to one call: decisions and attempts, appended as they happen."""

    __slots__ = ("attempts", "decisions", "notes")

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.attempts: list[Attempt] = []
        self.notes: dict[str, str] = {}
        """Short facts for response headers, by name without the `x-llmrr-` prefix."""


class Call(Struct, frozen=True):
    """Everything about a request that is not the question: who, until when, and the notebook.

    `started` and `deadline` are instants of the clock given to the app (monotonic seconds).
    """

    id: str
    started: float
    deadline: float | None = None
    caller: str | None = None
    """Name of the key that was used, never the key."""
    session: str | None = None
    """What stickiness hangs on: a session header, else the user field."""
    traceparent: str | None = None
    trace: Trace = msgspec.field(default_factory=Trace)
    low: bool = False
    """Nobody waits for the answer: at a local model those who do go first."""


# ---------------------------------------------------------------- the protocols


@runtime_checkable
class Target(Protocol):
    """Anything that can answer a Request: a local engine, a remote provider, a strategy, a policy.

    Entering `open()` starts the work and leaving it stops the work, however it is left. Errors
    are `errors.RunnerError`s, raised on entering or while iterating.
    """

    @property
    def name(self) -> str:
        """The target's name, unique in an app."""
        ...

    def open(
        self, request: Request, call: Call
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """Start answering `request`; the manager gives the deltas."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors."""

    @property
    def name(self) -> str:
        """The embedder's name, unique in an app."""
        ...

    async def embed(self, request: EmbedRequest, call: Call) -> Embeddings:
        """Embed every input of `request`."""
        ...


@runtime_checkable
class Reranker(Protocol):
    """Anything that orders documents by how well they answer a query."""

    @property
    def name(self) -> str:
        """The reranker's name, unique in an app."""
        ...

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """Order the documents of `request`: the best first, at most `top_n` of them."""
        ...


@runtime_checkable
class Counter(Protocol):
    """Anything that says how many tokens a prompt has."""

    async def count(self, request: TokenizeRequest, call: Call) -> int:
        """How many tokens the prompt of `request` has.

        Raises:
            Unsupported: it cannot say.
        """
        ...
