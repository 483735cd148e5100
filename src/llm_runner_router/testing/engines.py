"""What every local engine must do, asked through the target that stands before it.

Knows: the contracts of `types.py`, the names of features (`engine.base.Feature`). Does not know:
any engine, how its target was made. The model's wits are not judged; any that writes a dozen tokens
will do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import msgspec
from msgspec import Raw

from llm_runner_router.deltas import Answer, Choice, collect
from llm_runner_router.errors import BadRequest, ContextTooLong
from llm_runner_router.types import (
    Embedder,
    EmbedRequest,
    Message,
    Request,
    ResponseFormat,
    Sampling,
    Target,
    ToolCall,
)

from .fakes import a_call

PATIENCE = 60.0
"""Seconds after which a check counts as stuck; the first of them loads the model."""
ALWAYS = ("stream", "limit", "refusals", "leaving")
"""What every engine must do, whatever its features."""
LEAVERS = 12
"""Readers that leave early, more than an engine has slots."""
SCHEMA = (
    b'{"type":"object","properties":{"colour":{"enum":["red","blue"]}},'
    b'"required":["colour"],"additionalProperties":false}'
)


async def check_engine(
    target: Target,
    *,
    features: Collection[str],
    context: int,
    embedder: Embedder | None = None,
    question: str = "Tell me about the sea.",
) -> None:
    """Ask an engine for everything that it says it can do.

    Args:
        target: answers with the engine under test, for example a `LocalTarget`.
        features: the engine's `FEATURES`; what is not among them is not asked.
        context: tokens of its context; a prompt of more characters than four times that is refused.
        embedder: embeds with it; needed if `embed` is among the features.
        question: what the model writes a dozen tokens about.

    Raises:
        AssertionError: it does not keep to the contract; says where.
    """
    engine = _Asked(target, question)
    async with asyncio.timeout(PATIENCE):
        whole = await engine.ask()
    _check_whole(whole)
    checks: dict[str, Callable[[], Awaitable[None]]] = {
        "stream": lambda: engine.check_stream(whole),
        "limit": engine.check_limit,
        "refusals": lambda: engine.check_refusals(context),
        "stop": lambda: engine.check_stop(whole.text),
        "seed": engine.check_seed,
        "logprobs": engine.check_logprobs,
        "json_schema": engine.check_schema,
        "leaving": engine.check_leaving,
    }
    for name, check in checks.items():
        if name in ALWAYS or name in features:
            async with asyncio.timeout(PATIENCE):
                await check()
    if "embed" in features:
        assert embedder is not None, "an engine with `embed` is checked with an embedder"
        async with asyncio.timeout(PATIENCE):
            await _check_vectors(embedder)


def _check_whole(answer: Answer) -> None:
    assert answer.text, "the answer has no text"
    assert answer.choices[0].finish in ("stop", "length"), f"it ended with {answer.choices[0]}"
    assert answer.origin is not None, "no delta says who answered"
    usage = answer.usage
    assert usage is not None, "the answer comes without its usage"
    assert usage.prompt_tokens > 0, "the prompt has no tokens"
    assert usage.completion_tokens > 1, "the answer has no tokens"


class _Asked:
    """One question to one target, in many ways."""

    def __init__(self, target: Target, question: str) -> None:
        self._target = target
        self._question = question

    def _request(self, **sampling: Any) -> Request:
        given = {"temperature": 0.0, "max_tokens": 16, **sampling}
        return Request(
            model="any",
            messages=(Message("user", self._question),),
            sampling=Sampling(**given),
        )

    async def ask(self, request: Request | None = None, **sampling: Any) -> Answer:
        """The whole answer."""
        request = request or self._request(**sampling)
        async with self._target.open(request, a_call()) as deltas:
            return await collect(deltas)

    async def check_stream(self, whole: Answer) -> None:
        """The same answer again, in pieces as it is written."""
        async with self._target.open(self._request(), a_call()) as deltas:
            pieces = [delta.text async for delta in deltas if delta.text]
        assert "".join(pieces) == whole.text, "without temperature, the answer is not the same"
        assert len(pieces) > 2, f"it is no stream: {pieces}"

    async def check_limit(self) -> None:
        """`max_tokens` holds, and the accounts say so."""
        answer = await self.ask(max_tokens=3)
        assert answer.choices[0].finish == "length", f"three tokens ended with {answer.choices}"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3, f"three tokens count as {answer.usage}"

    async def check_stop(self, whole: str) -> None:
        """A stop sequence ends the text right before it, wherever tokens begin."""
        middle = len(whole) // 2
        stop = whole[middle : middle + 3]
        answer = await self.ask(stop=(stop,))
        wanted = whole[: whole.index(stop)]
        assert answer.text == wanted, f"stopped at {stop!r}: {answer.text!r}, not {wanted!r}"
        assert answer.choices[0].finish == "stop"

    async def check_seed(self) -> None:
        """Equal seeds draw equally, other seeds do not always."""
        seeds = (7, 7, 8, 9, 10, 11)
        texts = [(await self.ask(seed=seed, temperature=2.0, top_p=1.0)).text for seed in seeds]
        assert texts[0] == texts[1], "equal seeds gave different answers"
        assert len(set(texts)) > 1, "every seed gives the same answer"

    async def check_logprobs(self) -> None:
        """Every token with its probability and as many alternatives as were asked for."""
        answer = await self.ask(logprobs=True, top_logprobs=2)
        told = _told(answer.choices[0])
        assert "".join(one["token"] for one in told) == answer.text, f"the tokens are {told}"
        assert all(one["logprob"] <= 0 for one in told), "a probability is above one"
        assert {len(one["top_logprobs"]) for one in told} == {2}
        assert all(t["logprob"] <= t["top_logprobs"][0]["logprob"] + 1e-3 for t in told)

    async def check_schema(self) -> None:
        """The answer is JSON of the schema, however it is drawn."""
        form = ResponseFormat("json_schema", Raw(SCHEMA), "colour", strict=True)
        request = msgspec.structs.replace(
            self._request(temperature=2.0, max_tokens=64), response_format=form
        )
        answer = await self.ask(request)
        found = msgspec.json.decode(answer.text)
        assert found in ({"colour": "red"}, {"colour": "blue"}), f"not of the schema: {found}"

    async def check_refusals(self, context: int) -> None:
        """What cannot be answered is refused before the first delta, with what is wrong."""
        long = Request(model="any", messages=(Message("user", "many words " * context),))
        await self._refused(long, ContextTooLong)
        call = ToolCall(id="a", name="f", arguments="{no JSON")
        broken = Request(
            model="any",
            messages=(Message("user", "hello"), Message("assistant", tool_calls=(call,))),
        )
        await self._refused(broken, BadRequest)

    async def _refused(self, request: Request, kind: type[BadRequest]) -> None:
        try:
            async with self._target.open(request, a_call()):
                pass
        except kind:
            return
        raise AssertionError(f"{kind.__name__} was not raised")

    async def check_leaving(self) -> None:
        """Whoever leaves frees the slot: many leave, and the next is answered."""

        async def leave() -> None:
            async with self._target.open(self._request(max_tokens=400), a_call()) as deltas:
                await anext(deltas)

        await asyncio.gather(*(leave() for _ in range(LEAVERS)))
        assert (await self.ask(max_tokens=3)).text


def _told(choice: Choice) -> list[dict[str, Any]]:
    parts = [msgspec.json.decode(part) for part in choice.logprobs]
    return [one for part in parts for one in part["content"]]


async def _check_vectors(embedder: Embedder) -> None:
    request = EmbedRequest(model="any", inputs=("red fish", "a long way home", "red fish"))
    found = await embedder.embed(request, a_call())
    one, other, same = found.vectors
    assert len(one) == len(other), "vectors of different length"
    assert max(abs(a - b) for a, b in zip(one, same, strict=True)) < 1e-3, "equal texts differ"
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 1e-3, "all texts are equal"
    assert abs(sum(x * x for x in one) - 1.0) < 1e-2, "not of length one"
    assert found.usage is not None
    assert found.usage.prompt_tokens > 0, "the texts have no tokens"
