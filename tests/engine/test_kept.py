"""What is promised of kept prompts, against a model of the engine that counts tokens exactly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_runner_router.engine import fit, llamacpp, placing
from llm_runner_router.engine.kept import ANCHORS, HEADS, MOST, WRONG, Flight, Kept, Seen
from llm_runner_router.engine.live import Known
from llm_runner_router.engine.prefixes import BLOCK, marks
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import Message, Request

BYTES = 100
"""Of a token's keys and values."""
CONTEXT = 8192


# ---------------------------------------------------------------- the engine, exactly


def tokens(request: Request) -> list[bytes]:
    """A chat template that appends, and a tokenizer whose tokens are one to eight bytes long."""
    found = [b"<s>"]
    for message in request.messages:
        found += [b"<start>", message.role.encode(), b"\n", *cut(message.text.encode()), b"<end>"]
    return [*found, b"<start>", b"assistant", b"\n"]


def cut(text: bytes) -> Iterator[bytes]:
    """Digits one by one, the rest by words of up to eight bytes."""
    start = 0
    for at in range(1, len(text) + 1):
        last = text[at - 1 : at]
        if last == b" " or last.isdigit() or at - start == 8 or at == len(text):
            yield text[start:at]
            start = at


def shared(one: list[bytes], other: list[bytes]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class Engine:
    """Slots and memory as `server-context.cpp` and `server-task.cpp` of b11549 have them."""

    def __init__(self, slots: int, room: int) -> None:
        self.slots: list[list[bytes]] = [[] for _ in range(slots)]
        self.memory: list[list[bytes]] = []
        self.room = room

    def begin(self, slot: int, prompt: list[bytes]) -> int:
        """Put a prompt into a slot; how many of its tokens were there."""
        held = self.slots[slot]
        same = shared(held, prompt)
        similar = same / len(prompt) > 0.1
        if self.room and held and not (similar and same / len(held) >= 0.5):
            self._save(held)
            held = self._load(held, prompt)
        same = shared(held, prompt)
        self.slots[slot] = prompt
        return min(same, len(prompt) - 1)

    def _save(self, held: list[bytes]) -> None:
        if any(shared(one, held) == len(held) for one in self.memory):
            return
        if len(held) * BYTES > self.room:
            return
        self.memory = [one for one in self.memory if shared(one, held) < len(one)]
        self.memory.append(held)
        while sum(map(len, self.memory)) * BYTES > self.room:
            del self.memory[0]

    def _load(self, held: list[bytes], prompt: list[bytes]) -> list[bytes]:
        best: int | None = None
        keep, similar = shared(held, prompt) / len(held), shared(held, prompt) / len(prompt)
        for index, one in enumerate(self.memory):
            same = shared(one, prompt)
            if same / len(one) >= 0.25 and keep < same / len(one) and similar < same / len(prompt):
                keep, similar, best = same / len(one), same / len(prompt), index
        return held if best is None else self.memory.pop(best)


# ---------------------------------------------------------------- traffic


class Traffic:
    """Conversations that begin, go on, are taken up again and are left."""

    def __init__(self, seed: int, slots: int, room: int) -> None:
        self.rng = Random(seed)
        self.engine = Engine(slots, room)
        self.kept = Kept(slots, room=room, per_token=BYTES, context=CONTEXT)
        self.kept.seen = Seen(appends=True, tail=3, head=3)
        self.systems = [self.words(self.rng.choice((0, 5, 60))) for _ in range(3)]
        self.talks: list[tuple[Message, ...]] = []
        self.flying: list[tuple[Flight, list[bytes], int, tuple[Message, ...]]] = []
        self.promised = self.had = 0
        self.leave = 0.1

    def words(self, count: int) -> str:
        rng = self.rng
        return "".join(
            rng.choice(("sea ", "apple ", "extraordinarily ", f"{rng.randrange(10**6)}", "é"))
            for _ in range(count)
        )

    def next(self) -> tuple[Message, ...]:
        rng = self.rng
        if self.talks and rng.random() < 0.7:
            talk = rng.choice(self.talks)
            if rng.random() < 0.2:
                talk = talk[: rng.randrange(len(talk))]
        else:
            system = rng.choice(self.systems)
            talk = (Message("system", system),) if system else ()
        if talk and talk[-1].role == "user":
            return talk if rng.random() < 0.3 else (*talk[:-1], self.question())
        return (*talk, self.question())

    def question(self) -> Message:
        return Message("user", self.words(self.rng.choice((1, 3, 20, 150))))

    def begin(self, talk: tuple[Message, ...] = ()) -> None:
        talk = talk or self.next()
        request = Request("m", messages=talk)
        flight = self.kept.begin(marks(request))
        prompt = tokens(request)
        assert not any(flight.slot == other.slot for other, *_ in self.flying)
        cached = self.engine.begin(flight.slot, prompt)
        self.flying.append((flight, prompt, cached, talk))

    def end(self) -> None:
        rng = self.rng
        flight, prompt, cached, talk = self.flying.pop(rng.randrange(len(self.flying)))
        held = self.engine.slots[flight.slot]
        if (
            rng.random() < self.leave
        ):  # it is left: before its prompt was read, or while it is answered
            flight.begun = rng.random() < 0.5
            stop = len(prompt) if flight.begun else rng.randrange(cached, len(prompt) + 1)
            self.engine.slots[flight.slot] = held[:stop] or [b"<s>"]
            self.kept.lost(flight)
            return
        flight.begun = True
        assert flight.promised is not None
        assert flight.promised <= cached + BLOCK, (flight.promised, cached)
        self.promised += flight.promised
        self.had += cached
        text = self.words(rng.choice((1, 10, 40)))
        written = list(cut(text.encode()))
        if rng.random() < 0.2:  # other tokens than the text is cut into
            written = [bytes([byte]) for byte in text.encode()]
        self.engine.slots[flight.slot] = held + written
        self.kept.end(flight, len(prompt), cached, len(written) + 1)
        self.talks.append((*talk, Message("assistant", text)))
        del self.talks[:-8]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.sampled_from((0, 20_000, 200_000, 5_000_000)),
    st.integers(1, 3),
)
def test_no_more_is_promised_than_the_engine_has(
    seed: int, slots: int, room: int, at_once: int
) -> None:
    traffic = Traffic(seed, slots, room)
    for _ in range(60):
        if len(traffic.flying) < min(slots, at_once):
            traffic.begin()
        if traffic.flying and traffic.rng.random() < 0.6:
            traffic.end()
    while traffic.flying:
        traffic.end()


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(("room", "share"), [(0, 0.8), (5_000_000, 0.35)])
def test_much_of_what_the_engine_has_is_promised(slots: int, room: int, share: float) -> None:
    """Four conversations that take turns, under one system message.

    What comes from memory is promised with more care: which prompt the engine prefers there
    depends on exact counts.
    """
    promised = had = 0
    for seed in range(10):
        traffic = Traffic(seed, slots, room)
        traffic.leave = 0.0
        system = Message("system", traffic.words(60))
        talks: list[tuple[Message, ...]] = [(system, traffic.question()) for _ in range(4)]
        for _ in range(40):
            talk = talks.pop(traffic.rng.randrange(3))
            traffic.begin(talk)
            traffic.end()
            talks.append((*traffic.talks[-1], traffic.question()))
        promised, had = promised + traffic.promised, had + traffic.had
    assert promised > share * had


