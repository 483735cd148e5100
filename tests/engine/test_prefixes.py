"""Marks of prompts: what they tell apart, and what they cost."""

from __future__ import annotations

import gc
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router.engine import prefixes
from llm_runner_router.engine.prefixes import BLOCK, MESSAGE, Marker, Marks, common, marks
from llm_runner_router.types import (
    ImagePart,
    ImageURL,
    Message,
    Request,
    RequestWire,
    Sampling,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
)

LONG = "What is 12 + 30? " * 40


def of(*texts: str, **changes: object) -> Marks:
    """Marks of a conversation whose turns are those."""
    roles = ("user", "assistant")
    turns = [Message(roles[i % 2], text) for i, text in enumerate(texts)]  # type: ignore[arg-type]  # a role
    found = marks(msgspec.structs.replace(Request("m", messages=tuple(turns)), **changes))
    assert found is not None
    return found


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_the_number_of_equal_marks_is_how_much_is_equal(same: str, one: str, other: str) -> None:
    a, b = of(same, "", same + one), of(same, "", same + other)
    count = common(a, b)
    assert count == common(b, a)
    assert list(a.hashes[:count]) == list(b.hashes[:count])
    first, second = (f"{text}\0".encode() for text in (same + one, same + other))
    equal = next((i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), None)
    if equal is None:
        assert count == len(a.hashes) == len(b.hashes)
    else:
        blocks = (len("user\0") + equal) // BLOCK
        before = len(of(same, "").hashes)
        assert count == before + blocks


def test_a_conversation_that_goes_on_has_all_marks_of_its_beginning() -> None:
    short, long = of(LONG), of(LONG, "Forty-two.", "And 1 + 1?")
    assert common(short, long) == len(short.hashes)
    assert common(of(LONG + "?"), long) == len(short.hashes) - 1, "all but the last block"


def test_no_token_is_missing_from_the_cost() -> None:
    found = of("é" * 100, "")
    assert found.cost == len(b"user\0") + 201 + len("assistant\0\0") + 2 * MESSAGE
    assert list(found.costs) == sorted(found.costs)
    assert max(b - a for a, b in pairwise(found.costs)) <= BLOCK + MESSAGE


TOOL = Tool("look", "Look.", Raw(b'{"type": "object"}'))


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": (TOOL,)},
        {"tool_choice": "none"},
        {"extra": {"lora": Raw(b'[{"id": 0, "scale": 1.0}]')}},
        {"extra": {"chat_template_kwargs": Raw(b'{"enable_thinking": false}')}},
        {"extra": {"whatever": Raw(b"1")}},
    ],
)
def test_what_changes_what_is_read_shares_nothing(changes: dict[str, object]) -> None:
    assert common(of(LONG), of(LONG, **changes)) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(temperature=0.5, max_tokens=3)},
        {"stream": True, "user": "somebody"},
        {"extra": {"min_p": Raw(b"0.1")}},
    ],
)
def test_how_an_answer_is_drawn_makes_no_difference(changes: dict[str, object]) -> None:
    assert common(of(LONG), of(LONG, **changes)) == len(of(LONG).hashes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Message("user", LONG), Message("system", LONG)),
        (Message("user", LONG), Message("user", LONG, name="ann")),
        (
            Message("assistant", None, tool_calls=(ToolCall("1", "look", "{}"),)),
            Message("assistant", None, tool_calls=(ToolCall("1", "find", "{}"),)),
        ),
        (Message("tool", LONG, tool_call_id="1"), Message("tool", LONG, tool_call_id="2")),
    ],
)
def test_all_of_a_message_counts(one: Message, other: Message) -> None:
    a, b = (marks(Request("m", messages=(message,))) for message in (one, other))
    assert a is not None
    assert b is not None
    assert common(a, b) < len(a.hashes)


def test_days_and_owners_share_nothing_and_a_chat_is_no_text() -> None:
    request = Request("m", prompt=LONG)
    days = [marks(request, day=day) for day in (1, 2)]
    assert days[0] is not None
    assert days[1] is not None
    assert common(days[0], days[1]) == 0
    marker = Marker(today=lambda: 1)
    one, other = marker.marks(request, "one"), marker.marks(request, "other")
    assert one is not None
    assert other is not None
    assert common(one, other) == 0
    assert common(one, one) == len(one.hashes)
    assert common(days[0], of(LONG)) == 0


@pytest.mark.parametrize(
    "request_",
    [
        Request(
            "m",
            messages=(
                Message(
                    "user",
                    (TextPart("Look:"), ImagePart(ImageURL("data:,"))),
                ),
            ),
        ),
        Request("m", messages=(Message("assistant", (ThinkingPart("Hm."), TextPart("Hi"))),)),
        Request("m", messages=(Message("assistant", "<think>Hm.</think>Hi"),)),
        Request("m", messages=(Message("user", LONG),), extra={"cache_prompt": Raw(b"false")}),
        Request(
            "m",
            messages=(Message("assistant", "Hi"),),
            wire=RequestWire(
                "openai_chat",
                {"messages": Raw(b'[{"role": "assistant", "reasoning_content": ""}]')},
            ),
        ),
    ],
)
def test_what_text_does_not_tell_has_no_marks(request_: Request) -> None:
    assert marks(request_) is None


def test_a_megabyte_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is counted: each byte is hashed once, in few pieces, and comparing halves them."""
    assert len(of("x" * (1 << 20)).hashes) < 4000
    sizes = [len(of("x" * (1 << n)).hashes) for n in range(16, 23)]
    assert all(b < 2 * a + 1 for a, b in pairwise(sizes))
    looks = 0

    class Counted(list[int]):
        def __getitem__(self, at):  # type: ignore[no-untyped-def]  # counts
            nonlocal looks
            looks += 1
            return super().__getitem__(at)

    a = of("x" * (1 << 20))
    b = msgspec.structs.replace(a, hashes=Counted(a.hashes))
    assert common(b, a) == len(a.hashes)
    assert looks < 20


def test_a_request_is_marked_once_and_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(request: Request, day: int = 0) -> Marks | None:
        calls.append(day)
        return marks(request, day)

    monkeypatch.setattr(prefixes, "marks", counted)
    marker = Marker(today=lambda: 7)
    request = Request("m", messages=(Message("user", LONG),))
    for owner in ("one", "two", "three"):
        assert marker.marks(request, owner) is not None
    assert calls == [7]
    marker.marks(msgspec.structs.replace(request, model="other"), "one")
    assert calls == [7, 7]
    marker.marks(request, "one")
    kept = marker._last
    assert kept is not None
    del request
    gc.collect()
    assert kept[0]() is None
