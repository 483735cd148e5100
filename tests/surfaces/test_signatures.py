"""What Google signed goes out to clients of other formats and comes back as it was."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from llm_runner_router.fidelity import Receipt
from llm_runner_router.providers.dialects import anthropic_request, find, openai_request
from llm_runner_router.providers.dialects.anthropic import AnthropicEvents, parse_body
from llm_runner_router.providers.dialects.base import Quirks, WireRequest
from llm_runner_router.providers.dialects.gemini_request import build_request
from llm_runner_router.surfaces import anthropic, openai_chat
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import a_request
from llm_runner_router.types import Delta, Request, ToolCallDelta

SIGNATURE = "Z29vZ2xl"
ANSWER = [
    Delta(role="assistant", reasoning="hm"),
    Delta(tool_calls=(ToolCallDelta(0, "c0", "add", '{"a":1}', f"google:{SIGNATURE}"),)),
    Delta(tool_calls=(ToolCallDelta(1, "c1", "add", '{"a":2}'),)),
    Delta(finish="tool_calls"),
]


async def _stream(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


async def written(codec: Any, *, stream: bool) -> bytes:
    request = msgspec.structs.replace(a_request(), stream=stream)
    frames = codec.encode(_stream(ANSWER), request, Reply("msg-1", 1700000000))
    return b"".join([frame async for frame in frames])


def calls(request: Request) -> list[dict[str, Any]]:
    """The calls that Google is shown."""
    receipt = Receipt()
    sent = json.loads(build_request(request, "gemini-3-pro", Quirks(), receipt).body)
    assert receipt.marks == {}
    return [part for part in sent["contents"][1]["parts"] if "functionCall" in part]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_openai_client_sends_it_back(stream: bool) -> None:
    data = await written(openai_chat, stream=stream)
    if stream:
        chunks = [json.loads(part[6:]) for part in data.split(b"\n\n")[:-2]]
        pieces = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    else:
        pieces = json.loads(data)["choices"][0]["message"]["tool_calls"]
    assert pieces[0]["extra_content"] == {"google": {"thought_signature": SIGNATURE}}
    assert "extra_content" not in pieces[1]
    turn = {"role": "assistant", "tool_calls": pieces}
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}, turn]}
    first, second = calls(openai_chat.decode(json.dumps(asked).encode()))
    assert first["thoughtSignature"] == SIGNATURE
    assert "thoughtSignature" not in second


@pytest.mark.parametrize("stream", [True, False])
async def test_an_anthropic_client_sends_it_back(stream: bool) -> None:
    data = await written(anthropic, stream=stream)
    if stream:
        events = AnthropicEvents()
        parts = [part.partition(b"data: ")[2] for part in data.split(b"\n\n")[:-1]]
        deltas = [delta for part in parts for delta in events.feed(part)]
        signature = next(delta.signature for delta in deltas if delta.signature)
    else:
        signature = next(delta.signature for delta in parse_body(data) if delta.signature)
    asked = _asked({"type": "thinking", "thinking": "hm", "signature": signature})
    (call,) = calls(anthropic.decode(asked))
    assert call["thoughtSignature"] == SIGNATURE


def test_googles_endpoint_for_openais_format_signs_too() -> None:
    signed = {"google": {"thought_signature": SIGNATURE}}
    call = {"id": "c0", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**call, "extra_content": signed}],
    }
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    wire = WireRequest("/chat/completions", b"", "openai_chat")
    deltas = find("openai").parse_body(json.dumps(body).encode(), wire)
    calls = [call for delta in deltas for call in delta.tool_calls]
    assert [one.signature for one in calls] == [f"google:{SIGNATURE}"]
    thought = {"type": "thinking", "thinking": "hm", "signature": f"google:{SIGNATURE}"}
    hello = {"role": "user", "content": "hi"}
    clients = [
        anthropic.decode(_asked(thought)),
        openai_chat.decode(json.dumps({"model": "m", "messages": [hello, message]}).encode()),
    ]
    for quirks, kept in ((Quirks(signatures=True), signed), (Quirks(), None)):
        for asked in (*clients, msgspec.structs.replace(clients[1], wire=None)):
            sent = json.loads(openai_request.build_request(asked, "m", quirks).body)["messages"]
            assert sent[1]["tool_calls"][0].get("extra_content") == kept


def _asked(*blocks: dict[str, Any]) -> bytes:
    use = {"type": "tool_use", "id": "c0", "name": "add", "input": {"a": 1}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [*blocks, use]},
    ]
    return json.dumps({"model": "m", "max_tokens": 9, "messages": messages}).encode()


def test_anthropic_is_not_shown_what_google_signed() -> None:
    own = {"type": "thinking", "thinking": "mine", "signature": "c2ln"}
    blocks = ({"type": "thinking", "thinking": "hm", "signature": f"google:{SIGNATURE}"}, own)
    asked = anthropic.decode(_asked(*blocks))
    for request in (asked, msgspec.structs.replace(asked, wire=None)):
        wire = anthropic_request.build_request(request, "claude", Quirks(), Receipt())
        sent = json.loads(wire.body)["messages"][1]["content"]
        assert [block["type"] for block in sent] == ["thinking", "tool_use"]
        assert sent[0] == own