def flown(kept: Kept, *texts: str, cached: int = 0) -> Flight:
    """A request that was answered with one token; a token is a byte."""
    messages = tuple(Message("user", text) for text in texts)
    flight = kept.begin(marks(Request("m", messages=messages)))
    kept.end(flight, sum(map(len, texts)), cached, 1)
    return flight


def a_kept(slots: int = 1) -> Kept:
    kept = Kept(slots)
    kept.seen = Seen(appends=True)
    return kept


def test_a_promise_that_fails_takes_all_others_with_it_and_the_third_ends_them() -> None:
    kept = a_kept()
    flown(kept, "x" * 500)
    for _ in range(WRONG):
        assert kept.tokens == 500
        promised = flown(kept, "x" * 500).promised
        assert promised == 500
    assert flown(kept, "x" * 500).promised is None


@pytest.mark.parametrize("seen", [None, Seen(appends=False)])
def test_chats_of_a_template_that_does_not_append_have_no_promises(seen: Seen | None) -> None:
    kept = a_kept()
    kept.seen = seen
    flown(kept, "x" * 500)
    assert flown(kept, "x" * 500).promised is None
    text = marks(Request("m", prompt="y" * 500))
    kept.end(kept.begin(text), 500, 0, 1)
    assert kept.promise(text) == 500, "a text has no template"


