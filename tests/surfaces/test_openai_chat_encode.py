"""What a chat answer looks like on the wire: chunks, whole bodies, and relayed bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router.errors import ContextTooLong, Overloaded, RunnerError, StreamBroken
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.surfaces.openai_chat import encode, error, stream_error
from llm_runner_router.testing import a_request, deltas_of
from llm_runner_router.types import (
    Delta,
    Origin,
    Price,
    Request,
    ToolCallDelta,
    Usage,
    Wire,
)

DONE = b"data: [DONE]\n\n"
ORIGIN = Origin("p/m1", "m1", price=Price(1.0, 2.0))
USAGE = Usage(3, 2, cached_tokens=1)


async def _stream(deltas: Sequence[Delta | RunnerError]) -> AsyncIterator[Delta]:
    for delta in deltas:
        if isinstance(delta, RunnerError):
            raise delta
        yield delta


def asked(*, stream: bool, usage: bool = False) -> Request:
    return msgspec.structs.replace(a_request(), stream=stream, include_usage=usage)


async def frames(
    deltas: Sequence[Delta | RunnerError], *, stream: bool = True, usage: bool = False
) -> list[bytes]:
    reply = Reply("chatcmpl-1", 1700000000)
    request = asked(stream=stream, usage=usage)
    return [frame async for frame in encode(_stream(deltas), request, reply)]


def events(frames: Sequence[bytes]) -> list[dict[str, Any]]:
    text = b"".join(frames)
    assert text.endswith(DONE), text
    parts = text[: -len(DONE)].split(b"\n\n")
    assert parts.pop() == b""
    return [json.loads(part.removeprefix(b"data: ")) for part in parts]


async def test_the_golden_stream() -> None:
    got = await frames(
        [
            Delta(role="assistant", origin=ORIGIN),
            Delta(text="Hé"),
            Delta(text="y", logprobs=Raw(b'{"content":[{"token":"y"}]}')),
            Delta(finish="stop"),
            Delta(usage=USAGE),
        ]
    )
    head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
    head += b'"model":"m1","choices":[{"index":0,"delta":'
    assert got == [
        head + b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n',
        head + '{"content":"Hé"},"logprobs":null,"finish_reason":null}]}\n\n'.encode(),
        head
        + b'{"content":"y"},"logprobs":{"content":[{"token":"y"}]},"finish_reason":null}]}\n\n',
        head + b'{},"logprobs":null,"finish_reason":"stop"}]}\n\n',
        DONE,
    ]


async def test_usage_comes_once_and_last_for_whoever_asked() -> None:
    deltas = [*deltas_of("a b"), Delta(usage=USAGE, origin=ORIGIN)]
    got = events(await frames(deltas, usage=True))
    assert all(event["usage"] is None for event in got[:-1])
    assert got[-1]["choices"] == []
    assert got[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    without = events(await frames(deltas))
    assert all(event["choices"] for event in without)
    assert all("usage" not in event for event in without)


async def test_tool_calls_name_themselves_once_and_always_have_arguments() -> None:
    got = events(
        await frames(
            [
                Delta(tool_calls=(ToolCallDelta(0, "c1", "add", ""),)),
                Delta(tool_calls=(ToolCallDelta(0, arguments='{"a"'),)),
                Delta(
                    tool_calls=(ToolCallDelta(0, arguments=":1}"), ToolCallDelta(1, None, "now"))
                ),
                Delta(finish="tool_calls"),
            ]
        )
    )
    calls = [call for event in got for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 0, 0, 1, 1]
    assert [call.get("id") for call in calls] == ["c1", None, None, "call_1_0_1", None]
    assert [call["function"].get("name") for call in calls] == ["add", None, None, "now", None]
    assert [call["function"]["arguments"] for call in calls] == ["", '{"a"', ":1}", "", "{}"]
    assert got[0]["choices"][0]["delta"]["role"] == "assistant"
    assert got[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_every_choice_gets_its_role_once() -> None:
    got = events(await frames([*deltas_of("a b", index=1), *deltas_of("c", index=0)]))
    roles = [(e["choices"][0]["index"], e["choices"][0]["delta"].get("role")) for e in got]
    assert roles == [(1, "assistant"), (1, None), (1, None), (0, "assistant"), (0, None)]


async def test_reasoning_and_refusal_have_their_own_fields() -> None:
    got = events(await frames([Delta(reasoning="hm"), Delta(refusal="no"), Delta(finish="stop")]))
    assert got[0]["choices"][0]["delta"] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
    }
    assert got[1]["choices"][0]["delta"] == {"refusal": "no"}


async def test_a_whole_answer() -> None:
    (body,) = await frames(
        [
            Delta(text="a", origin=ORIGIN, logprobs=Raw(b'{"content":[1]}')),
            Delta(text="b", logprobs=Raw(b'{"content":[2]}'), finish="stop"),
            Delta(index=1, tool_calls=(ToolCallDelta(0, "c", "f"),), finish="tool_calls"),
            Delta(usage=USAGE),
        ],
        stream=False,
    )
    answer = json.loads(body)
    assert answer["object"] == "chat.completion"
    assert (answer["id"], answer["created"], answer["model"]) == ("chatcmpl-1", 1700000000, "m1")
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "ab", "refusal": None},
            "logprobs": {"content": [1, 2], "refusal": None},
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        },
    ]
    assert answer["usage"]["total_tokens"] == 5


# ---------------------------------------------------------------- relaying


def event(data: bytes, **fields: Any) -> Delta:
    return Delta(wire=Wire("openai_chat", "event", data), **fields)


WORD = b'{"odd": 1.0, "choices":[{"delta":{"content":"x"}}]}'
STOP = b'{"choices":[{"delta":{},"finish_reason":"stop"}]}'
TOLD = b'{"choices":[],"usage":{"prompt_tokens":1},"timings":{"x":1}}'


async def test_events_of_the_same_dialect_pass_untouched() -> None:
    deltas = [event(WORD, text="x"), event(STOP, finish="stop"), event(TOLD, usage=USAGE)]
    relayed = [b"data: " + WORD + b"\n\n", b"data: " + STOP + b"\n\n"]
    assert await frames(deltas) == [*relayed, DONE]
    assert await frames(deltas, usage=True) == [*relayed, b"data: " + TOLD + b"\n\n" + DONE]


async def test_a_chunk_without_choices_is_never_passed_on_early() -> None:
    first = b'{"choices":[],"prompt_filter_results":[]}'
    deltas = [event(first), event(WORD, text="x"), event(STOP, finish="stop")]
    assert await frames(deltas) == [b"data: " + WORD + b"\n\n", b"data: " + STOP + b"\n\n", DONE]


async def test_usage_that_came_with_the_finish_still_gets_its_own_last_chunk() -> None:
    deltas = [event(WORD, text="x"), event(STOP, finish="stop", usage=USAGE, origin=ORIGIN)]
    got = await frames(deltas, usage=True)
    assert got[:2] == [b"data: " + WORD + b"\n\n", b"data: " + STOP + b"\n\n"]
    last = events(got)[-1]
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5)


async def test_several_deltas_of_one_event_are_sent_once() -> None:
    deltas = [event(WORD, text="x"), Delta(index=1, text="y"), event(STOP, finish="stop")]
    assert len(events(await frames(deltas))) == 2


async def test_a_payload_of_several_lines_stays_one_event() -> None:
    pretty = b'{\n "choices": [{"delta": {"content": "x"}}]\n}'
    got = await frames([event(pretty, text="x"), event(STOP, finish="stop")])
    assert got[0] == b'data: {\ndata:  "choices": [{"delta": {"content": "x"}}]\ndata: }\n\n'


async def test_another_dialect_is_written_anew() -> None:
    foreign = Delta(text="x", finish="stop", wire=Wire("anthropic", "event", b"{}"))
    assert events(await frames([foreign]))[0]["choices"][0]["delta"]["content"] == "x"


async def test_a_whole_body_passes_untouched_or_is_cut_into_chunks() -> None:
    body = b'{"odd":1,"choices":[]}'
    deltas = [Delta(text="hi", finish="stop", wire=Wire("openai_chat", "body", body))]
    assert await frames(deltas, stream=False) == [body]
    got = events(await frames(deltas))
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": "hi"}


async def test_events_for_a_client_that_wants_a_body_are_added_up() -> None:
    deltas = [event(WORD, text="x"), event(WORD, text="x"), event(STOP, finish="stop")]
    (body,) = await frames(deltas, stream=False)
    assert json.loads(body)["choices"][0]["message"]["content"] == "xx"


# ---------------------------------------------------------------- bad ends


@pytest.mark.parametrize("first", [Delta(text="x"), event(WORD, text="x")])
@pytest.mark.parametrize("stream", [True, False])
async def test_an_end_without_a_finish_is_no_clean_end(first: Delta, stream: bool) -> None:
    with pytest.raises(StreamBroken):
        await frames([first], stream=stream)


async def test_an_empty_stream_is_broken() -> None:
    for stream in (True, False):
        with pytest.raises(StreamBroken):
            await frames([], stream=stream)


async def test_an_error_comes_through_after_what_was_sent() -> None:
    deltas = _stream([Delta(text="x"), Overloaded("full")])
    out = encode(deltas, asked(stream=True), Reply("i", 1))
    assert DONE not in await anext(out)
    with pytest.raises(Overloaded):
        await anext(out)


def test_errors_have_openais_shape() -> None:
    exc = ContextTooLong("too long", hint="shorten it", param="messages")
    told = {
        "error": {
            "message": "too long (hint: shorten it)",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }
    assert json.loads(error(exc)) == told
    data = stream_error(exc)
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert json.loads(data[6:]) == told


async def test_the_reply_notes_who_answered_at_what_cost() -> None:
    reply = Reply("chatcmpl-1", 1)
    deltas = [*deltas_of("a", usage=USAGE), Delta(origin=ORIGIN)]
    async for _ in encode(_stream(deltas), asked(stream=True), reply):
        pass
    assert (reply.origin, reply.usage) == (ORIGIN, USAGE)
    assert reply.cost == pytest.approx((2 + 1 + 2 * 2) / 1e6)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.text(), st.text(max_size=3), st.text(max_size=3)),
        min_size=1,
    )
)
def test_chunks_add_up_to_the_whole(pieces: list[tuple[int, str, str, str]]) -> None:
    deltas = [Delta(index=i, text=t, reasoning=r, refusal=f) for i, t, r, f in pieces]
    deltas += [Delta(index=i, finish="stop") for i in sorted({p[0] for p in pieces})]
    streamed: dict[int, list[str]] = {}
    for chunk in events(asyncio.run(frames(deltas))):
        choice = chunk["choices"][0]
        parts = streamed.setdefault(choice["index"], ["", "", ""])
        for k, name in enumerate(("content", "reasoning_content", "refusal")):
            parts[k] += choice["delta"].get(name) or ""
    (body,) = asyncio.run(frames(deltas, stream=False))
    whole = {
        choice["index"]: [
            choice["message"].get(name) or ""
            for name in ("content", "reasoning_content", "refusal")
        ]
        for choice in json.loads(body)["choices"]
    }
    assert streamed == whole
