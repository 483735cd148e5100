"""The one frozen `Config`: its shape, its defaults, and nothing of how it is read.

Knows: every setting, its type, default and meaning (the docstrings here become the reference).
Does not know: files, environment, flags (`config_load.py`), or what a setting builds (`app.py`).

A model entry has the shape of the target tree it becomes:
`smart: {fallback: ["openai/gpt-4o-mini", {race: ["zoo:tiny-chat", "zoo:tiny-general"]}]}`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from .types import Capabilities, Price

Objective = Literal["balanced", "quality", "cost", "speed", "random", "round-robin", "least-loaded"]
Seconds = Annotated[float, Meta(ge=0, extra_json_schema={"x-unit": "seconds"})]
"""Seconds as a number, or text such as `90s`, `5m`, `1h30m` (`config_load.py` reads it)."""
Bytes = Annotated[int, Meta(extra_json_schema={"x-unit": "bytes"})]
"""Bytes as a number, or text such as `4GiB`, `500 MB` (`config_load.py` reads it)."""


class Secret:
    """A value that never shows itself: `repr`, `str` and format give `***`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)


class Server(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the server listens and what it bounds."""

    host: str = "127.0.0.1"
    """Address to bind. Anything but loopback needs a key set by `LLMRR_API_KEY` or the key file."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 4000
    """TCP port; 0 picks a free one and prints it."""
    max_body: Annotated[Bytes, Meta(ge=1024)] = 32 * 1024 * 1024
    """Largest request body in bytes; larger ones get 413."""
    max_requests: Annotated[int, Meta(ge=1)] = 1024
    """Requests in work at once; more get 503 with Retry-After."""
    drain: Seconds = 30.0
    """Seconds that running answers get to finish after SIGTERM."""
    keep_alive_comment: Seconds = 15.0
    """Seconds of silence on a stream after which an SSE comment is sent; 0 turns it off."""
    litellm_headers: bool = False
    """Send LiteLLM's headers (`x-litellm-…`) with every answer; else only to who sends such ones.
    A LiteLLM file turns it on."""


class Provider(Struct, frozen=True, forbid_unknown_fields=True):
    """An account at a remote host: a row of `hosts.toml`, or any OpenAI-compatible base URL."""

    host: str | None = None
    """Row of `hosts.toml`; default is the provider's own name."""
    base_url: str | None = None
    """URL up to and including the version, for example `http://127.0.0.1:8000/v1`."""
    api_key: str | None = None
    """`${NAME}` or `os.environ/NAME`; read when the server starts, never stored or logged."""
    headers: dict[str, str] = {}
    """Extra request headers; values may be `${NAME}`."""
    connect_timeout: Seconds = 10.0
    """Seconds to reach the host."""
    first_token_timeout: Seconds = 60.0
    """Seconds of silence before the first byte of an answer."""
    idle_timeout: Seconds = 60.0
    """Seconds of silence inside a stream."""


class Auto(Struct, frozen=True, forbid_unknown_fields=True):
    """A virtual model that chooses among others for each request."""

    objective: Objective = "balanced"
    """What to prefer once the hard constraints hold."""
    models: tuple[str, ...] = ()
    """Names to choose from; empty means every model that is not virtual."""


class Adopt(Struct, frozen=True, forbid_unknown_fields=True):
    """A server of somebody else's that runs a model: started by us, or already running."""

    command: tuple[str, ...] = ()
    """Program and arguments to start; `{port}` in them is a free port. Empty: it runs already."""
    url: str | None = None
    """Its API, up to and including the version; default `http://127.0.0.1:{port}/v1`."""
    health: str = "/health"
    """Page that says 200 when it is ready."""
    model: str | None = None
    """The model's name there; default is the first that it lists."""
    api_key: str | None = None
    """`${NAME}` or `os.environ/NAME`; read when the server starts."""
    env: dict[str, str] = {}
    """Further environment variables for the command; values may be `${NAME}`."""
    memory: Annotated[Bytes, Meta(ge=0)] | None = None
    """Bytes it counts for in `engine.memory`; unset is none."""


class Node(Struct, frozen=True, forbid_unknown_fields=True):
    """A model entry: exactly one of `target`, `adopt`, `fallback`, `race`, `weighted`, `auto`.

    The facts below override what is known of a `target` (its card).
    """

    target: str | None = None
    """A reference: `zoo:tiny-chat`, `file:/models/a.gguf`, `openai/gpt-4o-mini`, a model's name."""
    format: str = "auto"
    """With a `target` that is a file or folder: read it as this format, whatever it looks like."""
    quantization: str | None = None
    """With a `target` that is a local model: the mix of its weights that is wanted, for example
    `q4_k_m`, or `dynamic` for the best on this machine. Until it is made, the model answers as it
    is."""
    engine: str | None = None
    """With a `target` that is a local model: the engine that must run it."""
    draft: str | None = None
    """With a `target` that is a local model: a small local model with the same tokenizer that
    guesses ahead for it, while that is measured to pay (`engine.speculate`)."""
    adapters: dict[str, str] = {}
    """With a `target` that is a local model: LoRA adapters by a name of yours, each a GGUF file, a
    folder of PEFT's or a reference to one. `NAME+ADAPTER` asks for one of them, `lora` in a request
    for any of them. They work on `llamacpp`, which is the engine then."""
    options: dict[str, str | int | float | bool | dict[str, str]] = {}
    """With `engine`: what to tell it, for example `dtype: bfloat16` for `torch`."""
    chat_template: str | None = None
    """With a `target` that is a local model: a chat template in place of its own, as the path of a
    Jinja file or as the text itself."""
    adopt: Adopt | None = None
    """A server of somebody else's, run like a local model."""
    fallback: tuple[str | Node, ...] = ()
    """Targets in order; the next is tried when one fails before its first token."""
    race: tuple[str | Node, ...] = ()
    """Targets started together; the first to give a token answers, the others are cancelled."""
    weighted: dict[str, Annotated[float, Meta(ge=0)]] = {}
    """Target to weight; a share of the requests goes to each."""
    auto: Auto | None = None
    """Choose per request."""
    sticky: Literal["session", "user", "key"] | None = None
    """With `weighted`: keep the same target for the same session, user or key."""
    aliases: tuple[str, ...] = ()
    """Further names for this entry."""
    price: Price | None = None
    """US dollars per million tokens."""
    context: Annotated[int, Meta(ge=1)] | None = None
    """Context in tokens."""
    capabilities: Capabilities | None = None
    """Hard abilities."""
    scores: dict[str, float] = {}
    """Share of right answers per task, 0…1."""
    speed: float | None = None
    """Decode tokens per second."""


class ModelGroup(Struct, frozen=True, forbid_unknown_fields=True):
    """Local models of which only some may be loaded at the same time."""

    models: tuple[str, ...]
    """Their references, as in `engine.pin`."""
    at_once: Annotated[int, Meta(ge=1)] = 1
    """How many of them may be loaded at once; 1: they exclude each other."""


class Engine(Struct, frozen=True, forbid_unknown_fields=True):
    """How local models run."""

    memory: Annotated[Bytes, Meta(ge=0)] | None = None
    """Bytes that all loaded models may take together; default half of what the machine has."""
    keep_alive: Seconds = 300.0
    """Seconds an idle model stays loaded; 0 unloads at once. Pinned models stay."""
    pin: tuple[str, ...] = ()
    """Models loaded at start and never evicted."""
    groups: dict[str, ModelGroup] = {}
    """Models of which only some may be loaded at the same time, by a name of yours."""
    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    """Requests one model answers at the same time; more wait in its queue."""
    max_queue: Annotated[int, Meta(ge=0)] = 64
    """Requests that may wait per model; more get 503 with Retry-After."""
    queue_timeout: Seconds = 60.0
    """Seconds a request may wait for a free slot or a loading model."""
    load_timeout: Seconds = 120.0
    """Seconds a model may take to load."""
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    """Threads per runner; default is chosen from the machine, its quota and its load."""
    wait_policy: Literal["auto", "spin", "short", "passive"] = "auto"
    """How idle threads wait: spin, spin for a short while, or sleep at once."""
    context: Annotated[int, Meta(ge=1)] | None = None
    """Context in tokens per request; default is what the model was trained for."""
    kv_type: Literal["f16", "q8_0"] = "f16"
    """How keys and values are kept: `q8_0` takes half the memory and rounds them to 8 bits."""
    conversions: Annotated[int, Meta(ge=1, le=64)] = 1
    """Models that are converted at the same time; each takes all cores it can get, more wait."""
    speculate: Literal["auto", "ngram", "draft", "off"] = "auto"
    """Guess tokens ahead, with a model's `draft` or from the text's own n-grams: where that was
    measured to pay, always from n-grams, always with the draft (if there is one), or never."""
    saved_prompts: Annotated[Bytes, Meta(ge=0)] = 1 << 30
    """Bytes on disk for prompts already computed by models that were unloaded, so that their next
    load need not compute them again; 0 keeps none. They are deleted when the server ends."""
    spare: bool = True
    """Keep one started, empty runner process ready, so that a load starts at once."""


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """The record of requests."""

    enabled: bool = True
    """Write one JSON line per request to `records/` in the data folder."""
    content: bool = False
    """Also keep prompts and answers. Off: only names, numbers and reasons are kept."""
    keep_days: Annotated[int, Meta(ge=1)] = 30
    """Days after which a record file is deleted."""


class Responses(Struct, frozen=True, forbid_unknown_fields=True):
    """Answers of OpenAI's Responses API that clients come back to (`previous_response_id`)."""

    enabled: bool = True
    """Keep them in `responses.sqlite` in the data folder, unless a request says `store: false`."""
    keep: Seconds = 30 * 86_400.0
    """Seconds after which one is forgotten."""
    limit: Annotated[Bytes, Meta(ge=1 << 20)] = 1 << 30
    """Bytes of all of them; the oldest are forgotten first."""


class Files(Struct, frozen=True, forbid_unknown_fields=True):
    """Files that clients put here for later, by OpenAI's files API."""

    enabled: bool = True
    """Keep them in `files/` in the data folder."""
    keep: Seconds = 30 * 86_400.0
    """Seconds after which one is deleted, unless it was made with a time of its own; 0 keeps it."""
    max_size: Annotated[Bytes, Meta(ge=1024)] = 200 << 20
    """Bytes of one file; larger ones get 413."""
    max_count: Annotated[int, Meta(ge=1)] = 10_000
    """Files of all keys; more are refused until some are deleted."""
    limit: Annotated[Bytes, Meta(ge=1 << 20)] = 4 << 30
    """Bytes of all of them; more are refused until some are deleted."""


class Batches(Struct, frozen=True, forbid_unknown_fields=True):
    """Batches of OpenAI's API: files of requests that are answered when nobody else waits."""

    enabled: bool = True
    """Run them. They need `files.enabled`."""
    parallel: Annotated[int, Meta(ge=1, le=256)] = 4
    """Requests of all batches in work at once; a local model answers one of them at a time."""
    max_lines: Annotated[int, Meta(ge=1)] = 50_000
    """Requests of one batch."""
    attempts: Annotated[int, Meta(ge=1, le=100)] = 5
    """How often a request is asked that fails where asking again may help."""


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set. No file at all means: serve the zoo and `auto`."""

    server: Server = Server()
    """The HTTP server."""
    providers: dict[str, Provider] = {}
    """Remote accounts by name."""
    models: dict[str, str | Node] = {}
    """Models by the name clients use; a plain string is a reference."""
    zoo: bool = True
    """Serve the built-in demonstration models."""
    engine: Engine = Engine()
    """Local models."""
    record: Record = Record()
    """The record of requests."""
    responses: Responses = Responses()
    """Answers that clients come back to."""
    files: Files = Files()
    """Files of clients."""
    batches: Batches = Batches()
    """Files of requests."""
    deadline: Seconds = 600.0
    """Seconds a request may take in all; a client may ask for less with `x-llmrr-timeout`."""
    aliases: dict[str, str] = {}
    """Further names: alias to model name."""
