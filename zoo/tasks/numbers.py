"""Arithmetic and comparison with operands of up to three digits. Working is shown step by step."""

from __future__ import annotations

from zoo.sample import Draw, Sample, ask, is_held, numbers

_ARITHMETIC = (
    "{a}{o}{b}",
    "{a} {o} {b}[| =| = ?|?]",
    "[What is|what is|What's|Calculate|Compute|Work out|How much is|Solve|Evaluate] {a} "
    "{o} {b}[?|.|]",
    "[Please|Can you|Could you] [calculate|compute|work out|solve] {a} {o} {b}[?|.|| for "
    "me.| for me?]",
    "[Tell me|Give me] [the result of|the answer to|what you get for] {a} {o} {b}[.|]",
)
_NAMED = {
    "+": ("[What is|What's|Calculate|Find] the sum of {a} and {b}[?|.|]", "Add {a} and {b}[.|]"),
    "-": (
        "[What is|Calculate|Find] the difference [of|between] {a} and {b}[?|.|]",
        "Subtract {b} from {a}[.|]",
    ),
    "*": (
        "[What is|What's|Calculate|Find] the product of {a} and {b}[?|.|]",
        "Multiply {a} by {b}[.|]",
    ),
}
_SIGNS = {
    "+": ("+", "+", "+", "plus"),
    "-": ("-", "-", "−", "minus"),
    "*": ("*", "x", "×", "times"),
}
_COMPARISON = {
    "larger": (
        "[Which is|What is|Which number is|Say which is] [larger|bigger|greater][,|:] "
        "{a} or {b}[?|]",
    ),
    "smaller": (
        "[Which is|What is|Which number is|Say which is] [smaller|less|lower][,|:] {a} or {b}[?|]",
    ),
    "greater?": ("Is {a} [greater|larger|bigger|more] than {b}[?|]", "Is {a} > {b}[?|]"),
    "less?": ("Is {a} [less|smaller|lower] than {b}[?|]", "Is {a} < {b}[?|]"),
    "compare": (
        "[Please compare|Compare|compare] [the numbers |]{a} [and|with|to] {b}[.|]",
        "{a} or {b}[?|, compare.]",
    ),
}


def _places(number: int) -> list[int]:
    text = str(number)
    return [int(digit) * 10 ** (len(text) - 1 - i) for i, digit in enumerate(text)]


def _signed(terms: list[int]) -> str:
    """`[400, -50, -3]` as `400 - 50 - 3`."""
    tail = "".join(f" {'+' if term >= 0 else '-'} {abs(term)}" for term in terms[1:])
    return str(terms[0]) + tail


def _by_place(a: int, b: int, sign: int) -> list[int]:
    """Place by place: 347 and 285 give 500, 120, 12."""
    width = max(len(str(a)), len(str(b)))
    pairs = zip(_places_padded(a, width), _places_padded(b, width), strict=True)
    return [left + sign * right for left, right in pairs]


def _places_padded(number: int, width: int) -> list[int]:
    places = _places(number)
    return [0] * (width - len(places)) + places


def _add(a: int, b: int) -> str:
    steps = _by_place(a, b, 1)
    return f"{a} + {b} = {_signed(steps)} = {a + b}" if len(steps) > 1 else f"{a} + {b} = {a + b}"


def _subtract(a: int, b: int) -> str:
    steps = _by_place(max(a, b), min(a, b), -1)
    if len(steps) == 1:
        return f"{a} - {b} = {a - b}"
    shown = _signed(steps) if a >= b else f"-({_signed(steps)})"
    return f"{a} - {b} = {shown} = {a - b}"


def _multiply(a: int, b: int) -> str:
    """Every place with every place, then added up from the left."""
    left = [place for place in _places(a) if place] or [0]
    right = [place for place in _places(b) if place] or [0]
    pairs = [(x, y) for x in left for y in right]
    if len(pairs) == 1:
        return f"{a} × {b} = {a * b}"
    terms = [x * y for x, y in pairs]
    shown = " + ".join(f"{x} × {y}" for x, y in pairs)
    steps = [" + ".join(map(str, terms))]
    while len(terms) > 1:
        terms = [terms[0] + terms[1], *terms[2:]]
        steps.append(" + ".join(map(str, terms)))
    return f"{a} × {b} = {shown} = " + " = ".join(steps)


def worked(a: int, sign: str, b: int) -> str:
    """The sum with its working, as the models are to write it."""
    return {"+": _add, "-": _subtract, "*": _multiply}[sign](a, b)


