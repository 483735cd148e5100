"""From what to what models are converted, found by converting: the second table of the page.

Every source is turned into every kind that something here writes, the result is loaded by the best
engine for it and asked, and its weights are read beside the source's. Knows: how two models are
compared. Does not know: how sources are written (`forms.py`) or asked (`trying.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from llm_runner_router.config import Node
from llm_runner_router.convert import run
from llm_runner_router.convert.base import Options, found
from llm_runner_router.convert.plan import FILES, KINDS
from llm_runner_router.engine.prepare import PACKED, find_way
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import RunnerError
from llm_runner_router.models import detect
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse

from . import forms, trying
from .forms import FORMS, Form
from .notes import Notes, table
from .trying import Said

LEFT_OUT = (
    "GGUF, Q4_0",
    "GGUF, ternary TQ1_0",
    "GGMF, F16",
    "GGJT 1, F16",
    "GGJT 2, F16",
    "safetensors, the file in its folder",
    "ONNX, decoder without `genai_config.json`",
    "a file that no format knows",
    "any model, with `engine: mock`",
    "a server that runs already (`adopt`)",
)
"""Rows of the first table that are none, or of a kind whose conversions another row shows."""
SOURCES = tuple(name for name in FORMS if name not in LEFT_OUT)
ADAPTER = "LoRA adapter (PEFT)"
LADDER = (trying.SAME, 0.03, trying.ALIKE)
"""Bounds for the difference of log-probabilities; a finer number would differ between machines."""
NO_WAY = re.compile(r"no conversion leads from \S+ to (\S+), which is made from (.*)")
STEPS = 12
PROMPTS = [[1, 300, 301, 302, 40], [1, *range(500, 530)]]

CONVERSIONS = """\
## What becomes what

Every model of these rows was converted to every kind that anything here writes, with the options
that `llmrr convert` has by itself, and the result was loaded by the best engine for it and asked.

- **same answer**, **same text**, **same vector**, **same scores**: as in the table above, compared
  with what the source should say; `Δ` bounds the difference of log-probabilities.
- **every byte**: each tensor has its name, its type and its bytes.
- In brackets: the steps, and the engine that ran the result.

The files from before GGUF are written with a vocabulary whose letters are bytes; one that was
trained has tokens for its letters.

