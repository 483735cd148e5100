"""Tokens of Microsoft Entra: asked for once, renewed in time, never told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from llm_runner_router.errors import (
    BadResponse,
    DeadlineExceeded,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.providers import entra
from llm_runner_router.providers.entra import SCOPE, SCOPES, Entra
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget

from .asking import ASK_WHOLE, ask, broken
from .upstream import Seen, Upstream, reply

SECRET = "canary~client.secret_7f3a"
URL = "https://r.openai.azure.com/openai/v1"


class Authority:
    """Gives tokens, strict about how it is asked."""

    def __init__(self, lasts: float = 3600) -> None:
        self.lasts = lasts
        self.asked: list[dict[str, str]] = []
        self.answer: Any = None

    async def __call__(self, seen: Seen) -> None:
        assert (seen.method, seen.target) == ("POST", "/tenant-1/oauth2/v2.0/token")
        assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
        form = {name: one for name, (one,) in parse_qs(seen.body.decode()).items()}
        assert form["grant_type"] == "client_credentials"
        assert form["client_id"] == "app-1"
        self.asked.append(form)
        if self.answer is not None:
            await self.answer(seen)
            return
        token = f"token-canary-{len(self.asked)}"
        told = {"token_type": "Bearer", "expires_in": self.lasts, "access_token": token}
        await reply(200, json.dumps(told).encode())(seen)


@asynccontextmanager
async def signer(
    authority: Any, url: str = URL, clock: Any = time.monotonic, **env: str
) -> AsyncIterator[Entra]:
    async with Upstream(authority) as upstream, HttpClient() as client:
        known = {
            "AZURE_AUTHORITY_HOST": upstream.url + "/",
            "AZURE_TENANT_ID": "tenant-1",
            "AZURE_CLIENT_ID": "app-1",
            "AZURE_CLIENT_SECRET": SECRET,
        }
        yield Entra(url, client, {**known, **env}, clock)


async def sign(one: Entra, deadline: float | None = None) -> str:
    ((name, value),) = await one.sign(URL, b"", deadline)
    assert name == "Authorization"
    return value


async def test_one_token_serves_many_requests() -> None:
    authority = Authority()
    async with signer(authority) as one:
        told = await asyncio.gather(*(sign(one) for _ in range(5)))
        assert {*told, await sign(one)} == {"Bearer token-canary-1"}
        assert {SECRET, "token-canary-1"} <= set(one.secrets)
    (form,) = authority.asked
    assert (form["client_secret"], form["scope"]) == (SECRET, SCOPE)


async def test_a_token_is_renewed_before_it_ends() -> None:
    now = 1000.0
    authority = Authority(lasts=entra.EARLY - 1)
    async with signer(authority, clock=lambda: now) as one:
        assert await sign(one) == "Bearer token-canary-1"
        assert await sign(one) == "Bearer token-canary-1", "it has just been asked for"
        now += entra.SECONDS
        assert await sign(one) == "Bearer token-canary-2"
        # The old one still counts, and serves while no new one can be had.
        authority.answer = reply(503, b"{}")
        now += entra.SECONDS
        for _ in range(3):
            assert await sign(one) == "Bearer token-canary-2"
        assert len(authority.asked) == 3
        now += authority.lasts
        with pytest.raises(UpstreamError):
            await sign(one)


async def test_other_clouds() -> None:
    for end, scope in SCOPES.items():
        authority = Authority()
        async with signer(authority, f"https://r.openai{end}/openai") as one:
            await sign(one)
        assert authority.asked[0]["scope"] == scope


async def test_the_token_of_a_pod(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("pods-own-token\n")
    authority = Authority()
    facts = {"AZURE_CLIENT_SECRET": "", "AZURE_FEDERATED_TOKEN_FILE": str(file)}
    async with signer(authority, **facts) as one:
        assert await sign(one) == "Bearer token-canary-1"
    assert authority.asked[0]["client_assertion"] == "pods-own-token"
    assert authority.asked[0]["client_assertion_type"].endswith(":jwt-bearer")
    facts["AZURE_FEDERATED_TOKEN_FILE"] = str(tmp_path / "none")
    async with signer(authority, **facts) as one:
        with pytest.raises(UpstreamRefused, match="cannot be read"):
            await sign(one)


@pytest.mark.parametrize("name", ["AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET"])
async def test_without_credentials(name: str) -> None:
    authority = Authority()
    async with signer(authority, **{name: ""}) as one:
        with pytest.raises(UpstreamRefused) as caught:
            await sign(one)
    assert "AZURE_OPENAI_API_KEY" in (caught.value.hint or "")
    assert not authority.asked


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"error": "bad", "error_description": "AADSTS7000215: bad"}, UpstreamRefused),
        (400, {"error": "unauthorized_client"}, UpstreamRefused),
        (404, [], UpstreamRefused),
        (429, {"error": "throttled"}, RateLimited),
        (200, {"token_type": "Bearer"}, BadResponse),
        (200, [], BadResponse),
    ],
)  # fmt: skip
async def test_refusals(status: int, body: Any, expected: Any) -> None:
    authority = Authority()
    authority.answer = reply(status, json.dumps(body).encode())
    async with signer(authority) as one:
        with pytest.raises(expected) as caught:
            await sign(one)
    assert type(caught.value) is expected
    if isinstance(body, dict) and "error_description" in body:
        assert "AADSTS7000215" in caught.value.message


async def test_nobody_who_gives_tokens_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(seen: Seen) -> None:
        await seen.gone()

    authority = Authority()
    authority.answer = hang
    async with signer(authority) as one:
        soon = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded):
            await sign(one, soon)
        monkeypatch.setattr(entra, "SECONDS", 0.05)
        with pytest.raises(UpstreamTimeout):
            await sign(one)


async def test_a_model_at_azure_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"role": "assistant", "content": "Hello"}
    told: Any = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    authority = Authority()
    refuse = False

    async def azure(seen: Seen) -> None:
        if "oauth2" in seen.target:
            await authority(seen)
            return
        assert seen.target == "/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21"
        assert seen.headers["authorization"] == "Bearer token-canary-1"
        assert "api-key" not in seen.headers
        words = {"error": {"message": f"bad token {seen.headers['authorization']} {SECRET}"}}
        answer = reply(401, json.dumps(words).encode()) if refuse else None
        await (answer or reply(200, json.dumps(told).encode()))(seen)

    async with Upstream(azure) as upstream, HttpClient() as client:
        monkeypatch.setenv("AZURE_AUTHORITY_HOST", upstream.url)
        monkeypatch.setenv("AZURE_TENANT_ID", "tenant-1")
        monkeypatch.setenv("AZURE_CLIENT_ID", "app-1")
        monkeypatch.setenv("AZURE_CLIENT_SECRET", SECRET)
        target = RemoteTarget(
            name="azure/gpt-x", base_url=upstream.url, model="gpt-x", client=client,
            host=find("azure"),
        )  # fmt: skip
        assert (await ask(target, ASK_WHOLE)).text == "Hello"
        refuse = True
        found = await broken(target, ASK_WHOLE)
    assert isinstance(found, UpstreamRefused)
    assert "bad token" in str(found)
    assert SECRET not in str(found)
    assert "canary-1" not in str(found)
