"""What a runner of llama.cpp keeps of the prompts it has read: at least this much. Pure.

Knows: the engine's rules for slots and for prompts kept in memory, as `server-context.cpp` and
`server-task.cpp` of b11549 have them. Does not know: requests (`prefixes.py`), processes.

    1. The gateway names the slot of each request (`id_slot`), so it knows what each slot holds:
       the last prompt it was given and what was written after it. Of a new prompt the slot keeps
       the common beginning.
    2. If less than half of what the slot holds is of use, all of it goes to the memory for prompts,
       the oldest of which make room. Then whichever prompt there is better in both respects, more
       of the new prompt and more of its own, is loaded in its place; it leaves the memory.
    3. Tokens equal to the new prompt's beginning, less one, are not computed again (`cache_n`).

Tokens are not counted here, so every length is a range: `low` is sure, `high` cannot be exceeded.
How long a beginning is follows from the prompts that ended there or later: a prompt of 1,300
tokens whose last 100 bytes are not shared has 1,200 common tokens or more, for no token is shorter
than a byte. Where the rules leave a choice, the worst of them counts. So what is promised is less
than what the engine has, or equal, and at most a block more; if it ever is not, the promises of
that runner were wrong and end (`WRONG`).

The answer is not promised: a model may write other tokens than its text is cut into when it comes
back. The next question's own count includes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from .prefixes import BLOCK, MESSAGE, Marks, common, step

TAIL: Final = 64
"""Tokens after the last message, where the answer's turn begins, until the template was seen."""
TURN: Final = 16
"""Tokens of a template between two messages that may be equal where the messages are not."""
ANCHORS: Final = 24
"""Counts remembered of one prompt: the newest turns of a conversation, and its beginning."""
MOST: Final = 32
"""Prompts in memory that are told apart."""
HEADS: Final = 64
"""Beginnings of which the shortest prompt is remembered."""
WRONG: Final = 3
"""Promises that may fail before no more are made."""
OVERHEAD: Final = 32
"""Bytes that a kept token takes beside its keys and values, at most."""


class Seen(Struct, frozen=True):
    """What a chat template does with a conversation that goes on; see `appending.py`."""

    appends: bool
    """A longer conversation begins as the shorter one did."""
    tail: int = 0
    """Bytes after the last message, and so tokens at most."""
    head: int | None = None
    """Bytes before the first message, without tools and settings; None if that is not known."""


class Anchor(Struct, frozen=True, gc=False):
    """How many tokens the text before mark `at` has."""

    at: int
    low: int
    high: int


class Held(Struct, frozen=True, eq=False):
    """A prompt, with what was written after it, somewhere in the engine."""

    marks: Marks | None
    """None if it was no text."""
    low: int
    high: int
    """Tokens in all."""
    anchors: tuple[Anchor, ...] = ()
    sure: bool = True
    """It is certainly there, whole."""


class Match(Struct, frozen=True, gc=False):
    """How much of a prompt something kept has: marks, and tokens between `low` and `high`."""

    marks: int
    low: int
    high: int


class Flight(Struct, eq=False):
    """A request that is being answered, in the slot it was given."""

    slot: int
    promised: int | None
    """Tokens of its prompt that the slot or the memory has; None if nothing can be said."""
    marks: Marks | None
    before: Held | None
    """What the slot held."""
    match: Match
    anchors: tuple[Anchor, ...]
    own: int
    """Of those, what the slot itself has for sure."""
    alone: bool
    """No other request was in work meanwhile, so the order of what happened is known."""
    begun: bool = False
    """Its prompt was read to the end."""
    over: bool = False


class _Slot:
    __slots__ = ("busy", "held", "used")

    def __init__(self) -> None:
        self.held: Held | None = None
        self.busy = False
        self.used = 0


NOTHING: Final = Match(0, 0, 0)


