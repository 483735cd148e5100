"""The task classifier, with the weights that ship, on texts that its training never saw."""

from __future__ import annotations

import base64
import struct
from collections import Counter
from importlib.resources import files
from random import Random

import msgspec
import pytest
from zoo.sample import Draw
from zoo.tasks import TASKS

from llm_runner_router.strategies.tasks import (
    HEAD,
    OTHER,
    TAIL,
    Head,
    Weights,
    classify,
    clip,
    grams,
    hashed,
    shipped,
    structure,
    tokens,
)
from llm_runner_router.testing import a_request
from llm_runner_router.types import (
    ImagePart,
    ImageURL,
    Message,
    Request,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)

BY_TEXT = [name for name in TASKS if name not in ("tool_call", "tool_result")]


@pytest.mark.parametrize("name", BY_TEXT)
def test_held_out_phrasings_are_understood(name: str) -> None:
    draw = Draw(Random(99), "held")
    texts = [TASKS[name](draw).turns[-1].content for _ in range(200)]
    found = Counter(classify(a_request(text))[0] for text in texts)
    assert found[name] >= 194, f"97 % of {name} should be found, this was: {found}"


GENERAL = """
How tall is the Eiffel tower?
Write a haiku about autumn leaves.
What is the best way to learn the violin as an adult?
Explain the second law of thermodynamics in simple words.
Write a Python function that reverses a string.
Fix this: Traceback (most recent call last): KeyError: 'name'
My sister earns twice what I earn and we pay 1,200 together. How much does each pay if it is fair?
Bonjour, pouvez-vous m'aider à écrire une lettre de motivation ?
如何学习一门新的语言？
Compare the economic policies of Keynes and Hayek.
Summarize: The meeting was moved to Thursday because two people were ill.
Is Rust better than Go for command-line tools?
qwxz plorf gnarf
{"a": 1, "b": [2, 3]}
Give me five ideas for a birthday party with a pirate theme.
"""


def test_general_text_is_left_to_the_generalist() -> None:
    lines = GENERAL.strip().splitlines()
    found = {line: classify(a_request(line)) for line in lines}
    wrong = {line: answer for line, answer in found.items() if answer[0] != OTHER}
    assert len(wrong) <= 1, f"taken for a task: {wrong}"


def test_the_confidence_is_a_probability() -> None:
    head = shipped()
    for text in ("What is 12 + 30?", "zzz", "", "x" * 10_000, "🙂🙂", "\x00"):
        chances = head.probabilities(text)
        assert sum(chances.values()) == pytest.approx(1.0)
        assert min(chances.values()) >= 0


# ---------------------------------------------------------------- structure decides


def tool() -> Tool:
    return Tool(name="calculator")


def test_tools_on_offer() -> None:
    request = msgspec.structs.replace(a_request("hello"), tools=(tool(),))
    assert classify(request)[0] == "tool_call"
    assert classify(msgspec.structs.replace(request, tool_choice="none"))[0] == "greeting"


def test_after_a_tool() -> None:
    request = Request(
        model="m",
        tools=(tool(),),
        messages=(
            Message("user", "What is 12 + 30?"),
            Message("assistant", None, tool_calls=(ToolCall("1", "calculator", "{}"),)),
            Message("tool", "42", tool_call_id="1"),
        ),
    )
    assert classify(request)[0] == "tool_result"


def test_a_schema_speaks_for_extraction() -> None:
    text = "Anna is 30 years old and lives in Rome."
    plain = a_request(text)
    schema = msgspec.structs.replace(plain, response_format=ResponseFormat("json_schema"))
    assert classify(schema)[0] == "extract_json"
    sum_of = msgspec.structs.replace(
        a_request("What is 12 + 30?"), response_format=ResponseFormat("json_schema")
    )
    assert classify(sum_of)[0] == "arithmetic", "but it does not decide alone"


def test_the_last_user_turn_counts() -> None:
    request = Request(
        model="m",
        messages=(
            Message("system", "Reverse every word."),
            Message("user", "hello"),
            Message("assistant", "Hello!"),
            Message("user", "What is 12 + 30?"),
        ),
    )
    assert classify(request)[0] == "arithmetic"
    assert classify(Request(model="m", prompt="What is 12 + 30?"))[0] == "arithmetic"


def test_nothing_to_go_by() -> None:
    assert classify(Request(model="m")) == (OTHER, 1.0)
    picture = ImagePart(ImageURL("data:image/png;base64,"))
    message = Message("user", (TextPart("What is 12 + 30?"), picture))
    assert classify(Request(model="m", messages=(message,))) == (OTHER, 1.0)


# ---------------------------------------------------------------- the parts


def test_features_of_a_small_text() -> None:
    words = tokens("What's 12 + 345?")
    assert words == ["what's", "#2", "+", "#3", "?"]
    assert list(grams(words)) == [
        "what's", "#2", "+", "#3", "?",
        "^ what's", "what's #2", "#2 +", "+ #3", "#3 ?", "? $",
        "^ what's #2",
    ]  # fmt: skip
    assert "=formula True" in structure("What's 12 + 345?", words)
    assert list(grams([])) == ["^ $"]


def test_long_texts_are_clipped_at_both_ends() -> None:
    text = "a" * HEAD + "b" * 5000 + "c" * TAIL
    assert clip(text) == "a" * HEAD + "\n" + "c" * TAIL
    assert clip("short") == "short"


def test_the_arithmetic_of_the_head() -> None:
    rows = struct.pack("<I2b", hashed("yes"), 10, -10) + struct.pack("<I2b", hashed("no"), -10, 10)
    weights = Weights(
        classes=("y", OTHER),
        bias=(0.0, 0.0),
        scale=0.1,
        temperature=1.0,
        threshold=0.5,
        rows=base64.b64encode(rows).decode(),
    )
    head = Head(weights)
    assert head.probabilities("yes")["y"] == pytest.approx(1 / (1 + 2.718281828**-2.0))
    assert head.probabilities("yes no")["y"] == pytest.approx(0.5)
    assert classify(a_request("no"), head)[0] == OTHER


def test_the_shipped_file_is_small_and_says_where_it_comes_from() -> None:
    data = files("llm_runner_router.strategies").joinpath("tasks.json").read_bytes()
    assert len(data) <= 300 * 1024
    weights = msgspec.json.decode(data, type=Weights)
    assert set(weights.classes) == {*BY_TEXT, OTHER}
    assert "train_tasks.py" in weights.made
