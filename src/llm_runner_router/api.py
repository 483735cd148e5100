"""The library: `LLMRouter` and `Model`, a friendly face over an `App`.

Knows: prompts, messages, strategies by name, and when to close what it opened. Does not know:
how anything is routed or run (`app.py` builds that). `sync.py` offers the same without `async`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from time import monotonic
from typing import Any, Literal, Self, Unpack, overload

import msgspec

from . import refs
from .api_reply import Reply, Stream, ask
from .api_request import Messages, Options, as_request
from .app import App
from .config import Auto, Config, Node, Objective
from .errors import BadRequest, ConfigError
from .models.resolve import ensure
from .policy.cache import AnswerCache
from .types import Decision, EmbedRequest, Ranked, Request, RerankRequest

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

_ROUTER = "<router>"  # name of the entry that stands for a router's own strategy


class LLMRouter:
    """Routes prompts among models. `async with` it, or `await router.close()` when done.

    Args:
        models: references (`zoo:tiny-math`, `openai/gpt-4o-mini`, `./a.gguf`), or a mapping of
            name to reference or `Node`. None means what the configuration serves.
        strategy: one of `STRATEGIES`, or `fallback` (in the given order) or `race`.
        config: a whole `Config`; `models` is added to it. None reads what `llmrr serve` would read:
            `LLMRR_CONFIG`, `./llmrr.yaml`, the data folder, the environment.
        answers: where answers asked for with `cache=True` are kept; default is a cache of its own.

    Raises:
        ConfigError: a reference or a strategy cannot be used.
    """

    def __init__(
        self,
        models: Sequence[str] | Mapping[str, str | Node] | None = None,
        strategy: str = "balanced",
        *,
        config: Config | None = None,
        answers: AnswerCache | None = None,
    ) -> None:
        config, self._default = _with_router(_configured(config), models, strategy)
        self._app = App(config, local_files=True, answers=answers)
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

    async def rerank(
        self, query: str, documents: Sequence[str], *, model: str, top_n: int | None = None
    ) -> list[Ranked]:
        """The documents by how well each answers the query: the best first, all or `top_n`."""
        await self._app.start()
        return await _rerank(self._app, model, query, documents, top_n)

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
        return await ask(self._app, request)

    # -------------------------------------------------------------- one call, nothing kept

    @staticmethod
    async def quick(
        prompt: str, *, config: Config | None = None, **options: Unpack[Options]
    ) -> Reply:
        """Answer one prompt with whatever fits it best, and leave nothing running."""
        async with LLMRouter(config=config) as router:
            return await router.complete(prompt, **options)

    @overload
    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: Literal[False] = False,
        config: Config | None = ...,
        **options: Unpack[Options],
    ) -> Reply: ...

    @overload
    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: Literal[True],
        config: Config | None = ...,
        **options: Unpack[Options],
    ) -> Stream: ...

    @staticmethod
    async def advanced(
        *,
        prompt: str | Messages,
        stream: bool = False,
        config: Config | None = None,
        **options: Unpack[Options],
    ) -> Reply | Stream:
        """Answer with everything said: model, sampling, fallbacks, tools, cache, streaming.

        With `stream=True` the result is a `Stream` that closes everything at its end; leave it
        early through `async with` or `aclose()`. With `cache=True` an equal earlier answer of
        `advanced` in this process, under an equal configuration, may be given again.
        """
        config = _configured(config)
        owned = AsyncExitStack()
        made = LLMRouter(config=config, answers=_answers(msgspec.json.encode(config)))
        router = await owned.enter_async_context(made)
        try:
            request = as_request(prompt, router._default, **options)
            if stream:
                asked = msgspec.structs.replace(request, stream=True)
                return Stream(router._app, asked, owned.pop_all())
            return await router._answer(request)
        finally:
            await owned.aclose()

    @staticmethod
    async def load(
        source: str,
        *,
        format: str = "auto",
        quantization: str | None = None,
        engine: str | None = None,
        adapters: Mapping[str, str] | None = None,
        config: Config | None = None,
    ) -> Model:
        """Load one model and keep it until `unload()`.

        A reference to something that can be downloaded (`hf:…`, `ollama:…`, `https://…`, `s3://…`)
        and is not on this machine is brought here first. What no engine runs as it is is converted.

        Args:
            source: a reference, a file or a folder.
            format: the name of a format to read it as; `auto` tells by its content.
            quantization: the mix of its weights that is wanted, for example `q4_k_m`; `dynamic` is
                the best for this machine. Until it is made, the model answers as it is.
            engine: the engine that must run it; default is the best that can.
            adapters: LoRA adapters by names of yours, each a file, a folder of PEFT's or a
                reference; a request takes those of its option `lora`. They work on `llamacpp`.
            config: everything else; default is what `llmrr serve` would read here.

        Raises:
            UnknownModel, ModelFileError, LoadFailed: with the file, the reason, the next step.
            Unsupported: there is no such quantisation, or the weights are quantised already.
            NotFound, UpstreamError, Unavailable: it could not be brought here.
        """
        adapters = dict(adapters or {})
        for one in (source, *adapters.values()):
            await ensure(one)
        config, name = _configured(config), source
        wanted = [word for word in (quantization, engine, *adapters) if word]
        wanted += [format] * (format != "auto")
        if wanted:
            # A name of its own: beside it, the same source may be loaded as it is.
            name = f"{source} ({', '.join(wanted)})"
            node = Node(
                target=source,
                format=format,
                quantization=quantization,
                engine=engine,
                adapters=adapters,
            )
            config = msgspec.structs.replace(config, models={**config.models, name: node})
        app = App(config, local_files=True)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(app.close)
            await app.start()
            await app.load(name, pin=True)
            return Model(app, name, stack.pop_all())
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
        return await ask(self._app, as_request(messages, self.name, **options))

    async def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One vector per text."""
        request = EmbedRequest(model=self.name, inputs=tuple(texts))
        result = await self._app.embedder(self.name).embed(request, self._app.start_call())
        return list(result.vectors)

    async def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> list[Ranked]:
        """The documents by how well each answers the query: the best first, all or `top_n`."""
        return await _rerank(self._app, self.name, query, documents, top_n)

    async def unload(self) -> None:
        """Give the memory back; safe to call more than once."""
        owned, self._owned = self._owned, None
        if owned is not None:
            await owned.aclose()
        else:
            await self._app.admin.stop(self.name)


