"""When a stream of events has ended: cleanly, broken, or in an error. No sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llm_runner_router.errors import BadResponse, RateLimited, RunnerError, StreamBroken
from llm_runner_router.providers.dialects.openai import OpenAIEvents
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.providers.sse import SSEParser
from llm_runner_router.types import Usage

from .upstream import WHOLE, WORDS, chunk, event

CUT = StreamBroken("cut")


def reading(choices: int, redact: Callable[[bytes], bytes]) -> StreamReader:
    return StreamReader(OpenAIEvents("openai_chat"), SSEParser(), choices, redact)


def run(
    events: list[bytes], choices: int = 1, cause: RunnerError | None = None
) -> tuple[str, RunnerError | None, StreamReader]:
    reader = reading(choices, lambda data: data)
    deltas = []
    for data in events:
        deltas += reader.feed(data)
        if reader.done:
            break
    deltas += reader.end(cause)
    assert reader.done
    assert reader.end() == [], "the end was told twice"
    return "".join(d.text for d in deltas), reader.failure, reader


TEXT = "".join(WORDS)


def test_a_whole_stream() -> None:
    text, failure, reader = run(WHOLE)
    assert (text, failure, reader.finished) == (TEXT, None, True)


def test_all_events_in_one_chunk() -> None:
    reader = reading(1, lambda data: data)
    deltas = reader.feed(b"".join(WHOLE))
    assert reader.done
    assert [d.text for d in deltas] == ["", *WORDS, "", ""]
    assert deltas[-1].usage == Usage(7, 3)


@pytest.mark.parametrize("cause", [None, CUT])
def test_done_may_be_missing_after_a_finish(cause: RunnerError | None) -> None:
    assert run(WHOLE[:-1], cause=cause)[:2] == (TEXT, None)
    assert run(WHOLE[:-2], cause=cause)[:2] == (TEXT, None)


@pytest.mark.parametrize("cause", [None, CUT])
def test_a_stream_without_a_finish_is_broken(cause: RunnerError | None) -> None:
    for length in range(5):
        _, failure, _ = run(WHOLE[:length], cause=cause)
        assert isinstance(failure, StreamBroken), f"after {length} events: {failure!r}"
        assert cause is None or failure is cause


def test_done_without_a_finish_is_broken() -> None:
    _, failure, _ = run([*WHOLE[:3], event(b"[DONE]")])
    assert isinstance(failure, StreamBroken)


def test_a_cut_at_every_byte_never_passes_for_a_whole_answer() -> None:
    stream = b"".join(WHOLE)
    finish = stream.index(b'"stop"')
    end_of_finish = stream.index(b"\n", finish)
    for cut in range(len(stream)):
        text, failure, _ = run([stream[:cut]])
        if failure is None:
            assert cut >= end_of_finish, f"cut at byte {cut} passed for whole: {text!r}"
            assert text == TEXT
        else:
            assert isinstance(failure, StreamBroken)
            assert cut < end_of_finish, f"cut at byte {cut} is whole, but: {failure!r}"


@pytest.mark.parametrize("bad", [b"{not json", b"{}", b"\xff\xfe", b'{"choices": 5}'])
def test_up_to_two_bad_events_are_skipped(bad: bytes) -> None:
    for count in (1, 2):
        text, failure, _ = run([*WHOLE[:3], *[event(bad)] * count, *WHOLE[3:]])
        assert (text, failure) == (TEXT, None)
    _, failure, _ = run([*WHOLE[:3], *[event(bad)] * 3, *WHOLE[3:]])
    assert isinstance(failure, BadResponse)


def test_a_bad_event_in_place_of_the_finish_is_no_end() -> None:
    _, failure, _ = run([*WHOLE[:4], event(b"{"), *WHOLE[5:]])
    assert isinstance(failure, StreamBroken)


def test_an_error_comes_after_the_deltas_before_it() -> None:
    error: Any = {"error": {"message": "slow down", "type": "rate_limit_error"}}
    text, failure, _ = run([b"".join([*WHOLE[:3], event(error), *WHOLE[3:]])])
    assert text == "".join(WORDS[:2])
    assert isinstance(failure, RateLimited)


def test_every_choice_must_finish() -> None:
    both = [event(chunk("a")), event(chunk("b", index=1))]
    one = event(chunk(finish="stop"))
    other = event(chunk(index=1, finish="stop"))
    done = event(b"[DONE]")
    assert run([*both, one, other, done], 2)[1] is None
    assert run([*both, one, other], 2)[1] is None
    assert isinstance(run([*both, one, done], 2)[1], StreamBroken)
    assert isinstance(run([*both, one], 2)[1], StreamBroken)
    assert isinstance(run([event(chunk("a")), one], 2)[1], StreamBroken), "the other never began"
    assert run([event(chunk("a")), one, done], 2)[1] is None, "a host that gives one, and says so"


def test_noise_between_events() -> None:
    noisy = [b": ping\n\n", *WHOLE[:2], b"event: x\n\n", event(b""), *WHOLE[2:]]
    assert run(noisy)[:2] == (TEXT, None)
    crlf = [data.replace(b"\n", b"\r\n") for data in WHOLE]
    assert run(crlf)[:2] == (TEXT, None)
    assert run([*WHOLE[:-1], b"data: [DONE]"])[:2] == (TEXT, None)
    assert run([*WHOLE[:-1], b"data:  [DONE] \n\n"])[:2] == (TEXT, None)


def test_an_error_is_redacted_before_it_is_cut() -> None:
    key = "sk-canary-0123456789"
    reader = reading(1, lambda data: data.replace(key.encode(), b"***"))
    message = "x" * 990 + " " + key
    reader.feed(b"data: " + json.dumps({"error": {"message": message}}).encode() + b"\n\n")
    assert reader.failure is not None
    assert "sk-" not in str(reader.failure)
    assert reader.failure.__context__ is None
