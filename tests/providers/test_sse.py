"""The event stream parser: whatever way a stream is cut, the same events come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_runner_router.errors import BadResponse
from llm_runner_router.providers.sse import SSEParser

STREAMS: list[tuple[bytes, list[bytes]]] = [
    (b"", []),
    (b'data: {"a":1}\n\n', [b'{"a":1}']),
    (b"data: a\n\ndata: b\n\ndata: [DONE]\n\n", [b"a", b"b", b"[DONE]"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
    (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
    (b"data: a\ndata: b\n\n", [b"a\nb"]),
    (b"data\n\ndata:\ndata\n\n", [b"", b"\n"]),
    (b": ping\n\n: ping\n\ndata: a\n\n", [b"a"]),
    (b"event: error\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
    (b"data: a\nevent: x\n\n", [b"a"]),
    (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    ("data: größe 語 😀\n\ndata: ü\n\n".encode(), ["größe 語 😀".encode(), "ü".encode()]),
    (b"dataa: no\nDATA: no\ndata : no\n\ndata: yes\n\n", [b"yes"]),
    (b"data: a\n\nevent: b\n\ndata: c\n\n", [b"a", b"c"]),
]


def events(pieces: list[bytes]) -> list[bytes]:
    parser = SSEParser()
    found = [payload for piece in pieces for payload in parser.feed(piece)]
    return found + parser.end()


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_events_are_the_same_wherever_the_stream_is_cut(
    stream: bytes, expected: list[bytes]
) -> None:
    assert events([stream]) == expected
    assert events([stream[i : i + 1] for i in range(len(stream))]) == expected
    for cut in range(len(stream) + 1):
        assert events([stream[:cut], stream[cut:]]) == expected, f"cut at byte {cut}"


def test_two_cuts_anywhere() -> None:
    stream, expected = (
        b": x\r\n\r\ndata: a\r\ndata: \xc3\xbc\r\n\r\ndata: b\n\n",
        [b"a\n\xc3\xbc", b"b"],
    )
    for i in range(len(stream) + 1):
        for j in range(i, len(stream) + 1):
            found = events([stream[:i], stream[i:j], stream[j:]])
            assert found == expected, f"cut at bytes {i} and {j}"


line = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data: ",
        b": c",
        b"event: e",
        b"",
        b"",
        "data: ü😀".encode(),
    ]
)
ending = st.sampled_from([b"\n", b"\r", b"\r\n"])
stream_bytes = st.lists(st.tuples(line, ending), max_size=12).map(
    lambda pairs: b"".join(text + end for text, end in pairs)
)


def reference(stream: bytes) -> list[bytes]:
    """The standard's algorithm on a whole stream, written the slow and obvious way."""
    found: list[bytes] = []
    data: list[bytes] = []
    for text in stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if text == b"":
            if data:
                found.append(b"\n".join(data))
            data = []
            continue
        name, colon, value = text.partition(b":")
        if name == b"data":
            data.append(value[1:] if colon and value.startswith(b" ") else value)
    if data:
        found.append(b"\n".join(data))
    return found


@given(stream_bytes, st.lists(st.integers(0, 200), max_size=8))
@example(b"data: a\r\n\r\n", [8, 9])
def test_any_stream_in_any_pieces(stream: bytes, cuts: list[int]) -> None:
    marks = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(marks)]
    assert events(pieces) == reference(stream)


@given(st.binary(max_size=200), st.integers(1, 7))
def test_garbage_is_treated_alike_in_any_pieces(stream: bytes, size: int) -> None:
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert events(pieces) == events([stream])


def test_a_cut_stream_gives_a_prefix_of_its_events() -> None:
    stream = b"data: one\n\n: c\n\ndata: two\r\n\r\ndata: three\n\n"
    whole = events([stream])
    for cut in range(len(stream)):
        parser = SSEParser()
        found = parser.feed(stream[:cut])
        assert found == whole[: len(found)], f"cut at byte {cut}"


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: x\n", b": c\ndata: 0123456789\n"])
def test_an_endless_event_is_refused(piece: bytes) -> None:
    parser = SSEParser(max_event=100)

    def feed() -> None:
        for _ in range(200):
            parser.feed(piece)

    with pytest.raises(BadResponse, match="longer than 100 bytes"):
        feed()


def test_many_small_events_are_not_an_endless_one() -> None:
    parser = SSEParser(max_event=20)
    for _ in range(100):
        assert parser.feed(b"data: 0123456789\n\n" * 10) == [b"0123456789"] * 10
        assert parser.feed(b": a comment\n") == []
