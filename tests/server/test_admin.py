"""The operator's routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from llm_runner_router.config import Server
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget


async def ask(gateway: FakeGateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    data = b"" if body is None else json.dumps(body).encode()
    async with serve(gateway, Server(port=0)) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        answer = await reader.read()
        writer.close()
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.fixture
def gateway() -> FakeGateway:
    found = FakeGateway({"m": FakeTarget("m")})
    for i in range(3):
        found.start_call(id=f"c{i}")
    return found


async def test_what_is_shown(gateway: FakeGateway) -> None:
    assert await ask(gateway, "GET", "/llmrr/ps") == (200, [{"name": "m"}])
    assert await ask(gateway, "GET", "/llmrr/status") == (200, {"calls": 3})
    assert (await ask(gateway, "GET", "/llmrr/records"))[1] == [{"id": f"c{i}"} for i in (2, 1, 0)]
    assert (await ask(gateway, "GET", "/llmrr/records?limit=1"))[1] == [{"id": "c2"}]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 30, "%C2%B2"])
async def test_a_limit_that_is_none(gateway: FakeGateway, limit: str) -> None:
    status, body = await ask(gateway, "GET", f"/llmrr/records?limit={limit}")
    assert (status, body["error"]["param"]) == (400, "limit")


async def test_load_and_stop(gateway: FakeGateway) -> None:
    assert await ask(gateway, "POST", "/llmrr/load", {"model": "m"}) == (200, {"loaded": "m"})
    assert await ask(gateway, "POST", "/llmrr/stop", {"model": "m"}) == (200, {"stopped": "m"})
    assert gateway.asked == ["load:m", "stop:m"]
    status, body = await ask(gateway, "POST", "/llmrr/load", {"model": "n"})
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    status, body = await ask(gateway, "POST", "/llmrr/stop", {"name": "m"})
    assert (status, body["error"]["param"]) == (400, "model")


async def test_explain_a_prompt_or_a_conversation(gateway: FakeGateway) -> None:
    status, body = await ask(gateway, "POST", "/llmrr/explain", {"model": "m", "prompt": "hi"})
    assert (status, body["model"]) == (200, "m")
    assert body["decision"]["reason"] == "it was asked 'hi'"
    chat = {"model": "m", "messages": [{"role": "user", "content": "yo"}], "temperature": 0}
    assert "'yo'" in (await ask(gateway, "POST", "/llmrr/explain", chat))[1]["decision"]["reason"]
    status, body = await ask(gateway, "POST", "/llmrr/explain", {"model": "m"})
    assert (status, body["error"]["param"]) == (400, "prompt")


async def test_a_server_inside_another_program_is_not_stopped_from_outside(
    gateway: FakeGateway,
) -> None:
    status, body = await ask(gateway, "POST", "/llmrr/shutdown")
    assert (status, body["error"]["type"]) == (403, "permission_error")
