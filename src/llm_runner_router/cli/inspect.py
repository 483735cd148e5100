"""`llmrr inspect`: what a model file is, what it needs, and what can run it.

Knows: how the answers of the readers, of `engine/fit.py`, of the engines and of the template's
renderer are shown. Does not know: formats. Nothing is loaded and nothing of the model is run but
its chat template, in a process with limits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from msgspec import Struct

from llm_runner_router import refs
from llm_runner_router.errors import RunnerError
from llm_runner_router.models.info import PARTS
from llm_runner_router.models.inspect import Inspection, inspect
from llm_runner_router.units import format_size

from . import output
from .group import Verb
from .mending import Mender
from .stored import opened

if TYPE_CHECKING:
    from llm_runner_router.engine.base import Engine, Verdict
    from llm_runner_router.engine.fit import Memory
    from llm_runner_router.engine.select import EngineSelector
    from llm_runner_router.models.info import ModelInfo

CONTEXTS: Final = (2048, 8192, 32768, 131072)
"""Tokens of context for which the memory is told, with what the model was trained for."""
SAMPLE: Final = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is seven?"},
]


class Need(Struct, frozen=True):
    """Memory for one request at a time with that much context."""

    context: int
    bytes: int
    """What it takes while it answers, without prompts that may be kept beside."""
    fits: bool
    """Within the memory that can be taken now, also while it loads."""
    loading: int
    """What it takes at the top of its load."""
    terms: Memory


class Facts(Struct, frozen=True):
    """Everything that is told."""

    inspection: Inspection
    memory: tuple[Need, ...]
    memory_engine: str
    """The engine whose memory that is: the one that would run it, else the first that could."""
    engines: tuple[Verdict, ...]
    features: dict[str, tuple[str, ...]]
    """What each engine that can run it does beside answering (`engine.base.Feature`)."""
    prompt: str
    """The chat template on a sample, or why it cannot be rendered; empty without one."""
    template: str = ""
    """What stands in for the file's own chat template, in words; empty for nothing."""
    way: str = ""
    """What is made of it when it is loaded, where no engine runs it as it is; empty else."""


