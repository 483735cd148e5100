"""What an answer looks like in Anthropic's events and bodies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.errors import Overloaded, RateLimited, RunnerError, StreamBroken
from llm_runner_router.providers.dialects.anthropic import AnthropicEvents, parse_body
from llm_runner_router.surfaces.anthropic import encode, error, stream_error
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import a_request
from llm_runner_router.types import Delta, Origin, ToolCallDelta, Usage, Wire

USAGE = Usage(10, 4, cached_tokens=3, cache_write_tokens=2)


async def _stream(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


async def written(deltas: Sequence[Delta], *, stream: bool = True) -> list[bytes]:
    request = msgspec.structs.replace(a_request(), stream=stream)
    return [f async for f in encode(_stream(deltas), request, Reply("msg-1", 1700000000))]


def events(frames: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for part in b"".join(frames).split(b"\n\n")[:-1]:
        name, _, data = part.partition(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        found.append(event)
    return found


ANSWER = [
    Delta(role="assistant", origin=Origin("p/m1", "m1")),
    Delta(reasoning="hm"),
    Delta(signature="s"),
    Delta(text="Let "),
    Delta(text="me see."),
    Delta(tool_calls=(ToolCallDelta(0, "c0", "add", '{"a"'),)),
    Delta(tool_calls=(ToolCallDelta(1, None, "sub", ""),)),
    Delta(tool_calls=(ToolCallDelta(0, None, None, ":1}"),)),
    Delta(finish="tool_calls"),
    Delta(usage=USAGE),
]


async def test_blocks_open_and_close_and_calls_may_take_turns() -> None:
    found = events(await written(ANSWER))
    assert [(e["type"].removeprefix("content_block_"), e.get("index")) for e in found] == [
        ("message_start", None),
        ("start", 0),
        ("delta", 0),
        ("delta", 0),
        ("stop", 0),
        ("start", 1),
        ("delta", 1),
        ("delta", 1),
        ("stop", 1),
        ("start", 2),
        ("delta", 2),
        ("start", 3),
        ("delta", 2),
        ("stop", 2),
        ("stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[0]["message"]["model"] == "m1"
    assert found[3]["delta"] == {"type": "signature_delta", "signature": "s"}
    second = {"type": "tool_use", "id": "toolu_1_1", "name": "sub", "input": {}}
    assert found[11]["content_block"] == second
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
    }


async def test_a_whole_answer() -> None:
    (body,) = await written(ANSWER, stream=False)
    found = json.loads(body)
    assert (found["id"], found["type"], found["model"]) == ("msg_1", "message", "m1")
    assert found["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c0", "name": "add", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_1_1", "name": "sub", "input": {}},
    ]
    assert found["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("delta", "reason", "sequence"),
    [
        (Delta(finish="stop"), "end_turn", None),
        (Delta(finish="stop", stopped_by="END"), "stop_sequence", "END"),
        (Delta(finish="length", stopped_by="x"), "max_tokens", None),
        (Delta(finish="content_filter"), "refusal", None),
    ],
)
async def test_why_it_stopped(delta: Delta, reason: str, sequence: str | None) -> None:
    told = events(await written([Delta(text="x"), delta]))[-2]["delta"]
    assert told == {"stop_reason": reason, "stop_sequence": sequence}
    (body,) = await written([Delta(text="x"), delta], stream=False)
    assert json.loads(body)["stop_sequence"] == sequence


async def test_arguments_that_are_no_object_are_not_lost() -> None:
    call = ToolCallDelta(0, "c", "f", "[1,")
    (body,) = await written([Delta(tool_calls=(call,), finish="tool_calls")], stream=False)
    assert json.loads(body)["content"][0]["input"] == {"arguments": "[1,"}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_broken_stream_is_no_answer(stream: bool) -> None:
    with pytest.raises(StreamBroken):
        await written([Delta(text="x")], stream=stream)


async def test_events_of_the_same_dialect_pass_untouched() -> None:
    payloads = [
        b'{"type":"message_start", "message":{"odd":1.0}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use"}}',
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1}}',
        b'{"type":"message_stop"}',
    ]
    reader = AnthropicEvents()
    deltas = [delta for payload in payloads for delta in reader.feed(payload)]
    assert reader.done
    out = b"".join(await written(deltas))
    for payload in payloads:
        kind = json.loads(payload)["type"].encode()
        assert b"event: " + kind + b"\ndata: " + payload + b"\n\n" in out
    assert out.count(b"event: ") == len(payloads)
    whole = b'{"type":"message","content":[{"type":"text","text":"x"}],"odd" : 1}'
    assert await written(parse_body(whole), stream=False) == [whole]


async def test_events_of_another_dialect_are_written_anew() -> None:
    foreign = Delta(text="x", finish="stop", wire=Wire("openai_chat", "event", b"{}"))
    assert events(await written([foreign]))[-1]["type"] == "message_stop"


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (RateLimited("slow"), "rate_limit_error"),
        (Overloaded("full"), "overloaded_error"),
        (RunnerError("odd"), "api_error"),
        (StreamBroken("cut"), "api_error"),
    ],
)
def test_errors(exc: RunnerError, kind: str) -> None:
    found = json.loads(error(exc))
    assert (found["type"], found["error"]["type"]) == ("error", kind)
    assert stream_error(exc) == b"event: error\ndata: " + error(exc) + b"\n\n"


PIECES = st.one_of(
    st.text(min_size=1, max_size=5).map(lambda t: Delta(text=t)),
    st.text(min_size=1, max_size=5).map(lambda t: Delta(reasoning=t)),
    st.tuples(st.integers(0, 2), st.text(max_size=4)).map(
        lambda c: Delta(tool_calls=(ToolCallDelta(c[0], f"c{c[0]}", "f", c[1]),))
    ),
)


@given(st.lists(PIECES, max_size=12))
def test_reading_back_what_was_written(pieces: list[Delta]) -> None:
    """Our reader of Anthropic's events gets what our writer was given, in every order."""
    frames = asyncio.run(written([*pieces, Delta(finish="stop", usage=USAGE)]))
    reader = AnthropicEvents()
    back: list[Delta] = []
    for event in events(frames):
        back += reader.feed(json.dumps(event).encode())
    assert reader.done
    for field in ("text", "reasoning"):
        want = "".join(getattr(delta, field) for delta in pieces)
        assert "".join(getattr(delta, field) for delta in back) == want
    assert _arguments(pieces) == _arguments(back)
    assert [delta.usage for delta in back if delta.usage] == [USAGE]


def _arguments(deltas: Sequence[Delta]) -> list[str]:
    """The arguments of the calls, in the order in which the calls began."""
    found: dict[int, str] = {}
    for delta in deltas:
        for call in delta.tool_calls:
            found[call.index] = found.get(call.index, "") + call.arguments
    return list(found.values())
