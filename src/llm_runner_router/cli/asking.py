"""Asking a model from the command line: through the running server, else in this process.

Knows: how both answer, so that `quick` and `run` need not. Does not know: what is asked or how
answers are shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, Self

import msgspec
from msgspec import Struct

from llm_runner_router.config import Config, Node
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Decision

from . import client
from .group import Place

RECORDS = 20
"""How many of the newest records are looked through for ours."""
RECORD_TRIES = 10
RECORD_PAUSE = 0.03
"""Seconds between two looks."""

Messages = Sequence[Mapping[str, str]]
Options = Mapping[str, Any]
"""`temperature`, `top_p`, `max_tokens`, `seed`, `stop`, `lora`."""


class Facts(Struct, frozen=True):
    """What is known once an answer is there."""

    target: str = ""
    reason: str = ""
    task: str | None = None
    finish: str | None = None
    cost: float | None = None
    """US dollars."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """From the question to the end."""
    first_token: float | None = None
    """Seconds from the question to the first token."""
    timings: dict[str, Any] = {}
    """llama-server's own figures, from a local model."""

    @property
    def tokens_per_second(self) -> float | None:
        """The engine's own figure, else tokens over the time since the first one."""
        own = self.timings.get("predicted_per_second")
        if isinstance(own, int | float) and own < 1e5:  # one token takes no time: not a speed
            return float(own)
        took = self.seconds - (self.first_token or 0.0)
        return self.completion_tokens / took if self.completion_tokens and took > 0 else None


class Speech(Protocol):
    """An answer as it comes; `facts` are complete after the last piece."""

    facts: Facts

    def __iter__(self) -> Iterator[str]:
        """The pieces of the text."""
        ...


class Voice(Protocol):
    """Something that answers conversations."""

    where: str
    """Words for people: the server's address, or that it is this process."""

    def ask(
        self, model: str, messages: Messages, options: Options
    ) -> AbstractContextManager[Speech]:
        """Start an answer; leaving stops it."""
        ...

    def close(self) -> None:
        """Stop everything that was started for this."""
        ...


@contextmanager
def voice(
    place: Place,
    model: str = "",
    engine: str | None = None,
    adapters: Mapping[str, str] | None = None,
) -> Iterator[Voice]:
    """The running server if there is one, else the models in this process.

    Args:
        model, engine: if an engine is named, this model runs on it, in this process.
        adapters: LoRA adapters by name, which are loaded with `model`, in this process, too.

    Raises:
        ConfigError: the configuration cannot be used.
        Unavailable: a server was named and does not answer.
    """
    own = engine is not None or bool(adapters)
    found = None if own else client.running(place)
    speaking: Voice = Remote(found) if found else Local(_on(load(place), model, engine, adapters))
    try:
        yield speaking
    finally:
        speaking.close()


def load(place: Place) -> Config:
    """The configuration, for verbs that work without a server."""
    from llm_runner_router import config_load

    return config_load.load(place.config, os.environ, {})


def _on(
    config: Config, model: str, engine: str | None, adapters: Mapping[str, str] | None
) -> Config:
    """`config`, with `model` on `engine`, and with `adapters`."""
    if engine is None and not adapters:
        return config
    entry = config.models.get(model, model)
    node = Node(target=entry) if isinstance(entry, str) else entry
    node = msgspec.structs.replace(
        node, engine=engine or node.engine, adapters={**node.adapters, **(adapters or {})}
    )
    return msgspec.structs.replace(config, models={**config.models, model: node})


class _Clock:
    """Seconds since the question, and to the first token."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.first: float | None = None

    def piece(self) -> None:
        if self.first is None:
            self.first = self.seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began


class Remote:
    """Answers of the running server."""

    def __init__(self, server: client.Client) -> None:
        self._server = server
        self.where = server.url

    @contextmanager
    def ask(self, model: str, messages: Messages, options: Options) -> Iterator[Speech]:
        """See `Voice.ask`."""
        body = {
            "model": model,
            "messages": list(messages),
            **options,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        clock = _Clock()
        with self._server.stream("/v1/chat/completions", body) as (headers, events):
            yield _RemoteSpeech(headers, events, clock, self._cost)

    def _cost(self, request_id: str) -> float | None:
        """US dollars of a streamed answer: its head goes out before anyone knows the cost.

        The record is written when the answer is over, which may be a moment after its last event.
        """
        for _ in range(RECORD_TRIES):
            try:
                records = self._server.get(f"/llmrr/records?limit={RECORDS}")
            except RunnerError:
                return None  # the answer is there; what it cost is not worth an error
            for record in records:
                if record.get("id") == request_id:
                    cost = record.get("cost")
                    return float(cost) if cost is not None else None
            time.sleep(RECORD_PAUSE)
        return None

    def close(self) -> None:
        """Nothing is kept open."""


class _RemoteSpeech:
    def __init__(
        self,
        headers: Mapping[str, str],
        events: Iterator[Any],
        clock: _Clock,
        cost: Callable[[str], float | None],
    ) -> None:
        self._id = headers.get("x-request-id", "")
        self._cost = cost
        self.facts = Facts(
            target=headers.get("x-llmrr-target", ""),
            reason=headers.get("x-llmrr-reason", ""),
            task=headers.get("x-llmrr-task"),
        )
        self._events = events
        self._clock = clock

    def __iter__(self) -> Iterator[str]:
        found: dict[str, Any] = {}
        for event in self._events:
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                text = delta.get("content")
                if choice.get("finish_reason"):
                    found["finish"] = choice["finish_reason"]
                if text:
                    self._clock.piece()
                    yield text
            usage = event.get("usage") or {}
            for name in ("prompt_tokens", "completion_tokens"):
                if name in usage:
                    found[name] = usage[name]
            if event.get("timings"):
                found["timings"] = event["timings"]
        found |= {"seconds": self._clock.seconds, "first_token": self._clock.first}
        found["cost"] = self._cost(self._id)
        self.facts = msgspec.structs.replace(self.facts, **found)


class Local:
    """Answers of models in this process; nothing is left running after `close`."""

    where = "this process"

    def __init__(self, config: Config) -> None:
        from llm_runner_router.sync import SyncLLMRouter

        self._router = SyncLLMRouter(config=config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def ask(self, model: str, messages: Messages, options: Options) -> Iterator[Speech]:
        """See `Voice.ask`."""
        clock = _Clock()
        with self._router.stream(list(messages), model=model, **options) as stream:
            yield _LocalSpeech(stream, clock)

    def explain(self, model: str, messages: Messages, options: Options) -> Decision | None:
        """Who would answer and why; None: there is no choice."""
        return self._router.explain(list(messages), model=model, **options)

    def close(self) -> None:
        """Stop the runners and the loop."""
        self._router.close()


class _LocalSpeech:
    def __init__(self, stream: Any, clock: _Clock) -> None:
        self.facts = Facts()
        self._stream = stream
        self._clock = clock

    def __iter__(self) -> Iterator[str]:
        for text in self._stream:
            self._clock.piece()
            yield text
        reply = self._stream.reply
        timings = reply.answer.timings
        self.facts = Facts(
            target=reply.model,
            reason=reply.reason,
            task=next((d.task for d in reply.decisions if d.task), None),
            finish=reply.finish,
            cost=reply.cost,
            prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
            completion_tokens=reply.usage.completion_tokens if reply.usage else 0,
            seconds=self._clock.seconds,
            first_token=self._clock.first,
            timings=msgspec.json.decode(timings) if timings is not None else {},
        )
