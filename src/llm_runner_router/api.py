"""The library: `LLMRouter` and `Model`, a friendly face over an `App`.

Knows: prompts, messages, strategies by name, and when to close what it opened. Does not know:
how anything is routed or run (`app.py` builds that). `sync.py` offers the same without `async`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload

import msgspec
from msgspec import Struct

from .api_request import Messages, Options, as_request
from .app import App
from .config import Auto, Config, Node, Objective
from .deltas import Answer, Collector, collect
from .errors import BadRequest
from .types import Decision, Delta, EmbedRequest, Origin, Request, ToolCall, Trace, Usage

STRATEGIES: dict[str, Objective] = {
    "balanced": "balanced",
    "quality": "quality",
    "quality-first": "quality",
    "cost": "cost",
    "cost-optimized": "cost",
    "speed": "speed",
    "speed-priority": "speed",
    "random": "random",
    "round-robin": "round-robin",
    "least-loaded": "least-loaded",
}
"""Names a router's `strategy` may have, and the objective each stands for."""

_ROUTER = "router"  # name of the entry that stands for a router's own strategy


class Reply(Struct, frozen=True):
    """A whole answer and how it came about. `str(reply)` is the text of the first choice."""

    text: str
    model: str
    """Who answered, as configured: for example `zoo:tiny-math`."""
    finish: str | None
    tool_calls: tuple[ToolCall, ...]
    usage: Usage | None
    cost: float | None
    """US dollars; 0 for local models, None when the price or the usage is not known."""
    decisions: tuple[Decision, ...]
    """What each strategy chose and why, outermost first."""
    answer: Answer

    def __str__(self) -> str:
        return self.text

    @property
    def reason(self) -> str:
        """The last decision's reason in words; empty when nothing had to be decided."""
        return self.decisions[-1].reason if self.decisions else ""


class Stream:
    """Tokens as they come: `async for token in stream`, then `stream.reply`.

    The work starts on entering or on the first token, and stops on leaving or at the end. Without
    `async with`, a loop left early is closed by `await stream.aclose()`.
    """

    def __init__(self, app: App, request: Request, closing: AsyncExitStack | None = None) -> None:
        self._app = app
        self._request = request
        self._stack = AsyncExitStack()
        self._closing = closing
        self._deltas: AsyncIterator[Delta] | None = None
        self._collector = Collector()
        self._trace: Trace | None = None
        self._done = False

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._done:
            raise StopAsyncIteration
        try:
            if self._deltas is None:
                await self._open()
            while True:
                delta = await anext(self.deltas)
                self._collector.add(delta)
                if delta.text and delta.index == 0:
                    return delta.text
        except StopAsyncIteration:
            await self._close(None, None, None)
            raise
        except BaseException as error:
            await self._close(type(error), error, error.__traceback__)
            raise

    @property
    def deltas(self) -> AsyncIterator[Delta]:
        """The deltas themselves, for whoever needs more than text."""
        if self._deltas is None:
            raise BadRequest("the stream is not open", hint="use `async with stream:`")
        return self._deltas

    @property
    def reply(self) -> Reply:
        """What has arrived so far, added up."""
        return _reply(self._collector.answer(), self._trace or Trace())

    async def aclose(self) -> None:
        """Stop the work; safe to call at any time and more than once."""
        await self._close(None, None, None)

    async def _open(self) -> None:
        if self._done or self._deltas is not None:
            return
        await self._app.start()
        call = self._app.start_call(session=self._request.user)
        self._trace = call.trace
        target = self._app.target(self._request.model)
        self._deltas = await self._stack.enter_async_context(target.open(self._request, call))

    async def _close(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._done:
            return
        self._done = True
        try:
            await self._stack.__aexit__(kind, error, trace)
        finally:
            if self._closing is not None:
                await self._closing.aclose()


class LLMRouter:
    """Routes prompts among models. `async with` it, or `await router.close()` when done.

    Args:
        models: references (`zoo:tiny-math`, `openai/gpt-4o-mini`, `./a.gguf`), or a mapping of
            name to reference or `Node`. None means what the configuration serves.
        strategy: one of `STRATEGIES`, or `fallback` (in the given order) or `race`.
        config: a whole `Config`; `models` is added to it.

    Raises:
        ConfigError: a reference or a strategy cannot be used.
    """

    def __init__(
        self,
        models: Sequence[str] | Mapping[str, str | Node] | None = None,
        strategy: str = "balanced",
        *,
        config: Config | None = None,
    ) -> None:
        config, self._default = _with_router(config or Config(), models, strategy)
        self._app = App(config, local_files=True)
        self._owned = AsyncExitStack()
        self._owned.push_async_callback(self._app.close)

    async def __aenter__(self) -> Self:
        await self._app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop every runner and close every connection. Safe to call more than once."""
        await self._owned.aclose()

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        """Answer one prompt."""
        return await self._answer(as_request(prompt, self._default, **options))

    async def chat(self, messages: Messages, **options: Unpack[Options]) -> Reply:
        """Answer a conversation: dicts in OpenAI's shape, or `Message`s."""
        return await self._answer(as_request(messages, self._default, **options))

    def stream(self, prompt: str | Messages, **options: Unpack[Options]) -> Stream:
        """Answer a prompt or a conversation token by token."""
        request = as_request(prompt, self._default, **options)
        return Stream(self._app, msgspec.structs.replace(request, stream=True))

    async def embed(self, texts: Sequence[str], *, model: str) -> list[tuple[float, ...]]:
        """One vector per text."""
        await self._app.start()
        request = EmbedRequest(model=model, inputs=tuple(texts))
        result = await self._app.embedder(model).embed(request, self._app.start_call())
        return list(result.vectors)

    async def model(self, name: str) -> Model:
        """A loaded model of this router; `unload` leaves the router open."""
        await self._app.start()
        await self._app.admin.load(name)
        return Model(self._app, name)

    async def explain(self, prompt: str | Messages, **options: Unpack[Options]) -> Decision | None:
        """What would answer and why, without asking anyone. None: there is no choice to make."""
        await self._app.start()
        return self._app.explain(as_request(prompt, self._default, **options))

    async def _answer(self, request: Request) -> Reply:
        await self._app.start()
        return await _ask(self._app, request)

    # -------------------------------------------------------------- one call, nothing kept

    @staticmethod
    async def quick(prompt: str, **options: Unpack[Options]) -> Reply:
        """Answer one prompt with whatever fits it best, and leave nothing running."""
        async with LLMRouter() as router:
            return await router.complete(prompt, **options)

    @overload
    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Reply: ...

    @overload
    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Stream: ...

    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: bool = False,
        **options: Unpack[Options],
    ) -> Reply | Stream:
        """Answer with everything said: model, sampling, fallbacks, tools, cache, streaming.

        With `stream=True` the result is a `Stream` that closes everything at its end; leave it
        early through `async with` or `aclose()`. `cache=True` may give an equal earlier answer
        of this process again (`router.complete(…, cache=True)` does the same within a router).
        """
        owned = AsyncExitStack()
        router = await owned.enter_async_context(LLMRouter())
        try:
            request = as_request(prompt, router._default, **options)
            if stream:
                asked = msgspec.structs.replace(request, stream=True)
                return Stream(router._app, asked, owned.pop_all())
            return await router._answer(request)
        finally:
            await owned.aclose()

    @staticmethod
    async def load(source: str, *, config: Config | None = None) -> Model:
        """Load one model and keep it until `unload()`.

        Raises:
            UnknownModel, ModelFileError, LoadFailed: with the file, the reason, the next step.
        """
        app = App(config or Config(), local_files=True)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(app.close)
            await app.start()
            await app.admin.load(source)
            return Model(app, source, stack.pop_all())
        raise AssertionError("unreachable: the stack suppresses nothing")