def value(a: int, sign: str, b: int) -> int:
    """The result alone."""
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def _sized(draw: Draw, digits: int) -> int:
    return draw.rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def operands(draw: Draw) -> tuple[int, str, int]:
    """Two numbers and a sign from this side; products stay within 3 × 1 or 2 × 2 digits.

    One-digit sums and products are tables to be known, so they are never held out.
    """
    while True:
        sign = draw.one("++--***")
        sizes = (
            ((1, 1), (2, 1), (2, 2), (2, 2), (3, 1))
            if sign == "*"
            else (
                (1, 1),
                (2, 1),
                (1, 2),
                (2, 2),
                (2, 2),
                (3, 2),
                (2, 3),
                (3, 3),
                (3, 3),
                (3, 3),
                (3, 1),
            )
        )
        digits = draw.one(sizes)
        a, b = _sized(draw, digits[0]), _sized(draw, digits[1])
        if sign == "-" and a < b and draw.chance(0.7):
            a, b = b, a
        if digits == (1, 1):
            if draw.split == "train":
                return a, sign, b
        elif is_held("sum", f"{a}{sign}{b}") == (draw.split == "held"):
            return a, sign, b


def arithmetic(draw: Draw) -> Sample:
    """One sum, difference or product."""
    a, sign, b = operands(draw)
    named = draw.chance(0.15)
    pattern = draw.phrase(_NAMED[sign] if named else _ARITHMETIC)
    shown = draw.one(_SIGNS[sign])
    if "{a}{o}" in pattern and shown.isalpha() and shown != "x":
        shown = {"+": "+", "-": "-", "*": "*"}[sign]
    result = value(a, sign, b)
    values = () if a < 10 and b < 10 else (f"{a}{sign}{b}",)
    return Sample(
        "arithmetic",
        ask(pattern.format(a=a, b=b, o=shown)),
        worked(a, sign, b),
        lambda text: numbers(text)[-1:] == [result],
        values=values,
        pattern=pattern,
    )


def _near(draw: Draw, a: int) -> int:
    """Half of the time a number that differs from `a` in one digit: the hard comparisons."""
    if draw.chance(0.5):
        return _sized(draw, draw.one((1, 2, 3, 3)))
    place = draw.rng.randrange(len(str(a)))
    digits = list(str(a))
    digits[place] = draw.one("123456789")
    return int("".join(digits))


def comparison(draw: Draw) -> Sample:
    """Which of two numbers is larger, asked in several ways."""
    while True:
        a = _sized(draw, draw.one((1, 2, 2, 3, 3, 3)))
        b = _near(draw, a)
        small = a < 10 and b < 10
        if small and draw.split == "held":
            continue
        if small or is_held("compare", f"{a},{b}") == (draw.split == "held"):
            break
    kind = draw.one(tuple(_COMPARISON))
    if a == b:
        kind = "compare"
    pattern = draw.phrase(_COMPARISON[kind])
    conclusion = _concluded(kind, a, b)
    answer = f"{_compared(a, b)}, so {conclusion}."
    return Sample(
        "comparison",
        ask(pattern.format(a=a, b=b)),
        answer,
        lambda text: text.lower().rstrip(". ").endswith(f"so {conclusion}"),
        values=() if small else (f"{a},{b}",),
        pattern=pattern,
    )


def _sign(a: int, b: int) -> str:
    return "=" if a == b else ">" if a > b else "<"


def _compared(a: int, b: int) -> str:
    """Place by place from the left, up to the first that differs."""
    if a < 10 and b < 10:
        return f"{a} {_sign(a, b)} {b}"
    width = max(len(str(a)), len(str(b)))
    steps = []
    for left, right in zip(_places_padded(a, width), _places_padded(b, width), strict=True):
        steps.append(f"{left} {_sign(left, right)} {right}")
        if left != right:
            break
    return f"{', '.join(steps)}, so {a} {_sign(a, b)} {b}"


def _concluded(kind: str, a: int, b: int) -> str:
    """What follows from the sign, in words."""
    if kind == "larger":
        return f"{max(a, b)} is larger"
    if kind == "smaller":
        return f"{min(a, b)} is smaller"
    if kind == "compare":
        return "they are equal" if a == b else f"{a} is {'greater' if a > b else 'less'}"
    return "yes" if (a > b) == (kind == "greater?") else "no"