class Kept:
    """The prompts of one runner.

    Args:
        slots: how many the runner has.
        room: bytes of its memory for prompts; 0 for none.
        per_token: bytes of a token's keys and values.
        context: tokens that a slot holds at most.
        shared: others may ask it, too, and its rules are not known: what it was told last is
            likely there, which is enough to choose between equals, and promised to nobody.
    """

    def __init__(
        self,
        slots: int,
        *,
        room: int = 0,
        per_token: int = 0,
        context: int = 0,
        shared: bool = False,
    ) -> None:
        self._slots = [_Slot() for _ in range(slots)]
        self._memory: list[Held] = []
        self._room = room
        self._per_token = per_token + OVERHEAD
        self._context = context or 1 << 30
        self._heads: dict[tuple[int, str], int] = {}
        self._clock = 0
        self._flying: list[Flight] = []
        self._unseen: int | None = None
        """The least bytes of a prompt that may still be in memory and is not told apart here."""
        self._shared = shared
        self._heard = False
        """It has said that it had something of a prompt."""
        self._wrong = 0
        self._dense: float | None = None
        self.seen: Seen | None = None
        """What the model's chat template does; None: not seen yet, and chats have no promises."""

    # ------------------------------------------------------------ what is asked

    @property
    def is_naming(self) -> bool:
        """Whether requests are to be told their slot; one slot needs no name."""
        if self._shared or len(self._slots) == 1:
            return False
        return self.seen is None or self.seen.appends

    @property
    def tokens(self) -> int | None:
        """Tokens kept for sure, in slots and in memory; None if nothing is."""
        if self._shared:
            return None
        held = [slot.held for slot in self._slots if slot.held is not None]
        return sum(one.low for one in (*held, *self._memory) if one.sure)

    def promise(self, marks: Marks | None) -> int | None:
        """Tokens of that prompt which would not be computed again; None if that is not known."""
        likely = self._best(marks)[1]
        if self._shared:
            return likely if self._heard and marks is not None else None
        return self._told(marks, likely)

    def length(self, marks: Marks, known: int) -> int:
        """About how many tokens a prompt has of which `known` are kept."""
        dense = 0.3 if self._dense is None else self._dense
        return max(known + 1, round(dense * marks.cost))

    # ------------------------------------------------------------ what happens

    def begin(self, marks: Marks | None) -> Flight:
        """A request is sent; it takes `Flight.slot`."""
        index, promised = self._best(marks)
        slot = self._slots[index]
        before, slot.held, slot.busy = slot.held, None, True
        match = NOTHING if before is None else self._match(before, marks)
        flight = Flight(
            slot=index,
            promised=self._told(marks, promised),
            marks=marks,
            before=before,
            match=match,
            anchors=self._inherited(before, marks),
            own=match.low if before is not None and before.sure else 0,
            alone=not self._flying,
        )
        for other in self._flying:
            other.alone = False
            if not other.begun and other.promised is not None:
                # This one may overtake it, and take what it would find in memory.
                other.promised = min(other.promised, other.own)
        self._flying.append(flight)
        return flight

    def end(self, flight: Flight, prompt: int, cached: int, written: int) -> None:
        """It was answered; numbers of tokens as the engine counted them."""
        if flight.over:
            return
        if prompt <= 0:
            self.lost(flight)
            return
        from_slot = self._is_from_slot(flight)
        self._replaced(flight, prompt, cached)
        self._heard = self._heard or cached > 0
        if cached + BLOCK < (flight.own if self._shared else flight.promised or 0):
            self._wrong += 1
            self.forget()
            flight.anchors, from_slot = (), False
        self._learn(flight, prompt, cached if from_slot else None)
        count = max(prompt, prompt + written - 1)
        self._leave(flight, Held(flight.marks, count, count, flight.anchors))

    def lost(self, flight: Flight) -> None:
        """It failed, or its reader left; `flight.begun` tells whether its prompt was read."""
        if flight.over:
            return
        before, own = flight.before, flight.match
        if before is not None and self._room:
            memory = self._loaded(self._memory, flight.marks, own, None)
            # Whether it came as far as to its slot is known only if it began to be answered.
            saved = flight.begun and flight.alone and own.high * 2 < before.low
            self._memory = self._fitting([*memory, before if saved else _doubted(before)])
        low = max((anchor.low for anchor in flight.anchors), default=0)
        held = Held(flight.marks, low, self._context, flight.anchors)
        if not flight.begun:
            held = Held(flight.marks, 0, self._context, flight.anchors, sure=False)
        self._leave(flight, held)

    def forget(self) -> None:
        """Nothing is sure any more, and nothing counted is believed."""
        self._heads.clear()
        for slot in self._slots:
            if slot.held is not None:
                slot.held = Held(slot.held.marks, 0, self._context, sure=False)
        self._memory = [Held(held.marks, 0, self._context, sure=False) for held in self._memory]

    def holds(self, slot: int, tokens: int) -> Held | None:
        """What is in `slot`, if it is known and of so many tokens."""
        if not self._knows_slots or not 0 <= slot < len(self._slots):
            return None
        held = self._slots[slot].held
        return held if held is not None and held.sure and held.low == tokens else None

    def restored(self, slot: int, held: Held | None) -> None:
        """The slot was given what was saved from another runner of this model."""
        place = self._slots[slot]
        if place.busy or place.used or held is None:
            # A request went there in the same moment, or what came is not known.
            place.held = Held(None, 0, self._context, sure=False)
            return
        place.held = held
        if held.marks is not None and held.anchors:
            self._shortest(held.marks, held.anchors[-1].high)

    # ------------------------------------------------------------ which slot, and how much it has

    @property
    def _knows_slots(self) -> bool:
        return not self._shared and (len(self._slots) == 1 or self.is_naming)

    def _told(self, marks: Marks | None, promised: int) -> int | None:
        if marks is None or self._wrong >= WRONG or not self._knows_slots:
            return None
        if marks.chat and (self.seen is None or not self.seen.appends):
            return None
        return promised

    def _best(self, marks: Marks | None) -> tuple[int, int]:
        """The idle slot to take, and how much it surely has: that with most of the prompt, of
        equals the least recently used."""
        idle = [index for index, slot in enumerate(self._slots) if not slot.busy]
        if not idle:  # the engine makes it wait, and another may be free sooner
            return min(range(len(self._slots)), key=lambda i: self._slots[i].used), 0
        kept = [(held, self._match(held, marks)) for held in self._memory]
        ranked: list[tuple[int, int, int]] = []
        for index in idle:
            held = self._slots[index].held
            own = NOTHING if held is None else self._match(held, marks)
            worth = self._worth(held, own, kept) if marks is not None else 0
            ranked.append((max(worth, self._likely(own, marks)), worth, index))
        _, worth, index = max(ranked, key=lambda r: (r[0], -self._slots[r[2]].used, -r[2]))
        return index, worth

    def _likely(self, own: Match, marks: Marks | None) -> int:
        """Tokens that a slot has of a prompt, sure or not; 0 for less than the engine cares about
        (`slot_prompt_similarity`): a few words in common are no reason to disturb a slot."""
        if marks is None or own.marks < 2 or own.marks * 10 <= len(marks.hashes):
            return 0
        return max(1, own.low)

    def _worth(self, held: Held | None, own: Match, kept: list[tuple[Held, Match]]) -> int:
        """Tokens that a slot with `held` would have of a prompt, in the worst case."""
        if held is None:
            return 0  # the engine does not look into its memory for an empty slot
        sure = own.low if held.sure else 0
        if not kept or self._flying or self._unseen is not None:
            return sure
        if not held.low or own.high * 2 >= held.low:
            return sure  # the slot may stay as it is
        fitting = self._fitting([*self._memory, held], note=False)
        there = {id(one) for one in fitting if one.sure}
        better = [
            (match.low, other)
            for other, match in kept
            if id(other) in there
            and match.low * 4 >= other.high
            and match.low > own.high
            and match.low * held.low > own.high * other.high
        ]
        if not better:
            return sure
        most, best = max(better, key=lambda pair: pair[0])
        for other, match in kept:
            if other is best or match.high * 4 < other.low or match.high <= own.low:
                continue  # too little of it, or not more than the slot has: it is passed over
            if match.high < most and match.high * best.high < most * other.low:
                continue  # worse in both respects
            most = min(most, match.low)
        return max(sure, most)

    def _match(self, held: Held, marks: Marks | None) -> Match:
        """How much of a prompt `held` has, wherever it is."""
        if held.marks is None or marks is None:
            return Match(0, 0, held.high)
        count = common(held.marks, marks)
        if not count:
            return Match(0, 0, held.high)
        costs, at = held.marks.costs, count - 1
        if count in (len(costs), len(marks.costs)):  # it may go on in what was written
            low = max((_at_least(anchor, at, costs) for anchor in held.anchors), default=0)
            return Match(count, max(0, low), held.high)
        low, high, head = 0, held.high, self._heads.get(marks.root)
        if marks.plain and self.seen is not None and self.seen.head is not None:
            # With the token that begins texts; what goes before the first message is in it.
            first = self.seen.head + 1 - MESSAGE
            head = first if head is None else min(head, first)
        if head is not None:
            high = min(high, head + costs[count])
        for anchor in held.anchors:
            low = max(low, _at_least(anchor, at, costs))
            beyond = costs[count] - costs[anchor.at] if anchor.at <= at else 0
            high = min(high, anchor.high + beyond)
        return Match(count, low, max(low, high))

    # ------------------------------------------------------------ what became of the rest

    def _replaced(self, flight: Flight, prompt: int, cached: int) -> None:
        """What the slot held went to the memory, or did not; what it has now may come from it."""
        held, own = flight.before, flight.match
        if held is None or not self._room:
            return
        if own.low * 2 >= held.high and own.low * 8 >= prompt:
            return  # half of it or more is of use: it stays, and the memory is not looked at
        memory, surely = self._memory, False
        if flight.alone:
            named = self._named(flight.marks, own, cached)
            surely = named is not None or cached > own.high + 1
            memory = [one for one in memory if one is not named]
        if not surely or len(memory) == len(self._memory):
            memory = self._loaded(memory, flight.marks, own, cached if surely else None)
        stays = not surely and min(own.high, cached + 1) * 2 >= held.low
        saved = held if flight.alone and not stays else _doubted(held)
        self._memory = self._fitting([*memory, saved])

    def _named(self, marks: Marks | None, own: Match, cached: int) -> Held | None:
        """What was loaded from memory, where the engine's count says it: all of something was of
        use, to the token, and of nothing else."""
        found = [
            held
            for held in self._memory
            if held.marks is not None
            and held.low == held.high == cached > own.low
            and self._match(held, marks).marks == len(held.marks.hashes)
        ]
        return found[0] if len(found) == 1 else None

    def _loaded(
        self, memory: list[Held], marks: Marks | None, own: Match, cached: int | None
    ) -> list[Held]:
        """The memory without what was loaded from it, in doubt where that is not clear.

        Args:
            cached: tokens of what was loaded; None if perhaps nothing was.
        """
        found: list[Held] = []
        for held in memory:
            match = self._match(held, marks)
            if match.high * 4 >= held.low and match.high > own.low:
                if cached is None or match.low - 1 <= cached <= match.high:
                    found.append(held)
        if cached is not None and len(found) == 1:
            return [held for held in memory if held is not found[0]]
        return [_doubted(held) if held in found else held for held in memory]

    def _fitting(self, memory: list[Held], *, note: bool = True) -> list[Held]:
        """The memory with its newest added; what may have made room for it is no longer sure.

        What surely did is gone. If an older one contains the newest, the engine keeps that one
        only, which makes room sooner; if it does not, the newest takes its room all the same.
        """
        *older, newest = memory
        for index, held in enumerate(older):
            if _contains(held, newest):
                memory = [*older[:index], newest, *older[index:], _doubted(newest)]
                break
        least = most = 0
        found: list[Held] = []
        for held in reversed(memory):
            bytes = held.low * (self._per_token - OVERHEAD)
            most += min(held.high, self._context) * self._per_token
            if least + bytes > self._room:
                continue
            if len(found) == MOST:
                if note:
                    self._unseen = bytes if self._unseen is None else min(bytes, self._unseen)
                continue
            found.append(held if most <= self._room else _doubted(held))
            if found[-1].sure:
                least += bytes
        if note and self._unseen is not None and least + self._unseen > self._room:
            self._unseen = None
        found.reverse()
        return found

    def _leave(self, flight: Flight, held: Held) -> None:
        flight.over = True
        self._flying.remove(flight)
        slot = self._slots[flight.slot]
        self._clock += 1
        slot.held, slot.busy, slot.used = held, False, self._clock

    # ------------------------------------------------------------ what is learnt

    def _inherited(self, before: Held | None, marks: Marks | None) -> tuple[Anchor, ...]:
        """Counts that are known of the prompt's beginning, from whoever shares most of it."""
        if marks is None:
            return ()
        most, best = 0, None
        for other in (before, *(slot.held for slot in self._slots), *self._memory):
            if other is not None and other.marks is not None and other.anchors:
                count = common(other.marks, marks)
                if count > most:
                    most, best = count, other
        return () if best is None else tuple(a for a in best.anchors if a.at < most)

    def _learn(self, flight: Flight, prompt: int, shared: int | None) -> None:
        """Two counts: of the whole prompt, and of what it shared with the slot, if known."""
        marks = flight.marks
        if marks is None:
            return
        found = {anchor.at: anchor for anchor in flight.anchors}
        count = flight.match.marks
        if shared is not None and 0 < count < len(marks.hashes):
            beyond = step(marks.costs[count]) - BLOCK
            low, high = max(0, shared - TURN - beyond), shared + TURN
            before = found.get(count - 1, Anchor(count - 1, low, high))
            high = min(high, before.high)
            found[count - 1] = Anchor(count - 1, min(high, max(low, before.low)), high)
        last, tail = len(marks.hashes) - 1, TAIL if self.seen is None else self.seen.tail
        tail = tail if marks.chat else 0
        found[last] = Anchor(last, max(0, prompt - tail), prompt)
        known, first = [found[at] for at in sorted(found)], ANCHORS // 4
        flight.anchors = (*known[:first], *known[first:][first - ANCHORS :])
        self._shortest(marks, prompt)
        dense = prompt / max(1, marks.cost)
        self._dense = dense if self._dense is None else self._dense + 0.3 * (dense - self._dense)

    def _is_from_slot(self, flight: Flight) -> bool:
        """What the engine had was the slot's, or shared no more marks than that."""
        held, marks = flight.before, flight.marks
        if held is None or held.marks is None or marks is None or not held.sure:
            return False
        if flight.match.marks >= len(held.marks.hashes) or not self._knows_slots:
            return False  # it goes on in the answer
        return not self._room or (
            flight.alone
            and self._unseen is None
            and all(
                other.marks is not None and common(other.marks, marks) <= flight.match.marks
                for other in self._memory
            )
        )

    def _shortest(self, marks: Marks, prompt: int) -> None:
        """The shortest prompt with that first mark: what all of them share is no longer."""
        before = self._heads.pop(marks.root, prompt)
        self._heads[marks.root] = min(before, prompt)
        if len(self._heads) > HEADS:
            del self._heads[next(iter(self._heads))]


def _at_least(anchor: Anchor, at: int, costs: Sequence[int]) -> int:
    """Tokens before mark `at` by what `anchor` counted, behind it or before it."""
    return anchor.low if anchor.at <= at else anchor.low - (costs[anchor.at] - costs[at])


def _doubted(held: Held) -> Held:
    return msgspec.structs.replace(held, sure=False) if held.sure else held


def _contains(older: Held, newer: Held) -> bool:
    """Whether the older one may be all of the newer one, and more."""
    if older.marks is None or newer.marks is None:
        return True
    return common(older.marks, newer.marks) >= len(newer.marks.hashes)