class Model:
    """One loaded model. `async with` it, or `await model.unload()` when done."""

    def __init__(self, app: App, name: str, owned: AsyncExitStack | None = None) -> None:
        self._app = app
        self._owned = owned
        self.name = name

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.unload()

    def stream(self, prompt: str | Messages, **options: Unpack[Options]) -> Stream:
        """Answer token by token: `async for token in model.stream("…")`."""
        request = as_request(prompt, self.name, **options)
        return Stream(self._app, msgspec.structs.replace(request, stream=True))

    async def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        """Answer one prompt."""
        return await self.chat(prompt, **options)

    async def chat(self, messages: str | Messages, **options: Unpack[Options]) -> Reply:
        """Answer a conversation."""
        return await _ask(self._app, as_request(messages, self.name, **options))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One vector per text."""
        request = EmbedRequest(model=self.name, inputs=tuple(texts))
        result = await self._app.embedder(self.name).embed(request, self._app.start_call())
        return list(result.vectors)

    async def unload(self) -> None:
        """Give the memory back; safe to call more than once."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.aclose()
        else:
            await self._app.admin.stop(self.name)


async def _ask(app: App, request: Request) -> Reply:
    call = app.start_call(session=request.user)
    async with app.target(request.model).open(request, call) as deltas:
        answer = await collect(deltas)
    return _reply(answer, call.trace)


def _reply(answer: Answer, trace: Trace) -> Reply:
    first = answer.choices[0] if answer.choices else None
    origin: Origin | None = answer.origin
    return Reply(
        text=answer.text,
        model=origin.target if origin else "",
        finish=first.finish if first else None,
        tool_calls=first.tool_calls if first else (),
        usage=answer.usage,
        cost=origin.cost(answer.usage) if origin else None,
        decisions=tuple(trace.decisions),
        answer=answer,
    )


def _with_router(
    config: Config, models: Sequence[str] | Mapping[str, str | Node] | None, strategy: str
) -> tuple[Config, str]:
    """The config with an entry for the router's own strategy, and that entry's name."""
    named = _named(models)
    options = tuple(named)
    if strategy in ("fallback", "race"):
        if not options:
            raise BadRequest(f"strategy {strategy!r} needs `models`")
        node = Node(fallback=options) if strategy == "fallback" else Node(race=options)
    elif strategy in STRATEGIES:
        node = Node(auto=Auto(objective=STRATEGIES[strategy], models=options))
    else:
        known = ", ".join([*STRATEGIES, "fallback", "race"])
        raise BadRequest(f"unknown strategy {strategy!r}", hint=f"one of: {known}")
    entries: dict[str, Any] = {**config.models, **named, _ROUTER: node}
    return msgspec.structs.replace(config, models=entries), _ROUTER


def _named(models: Sequence[str] | Mapping[str, str | Node] | None) -> dict[str, str | Node]:
    if models is None:
        return {}
    if isinstance(models, Mapping):
        return dict(models)
    return {ref: Node(target=ref) for ref in models}
