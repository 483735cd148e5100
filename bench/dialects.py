"""What it costs to speak another dialect than the upstream: CPU time of the gateway per request.

Knows: how a question is asked in each dialect that clients speak. Does not know how the gateway is
built. The upstream speaks OpenAI's chat completions, so that way in is the one whose bytes pass;
the others are translated there and back. All are asked in turns, one connection each.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from statistics import median
from typing import Any

from msgspec import Struct

from . import proc, wire
from .gateway import KEY, Gateway, remote_config
from .report import Row, Section

SIZE = 4096
"""Bytes of a question, about."""
SCRIPT = wire.Script(200, 0.002)
"""Pieces of a streamed answer, far enough apart that each is read on its own."""
SAME = "OpenAI chat"
_WORDS = "benchmark text " * (SIZE // 15)


class Way(Struct, frozen=True):
    """A dialect as clients speak it."""

    name: str
    path: Callable[[str, bool], str]
    body: Callable[[str, bool], dict[str, Any]]


def _chat(model: str, stream: bool) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": _WORDS}],
        "max_tokens": 256,
        "stream": stream,
    }


def _responses(model: str, stream: bool) -> dict[str, Any]:
    asked = {"model": model, "input": _WORDS, "max_output_tokens": 256}
    return {**asked, "stream": stream, "store": False}


def _gemini(model: str, stream: bool) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": _WORDS}]}]
    return {"contents": contents, "generationConfig": {"maxOutputTokens": 256}}


def _content(model: str, stream: bool) -> str:
    verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    return f"/v1beta/models/{model}:{verb}"


WAYS = (
    Way(SAME, lambda model, stream: "/v1/chat/completions", _chat),
    Way("OpenAI responses", lambda model, stream: "/v1/responses", _responses),
    Way("Anthropic", lambda model, stream: "/v1/messages", _chat),
    Way("Gemini", _content, _gemini),
    Way("Cohere", lambda model, stream: "/v2/chat", _chat),
    Way("Ollama", lambda model, stream: "/api/chat", _chat),
)


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    rounds, plain, streams = (2, 150, 2) if quick else (4, 400, 6)
    upstream, port = proc.start_upstream()
    config = remote_config(port, ("gpt", SCRIPT.model))
    each: dict[str, list[float]] = {way.name: [] for way in WAYS}
    chunk: dict[str, list[float]] = {way.name: [] for way in WAYS}
    with upstream, Gateway(config) as gateway:
        for i in range(rounds + 1):
            for way in WAYS if i % 2 else WAYS[::-1]:
                one = _cost(gateway, way, "gpt", plain, stream=False) * 1e6
                long = _cost(gateway, way, SCRIPT.model, streams, stream=True) * 1e6
                if i:  # the first round warms up
                    each[way.name].append(one)
                    chunk[way.name].append((long - one) / SCRIPT.chunks)
    rows: list[Row] = []
    for what, found in (("plain request", each), ("chunk", chunk)):
        same = median(found[SAME])
        rows.append(Row(f"{SAME}: CPU per {what}, bytes pass", same, "µs"))
        for way in WAYS[1:]:
            value = median(found[way.name])
            rows.append(
                Row(f"{way.name}: CPU per {what}, translated", value, "µs", None, same, "less", 2.0)
            )
    return Section("dialects", tuple(rows))


def _cost(gateway: Gateway, way: Way, model: str, times: int, *, stream: bool) -> float:
    """CPU seconds of the gateway per request.

    Raises:
        BenchError: an answer is not whole.
    """
    body = json.dumps(way.body(model, stream))
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        start = proc.cpu_seconds(gateway.pid)
        for _ in range(times):
            connection.request("POST", way.path(model, stream), body, headers)
            response = connection.getresponse()
            data = response.read()
            if response.status != 200 or not _is_whole(data, stream):
                raise proc.BenchError(f"{way.name}: {response.status} {data[-300:]!r}")
        return (proc.cpu_seconds(gateway.pid) - start) / times
    except (OSError, http.client.HTTPException) as exc:
        raise proc.BenchError(f"{way.name}: {exc}") from exc
    finally:
        connection.close()


def _is_whole(data: bytes, stream: bool) -> bool:
    if not stream:
        return wire.ANSWER[:48].encode() in data
    return all(f"{i:06d} ".encode() in data for i in range(SCRIPT.chunks))
