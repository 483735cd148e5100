"""OpenAI's API over a loaded model: the routes of a runner.

Knows: bodies and answers of chat, text completions, embeddings, reranking and tokenizing, in the
words of OpenAI and llama.cpp's server. Does not know: sockets (`http.py`), which engine computes.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from . import asked as asking
from .asked import Asked
from .grammar import Grammars
from .http import Handler, Reply, Request
from .reading import CALL, CALL_END, THINK, THINK_END, Reader
from .refusal import Refusal, too_long, unsupported
from .run import Run, Running
from .sampling import log_softmax
from .session import Loaded, Order, Pair
from .template import ChatTemplate
from .turns import Pool, Turns

BATCH = 32
"""Texts embedded or scored in one turn."""
LEAST, MOST = 512, 8192
"""Tokens computed in one turn, padding counted, unless one text alone has more: as many as the
context, for which there is memory (`place` of the engines), and never fewer or more than these."""


class EmbedBody(Struct):
    """The body of an embedding request."""

    input: Any
    """A text, a list of tokens, or a list of these."""
    encoding_format: str = "float"


class RerankBody(Struct):
    """The body of a rerank request, as Jina, Cohere and llama.cpp have it."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None


class TextBody(Struct):
    """The body of `/tokenize` and `/detokenize`."""

    content: str = ""
    tokens: list[int] = []
    add_special: bool = False


