"""Asks a model something, on the engine that would run it, as `llmrr run` does.

Knows: the app, what is asked, how each kind of engine measures perplexity. Does not know: what the
answers say about the model (`deep_judge.py`). The model runs in this app alone, whether a server
runs or not, and everything is gone afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from llm_runner_router.app import App
from llm_runner_router.config import Config, Node, Record
from llm_runner_router.deltas import Answer, collect
from llm_runner_router.engine import llamacpp, private
from llm_runner_router.engine.live import purpose_of
from llm_runner_router.engine.prepare import find_way
from llm_runner_router.engine.refused import TOO_BIG
from llm_runner_router.errors import (
    DeadlineExceeded,
    EngineError,
    LoadFailed,
    Overloaded,
    RunnerError,
    Unavailable,
)
from llm_runner_router.models.deepcheck import Finding
from llm_runner_router.types import (
    Call,
    EmbedRequest,
    Message,
    Request,
    RerankRequest,
    Sampling,
)

from . import deep_judge as judge
from .deep_judge import Foretold, Said

if TYPE_CHECKING:
    from llm_runner_router.engine.base import Engine, Purpose
    from llm_runner_router.engine.select import EngineSelector
    from llm_runner_router.models.info import LocalModel

QUESTION: Final = "What is the capital of France?"
LIMIT: Final = 48
"""Tokens of an answer; most models end before."""
CONTEXT: Final = 1024
"""Tokens of context: the question, the answer and `PROSE` in any vocabulary fit, and a model that
is trained for far more needs no memory for it."""
PROSE: Final = (
    "The sun was low when they came home from the market. The old man put the bread and the fruit "
    "on the table, and his wife asked him what the people in the town had said about the rain. "
    '"Nobody knows," he told her. "Some say that it will come tomorrow, and some say that it will '
    'not come before the end of the month." She laughed and opened the window. Outside, two '
    "children were playing with a small dog near the water, and a woman was walking slowly along "
    "the road with a red bag in her hand. It was quiet, as it always is at this time of the day."
)
TEXTS: Final = (
    "A cat is sleeping on the sofa.",
    "The cat sleeps on the couch.",
    "Interest rates rose sharply last year.",
)
"""Two that mean the same, and another."""
QUERY: Final = "What do cats eat?"
DOCUMENTS: Final = (
    "Cats eat mice, birds, fish and cat food.",
    "The stock market fell on Monday.",
    "A bridge is being built over the river.",
)
"""The first answers the query."""


def tried(name: str, config: Config, engine: str | None) -> Iterator[Finding]:
    """What a model answers.

    Args:
        name: a reference.
        config: of this installation: memory, threads, deadlines.
        engine: the engine that must run it; None is the best that can.
    """
    run = _Run(name, config, engine)
    try:
        asyncio.run(run.asked())
    except RunnerError as exc:
        run.findings.append(Finding("answer", "bad", exc.message))
    yield from run.findings
    if run.wants_native:
        yield _natively(run)


class _Run:
    """One model, asked."""

    def __init__(self, name: str, config: Config, engine: str | None) -> None:
        self._config = _alone(name, config, engine)
        self._name = name
        self.findings: list[Finding] = []
        self.said: Said | None = None
        """Its answer, if nothing was odd about it."""
        self.wants_native = False
        """The perplexity is measured by llama.cpp's own functions, when its server is gone."""
        self.deadline = config.deadline

    async def asked(self) -> None:
        """Ask; every runner is gone afterwards.

        Raises:
            RunnerError: the model cannot be read.
        """
        async with AsyncExitStack() as stack:
            self._app = App(self._config, local_files=True)
            stack.push_async_callback(self._app.close)
            self.model = self._app.local(self._name)
            purpose = purpose_of(self.model)
            check = {"chat": "answer", "embed": "vectors", "rerank": "ranking"}[purpose]
            selector = self._app.residency.engines
            try:
                engine = selector.get_best(self.model, purpose=purpose)
            except LoadFailed as exc:
                why = _lacking(self.model, selector, purpose) or exc.message
                self.findings.append(Finding(check, "skip", why))
                return
            ask = {"chat": self._chat, "embed": self._embed, "rerank": self._rerank}[purpose]
            await self._app.start()
            try:
                await ask(engine)
            except RunnerError as exc:
                self.findings.append(_failed(exc, check, engine.NAME))

    def _call(self) -> Call:
        return self._app.start_call(timeout=self.deadline)

    # ------------------------------------------------------------ answers

    async def _chat(self, engine: Engine) -> None:
        said = [await self._answer(engine) for _ in range(2)]
        vocabulary = self.model.info.vocabulary
        found = judge.answer(engine.NAME, said, vocabulary)
        self.findings.append(found)
        self.said = said[0] if found.state == "ok" else None
        if found.state == "bad":
            return
        self.wants_native = engine.RUNNER == llamacpp.RUNNER
        if not self.wants_native:
            self.findings.append(await self._foretold(engine, vocabulary))

    async def _answer(self, engine: Engine) -> Said:
        known = "logprobs" in engine.FEATURES
        # A second answer that begins with what the first computed may differ in the last bits.
        fresh = {"cache_prompt": Raw(b"false")} if engine.RUNNER == llamacpp.RUNNER else {}
        request = Request(
            model=self._name,
            messages=(Message("user", QUESTION),),
            sampling=Sampling(temperature=0.0, max_tokens=LIMIT, logprobs=known),
            extra=fresh,
        )
        async with self._app.target(self._name).open(request, self._call()) as deltas:
            return _said(await collect(deltas))

    async def _foretold(self, engine: Engine, vocabulary: int) -> Finding:
        """By the runner itself; our own endpoint can, where its engine gives logits."""
        async with self._app.residency.lease(self.model, "chat", self._call()) as lease:
            at = lease.endpoint
            address = at.base_url.removesuffix("/v1")
            body = {"content": PROSE}
            try:
                found = await private.call(
                    address, at.api_key, "POST", "/perplexity", body, seconds=self.deadline
                )
            except EngineError as exc:
                refused = exc.message.startswith("the runner answered")
                why = f"{engine.NAME} does not tell how likely a given text is"
                return Finding("perplexity", "skip", why if refused else exc.message)
        nll = float("nan") if found["nll"] is None else float(found["nll"])
        measured = Foretold(nll, int(found["tokens"]), int(found["bytes"]))
        return judge.perplexity(measured, vocabulary, self.said)

    # ------------------------------------------------------------ vectors, scores

    async def _embed(self, engine: Engine) -> None:
        request = EmbedRequest(model=self._name, inputs=TEXTS)
        found = await self._app.embedder(self._name).embed(request, self._call())
        self.findings.append(judge.vectors(engine.NAME, found.vectors))

    async def _rerank(self, engine: Engine) -> None:
        request = RerankRequest(self._name, QUERY, DOCUMENTS)
        found = await self._app.reranker(self._name).rerank(request, self._call())
        by_document = sorted(found.results, key=lambda one: one.index)
        self.findings.append(judge.ranking(engine.NAME, [one.score for one in by_document]))