def test_a_conversation_keeps_its_slot_and_another_does_not_take_it() -> None:
    kept = a_kept(slots=3)
    one, two = flown(kept, "x" * 500), flown(kept, "y" * 500)
    assert (one.slot, two.slot) == (0, 1)
    again = flown(kept, "x" * 500, "more", cached=500)
    assert (again.slot, again.promised) == (0, 500)
    assert flown(kept, "z" * 500).slot == 2
    assert flown(kept, "a" * 500).slot == 1, "the least recently used"
    running = kept.begin(marks(Request("m", messages=(Message("user", "x" * 500),))))
    assert running.slot == 0
    waiting = kept.begin(marks(Request("m", messages=(Message("user", "x" * 500),))))
    assert (waiting.slot, waiting.promised) == (2, 0), "the slot that has it is busy"


def test_what_is_restored_has_its_promises_and_what_is_not_known_has_none() -> None:
    kept = a_kept()
    flown(kept, "x" * 500)
    held = kept.holds(0, 500)
    assert held is not None
    assert kept.holds(0, 499) is None
    fresh = a_kept(slots=2)
    fresh.restored(0, held)
    fresh.restored(1, None)
    assert fresh.tokens == 500
    assert flown(fresh, "x" * 500).promised == 500
    fresh.restored(0, held)
    assert fresh.tokens == 0, "a request was there meanwhile"


def test_work_and_memory_have_bounds() -> None:
    """A thousand prompts that fit the engine's memory; each further one costs the same."""
    kept = Kept(4, room=1 << 40, per_token=1)
    kept.seen = Seen(appends=True)
    for number in range(1000):
        flown(kept, f"{number} " * 200)
    assert len(kept._memory) <= MOST
    assert len(kept._heads) <= HEADS
    talk = ["word " * 20]
    for _ in range(200):
        talk.append("word " * 20)
        flight = flown(kept, *talk, cached=100)
    assert len(flight.anchors) <= ANCHORS


def test_what_a_shared_server_was_told_last_is_likely_there_and_promised_to_nobody() -> None:
    kept = Kept(2, shared=True)
    asked = marks(Request("m", messages=(Message("user", "x" * 500), Message("user", "more"))))
    assert not kept.is_naming
    flown(kept, "x" * 500)
    assert kept.promise(asked) is None, "it has not said yet that it keeps anything"
    assert flown(kept, "x" * 500, "other", cached=499).promised is None
    assert (kept.promise(asked) or 0) > 400
    assert kept.tokens is None
    at_once = [kept.begin(asked) for _ in range(3)]
    for flight in at_once:
        kept.end(flight, 504, 500, 1)
    assert (kept.promise(asked) or 0) > 400
    flown(kept, "x" * 500, "more", cached=0)
    flown(kept, "x" * 500, "more", cached=0)
    assert kept.promise(marks(Request("m", prompt="y"))) == 0


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, True),
        ({"window": 512}, False),
        ({"architecture": "mamba"}, False),
        ({"architecture": "rwkv7"}, False),
    ],
)
def test_only_what_can_be_cut_back_is_accounted_for(changes: dict[str, Any], known: bool) -> None:
    model = resolve(parse("zoo:tiny-math"))
    info = msgspec.structs.replace(model.info, **changes)
    model = msgspec.structs.replace(model, info=info)
    place = llamacpp.place(info, fit.Wanted(2, budget=1 << 34))
    for purpose in ("chat", "embed"):
        asked = Known(model, purpose, llamacpp, place, pinned=False)
        asked.seen = Seen(appends=True, tail=7)
        kept = placing.kept(asked, "")
        assert (kept is not None) == (known and purpose == "chat")
        assert kept is None or kept.seen == asked.seen, "a template is looked at once"
