"""The routes of Ollama's own API, `/api/*`.

Knows: names as clients of Ollama spell them, how long they want a model to stay, progress of a
pull as lines. Does not know: how an answer is written (`ollama_write.py`), where models lie.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal

import msgspec
from msgspec import Struct

from llm_runner_router.errors import NotFound, RunnerError, UnknownModel, Unsupported

from . import ollama_models, sse
from .base import Described, Gateway, Reply
from .codec import check_model, parse
from .exchange import Exchange, answer_headers, readable
from .host import Handler, Host
from .ollama import Question, decode_chat, decode_embed, decode_generate
from .ollama_write import Codec, loaded, stream_error, vector, vectors

TELL_SECONDS = 0.1
"""Between two lines about the same file that is on its way."""


class _Named(Struct, frozen=True):
    model: str = ""
    name: str = ""
    stream: bool | None = None

    @property
    def called(self) -> str:
        """The model's name; `name` is how older clients say it."""
        return self.model or self.name


class _Copy(Struct, frozen=True):
    source: str
    destination: str


class _Create(Struct, frozen=True, rename={"origin": "from"}):
    model: str
    origin: str = ""
    stream: bool | None = None
    files: Any = None
    adapters: Any = None
    template: Any = None
    system: Any = None
    parameters: Any = None
    messages: Any = None
    quantize: Any = None


_named = msgspec.json.Decoder(_Named)
_copy = msgspec.json.Decoder(_Copy)
_create = msgspec.json.Decoder(_Create)
_encode = msgspec.json.Encoder().encode


