"""What becomes of a request's parameters on the way to another kind of upstream is always told."""

from __future__ import annotations

import json

import msgspec
import pytest

from llm_runner_router.config import Secret
from llm_runner_router.errors import Unsupported
from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects.base import Quirks
from llm_runner_router.providers.dialects.openai_request import build_request
from llm_runner_router.providers.hosts import Host
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.surfaces.exchange import fidelity
from llm_runner_router.types import (
    Call,
    Mark,
    Message,
    Origin,
    Reasoning,
    RedactedPart,
    Request,
    Sampling,
    TextPart,
    ThinkingPart,
)

from .upstream import Upstream, reply

ASKED = Request(
    "m",
    messages=(
        Message("user", (TextPart("hi", {"type": "ephemeral"}),)),
        Message("assistant", (ThinkingPart("hm", "sig"), RedactedPart("x"), TextPart("ho"))),
        Message("tool", "no such file", tool_call_id="c1", is_error=True),
    ),
    sampling=Sampling(top_k=5),
    reasoning=Reasoning(budget=9000),
)


def test_what_openai_does_not_have_is_noted() -> None:
    receipt = Receipt()
    sent = json.loads(build_request(ASKED, "gpt", receipt=receipt).body)
    assert sent["messages"][:2] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
    assert sent["reasoning_effort"] == "medium"
    assert "top_k" not in sent
    assert {name: mark.fate for name, mark in receipt.marks.items()} == {
        "messages[0].content[0].cache_control": "emulated",
        "messages[1].content[0]": "dropped",
        "messages[1].content[1]": "dropped",
        "messages[2].is_error": "dropped",
        "top_k": "dropped",
        "reasoning.budget": "translated",
    }


def test_a_host_that_has_it_gets_it() -> None:
    receipt = Receipt()
    asked = msgspec.structs.replace(ASKED, messages=(Message("user", "hi"),), reasoning=None)
    sent = json.loads(build_request(asked, "m", Quirks(top_k=True), receipt).body)
    assert sent["top_k"] == 5
    assert receipt.marks == {}


@pytest.mark.parametrize(
    ("tokens", "effort"), [(0, "none"), (500, "minimal"), (2000, "low"), (99_999, "high")]
)
def test_tokens_of_thought_are_an_effort(tokens: int, effort: str) -> None:
    asked = Request("m", (Message("user", "hi"),), reasoning=Reasoning(budget=tokens))
    assert json.loads(build_request(asked, "m").body)["reasoning_effort"] == effort


async def test_a_strict_request_is_refused_before_it_is_sent() -> None:
    body = {"choices": [{"index": 0, "message": {"content": "ho"}, "finish_reason": "stop"}]}
    async with Upstream(reply(200, json.dumps(body).encode())) as upstream, HttpClient() as client:
        target = RemoteTarget(
            name="up/m", base_url=upstream.url, model="m", client=client, api_key=Secret("k" * 8)
        )
        async with target.open(ASKED, Call("c", 0.0)) as deltas:
            first = await anext(deltas)
        assert first.origin is not None
        assert first.origin.fidelity["top_k"].fate == "dropped"
        strict = msgspec.structs.replace(ASKED, strict=True)
        with pytest.raises(Unsupported, match=r"up/m|top_k") as caught:
            async with target.open(strict, Call("c", 0.0)):
                raise AssertionError("it was sent")
        assert caught.value.param == "messages[1].content[0]"
        assert len(upstream.seen) == 1


def header(marks: dict[str, Mark]) -> bytes:
    reply = Reply("id", 0)
    reply.origin = Origin("t", "m", fidelity=marks)
    ((name, value),) = fidelity(reply)
    assert name == b"x-llmrr-fidelity"
    return value


def test_the_header_says_it_in_one_line() -> None:
    assert header({}) == b"honoured"
    marks = {"seed": Mark("dropped"), "n": Mark("dropped"), "stop": Mark("translated")}
    assert header(marks) == b"dropped=seed, n; translated=stop"
    many = {f"messages[{i}].content[0]": Mark("dropped") for i in range(1000)}
    assert len(header(many)) <= 512


def test_a_host_without_a_dialect_is_openais() -> None:
    assert Host("x").dialect == "openai"
