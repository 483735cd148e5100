"""Which engine does what a request may ask for: the third table of the page.

Knows: which feature of an engine's contract each check of `tests/engine/test_features.py` is of.
That test asks every engine for every row of requests in each usual run, so the table needs no run
of its own: it is what that test holds to be true. Does not know: how anything is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.engine.test_features import CHECKS, ENGINES, KNOWN_TO_LLAMACPP, NOBODY, REFUSED

from llm_runner_router.engine.base import Feature
from llm_runner_router.engine.select import load_engine

from .notes import Notes, table

OUTSIDE = "adopted"
OF: Mapping[Feature, tuple[str, ...]] = {
    "stop": ("stop", "several stops", "stops of several bytes", "too many stops"),
    "seed": ("seed",),
    "penalties": ("repeat_penalty", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    "logprobs": ("logprobs",),
    "json_schema": ("json_schema", "json_object"),
    "grammar": ("grammar",),
    "tools": (
        "tools",
        "parallel_tool_calls",
        "tool_choice: required",
        "tool_choice: named",
        "tool_choice: none",
    ),
    "lora": ("lora",),
}
"""The checks of a feature: an engine that has it passes them, one that has it not refuses."""
BESIDE: Mapping[Feature, tuple[str, str]] = {
    "embed": ("embeddings", "gives no embeddings"),
    "rerank": ("reranking", "does not rerank"),
    "prompt_cache": ("the beginning of a prompt is computed once", "computes every prompt anew"),
    "batch": (
        "several answers in one computation",
        "answers in as many computations as there are slots in use",
    ),
    "one_process": (
        "one process answers, embeds and reranks",
        "has a process for each, loaded when it is first wanted",
    ),
}
"""Features that are no field of a request for text: what they are, and what it is to lack them."""
ALWAYS = ("stream", "max_tokens", "leaving")
"""What `testing.check_engine` sees every engine do, a server of others' too."""
NAMES = {
    "n": "`n` choices",
    "stream": "streaming",
    "leaving": "cancellation: a slot is free when its reader leaves",
    "too many stops": "more or longer stop sequences than the bound: a 400",
    "echo": "`echo` of a completion's prompt",
    "tools": "calls of the model's own choice",
    "several stops": "several stop sequences, the first wins",
    "stops of several bytes": "stop sequences beyond ASCII",
}
"""Of checks whose own names say too little."""

HEAD = """\
## Which engine does what

Rows are what a request may ask for. `tests/engine/test_features.py` asks each engine for each of
them in every run of the tests, and looks at the answer; what is refused is refused with the name of
the field and the next step, before anything is computed. The last rows are features beside that:
embeddings and reranking as the first table shows them, the others by tests of their own.

"""


def features() -> str:
    """The table of engines and features."""
    notes, engines = Notes(), (*ENGINES, OUTSIDE)
    rows = [
        [_label(name), *(_done(name, engine, notes) for engine in engines)]
        for name in (*CHECKS, *KNOWN_TO_LLAMACPP)
    ]
    for feature, (words, without) in BESIDE.items():
        rows.append([words, *(_has(feature, engine, without, notes) for engine in engines)])
    head = ["Asked for", *(f"`{engine}`" for engine in engines)]
    return "\n".join([HEAD + "\n".join(table(head, rows)), "", *notes.lines()]) + "\n"


def _label(name: str) -> str:
    return NAMES.get(name) or (f"`{name}`" if " " not in name or ":" in name else name)


def _has(feature: Feature, engine: str, without: str, notes: Notes) -> str:
    if feature in load_engine(engine).FEATURES:
        return "yes"
    return f"as the server{notes.mark(THEIRS)}" if engine == OUTSIDE else f"no{notes.mark(without)}"


def _done(name: str, engine: str, notes: Notes) -> str:
    if name in NOBODY:
        return f"refused{notes.mark('Nobody does that, and nobody leaves it out silently.')}"
    if engine == OUTSIDE:
        ours = load_engine(engine).FEATURES
        known = name in ALWAYS or any(
            name in checks and feature in ours for feature, checks in OF.items()
        )
        return "yes" if known else f"as the server{notes.mark(THEIRS)}"
    if name in KNOWN_TO_LLAMACPP:
        return "yes" if engine == "llamacpp" else f"refused{notes.mark(LLAMACPP)}"
    if (engine, name) in REFUSED:
        field = REFUSED[engine, name]
        return f"refused{notes.mark(f'The refusal names `{field}`, and what to do instead.')}"
    return "yes"


THEIRS = "The request goes to it as it is; what it does not do, it ignores or refuses by itself."
LLAMACPP = "Only llama.cpp's own sampler has it."
