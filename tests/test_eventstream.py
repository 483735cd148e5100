"""Amazon's binary event streams: what we write, AWS's own reader reads, and the other way round."""

from __future__ import annotations

from zlib import crc32

import pytest
from botocore.eventstream import EventStreamBuffer

from llm_runner_router.errors import BadResponse, StreamBroken
from llm_runner_router.eventstream import Frame, FrameSplitter, read, write

HEADERS = {":event-type": "contentBlockDelta", ":message-type": "event", "ü": ""}
ONE = write(HEADERS, b'{"a": 1}')
TWO = write({}, b"")


def test_awss_own_reader_reads_what_is_written() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(ONE + TWO)
    first, second = buffer
    assert (first.headers, first.payload) == (HEADERS, b'{"a": 1}')
    assert (second.headers, second.payload) == ({}, b"")


@pytest.mark.parametrize("size", [1, 2, 3, 11, 12, 13, 1000])
def test_cut_anywhere(size: int) -> None:
    splitter = FrameSplitter()
    data = ONE + TWO + ONE
    found = [one for at in range(0, len(data), size) for one in splitter.feed(data[at : at + size])]
    assert found == [ONE, TWO, ONE]
    assert splitter.end() == []
    assert read(ONE) == Frame(HEADERS, b'{"a": 1}')


def test_an_end_within_a_frame() -> None:
    for length in range(1, len(ONE)):
        splitter = FrameSplitter()
        assert splitter.feed(ONE[:length]) == []
        with pytest.raises(StreamBroken):
            splitter.end()


def test_every_flipped_bit_is_noticed() -> None:
    for bit in range(8 * len(ONE)):
        broken = bytearray(ONE)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadResponse):
            FrameSplitter().feed(bytes(broken))


def test_lengths_are_checked_before_anything_waits_for_them() -> None:
    for total, headers in ((1 << 31, 0), (15, 0), (100, 90), (1 << 20, 1 << 19)):
        lengths = total.to_bytes(4, "big") + headers.to_bytes(4, "big")
        with pytest.raises(BadResponse, match="bytes"):
            FrameSplitter().feed(lengths + crc32(lengths).to_bytes(4, "big"))
    with pytest.raises(BadResponse):
        FrameSplitter(max_frame=len(ONE) - 1).feed(ONE)


def sealed(headers: bytes) -> bytes:
    """A frame around any bytes as headers."""
    lengths = (16 + len(headers)).to_bytes(4, "big") + len(headers).to_bytes(4, "big")
    data = lengths + crc32(lengths).to_bytes(4, "big") + headers
    return data + crc32(data).to_bytes(4, "big")


def test_headers_of_all_kinds() -> None:
    others = (
        b"\x01t\x00\x01f\x01\x01b\x02\x05\x01s\x03\x00\x05\x01i\x04" + b"\x00" * 4 + b"\x01l\x05"
    )
    others += b"\x00" * 8 + b"\x01y\x06\x00\x02ab\x01d\x08" + b"\x00" * 8 + b"\x01u\x09" + b"0" * 16
    found = sealed(others + b"\x01n\x07\x00\x02hi")
    assert FrameSplitter().feed(found) == [found]
    assert read(found).headers == {"n": "hi"}


@pytest.mark.parametrize(
    "headers",
    [b"\x05ab", b"\x01a", b"\x01a\x0a", b"\x01a\x07\x00\x09hi", b"\x01a\x07\x00", b"\x01\xff\x00"],
)
def test_broken_headers(headers: bytes) -> None:
    with pytest.raises(BadResponse):
        read(sealed(headers))


def test_a_large_frame_in_small_pieces_costs_no_more() -> None:
    """Pieces are put together once, not for every piece."""
    frame = write({}, bytes(1 << 20))
    splitter = FrameSplitter()
    found = [one for at in range(0, len(frame), 64) for one in splitter.feed(frame[at : at + 64])]
    assert found == [frame]