class OllamaRoutes:
    """`/api/chat`, `generate`, `embed`, and what concerns models.

    Args:
        gateway: what answers.
        host: the application around.
    """

    def __init__(self, gateway: Gateway, host: Host) -> None:
        self._gateway = gateway
        self._host = host
        self.table: dict[str, dict[str, Handler]] = {
            "/api/chat": {"POST": self._chat},
            "/api/generate": {"POST": self._generate},
            "/api/embed": {"POST": self._embed},
            "/api/embeddings": {"POST": self._embed},
            "/api/tags": {"GET": self._tags},
            "/api/show": {"POST": self._show},
            "/api/ps": {"GET": self._ps},
            "/api/version": {"GET": self._version},
            "/api/pull": {"POST": self._pull},
            "/api/push": {"POST": self._push},
            "/api/copy": {"POST": self._copy},
            "/api/create": {"POST": self._create},
            "/api/delete": {"DELETE": self._delete},
            "/api/blobs/{digest}": {"HEAD": self._blob, "POST": self._blob},
        }

    def find(self, path: str) -> dict[str, Handler] | None:
        """The handlers by method for `path`; None if it is not one of these."""
        if path.startswith("/api/blobs/"):
            return self.table["/api/blobs/{digest}"]
        return self.table.get(path)

    # ------------------------------------------------------------ answering

    async def _chat(self, exchange: Exchange, caller: str) -> None:
        await self._answer(exchange, caller, decode_chat, "chat")

    async def _generate(self, exchange: Exchange, caller: str) -> None:
        await self._answer(exchange, caller, decode_generate, "generate")

    async def _answer(
        self,
        exchange: Exchange,
        caller: str,
        decode: Callable[[bytes], Question],
        form: Literal["chat", "generate"],
    ) -> None:
        with self._host.room():
            question = readable(exchange, decode, await self._host.body(exchange))
            model = self._meant(question.model)
            if question.request is None:
                await self._load(exchange, question, model, form)
                return
            self._keep(model, question.keep_alive)
            request = msgspec.structs.replace(question.request, model=model)
            codec = Codec(form, question.model)
            await self._host.answer(
                exchange, caller, codec, (request,), f"ollama-{exchange.id}", sse.NDJSON
            )

    async def _load(
        self,
        exchange: Exchange,
        question: Question,
        model: str,
        form: Literal["chat", "generate"],
    ) -> None:
        unload = question.keep_alive == 0
        async with exchange.watching():
            if unload:
                await self._gateway.admin.stop(model)
            else:
                self._keep(model, question.keep_alive)
                await self._gateway.admin.load(model)
        data = loaded(question.model, form, unloaded=unload)
        if question.stream:
            await exchange.start(200, list(sse.NDJSON.headers))
            await exchange.end(data + b"\n")
        else:
            await exchange.json(200, data)

    async def _embed(self, exchange: Exchange, caller: str) -> None:
        with self._host.room():
            asked = readable(exchange, decode_embed, await self._host.body(exchange))
            given = asked.request.model
            model = self._meant(given, self._gateway.embedder)
            embedder = self._gateway.embedder(model)
            self._keep(model, asked.keep_alive)
            call = self._host.call(exchange, caller, None)
            reply = Reply("", 0, call.trace)
            began = time.perf_counter()
            async with exchange.watching():
                request = msgspec.structs.replace(asked.request, model=model)
                found = await embedder.embed(request, call)
            reply.origin, reply.usage = found.origin, found.usage
            data = vectors(found, given, time.perf_counter() - began)
            if exchange.path.endswith("/embeddings"):
                data = vector(found)
            await exchange.json(200, data, answer_headers(reply))

    def _meant(self, name: str, find: Callable[[str], Any] | None = None) -> str:
        """The served name that a client of Ollama means.

        Args:
            find: what is wanted of it; default is an answer.

        Raises:
            UnknownModel: with the nearest names.
        """
        check_model(name)
        find = find or self._gateway.target
        for spelling in ollama_models.spellings(name):
            try:
                find(spelling)
            except UnknownModel:
                continue
            return spelling
        find(name)  # raises with the nearest names
        return name

    def _keep(self, model: str, seconds: float | None) -> None:
        if seconds is None:
            return
        try:
            self._gateway.admin.keep(model, seconds)
        except Unsupported:
            pass  # a remote model stays where it is

    # ------------------------------------------------------------ what there is

    async def _tags(self, exchange: Exchange, caller: str) -> None:
        await exchange.json(200, ollama_models.tags(self._gateway.admin.described()))

    async def _show(self, exchange: Exchange, caller: str) -> None:
        asked = parse(_named, await self._host.body(exchange))
        model = self._meant(asked.called)
        described = self._by_name().get(model)
        if described is None:
            raise NotFound(f"nothing is known of {model!r}", param="model")
        await exchange.json(200, ollama_models.show(described))

    async def _ps(self, exchange: Exchange, caller: str) -> None:
        known = self._by_name()
        rows = [(row, known.get(row.name)) for row in self._gateway.admin.ps()]
        await exchange.json(200, ollama_models.ps(rows, time.time()))

    def _by_name(self) -> dict[str, Described]:
        return {model.card.name: model for model in self._gateway.admin.described()}

    async def _version(self, exchange: Exchange, caller: str) -> None:
        await exchange.json(200, _encode({"version": ollama_models.VERSION}))

    # ------------------------------------------------------------ changing what there is

    async def _pull(self, exchange: Exchange, caller: str) -> None:
        asked = parse(_named, await self._host.body(exchange))
        check_model(asked.called)
        name = _reference(asked.called)
        with self._host.room():  # a download is work: there are no more than may be at once
            await self._bring(exchange, name, stream=asked.stream is not False)

    async def _bring(self, exchange: Exchange, name: str, *, stream: bool) -> None:
        if not stream:
            async with exchange.watching():
                await self._gateway.admin.shelf.pull(name, _Lines())
            await exchange.json(200, _encode({"status": "success"}))
            return
        async with exchange.watching(), aclosing(self._pulling(name)) as lines:
            first = await anext(lines)
            await exchange.start(200, list(sse.NDJSON.headers))
            await sse.stream(
                exchange,
                first,
                lines,
                0,
                lambda exc: self._host.told(exc, exchange),
                stream_error,
            )

    async def _pulling(self, name: str) -> AsyncGenerator[bytes]:
        """The lines about a pull, which ends when nobody reads them any more."""
        watch = _Lines()
        pull = asyncio.create_task(self._gateway.admin.shelf.pull(name, watch))
        pull.add_done_callback(lambda _: watch.more.set())
        try:
            while not pull.done() or watch.waiting:
                await watch.more.wait()
                watch.more.clear()
                for line in watch.taken():
                    yield _encode(line) + b"\n"
                if not pull.done():
                    await asyncio.sleep(TELL_SECONDS)
            await pull
        finally:
            pull.cancel()
            await asyncio.gather(pull, return_exceptions=True)

    async def _push(self, exchange: Exchange, caller: str) -> None:
        raise Unsupported(
            "models are not published from here",
            hint="`llmrr export` writes a model's files, which `ollama push` or the Hub take",
        )

    async def _copy(self, exchange: Exchange, caller: str) -> None:
        asked = parse(_copy, await self._host.body(exchange))
        source = self._stored(asked.source)
        destination = asked.destination.removesuffix(":latest")
        await self._gateway.admin.shelf.copy(source, destination)
        await exchange.empty()

    async def _create(self, exchange: Exchange, caller: str) -> None:
        asked = parse(_create, await self._host.body(exchange))
        for name in ("files", "adapters", "template", "system", "parameters", "messages"):
            if getattr(asked, name):
                raise Unsupported(
                    f"a model cannot be made with `{name}` through this API",
                    param=name,
                    hint="`models:` in llmrr.yaml has names, adapters and templates",
                )
        if asked.quantize:
            raise Unsupported(
                "models are not quantised through this API",
                param="quantize",
                hint="`llmrr quantize`, or `quantization:` in llmrr.yaml",
            )
        source = self._stored(asked.origin)
        await self._gateway.admin.shelf.copy(source, asked.model.removesuffix(":latest"))
        done = _encode({"status": "success"})
        if asked.stream is False:
            await exchange.json(200, done)
        else:
            await exchange.start(200, list(sse.NDJSON.headers))
            await exchange.end(done + b"\n")

    async def _delete(self, exchange: Exchange, caller: str) -> None:
        asked = parse(_named, await self._host.body(exchange))
        name = self._stored(asked.called)
        try:
            await self._gateway.admin.stop(name)
        except RunnerError:
            pass  # it cannot be used, which is a reason to delete it
        await self._gateway.admin.shelf.delete(name)
        await exchange.empty()

    async def _blob(self, exchange: Exchange, caller: str) -> None:
        raise Unsupported(
            "files are not taken through this API",
            hint="`llmrr cp FILE NAME` puts a file into the store",
        )

    def _stored(self, name: str) -> str:
        """The name in the store that a client of Ollama means.

        Raises:
            UnknownModel: there is none.
        """
        check_model(name)
        for spelling in ollama_models.spellings(name):
            if self._gateway.admin.shelf.has(spelling):
                return spelling
        raise UnknownModel(
            f"the store has no model {name[:200]!r}",
            hint="GET /api/tags lists the models",
            param="model",
        )


