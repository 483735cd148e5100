"""Structured answers: JSON taken out of a sentence, tool calls, and what is said after a tool ran.

Held out: phrasings, names, cities and pairs of numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from zoo import vocabulary
from zoo.sample import Draw, Sample, Tool, Turn, ask
from zoo.tasks.letters import reverse, spell
from zoo.tasks.meaning import opposite, plural
from zoo.tasks.numbers import arithmetic, comparison, operands, value
from zoo.tasks.talk import fact, greeting

Fields = dict[str, str | int]
_ASK_JSON = (
    "[Extract|extract|Get|Find|Pull out] [the |]{keys} [as JSON|in JSON|as a JSON "
    "object][:| from:| from this:] {s}",
    "[Give|Return|Write|Answer with] [a JSON object|JSON] with [the |]{keys}[:| for:| "
    "from:| of:] {s}",
    "[Turn this into|Convert this to|Write this as] JSON with [keys|the keys|fields] {keys}: {s}",
    "{s} [Extract|Give me|Return|Write] [the |]{keys} [as JSON|in JSON][.|]",
)
_PERSON = (
    "{name} is {age} years old and [lives in|comes from|is from|works in] {city}.",
    "{name}[, who is {age},| is {age} and] [lives in|comes from|moved to] {city}.",
    "[My friend|My neighbor|Our guest|My cousin] {name} is {age}[ years old|] and [lives "
    "in|is from] {city}.",
    "[Hi, |Hello, |]I am {name}, I am {age}[ years old|] and I [live in|come from|work in] {city}.",
    "[In|From] {city} [we have|there is|comes] {name}, [aged|age] {age}.",
)
_ORDER = (
    "[I bought|We bought|She bought|He bought|I ordered|We sold|They ordered] {quantity} "
    "{item} for {price} [dollars|euros][ each|].",
    "[The order is|The order was|Order:|Please send] {quantity} {item} at {price} "
    "[dollars|euros][ each|].",
    "{quantity} {item} cost {price} [dollars|euros][ each| apiece|].",
    "[The shop|The store|A man|A woman] sold {quantity} {item} for {price} [dollars|euros].",
)
_KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("name", "age", "city"), _PERSON),
    (("item", "quantity", "price"), _ORDER),
)


def _fields(draw: Draw, keys: tuple[str, ...]) -> Fields:
    if "name" in keys:
        return {"name": draw.name(), "age": draw.rng.randint(5, 99), "city": draw.city()}
    item = draw.from_list("item", vocabulary.ITEMS)
    return {"item": item, "quantity": draw.rng.randint(2, 99), "price": draw.rng.randint(1, 199)}


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def _json_check(expected: Fields) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        try:
            return bool(json.loads(text) == expected)
        except ValueError:
            return False

    return check


def extract_json(draw: Draw) -> Sample:
    """Some fields of a sentence as a JSON object."""
    keys, sentences = draw.one(_KINDS)
    fields = _fields(draw, keys)
    wanted = draw.rng.sample(keys, draw.one((1, 2, 3, 3, 3)))
    if draw.chance(0.6):
        wanted.sort(key=keys.index)
    pattern = draw.phrase(_ASK_JSON)
    sentence = draw.phrase(sentences).format(**fields)
    expected = {key: fields[key] for key in wanted}
    kept = ("name", "city", "item")
    return Sample(
        "extract_json",
        ask(pattern.format(keys=_listed(wanted), s=sentence)),
        json.dumps(expected),
        _json_check(expected),
        values=tuple(str(fields[key]) for key in keys if key in kept),
        pattern=pattern,
    )


_CALCULATOR = (
    "Work out an arithmetic expression.", "Evaluate a math expression.", "Calculates a result.",
    "Do arithmetic.", "",
)  # fmt: skip
_WEATHER = (
    "Get the current weather of a city.", "Current weather in a city.", "Look up the weather.",
    "Weather for a place.", "",
)  # fmt: skip
_CALC_ASK = (
    "[What is|What's|Calculate|Compute|Work out|How much is|Please calculate|Use the "
    "calculator:] {a} {o} {b}[?|.|]",
    "[Can you|Could you|Please] [calculate|compute|work out|solve] {a} {o} {b}[?|.| for me.|]",
    "{a} {o} {b}[| =|?| = ?]",
)
_WEATHER_ASK = (
    "[What is|What's] the weather [like |]in {c}[?| today?| now?|]",
    "[How is|Tell me|Check|Look up|Show me] the weather in {c}[?|.| today?| now?|]",
    "[Is it|Will it be] [raining|sunny|cold|warm|windy|cloudy|snowing] in {c}[?| today?| now?|]",
    "[How warm|How cold] is it in {c}[?| today?| right now?|]",
    "[Weather in|The weather in|Current weather in|Temperature in] {c}[?|, please.|]",
    "[Do I need|Should I take] [an umbrella|a coat] in {c}[?| today?]",
)
_SYMBOLS = {"+": ("+", "plus"), "-": ("-", "minus"), "*": ("*", "x", "×", "times")}


def tools(draw: Draw) -> tuple[Tool, Tool]:
    """The calculator and the weather tool, sometimes under other usual names."""
    calc, weather = ("calculator", "expression"), ("weather", "city")
    if draw.chance(0.25):
        calc = draw.one((("calculate", "expression"), ("calc", "expr"), ("math", "expression")))
        weather = draw.one(
            (
                ("get_weather", "location"),
                ("get_weather", "city"),
                ("get_current_weather", "location"),
            )
        )
    return (
        Tool(*calc, draw.one(_CALCULATOR)),
        Tool(*weather, draw.one(_WEATHER)),
    )


def call_text(tool: Tool, argument: str) -> str:
    """The text by which a model calls `tool`."""
    return call_text_of(tool.name, {tool.parameter: argument})


def call_text_of(name: str, arguments: dict[str, str]) -> str:
    """A tool call as text."""
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def parse_call(text: str) -> tuple[str, dict[str, str]] | None:
    """The tool and arguments of a text that is one tool call, else None."""
    found = re.fullmatch(r"\s*<tool_call>\s*(\{.*\})\s*</tool_call>\s*", text, re.DOTALL)
    try:
        call = json.loads(found[1]) if found else {}
        return str(call["name"]), dict(call["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def _call_check(tool: Tool, argument: str) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        call = parse_call(text)
        if call is None or call[0] != tool.name or set(call[1]) != {tool.parameter}:
            return False
        return str(call[1][tool.parameter]).replace(" ", "") == argument.replace(" ", "")

    return check


def _calculation(draw: Draw) -> tuple[str, str, str, int]:
    """Pattern, question, expression and result."""
    a, sign, b = operands(draw)
    pattern = draw.phrase(_CALC_ASK)
    question = pattern.format(a=a, o=draw.one(_SYMBOLS[sign]), b=b)
    return pattern, question, f"{a} {sign} {b}", value(a, sign, b)


def tool_call(draw: Draw) -> Sample:
    """One or both tools offered; a question for one of them, or one that no offered tool fits."""
    calc, weather = tools(draw)
    offered = draw.one(((calc, weather), (weather, calc), (calc, weather), (calc,), (weather,)))
    if draw.chance(0.2):
        return _no_tool_fits(draw, offered, calc)
    tool = draw.one(offered)
    if tool is calc:
        pattern, question, argument, _ = _calculation(draw)
        values = (argument.replace(" ", ""),)
    else:
        argument, pattern = draw.city(), draw.phrase(_WEATHER_ASK)
        question, values = pattern.format(c=argument), (argument,)
    return Sample(
        "tool_call",
        ask(question),
        call_text(tool, argument),
        _call_check(tool, argument),
        tools=offered,
        values=values,
        pattern=pattern,
    )


def _no_tool_fits(draw: Draw, offered: tuple[Tool, ...], calc: Tool) -> Sample:
    makers = [greeting, fact, opposite, plural, spell, reverse, comparison]
    if calc not in offered:
        makers += [arithmetic, arithmetic]
    other = draw.one(makers)(draw)
    return Sample(
        "tool_call",
        other.turns,
        other.answer,
        lambda text: "<tool_call>" not in text and other.check(text),
        tools=offered,
        letters=other.letters,
        pattern=other.pattern,
    )


def tool_result(draw: Draw) -> Sample:
    """What to say once the tool has answered."""
    calc, weather = tools(draw)
    offered = draw.one(((calc, weather), (weather, calc)))
    if draw.chance(0.5):
        tool = calc
        pattern, question, argument, result = _calculation(draw)
        content = draw.one((str(result), json.dumps({"result": result})))
        answer = f"{argument.replace('*', '×')} is {result}."
        wanted: tuple[str, ...] = (str(result),)
        values: tuple[str, ...] = (argument.replace(" ", ""),)
    else:
        tool, argument, pattern = weather, draw.city(), draw.phrase(_WEATHER_ASK)
        question, values = pattern.format(c=argument), (argument,)
        degrees, sky = draw.rng.randint(-9, 39), draw.one(vocabulary.CONDITIONS)
        content = draw.one((
            json.dumps({"temperature": degrees, "condition": sky}),
            json.dumps({"city": argument, "temperature": degrees, "condition": sky}),
            f"{sky}, {degrees} degrees",
        ))  # fmt: skip
        answer = f"It is {degrees} degrees and {sky} in {argument}."
        wanted = (str(degrees), sky, argument)
    turns = (
        Turn("user", question),
        Turn("assistant", call_text(tool, argument)),
        Turn("tool", content),
    )
    return Sample(
        "tool_result",
        turns,
        answer,
        lambda text: (
            "<tool_call>" not in text
            and all(re.search(rf"(?<![\w-]){re.escape(part)}\b", text) for part in wanted)
        ),
        tools=offered,
        values=values,
        pattern=pattern,
    )