@click.command("inspect", cls=Verb)
@click.argument("model")
@click.option(
    "--why",
    is_flag=True,
    help="Tell how it was recognised, what each engine can, and what it lacks.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(model: str, why: bool, as_json: bool) -> int:
    """Tell what the model file MODEL is, what it needs, and which engines can run it.

    MODEL is a file, a folder, or the name of a model on this machine. The format is told by the
    content, never by the name: GGUF, safetensors, PyTorch, ONNX, MLX, TensorFlow.js, OpenVINO, and
    LLaMA files from before GGUF; also in a zip or tar archive, or compressed (of those only the
    beginning is read). Whatever is in a file, nothing of it is run.
    """
    facts = gather(located(model), model)
    if as_json:
        output.json(facts)
        return 0
    _print(facts, why=why)
    return 0


def located(model: str) -> Path:
    """The path that `model` means: one on the disk, else the file behind a name.

    Raises:
        RunnerError: there is neither.
    """
    from llm_runner_router.models.resolve import resolve

    path = Path(model.removeprefix("file:")).expanduser()
    if path.exists():
        return path
    return resolve(refs.parse(model), part=None).path


def reference(model: str) -> str:
    """The reference for what `located` finds: a path wins over what else its text could mean."""
    path = Path(model.removeprefix("file:")).expanduser()
    return str(refs.Ref("file", str(path.absolute())) if path.exists() else refs.parse(model))


def gather(path: Path, name: str | None = None) -> Facts:
    """All facts of the model at `path`.

    Args:
        path: a file or folder.
        name: what a person called it; default is the path.

    Raises:
        ModelFileError: no format knows it, or it is not sound.
    """
    from llm_runner_router.engine import devices
    from llm_runner_router.engine.select import EngineSelector

    found = inspect(path)
    mender = Mender(reference(name or str(path)), opened(), repair=False)
    machine = devices.look()
    selector = EngineSelector()
    verdicts = selector.rank(found.info, machine)
    able = [v.engine for v in verdicts if v.score > 0 and not v.by_name]
    first = next((v.engine for v in verdicts if v.can and not v.by_name), able[0] if able else "")
    engine = selector.engines.get(first)
    return Facts(
        inspection=found,
        memory=() if engine is None else needs(found.info, engine, machine.available),
        memory_engine=first,
        engines=verdicts,
        features={name: tuple(sorted(selector.engines[name].FEATURES)) for name in able},
        prompt=_prompt(mender.text(found.info.chat_template)),
        template=mender.told(found.info.chat_template),
        way="" if able or found.info.part else _way(path, found.info, selector),
    )


def _way(path: Path, info: ModelInfo, selector: EngineSelector) -> str:
    from llm_runner_router.engine.prepare import find_way
    from llm_runner_router.models.info import LocalModel
    from llm_runner_router.types import ModelCard

    card = ModelCard(name=str(path), local=True)
    try:
        found = find_way(LocalModel(str(path), path, info, card), selector)
    except RunnerError:
        return ""
    return f"{', then '.join(found.steps)}, for {found.engine}"


def needs(info: ModelInfo, engine: Engine, available: int) -> tuple[Need, ...]:
    """Memory that `engine` takes at several contexts, up to what the model was trained for."""
    from llm_runner_router.engine.fit import Wanted

    trained = info.context
    contexts = [n for n in CONTEXTS if not trained or n < trained] + ([trained] if trained else [])
    found = []
    for context in contexts:
        embed = info.task != "generate"
        wanted = Wanted(slots=1, budget=available, context=context, embed=embed)
        terms = engine.place(info, wanted).memory
        fits = max(terms.serving, terms.loading) <= available
        found.append(Need(context, terms.serving, fits, terms.loading, terms))
    return tuple(found)


def _prompt(template: str | None) -> str:
    if not template:
        return ""
    from llm_runner_router.tokens.templates import render

    try:
        return render(template, SAMPLE)
    except RunnerError as exc:
        return f"it cannot be rendered: {exc.message}"


def _print(facts: Facts, *, why: bool) -> None:
    found = facts.inspection
    info = found.info
    output.pairs(_about(found.path, info))
    for note in info.notes:
        print(f"note: {output.line(note)}")
    if found.classes:
        print("\nweights")
        output.pairs([(name, _types(types)) for name, types in found.classes.items()], "  ")
    if info.layers and facts.memory and not info.part:
        print(f"\nmemory, on {facts.memory_engine}, one request at a time")
        output.pairs([(f"{n.context} tokens", _need(n, why=why)) for n in facts.memory], "  ")
    print("\nengines")
    shown = [v for v in facts.engines if why or (v.score > 0 and not v.by_name)]
    rows = [(v.engine, _verdict(v) + _without(facts.features.get(v.engine))) for v in shown]
    output.pairs(rows, "  ")
    if not any(verdict.can and not verdict.by_name for verdict in facts.engines):
        told = f"as it is; when it is loaded: {facts.way}" if facts.way else "here"
        print(f"  none runs it {told}; `--why` tells what each lacks")
    if facts.features and why:
        print("\nfeatures")
        output.pairs([(name, ", ".join(can)) for name, can in facts.features.items()], "  ")
    if facts.prompt:
        instead = f" ({output.line(facts.template)})" if facts.template else ""
        print(f"\nchat template, on a sample{instead}")
        print("\n".join(f"  {line}" for line in output.safe(facts.prompt).split("\n")))
    if why:
        print("\nrecognised")
        print("\n".join(f"  {output.line(step)}" for step in found.trail))


def _about(path: str, info: ModelInfo) -> list[tuple[str, str]]:
    heads = f"{info.heads}, {info.kv_heads} of keys and values" if info.heads else ""
    experts = f"{info.experts}, {info.experts_used} used per token" if info.experts else ""
    return [
        ("path", path),
        ("format", info.format),
        ("name", info.name),
        ("architecture", info.architecture),
        ("for", PARTS[info.part][0] if info.part else info.task),
        ("pooling", info.pooling),
        ("parameters", output.count(info.parameters) if info.parameters else ""),
        ("quantisation", info.quantisation),
        ("size", format_size(info.bytes)),
        ("context", f"{info.context} tokens" if info.context else ""),
        ("window", f"{info.window} tokens" if info.window else ""),
        ("layers", str(info.layers or "")),
        ("width", str(info.width or "")),
        ("heads", heads),
        ("experts", experts),
        ("vocabulary", f"{info.vocabulary} tokens" if info.vocabulary else ""),
        ("tokenizer", info.tokenizer),
        ("output", "shares the embedding's weights" if info.tied else ""),
        ("license", info.license),
    ]


def _types(types: dict[str, int]) -> str:
    ordered = sorted(types.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {format_size(size)}" for name, size in ordered)


def _need(need: Need, *, why: bool) -> str:
    """The sum; with `why`, or where loading takes more, what it is made of."""
    terms = need.terms
    text = format_size(need.bytes)
    if why:
        parts = [
            (terms.process + terms.code, "the process"),
            (terms.weights, "weights"),
            (terms.mapped, "the mapped file"),
            (terms.cache, "keys and values"),
            (terms.work, "work buffers"),
        ]
        text += " = " + " + ".join(f"{format_size(size)} {name}" for size, name in parts if size)
    if need.loading > need.bytes:
        text += f", {format_size(need.loading)} while it loads"
    if why and terms.prompts:
        text += f", up to {format_size(terms.prompts)} more for prompts that are kept"
    return text + ("" if need.fits else ", not free now")


def _verdict(verdict: Verdict) -> str:
    word = "yes" if verdict.can else "no"
    lacks = f"; {', '.join(verdict.missing)} is not installed" if verdict.missing else ""
    named = "; only when named with `engine:`" if verdict.by_name else ""
    step = f" ({verdict.hint})" if verdict.hint and not verdict.can else ""
    return f"{word}: {verdict.why}{lacks}{named}{step}"


def _without(features: tuple[str, ...] | None) -> str:
    """What an engine of these features refuses; nothing of one that does not run the model."""
    if features is None:
        return ""
    from llm_runner_router.engine.base import lacks

    words = lacks(features)
    return f"; without {', '.join(words)}" if words else ""