class Api:
    """The handlers, by route.

    Args:
        loaded: the model.
        order: its name, context and slots.
        clock: seconds, ever growing.
    """

    tags = True
    """Tags of tool calls can be read in what the engine writes."""
    forces_tags = True
    """A call that is forced is written between them."""

    def __init__(
        self, loaded: Loaded, order: Order, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loaded = loaded
        self._order = order
        self._clock = clock
        self._template = ChatTemplate(order.template or loaded.template, loaded.variables)
        self._grammars = Grammars(loaded.vocabulary)
        self._turns = Turns()
        self._pool = Pool(loaded, order.slots, self._turns)
        self._most = max(LEAST, min(MOST, order.context))

    def close(self) -> None:
        """End what was started."""
        self._template.close()

    def routes(self) -> dict[str, Handler]:
        """Every route there is."""
        return {
            "GET /health": self._health,
            "GET /v1/models": self._models,
            "POST /v1/chat/completions": self._chat,
            "POST /v1/completions": self._complete,
            "POST /v1/embeddings": self._embed,
            "POST /v1/rerank": self._rerank,
            "POST /tokenize": self._tokenize,
            "POST /detokenize": self._detokenize,
            "POST /perplexity": self._foretell,
        }

    # ------------------------------------------------------------ answers

    async def _chat(self, request: Request, reply: Reply) -> None:
        tagged = self.tags and CALL in self._template.source
        forced_tags = tagged and self.forces_tags
        asked = asking.read(request.body, chat=True, tagged=forced_tags)
        assert asked.messages is not None
        if asked.tools and not asked.forced and not tagged:
            raise unsupported(
                "the chat template does not write calls between `<tool_call>` tags, so those that"
                " the model decides to write look like text; force one with `tool_choice`",
                "tools",
            )
        prompt = await asyncio.to_thread(
            self._template.render, asked.messages, asked.tools, asked.variables
        )
        tokens = await asyncio.to_thread(self._loaded.vocabulary.encode, prompt, begin=False)
        thinks = THINK in self._template.source
        reader = Reader(
            calls=bool(asked.tools),
            thinks=thinks,
            thinking=thinks and prompt.rstrip().endswith(THINK),
            bare=asked.forced and not forced_tags,
            new_id=lambda: f"call_{secrets.token_hex(12)}",
        )
        if asked.one_call and not asked.forced:
            asked = msgspec.structs.replace(asked, stops=(*asked.stops, CALL_END))
        shown = frozenset((CALL, CALL_END, THINK, THINK_END))
        chunks = _Chat(self._order.name, reader)
        await self._answer(asked, tokens, chunks, reply, shown)

    async def _complete(self, request: Request, reply: Reply) -> None:
        asked = asking.read(request.body, chat=False, tagged=False)
        tokens = asked.prompt
        if isinstance(tokens, str):
            tokens = await asyncio.to_thread(self._loaded.vocabulary.encode, tokens, begin=True)
        if not tokens:
            raise Refusal("the prompt has no tokens", param="prompt")
        self._check(tokens, "prompt")
        await self._answer(asked, tokens, _Completion(self._order.name), reply, frozenset())

    async def _answer(
        self,
        asked: Asked,
        tokens: list[int],
        chunks: _Chunks,
        reply: Reply,
        shown: frozenset[str],
    ) -> None:
        async with self._running(asked, tokens, shown) as run:
            if not asked.stream:
                while run.finish is None:
                    if piece := await self._turns.run(run.advance):
                        chunks.add(piece.text, piece.logprobs)
                reply.json(chunks.whole(run.finish, run.usage(), run.timings()))
                return
            reply.start()
            while run.finish is None:
                piece = await self._turns.run(run.advance)
                for event in chunks.first() if run.drawn else ():
                    await reply.event(event)
                for event in chunks.add(piece.text, piece.logprobs) if piece else ():
                    await reply.event(event)
            for event in chunks.last(run.finish, run.timings()):
                await reply.event(event)
            if asked.usage:
                await reply.event(chunks.usage(run.usage(), run.timings()))
            reply.done()

    @asynccontextmanager
    async def _running(
        self, asked: Asked, tokens: list[int], shown: frozenset[str]
    ) -> AsyncIterator[Running]:
        if len(tokens) >= self._order.context:
            raise too_long(len(tokens), self._order.context)
        if asked.adapters:
            raise unsupported("this engine has no LoRA adapters", "lora")
        matcher = None
        if asked.grammar is not None:
            rules = asked.grammar
            matcher = await self._turns.run(lambda: self._grammars.match(rules))
        async with self._pool.session(tokens) as held:
            yield Run(
                held,
                self._loaded.vocabulary,
                asked,
                tokens,
                context=self._order.context,
                clock=self._clock,
                matcher=matcher,
                shown=shown,
            )

    # ------------------------------------------------------------ vectors

    async def _embed(self, request: Request, reply: Reply) -> None:
        body = _decoded(request.body, EmbedBody)
        texts = await asyncio.to_thread(self._texts, body.input)
        rows: list[Any] = [None] * len(texts)
        for part in batches([len(text) for text in texts], self._most):
            work = partial(self._loaded.embed, [texts[i] for i in part])
            for i, row in zip(part, await self._turns.run(work), strict=True):
                rows[i] = row
        coded = body.encoding_format == "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": (
                    base64.b64encode(np.asarray(row, "<f4").tobytes()).decode()
                    if coded
                    else [float(x) for x in row]
                ),
            }
            for i, row in enumerate(rows)
        ]
        count = sum(len(text) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        reply.json({"object": "list", "data": data, "model": self._order.name, "usage": usage})

    def _texts(self, given: Any) -> list[list[int]]:
        return [self._tokens(text, i) for i, text in enumerate(_inputs(given))]

    def _tokens(self, text: str | list[int], index: int) -> list[int]:
        if isinstance(text, str):
            text = self._loaded.vocabulary.encode(text, begin=True)
        else:
            self._check(text, f"input[{index}]")
        if not text:
            raise Refusal("there is nothing to embed", param=f"input[{index}]")
        if len(text) > self._order.context:
            # These words of llama.cpp's are what the gateway looks for.
            raise Refusal(
                f"input ({len(text)} tokens) is too large to process; the context is"
                f" {self._order.context} tokens",
                param=f"input[{index}]",
            )
        return text

    def _check(self, tokens: Sequence[int], param: str) -> None:
        """Raise `Refusal` for what is no token of the model."""
        size = self._loaded.vocabulary.size
        wrong = next((token for token in tokens if not 0 <= token < size), None)
        if wrong is not None:
            raise Refusal(f"there is no token {wrong}", param=param)

    async def _rerank(self, request: Request, reply: Reply) -> None:
        body = _decoded(request.body, RerankBody)
        texts = [d if isinstance(d, str) else str(d.get("text", "")) for d in body.documents]
        pairs = await asyncio.to_thread(self._pairs, body.query, texts)
        scores = [0.0] * len(pairs)
        for part in batches([len(pair.tokens) for pair in pairs], self._most):
            work = partial(self._loaded.score, [pairs[i] for i in part])
            for i, score in zip(part, await self._turns.run(work), strict=True):
                scores[i] = score
        count = sum(len(pair.tokens) for pair in pairs)
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
        reply.json(
            {
                "object": "list",
                "model": self._order.name,
                "results": [{"index": i, "relevance_score": scores[i]} for i in best],
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )

    def _pairs(self, query: str, texts: list[str]) -> list[Pair]:
        pairs = []
        for i, text in enumerate(texts):
            pair = self._loaded.vocabulary.pair(query, text)
            if len(pair.tokens) > self._order.context:
                raise too_long(len(pair.tokens), self._order.context, f"documents[{i}]")
            pairs.append(pair)
        return pairs

    # ------------------------------------------------------------ the rest

    async def _health(self, request: Request, reply: Reply) -> None:
        reply.json({"status": "ok"})

    async def _models(self, request: Request, reply: Reply) -> None:
        model = {"id": self._order.name, "object": "model", "owned_by": "llm-runner-router"}
        reply.json({"object": "list", "data": [model]})

    async def _tokenize(self, request: Request, reply: Reply) -> None:
        body = _decoded(request.body, TextBody)
        tokens = self._loaded.vocabulary.encode(body.content, begin=body.add_special)
        reply.json({"tokens": tokens})

    async def _detokenize(self, request: Request, reply: Reply) -> None:
        body = _decoded(request.body, TextBody)
        self._check(body.tokens, "tokens")
        pieces = [self._loaded.vocabulary.piece(token) for token in body.tokens]
        reply.json({"content": b"".join(pieces).decode("utf-8", "replace")})

    async def _foretell(self, request: Request, reply: Reply) -> None:
        """The sum of −ln p of a text's tokens from the second on; `llmrr verify --deep` asks it.

        A turn per token, so that answers go on meanwhile.
        """
        body = _decoded(request.body, TextBody)
        vocabulary = self._loaded.vocabulary
        tokens = await asyncio.to_thread(vocabulary.encode, body.content, begin=True)
        tokens = tokens[: self._order.context]
        if len(tokens) < 2:
            raise Refusal("the text has fewer than two tokens", param="content")
        total = 0.0
        async with self._pool.session(tokens[:1]) as held:
            for token, following in pairwise(tokens):
                logits = await self._turns.run(partial(held.feed, [token]))
                total -= float(log_softmax(logits)[following])
        words = [token for token in tokens[1:] if not vocabulary.is_special(token)]
        count = sum(len(vocabulary.piece(token)) for token in words)
        reply.json({"nll": total, "tokens": len(tokens) - 1, "bytes": count})


def batches(lengths: list[int], most: int) -> list[list[int]]:
    """Which sequences are computed together, by their numbers of tokens.

    Those of like length are, so that little of a batch is padding.

    Args:
        lengths: tokens of each.
        most: tokens of a batch, padding counted, unless it is of one sequence.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        last = parts[-1] if parts else []
        if not last or len(last) == BATCH or (len(last) + 1) * lengths[i] > most:
            parts.append([i])
        else:
            last.append(i)
    return parts


def _inputs(given: Any) -> list[str | list[int]]:
    texts = given if isinstance(given, list) and given else [given]
    if isinstance(texts[0], int):
        texts = [texts]
    for i, text in enumerate(texts):
        tokens = isinstance(text, list) and all(isinstance(t, int) for t in text)
        if not isinstance(text, str) and not tokens:
            raise Refusal("an input is a text or a list of tokens", param=f"input[{i}]")
    return texts


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise Refusal(str(exc)) from exc


# ---------------------------------------------------------------- what answers look like


class _Chunks:
    """Builds the chunks of one answer, and adds them up."""

    kind = ""

    def __init__(self, model: str, prefix: str) -> None:
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "created": int(time.time()),
            "model": model,
        }
        self._told: list[dict[str, Any]] = []

    def _chunk(self, choice: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        choices = [] if choice is None else [{"index": 0, **choice}]
        return {"object": self.kind, **self._head, "choices": choices, **more}

    def first(self) -> list[dict[str, Any]]:
        """What comes before the text; nothing the second time."""
        return []

    def add(self, text: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The chunks of more text."""
        raise NotImplementedError

    def last(self, finish: str, timings: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks that end the answer."""
        raise NotImplementedError

    def usage(self, usage: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
        """The chunk after the last."""
        return self._chunk(None, usage=usage, timings=timings)

    def whole(self, finish: str, usage: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
        """The answer in one body."""
        raise NotImplementedError


class _Chat(_Chunks):
    """A chat's answer."""

    kind = "chat.completion.chunk"

    def __init__(self, model: str, reader: Reader) -> None:
        super().__init__(model, "chatcmpl")
        self._reader = reader
        self._begun = False
        self._message: dict[str, Any] = {"role": "assistant", "content": None}

    def first(self) -> list[dict[str, Any]]:
        if self._begun:
            return []
        self._begun = True
        delta = {"role": "assistant", "content": None}
        return [self._chunk({"delta": delta, "finish_reason": None})]

    def add(self, text: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self._chunks(self._reader.feed(text), told)

    def _chunks(
        self, deltas: list[dict[str, Any]], told: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        for delta in deltas:
            self._grow(delta)
        self._told += told
        if told and not deltas:
            deltas = [{}]
        found = []
        for i, delta in enumerate(deltas):
            choice: dict[str, Any] = {"delta": delta, "finish_reason": None}
            if told and not i:
                choice["logprobs"] = {"content": told}
            found.append(self._chunk(choice))
        return found

    def _grow(self, delta: dict[str, Any]) -> None:
        for name in ("content", "reasoning_content"):
            if name in delta:
                self._message[name] = (self._message.get(name) or "") + delta[name]
        calls = self._message.setdefault("tool_calls", []) if "tool_calls" in delta else []
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                kept = {name: call[name] for name in ("id", "type")}
                calls.append({**kept, "function": dict(call["function"])})
            else:
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]

    def _finish(self, finish: str) -> str:
        return "tool_calls" if finish == "stop" and self._reader.called else finish

    def last(self, finish: str, timings: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._chunks(self._reader.end(), [])
        end = {"delta": {}, "finish_reason": self._finish(finish)}
        return [*found, self._chunk(end, timings=timings)]

    def whole(self, finish: str, usage: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
        for delta in self._reader.end():
            self._grow(delta)
        choice: dict[str, Any] = {
            "message": self._message,
            "finish_reason": self._finish(finish),
            "logprobs": {"content": self._told} if self._told else None,
        }
        done = self._chunk(choice, usage=usage, timings=timings)
        return {**done, "object": "chat.completion"}


class _Completion(_Chunks):
    """A text completion. Its log-probabilities have the shape of a chat's, as llama.cpp's do."""

    kind = "text_completion"

    def __init__(self, model: str) -> None:
        super().__init__(model, "cmpl")
        self._text = ""

    def add(self, text: str, told: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._text += text
        self._told += told
        logprobs = {"content": told} if told else None
        return [self._chunk({"text": text, "finish_reason": None, "logprobs": logprobs})]

    def last(self, finish: str, timings: dict[str, Any]) -> list[dict[str, Any]]:
        end = {"text": "", "finish_reason": finish, "logprobs": None}
        return [self._chunk(end, timings=timings)]

    def whole(self, finish: str, usage: dict[str, Any], timings: dict[str, Any]) -> dict[str, Any]:
        logprobs = {"content": self._told} if self._told else None
        choice = {"text": self._text, "finish_reason": finish, "logprobs": logprobs}
        return self._chunk(choice, usage=usage, timings=timings)
