"""Which prompts are saved and which files stay: decisions over plain values."""

from __future__ import annotations

import random
import struct

import pytest

from llm_runner_router.engine.private import read
from llm_runner_router.engine.prompts import LEAST_TOKENS, Saved, Shelf, Slot, worth_saving
from llm_runner_router.engine.slots import tokens_of
from llm_runner_router.errors import EngineError


def ids(*slots: Slot, per_token: int = 10, limit: int = 10**6, seconds: float = 1e3) -> list[int]:
    found = worth_saving(slots, per_token=per_token, limit=limit, seconds=seconds, rate=1000.0)
    return [slot.id for slot in found]


def test_the_latest_used_come_first() -> None:
    assert ids(Slot(0, 100, 7), Slot(1, 100, 9), Slot(2, 100, 8)) == [1, 2, 0]


def test_unused_and_short_ones_are_left_out() -> None:
    unused, short = Slot(0, 500, None), Slot(1, LEAST_TOKENS - 1, 3)
    assert ids(unused, short, Slot(2, LEAST_TOKENS, 4), Slot(3, 0)) == [2]


def test_what_does_not_fit_is_passed_over() -> None:
    slots = Slot(0, 50, 1), Slot(1, 400, 2), Slot(2, 60, 3)
    assert ids(*slots, limit=1200) == [2, 0]
    assert ids(*slots, seconds=1.2) == [2, 0], "1000 bytes a second"
    assert ids(*slots, seconds=-1) == []


def test_the_shelf_never_holds_more_than_its_limit() -> None:
    rng = random.Random(5)
    for _ in range(200):
        shelf, kept = Shelf(rng.randrange(1, 100)), list[str]()
        for n in range(30):
            saved = Saved(rng.choice("ab"), rng.choice("xy"), f"{n}", 1, rng.randrange(1, 60))
            gone = [s.file for s in shelf.add(saved)]
            kept.append(saved.file)
            assert kept[: len(gone)] == gone, "the oldest go first"
            del kept[: len(gone)]
            assert shelf.bytes <= shelf.limit
        both = {s.file for key in "ab" for s in shelf.newest(key, 99)}
        assert both == set(kept)


def test_a_key_finds_its_newest_and_a_model_is_forgotten_whole() -> None:
    shelf = Shelf(100)
    for file, key in (("1", "a"), ("2", "b"), ("3", "a"), ("4", "a")):
        shelf.add(Saved(key, "m" if file != "4" else "n", file, 1, 10))
    assert [s.file for s in shelf.newest("a", 2)] == ["4", "3"]
    assert [s.file for s in shelf.drop_model("m")] == ["1", "2", "3"]
    assert [s.file for s in shelf.drop_key("a")] == ["4"]
    assert shelf.drop(["4"]) == ()
    assert shelf.bytes == 0


def test_a_prompt_takes_the_place_of_those_it_continues() -> None:
    shelf = Shelf(100)
    for file, key, prompt in (
        ("1", "a", (1, 2)),
        ("2", "b", (1, 2)),
        ("3", "a", (2,)),
        ("4", "a", ()),
    ):
        shelf.add(Saved(key, "m", file, len(prompt), 10, prompt))
    gone = shelf.add(Saved("a", "m", "5", 3, 10, (1, 2, 3)))
    assert [s.file for s in gone] == ["1"]
    assert [s.file for s in shelf.newest("a", 9)] == ["5", "4", "3"]


def test_tokens_are_read_from_a_slot_file_only_if_it_is_of_the_known_kind() -> None:
    good = struct.pack("<IIIiii3i", 0x67677371, 4, 7, -1, 1, 3, 11, 12, 13)
    assert tokens_of(good) == (11, 12, 13)
    assert tokens_of(good[:-1]) == ()
    assert tokens_of(good[:10]) == ()
    assert tokens_of(struct.pack("<IIIiii3i", 0x67677371, 5, 7, -1, 1, 3, 1, 2, 3)) == ()
    assert tokens_of(struct.pack("<IIIiii3i", 0x67677371, 4, 2, -1, 1, 3, 1, 2, 3)) == ()
    assert tokens_of(struct.pack("<IIIiii3i", 0x67677371, 4, 7, -1, 1, -3, 1, 2, 3)) == ()


def test_a_runners_answer_is_read() -> None:
    plain = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
    assert read(plain) == {"a": 1}
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
    assert read(chunked + b'\r\n4\r\n{"a"\r\n3\r\n: 2\r\n1\r\n}\r\n0\r\n\r\n') == {"a": 2}
    events = chunked + b"Content-Type: text/event-stream\r\n\r\n"
    body = b'data: {"n": 1}\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'
    assert read(events + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)) == {"n": 2}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\n", "broke off"),
        (b"HTTP/1.1 500 No\r\n\r\nwhy", "500: why"),
        (b"HTTP/1.1 200 OK\r\n\r\n{", "no JSON"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "broke off"),
    ],
)
def test_an_answer_that_is_none_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        read(raw, "/slots")
