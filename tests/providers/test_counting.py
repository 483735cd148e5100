"""Tokens of a prompt, as the model's own provider counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from llm_runner_router.app import App
from llm_runner_router.config import Config, Provider
from llm_runner_router.errors import BadResponse, Unsupported
from llm_runner_router.providers.dialects.base import number
from llm_runner_router.providers.hosts import find
from llm_runner_router.types import ForeignPart, Message, TokenizeRequest, Tool

from .asking import a_call, target_for
from .gemini_upstream import Gemini
from .upstream import Answer, Seen, Upstream, reply

ASKED = TokenizeRequest(
    "m",
    messages=(Message("system", "Be brief."), Message("user", "hi")),
    tools=(Tool("add", "Adds.", Raw(b'{"type":"object"}')),),
)


async def anthropic(seen: Seen) -> None:
    assert seen.target == "/v1/messages/count_tokens"
    assert seen.json == {
        "model": "claude-x",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
    }
    await reply(200, b'{"input_tokens":42}')(seen)


@pytest.mark.parametrize(
    ("answer", "host", "model"),
    [(anthropic, "anthropic", "claude-x"), (Gemini(), "google", "gemini-3-pro")],
)
async def test_who_counts(answer: Answer, host: str, model: str) -> None:
    async def heard(seen: Seen) -> None:
        if host == "google":
            seen.target = seen.target.replace("/v1/", "/v1beta/", 1)
        await answer(seen)

    async with target_for(heard, host=find(host), model=model) as (target, _):
        assert await target.count(ASKED, a_call()) == 42


async def test_who_does_not_count() -> None:
    async with target_for(reply(500, b"")) as (target, upstream):
        with pytest.raises(Unsupported, match="count no tokens"):
            await target.count(ASKED, a_call())
        assert upstream.seen == []


async def test_what_cannot_be_shown_is_not_counted() -> None:
    part = TokenizeRequest("m", messages=(Message("user", (ForeignPart("search"),)),))
    for host in ("google", "anthropic"):
        async with target_for(reply(500, b""), host=find(host)) as (target, upstream):
            with pytest.raises(Unsupported) as caught:
                await target.count(part, a_call())
            assert caught.value.param == "messages[0].content[0]"
            assert upstream.seen == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"n":1.5}', b'{"n":"1"}'])
def test_what_is_no_number(body: bytes) -> None:
    with pytest.raises(BadResponse, match="`n`"):
        number(body, "n")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "counted"),
    [(Gemini(), (42, True)), (reply(500, b"oops"), None), (reply(200, b"{}"), None)],
)
async def test_an_app_estimates_only_what_nobody_counts(answer: Answer, counted: Any) -> None:
    async with Upstream(answer) as upstream:
        up = Provider(host="google", base_url=f"{upstream.url}/v1beta", api_key="${KEY}")
        config = Config(models={"m": "up/gemini-3-pro"}, providers={"up": up})
        app = App(config, environ={"KEY": "provider-key"})
        try:
            found = await app.count(ASKED)
        finally:
            await app.close()
        assert len(upstream.seen) == 1
    assert found == counted or (counted is None and found[0] > 0 and not found[1])
