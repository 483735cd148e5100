"""The key of a provider is in no message, whatever the upstream does with it."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Mapping

import pytest

from llm_runner_router.config import Secret
from llm_runner_router.errors import (
    ConfigError,
)
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.types import (
    Request,
)

from .asking import (
    ASK,
    ASK_WHOLE,
    KEY,
    a_call,
    broken,
    faulty,
    hang,
    target_for,
)
from .upstream import (
    WHOLE,
    Seen,
    chunk,
    closed_port,
    event,
    reply,
    stream,
)
from .upstream import (
    Answer as Reply,
)


def told(error: BaseException) -> str:
    """Everything an error could show, its causes and contexts included."""
    parts = ["".join(traceback.format_exception(error))]
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        exc = todo.pop()
        if exc is None or id(exc) in seen:
            continue
        seen.add(id(exc))
        parts += [repr(exc), str(exc), repr(exc.args), repr(vars(exc)), repr(exc.args)]
        todo += [exc.__cause__, exc.__context__]
    return "\n".join(parts)


ECHO = json.dumps(
    {
        "error": {
            "message": "x" * 980 + f" you sent {KEY} and Bearer {KEY}",
            "code": KEY,
            "type": KEY,
            "param": f"headers.{KEY}",
        }
    }
).encode()
LEAKS: Mapping[str, Reply] = {
    **{f"status {s}": reply(s, ECHO) for s in (400, 401, 403, 404, 408, 413, 422, 429, 500, 503)},
    "status 200": reply(200, ECHO),
    "plain text": reply(401, f"wrong key {KEY}".encode(), b"content-type: text/plain\r\n"),
    "html": reply(401, f"<html><title>{KEY}</title></html>".encode()),
    "redirect": reply(302, b"", f"location: http://x/{KEY}\r\n".encode()),
    "in-band": stream([*WHOLE[:2], event(ECHO)]),
    "finish": stream([event(chunk("", finish="error-" + KEY)), event({"message": KEY})]),
    "bad events": stream([event(b'{"choices": "' + KEY.encode() + b'"}')] * 3),
    "bad body": reply(200, b'{"choices": [{"index": "' + KEY.encode() + b'"}]}'),
    "not HTTP": faulty([], "close"),
    "reset": faulty(WHOLE[:2], "reset"),
    "hang": hang,
}


async def garbage(seen: Seen) -> None:
    await seen.send(f"HTTP/9.9 {KEY}\r\n{KEY}: {KEY}\r\n\r\n".encode())
    seen.close()


@pytest.mark.parametrize("request_", [ASK, ASK_WHOLE])
@pytest.mark.parametrize("name", [*LEAKS, "garbage"])
async def test_the_key_is_never_told(
    name: str, request_: Request, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    answer = LEAKS.get(name, garbage)
    async with target_for(answer, headers={"X-Api-Token": f"t-{KEY}"}) as (target, _):
        assert KEY not in repr(target) + str(target)
        call = a_call(deadline=asyncio.get_running_loop().time() + 1)
        error = await broken(target, request_, call)
        text = told(error)
        assert KEY not in text, f"the key is in: {text}"
        assert KEY[:12] not in text, f"a part of the key is in: {text}"
    assert KEY not in caplog.text


async def test_the_key_is_not_told_when_nothing_answers() -> None:
    async with closed_port() as port, HttpClient() as client:
        target = RemoteTarget(
            name="up/m",
            base_url=f"http://127.0.0.1:{port}/v1",
            model="m",
            client=client,
            api_key=Secret(KEY),
        )
        assert KEY not in told(await broken(target))


async def test_a_key_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteTarget(
            name="t",
            base_url="http://127.0.0.1/v1",
            model="m",
            client=HttpClient(),
            api_key=Secret(KEY + "\nü"),
        )
    assert KEY not in told(caught.value)