def _alone(name: str, config: Config, engine: str | None) -> Config:
    """`config` for one model that is asked by one person, once."""
    room = min(config.engine.context or CONTEXT, CONTEXT)
    settings = replace(
        config.engine, pin=(), groups={}, slots=1, spare=False, saved_prompts=0, context=room,
        speculate="off",
    )  # fmt: skip
    return replace(
        config,
        models={name: Node(target=name, engine=engine)},
        aliases={},
        engine=settings,
        record=Record(enabled=False),
    )


def _lacking(model: LocalModel, selector: EngineSelector, purpose: Purpose) -> str:
    """What is missing for an engine that could run it, in words; empty if nothing helps."""
    if model.engine is not None:
        return ""
    for verdict in selector.rank(model.info, purpose=purpose):
        if verdict.score > 0 and verdict.missing and not verdict.by_name:
            missing = ", ".join(verdict.missing)
            return f"{verdict.engine} would run it, but lacks {missing}: `{verdict.hint}`"
    try:
        kind = find_way(model, selector).kind
    except RunnerError:
        return ""
    return f"no engine here runs it as it is; `llmrr convert` makes it {kind}"


def _failed(exc: RunnerError, check: str, engine: str) -> Finding:
    """What an error says of the model: some are about the machine."""
    if exc.code == TOO_BIG or isinstance(exc, Overloaded):
        return Finding(check, "skip", exc.message)
    if isinstance(exc, DeadlineExceeded):
        return Finding(check, "odd", f"{engine} is too slow with it here: {exc.message}")
    if isinstance(exc, Unavailable):
        return Finding(check, "skip", exc.message)
    return Finding(check, "bad", f"{engine}: {exc.message}")


def _said(answer: Answer) -> Said:
    """The first choice, with its tokens where they are told."""
    if not answer.choices:
        return Said("", None)
    choice = answer.choices[0]
    parts = [msgspec.json.decode(part) for part in choice.logprobs]
    told: list[dict[str, Any]] = [one for part in parts for one in part.get("content") or ()]
    return Said(
        choice.reasoning + choice.text,
        choice.finish,
        tuple(_bytes(one) for one in told),
        tuple(one.get("logprob") for one in told),
    )


def _bytes(token: dict[str, Any]) -> bytes:
    given = token.get("bytes")
    return bytes(given) if given is not None else str(token.get("token", "")).encode()


def _natively(run: _Run) -> Finding:
    """The perplexity of a GGUF file by llama.cpp's own functions."""
    from llm_runner_router.convert.native import NOT_FINITE
    from llm_runner_router.convert.perplexity import ask
    from llm_runner_router.convert.run import threads

    try:
        found = ask(run.model.path, PROSE, threads=threads(), deadline=run.deadline)
    except EngineError as exc:
        return Finding("perplexity", "bad" if exc.code == NOT_FINITE else "skip", exc.message)
    measured = Foretold(found.nll, found.tokens, _length(run.model, found.tokens))
    return judge.perplexity(measured, run.model.info.vocabulary, run.said)


def _length(model: LocalModel, tokens: int) -> int:
    """Bytes of `PROSE` that so many tokens stand for, from its second one on; 0 if not known."""
    from llm_runner_router.tokens.load import load

    try:
        tokenizer = load(model.path)
        ids = tokenizer.encode(PROSE, add_bos=None)
        return sum(len(tokenizer.piece(id)) for id in ids[1 : 1 + tokens])
    except RunnerError:
        return 0
