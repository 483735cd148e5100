"""How prompts are told apart from their beginning on, without their tokens. Pure.

Knows: requests, and how much of two of them is equal. Does not know: engines, templates, who keeps
what (`kept.py`).

A prompt becomes a chain of marks: one before its first message, then one after each block of a
message and one after each message. A mark stands for everything before it, so the number of equal
leading marks says how much two prompts share, and one look at the last of them whether they share
it all. What is not part of a message but changes what the engine reads (tools, adapters, settings
of the chat template, the day, which many templates write down) is in the first mark.

Marks count bytes, not tokens: to count those takes a second per megabyte and the template, too.
A mark's `cost` is what the text before it can be in tokens at most; `kept.py` makes tokens of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from datetime import date
from typing import Final
from weakref import ref

import msgspec
from msgspec import Struct

from llm_runner_router.types import Message, Request, TextPart

BLOCK: Final = 64
"""Bytes between two marks, and so the tokens between them at most: none is shorter than a byte."""
_COARSER: Final = ((1 << 20, 4096), (1 << 16, 512))
"""From that many bytes on blocks are larger: a prompt of 1 MiB has 3,000 marks, not 16,000."""
MESSAGE: Final = 64
"""Tokens that a chat template may put around a message; `appending.py` checks it."""
_ASIDE: Final = frozenset(
    ("dynatemp_exponent", "dynatemp_range", "id_slot", "ignore_eos", "logit_bias", "metadata",
     "min_keep", "min_p", "mirostat", "mirostat_eta", "mirostat_tau", "n_probs", "repeat_last_n",
     "repeat_penalty", "repetition_penalty", "safety_identifier", "samplers", "store",
     "stream_options", "timings_per_token", "top_n_sigma", "typical_p", "xtc_probability",
     "xtc_threshold")
)  # fmt: skip
"""Fields that change how an answer is drawn, not what is read; any other may change that."""
_encode = msgspec.json.Encoder(order="deterministic").encode


class Marks(Struct, frozen=True, eq=False):
    """The marks of one prompt, and the cost of the text before each."""

    hashes: array[int]
    costs: array[int]
    chat: bool
    plain: bool
    """There is nothing beside messages and text that changes what is read."""
    owner: str = ""
    """Prompts of different owners share nothing."""

    @property
    def root(self) -> tuple[int, str]:
        """The mark before the first message."""
        return self.hashes[0], self.owner

    @property
    def cost(self) -> int:
        """Tokens of all messages at most."""
        return self.costs[-1]


class Marker:
    """Marks of requests; those of the last one are remembered, as several models are asked for it.

    Args:
        today: the day of the calendar.
    """

    def __init__(self, today: Callable[[], int] = lambda: date.today().toordinal()) -> None:
        self._today = today
        self._last: tuple[ref[Request], Marks | None] | None = None

    def marks(self, request: Request, owner: str) -> Marks | None:
        """See `marks`; the request itself is not kept alive."""
        if self._last is None or self._last[0]() is not request:
            self._last = ref(request), marks(request, self._today())
        found = self._last[1]
        return None if found is None else msgspec.structs.replace(found, owner=owner)


def marks(request: Request, day: int = 0) -> Marks | None:
    """The marks of a prompt; None if its text alone does not say what the engine reads.

    Images and sound are no text. Thoughts of earlier turns are left out by many templates as soon
    as the next question comes, so a conversation with them does not only grow.

    Args:
        day: of the calendar; prompts of different days share nothing.
    """
    if _is_opaque(request):
        return None
    # Python's own hash of bytes is keyed by chance for each process (SipHash), fast, and no part of
    # it leaves the process.
    beside = _beside(request)
    mark = hash((day, request.prompt is None, beside))
    hashes, costs = array("q", (mark,)), array("Q", (0,))
    at = cost = 0
    for text in _texts(request):
        cost += MESSAGE
        start = 0
        while True:
            block = text[start : start + step(at)]
            mark = hash((mark, block))
            start, at, cost = start + len(block), at + len(block), cost + len(block)
            hashes.append(mark)
            costs.append(cost)
            if start >= len(text):
                break
    return Marks(hashes, costs, chat=request.prompt is None, plain=beside == _PLAIN)


def step(at: int) -> int:
    """Bytes of the block that begins `at` bytes after the start."""
    return next((size for start, size in _COARSER if at >= start), BLOCK)


def common(one: Marks, other: Marks) -> int:
    """How many leading marks are equal. Equal ones are never behind unequal ones: halving."""
    a, b = one.hashes, other.hashes
    if a[0] != b[0] or one.owner != other.owner:
        return 0
    low, high = 1, min(len(a), len(b))
    if high > 1 and a[1] != b[1]:
        return 1  # most pairs
    while low < high:
        middle = (low + high + 1) // 2
        if a[middle - 1] == b[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _is_opaque(request: Request) -> bool:
    wire = request.wire.fields.get("messages") if request.wire is not None else None
    if wire is not None and b'"reasoning' in bytes(wire):
        return True
    cache = request.extra.get("cache_prompt")
    if cache is not None and bytes(cache) != b"true":
        return True
    return any(
        (
            isinstance(message.content, tuple)
            and not all(isinstance(part, TextPart) for part in message.content)
        )
        or (message.role == "assistant" and "</think>" in message.text)
        for message in request.messages
    )


def _beside(request: Request) -> bytes:
    extra = {name: value for name, value in request.extra.items() if name not in _ASIDE}
    return _encode(
        (
            request.suffix,
            request.tools,
            request.tool_choice,
            request.parallel_tool_calls,
            request.response_format,
            request.reasoning,
            extra,
        )
    )


def _texts(request: Request) -> Iterator[bytes]:
    if request.prompt is not None:
        yield request.prompt.encode("utf-8", "surrogatepass")
        return
    for message in request.messages:
        yield _text(message)


def _text(message: Message) -> bytes:
    content = message.content
    if not isinstance(content, str) or message.tool_calls or message.name or message.tool_call_id:
        return _encode(message)
    return f"{message.role}\0{content}\0".encode("utf-8", "surrogatepass")


_PLAIN: Final = _beside(Request(""))