"""


def kinds() -> list[str]:
    """Every kind that a converter makes, unpacking aside, in the order of `KINDS`."""
    written = {one.facts.want for one in found() if not one.facts.have.startswith(PACKED)}
    return [kind for kind in KINDS if kind in written]


async def conversions(folder: Path, environ: Mapping[str, str]) -> str:
    """The table of conversions, and what nobody writes."""
    notes = Notes()
    right: dict[str, Said | None] = {}
    lines = []
    for number, name in enumerate(SOURCES):
        form = FORMS[name]
        place = folder / f"conversion-{number}"
        (place / "source").mkdir(parents=True)
        if form.like not in right:
            (place / "right").mkdir()
            right[form.like] = await trying.right(form.like, place / "right", environ)
        path = await asyncio.to_thread(form.make, place / "source")
        have = run.kind_of(path)
        lines.append([name, f"`{have}`"])
        for want in kinds():
            cell = "it is" if want == have else ""
            if not cell and name == ADAPTER:
                cell = await asyncio.to_thread(_adapted, path, want, place, notes)
            elif not cell:
                cell = await _cell(form, path, want, place, right[form.like], environ, notes)
            lines[-1].append(cell)
    never = ", ".join(f"`{kind}`" for kind in KINDS if kind not in kinds())
    text = table(["From", "Kind", *(f"`{kind}`" for kind in kinds())], lines)
    return "\n".join([*text, "", *notes.lines(), "", f"Only read, never written: {never}."]) + "\n"


async def _cell(
    form: Form,
    path: Path,
    want: str,
    place: Path,
    right: Said | None,
    environ: Mapping[str, str],
    notes: Notes,
) -> str:
    try:
        made, steps = await asyncio.to_thread(_converted, path, want, place, Options())
    except RunnerError as exc:
        return f"no{notes.mark(_why(exc))}"
    assert run.kind_of(made) == want
    assert right is not None, f"nothing can be asked of {path}, and yet it becomes {want}"
    best = EngineSelector().rank(detect.describe(made))[0]
    engine = best.engine
    if not best.can or best.by_name:
        way = find_way(resolve(parse(str(made))), EngineSelector())
        engine = f"{way.engine} after {way.kind}"
    found = await trying.tried(Node(target=str(made)), form.like, environ)
    assert found.loaded, f"{path} as {want}: {found.lacks}"
    words = ["every byte"] * _same_bytes(path, made) + [compared(form, found, right)]
    return f"{', '.join(words)} ({steps}, `{engine}`)"


def _converted(path: Path, want: str, place: Path, options: Options) -> tuple[Path, str]:
    """The result, and how many steps led there."""
    steps = len(run.steps_for(path, want))
    target = place / (f"{want}.gguf" if want in FILES else want)
    made = run.convert(path, target, want, options=options).path
    return made, "1 step" if steps == 1 else f"{steps} steps"


def compared(form: Form, found: Said, right: Said) -> str:
    """How the answer is.

    Raises:
        AssertionError: it is another one.
    """
    task = trying.task_of(form.like)
    if task == "embed":
        assert trying.cosine(found.vector, right.vector) >= trying.NEAR
        return "same vector"
    if task == "rerank":
        assert trying.apart(found.scores, right.scores) <= trying.CLOSE
        return "same scores"
    assert found.text == right.text, f"{found.text!r} is not {right.text!r}"
    return _within(trying.apart(found.logprobs, right.logprobs))


def _within(apart: float) -> str:
    bound = next((bound for bound in LADDER if apart <= bound), None)
    assert bound is not None, f"log-probabilities differ by {apart}"
    return f"same {'answer' if bound <= trying.SAME else 'text'}, Δ ≤ {bound:g}"


def _why(exc: RunnerError) -> str:
    """A refusal without the name of the source, which is that of the row."""
    no_way = NO_WAY.fullmatch(exc.message)
    if no_way is not None:
        made_from = [kind for kind in no_way[2].split(", ") if PACKED not in kind]
        return f"Nothing makes {no_way[1]} of this; it is made from {', '.join(made_from)}."
    return re.sub(r"`[^`]*\.gguf` has no", "the GGUF file has no", exc.message)


def _same_bytes(path: Path, made: Path) -> bool:
    """Whether the weights of both are the same tensors, byte for byte."""
    formats = [detect.detect(one) for one in (path, made)]
    if any(one.open_checkpoint is None for one in formats):
        return False
    with detect.open_checkpoint(path) as old, detect.open_checkpoint(made) as new:
        return old.weights.keys() == new.weights.keys() and all(
            one.dtype == new.weights[name].dtype and old.read(name) == new.read(name)
            for name, one in old.weights.items()
        )


# ---------------------------------------------------------------- adapters


def _adapted(path: Path, want: str, place: Path, notes: Notes) -> str:
    """An adapter is run with its base, and compared with a model that has it in its weights."""
    from tests.convert import adapters
    from tests.convert.asking import ask

    from llm_runner_router.convert import peft

    options = Options(base=peft.base_settings(forms.ZOO))
    try:
        made, steps = _converted(path, want, place, options)
    except RunnerError as exc:
        return f"no{notes.mark(_why(exc))}"
    assert run.kind_of(made) == want
    merged = adapters.merge(forms.ZOO, place / "merged", (path, 1.0))
    base, whole = (
        run.convert(folder, place / f"{name}.gguf", "gguf", options=Options("f32")).path
        for name, folder in (("base", forms.ZOO), ("whole", merged))
    )
    mine = ask(base, prompts=PROMPTS, steps=STEPS, lora=str(made))["prompts"]
    theirs = ask(whole, prompts=PROMPTS, steps=STEPS)["prompts"]
    assert [one["ids"] for one in mine] == [one["ids"] for one in theirs]
    assert mine != ask(base, prompts=PROMPTS, steps=STEPS)["prompts"], "it changes nothing"
    apart = max(
        abs(value - there[token])
        for a, b in zip(mine, theirs, strict=True)
        for here, there in zip(a["logprobs"], b["logprobs"], strict=True)
        for token, value in here.items()
    )
    return f"{_within(apart)}{notes.mark(MERGED)} ({steps}, `llamacpp`)"


MERGED = (
    "Compared with a model that has the adapter in its weights, over every token of the vocabulary;"
    " the adapter is F16."
)
