"""`LLMRouter` without `async`: the same objects, driven by one event loop in one thread.

Knows: how to hand a coroutine to that loop and wait. Does not know anything else; every method
is the asynchronous one, called. Leaving `with` (or `close()`) stops the loop and its thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

from .api import LLMRouter, Model
from .api_reply import Reply, Stream
from .api_request import Messages, Options
from .config import Config, Node
from .errors import RunnerError
from .types import Decision, Ranked

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread, until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llmrr", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop; Ctrl-C here cancels it there.

        Raises:
            RunnerError: the loop is closed, or this is its own thread, which would wait for itself.
        """
        if self.closed or threading.current_thread() is self._thread:
            work.close()
            what = "is closed" if self.closed else "cannot be used from inside itself"
            raise RunnerError(f"this router {what}", hint="make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Stop the loop and join its thread; safe to call more than once."""
        if self.closed:
            return
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncStream:
    """Tokens as they come: `for token in stream`; leaving `with` early stops the work."""

    def __init__(self, loop: _Loop, stream: Stream, done: Callable[[], None] | None = None) -> None:
        self._loop = loop
        self._stream = stream
        self._finish = done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        try:
            while True:
                token = self._loop.run(_next(self._stream))
                if token is None:
                    return
                yield token
        finally:
            self.close()

    @property
    def reply(self) -> Reply:
        """What has arrived so far, added up."""
        return self._stream.reply

    def close(self) -> None:
        """Stop the work; safe to call more than once."""
        finish, self._finish = self._finish, None
        if self._loop.closed:
            return
        try:
            self._loop.run(self._stream.aclose())
        finally:
            if finish is not None:
                finish()


async def _next(stream: Stream) -> str | None:
    # StopAsyncIteration cannot travel through a future; None says the same
    return await anext(stream, None)


class SyncLLMRouter:
    """`LLMRouter` without `async`; see there for every argument and error."""

    def __init__(
        self,
        models: Sequence[str] | Mapping[str, str | Node] | None = None,
        strategy: str = "balanced",
        *,
        config: Config | None = None,
    ) -> None:
        self._router = LLMRouter(models, strategy, config=config)
        self._loop = _Loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop every runner, close every connection, end the thread. Safe to repeat."""
        if self._loop.closed:
            return
        try:
            self._loop.run(self._router.close())
        finally:
            self._loop.close()

    def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        """Answer one prompt."""
        return self._loop.run(self._router.complete(prompt, **options))

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Reply:
        """Answer a conversation."""
        return self._loop.run(self._router.chat(messages, **options))

    def stream(self, prompt: str | Messages, **options: Unpack[Options]) -> SyncStream:
        """Answer token by token."""
        return SyncStream(self._loop, self._router.stream(prompt, **options))

    def embed(self, texts: Sequence[str], *, model: str) -> list[tuple[float, ...]]:
        """One vector per text."""
        return self._loop.run(self._router.embed(texts, model=model))

    def rerank(
        self, query: str, documents: Sequence[str], *, model: str, top_n: int | None = None
    ) -> list[Ranked]:
        """The documents by how well each answers the query."""
        return self._loop.run(self._router.rerank(query, documents, model=model, top_n=top_n))

    def explain(self, prompt: str | Messages, **options: Unpack[Options]) -> Decision | None:
        """What would answer and why, without asking anyone."""
        return self._loop.run(self._router.explain(prompt, **options))

    @staticmethod
    def quick(prompt: str, *, config: Config | None = None, **options: Unpack[Options]) -> Reply:
        """Answer one prompt and leave nothing running."""
        with SyncLLMRouter(config=config) as router:
            return router.complete(prompt, **options)

    @staticmethod
    def advanced(
        *,
        prompt: str | Messages,
        stream: bool = False,
        config: Config | None = None,
        **options: Unpack[Options],
    ) -> Reply | SyncStream:
        """Answer with everything said; with `stream=True` a `SyncStream`."""
        loop = _Loop()
        try:
            if stream:
                opening = LLMRouter.advanced(prompt=prompt, stream=True, config=config, **options)
                return SyncStream(loop, loop.run(opening), loop.close)
            reply = loop.run(LLMRouter.advanced(prompt=prompt, config=config, **options))
        except BaseException:
            loop.close()
            raise
        loop.close()
        return reply

    @staticmethod
    def load(
        source: str,
        *,
        format: str = "auto",
        quantization: str | None = None,
        engine: str | None = None,
        adapters: Mapping[str, str] | None = None,
        config: Config | None = None,
    ) -> SyncModel:
        """See `LLMRouter.load`."""
        loop = _Loop()
        try:
            made = LLMRouter.load(
                source,
                format=format,
                quantization=quantization,
                engine=engine,
                adapters=adapters,
                config=config,
            )
            return SyncModel(loop, loop.run(made))
        except BaseException:
            loop.close()
            raise


class SyncModel:
    """`Model` without `async`."""

    def __init__(self, loop: _Loop, model: Model) -> None:
        self._loop = loop
        self._model = model
        self.name = model.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()

    def stream(self, prompt: str | Messages, **options: Unpack[Options]) -> SyncStream:
        """Answer token by token."""
        return SyncStream(self._loop, self._model.stream(prompt, **options))

    def complete(self, prompt: str, **options: Unpack[Options]) -> Reply:
        """Answer one prompt."""
        return self._loop.run(self._model.complete(prompt, **options))

    def chat(self, messages: str | Messages, **options: Unpack[Options]) -> Reply:
        """Answer a conversation."""
        return self._loop.run(self._model.chat(messages, **options))

    def embed(self, texts: Sequence[str]) -> list[tuple[float, ...]]:
        """One vector per text."""
        return self._loop.run(self._model.embed(texts))

    def rerank(
        self, query: str, documents: Sequence[str], *, top_n: int | None = None
    ) -> list[Ranked]:
        """The documents by how well each answers the query."""
        return self._loop.run(self._model.rerank(query, documents, top_n=top_n))

    def unload(self) -> None:
        """Give the memory back and end the thread; safe to call more than once."""
        if self._loop.closed:
            return
        try:
            self._loop.run(self._model.unload())
        finally:
            self._loop.close()
