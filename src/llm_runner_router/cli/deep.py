"""What `llmrr verify --deep` looks at: structure, numbers, tokenizer, chat template, answers.

Knows: the order of the checks and how they are told. Does not know: how they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llm_runner_router.errors import RunnerError
from llm_runner_router.models.deepcheck import Finding, structure
from llm_runner_router.models.detect import detect

from .mending import Mender

if TYPE_CHECKING:
    from llm_runner_router.models.info import ModelInfo
    from llm_runner_router.tokens.base import Tokenizer

TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x):\n    return x ** 2  # 3.14159\n",
    "Grüße, 日本語, 🎉 and\ttabs",
)


def deep(
    path: Path, mender: Mender, run: Callable[[], Iterator[Finding]] | None = None
) -> Iterator[Finding]:
    """Everything that can be found out about the model at `path`.

    Args:
        path: a file or folder.
        mender: knows what stands in for its chat template, and repairs it.
        run: what it answers (`deep_run.tried`), which is asked at the end, and only of a whole
            model whose header and numbers are sound; None does not run it.
    """
    try:
        found = detect(path)
        info = found.describe(path)
    except RunnerError as exc:
        yield Finding("header", "bad", exc.message)
        return
    yield Finding("header", "ok", f"{info.format}, {info.architecture}, {info.tensors} tensors")
    broken = False
    if info.format == "packed":
        # Whatever tokenizer lies beside it is another model's.
        yield Finding("weights", "skip", _packed(path))
        return
    if found.open_checkpoint is None:
        yield Finding("weights", "odd", f"the format `{found.name}` gives none to look at")
    else:
        from llm_runner_router.convert.deepcheck import numbers

        try:
            with found.open_checkpoint(path) as opened:
                looked = () if info.part else structure(info, opened.weights)
                for finding in chain(looked, numbers(opened)):
                    broken = broken or finding.state == "bad"
                    yield finding
        except RunnerError as exc:
            broken = True
            yield Finding("weights", "bad", exc.message)
    if info.part:
        return
    yield from _words(path, info, mender)
    if run is not None and broken:
        yield Finding("answer", "skip", "a model with such weights is not run")
    elif run is not None:
        yield from run()


def _packed(path: Path) -> str:
    from llm_runner_router.convert.plan import FILES, PACKED
    from llm_runner_router.convert.run import kind_of

    kind = kind_of(path).removeprefix(PACKED)
    target = "./unpacked.gguf" if kind in FILES else "./unpacked"
    return f"they are packed; look at what `llmrr convert {path} {target} --to {kind}` writes"


def _words(path: Path, info: ModelInfo, mender: Mender) -> Iterator[Finding]:
    from llm_runner_router.tokens.load import load

    # Ollama's files, for example, have no ending.
    folder = path if path.is_dir() or info.format == "gguf" else path.parent
    try:
        tokenizer = load(folder)
    except RunnerError as exc:
        yield Finding("tokenizer", "odd", exc.message)
        return
    yield _round_trip(tokenizer, info.vocabulary)
    if info.task == "generate":
        yield from _template(info.chat_template, tokenizer, mender)


def _round_trip(tokenizer: Tokenizer, rows: int) -> Finding:
    """Text to ids and back. Small vocabularies lose letters; every id must have a row."""
    lost = []
    for text in TEXTS:
        try:
            ids = tokenizer.encode(text)
            back = tokenizer.decode(ids)
        except RunnerError as exc:
            return Finding("tokenizer", "bad", exc.message)
        if rows and ids and max(ids) >= rows:
            return Finding("tokenizer", "bad", f"it gives the id {max(ids)}, of {rows} tokens")
        if back.strip() != text.strip():
            lost.append(f"{text[:30]!r} comes back as {back[:30]!r}")
    if lost:
        return Finding("tokenizer", "odd", "; ".join(lost))
    return Finding("tokenizer", "ok", f"{tokenizer.kind}, {tokenizer.size} tokens, nothing is lost")


def _template(own: str | None, tokenizer: Tokenizer, mender: Mender) -> Iterator[Finding]:
    """The template that is used, which may be another than the model's `own`."""
    from llm_runner_router.tokens.check import check_template
    from llm_runner_router.tokens.templates import Renderer

    try:
        used = mender.text(own)
        with Renderer() as renderer:
            report = check_template(used, tokenizer, renderer=renderer)
    except RunnerError as exc:
        yield Finding("template", "bad", f"{exc.message}; {exc.hint}")
        return
    told = mender.told(own)
    if report.ok:
        family = f"as {report.family}" if report.family else "one of its own"
        yield Finding("template", "ok", "; ".join(filter(None, (family, told, *report.notes))))
        return
    words = (told, *report.problems, mender.next(report, own))
    yield Finding("template", "odd", "; ".join(filter(None, words)))
    mended = mender.mend(report, own)
    if mended is not None:
        yield mended