def _reference(name: str) -> str:
    """What `ollama pull NAME` means."""
    known = ("hf.co/", "huggingface.co/", "hf:", "https://", "http://", "ollama:", "s3://")
    return name if name.startswith(known) else f"ollama:{name}"


class _Lines:
    """A `Watch` whose news are lines of progress; of a file only the newest is kept."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self._steps: list[dict[str, Any]] = []
        self._files: dict[str, dict[str, Any]] = {}
        self._news: dict[str, dict[str, Any]] = {}

    @property
    def waiting(self) -> bool:
        """There is something to tell."""
        return bool(self._steps or self._news)

    def taken(self) -> list[dict[str, Any]]:
        """What there is to tell; it is told then."""
        found = [*self._steps, *(dict(line) for line in self._news.values())]
        self._steps.clear()
        self._news.clear()
        return found

    def say(self, line: str) -> None:
        """See `Watch`."""
        self._flush()
        self._steps.append({"status": line})
        self.more.set()

    def begin(self, name: str, size: int | None, done: int) -> None:
        """See `Watch`."""
        line: dict[str, Any] = {"status": f"pulling {name}", "digest": name, "completed": done}
        if size is not None:
            line["total"] = size
        self._files[name] = line
        self._tell(name)

    def advance(self, name: str, count: int) -> None:
        """See `Watch`."""
        self._files[name]["completed"] += count
        self._tell(name)

    def end(self, name: str) -> None:
        """See `Watch`."""
        line = self._files.pop(name)
        line["completed"] = line.get("total", line["completed"])
        self._news[name] = line
        self.more.set()

    def _tell(self, name: str) -> None:
        self._news[name] = self._files[name]
        self.more.set()

    def _flush(self) -> None:
        """What files had to tell comes before the next step."""
        self._steps += (dict(line) for line in self._news.values())
        self._news.clear()