async def _rerank(
    app: App, model: str, query: str, documents: Sequence[str], top_n: int | None
) -> list[Ranked]:
    if isinstance(documents, str):
        raise BadRequest("`documents` is one text, not a list of texts", param="documents")
    if top_n is not None and top_n < 1:
        raise BadRequest(f"`top_n` is {top_n}, not at least 1", param="top_n")
    request = RerankRequest(model, query, tuple(documents), top_n)
    result = await app.reranker(model).rerank(request, app.start_call())
    return list(result.results)


@lru_cache(maxsize=8)
def _answers(config: bytes) -> AnswerCache:
    """The answers that calls with one configuration share, though each makes its own router."""
    return AnswerCache(monotonic)


def _with_router(
    config: Config, models: Sequence[str] | Mapping[str, str | Node] | None, strategy: str
) -> tuple[Config, str]:
    """The config with an entry for the router's own strategy, and that entry's name."""
    named = _named(models)
    options = tuple(named)
    if strategy in ("fallback", "race"):
        if not options:
            raise ConfigError(f"strategy {strategy!r} needs `models`")
        node = Node(fallback=options) if strategy == "fallback" else Node(race=options)
    elif strategy in STRATEGIES:
        node = Node(auto=Auto(objective=STRATEGIES[strategy], models=options))
    else:
        known = ", ".join([*STRATEGIES, "fallback", "race"])
        raise ConfigError(f"unknown strategy {strategy!r}", hint=f"one of: {known}")
    entries: dict[str, Any] = {**config.models, **named, _ROUTER: node}
    return msgspec.structs.replace(config, models=entries), _ROUTER


def _named(models: Sequence[str] | Mapping[str, str | Node] | None) -> dict[str, str | Node]:
    if models is None:
        return {}
    if isinstance(models, str) or not models:
        raise ConfigError(
            f"`models` is {models!r}", hint='a list of references, for example ["zoo:tiny-math"]'
        )
    found: dict[str, str | Node]
    found = dict(models) if isinstance(models, Mapping) else {r: Node(target=r) for r in models}
    for name, node in found.items():
        target = node if isinstance(node, str) else node.target
        if target is not None:
            try:
                refs.parse(target)
            except BadRequest as error:
                raise ConfigError(f"model `{name}`: {error.message}", hint=error.hint) from error
    return found


def _configured(config: Config | None) -> Config:
    """`config`, else what `llmrr serve` would read here: a file, the environment, or nothing."""
    if config is not None:
        return config
    from . import config_load  # YAML is read only where there may be a file

    return config_load.load(None, os.environ, {})
