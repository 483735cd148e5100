"""`llmrr convert`: a model of one kind into another, or what that would take."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_runner_router.errors import BadRequest

from . import output
from .group import Verb

if TYPE_CHECKING:
    from llm_runner_router.convert.base import Options
    from llm_runner_router.convert.plan import Step
    from llm_runner_router.convert.run import Progress, Result

KEPT = frozenset({"ggml"})
"""Kinds whose weights keep their type, so that the result is not named after one."""
EVERY = 10
"""Per cent between two lines of progress where no terminal shows a bar."""


@click.command("convert", cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", required=False, type=click.Path(path_type=Path))
@click.option("--to", "want", metavar="KIND", help="Kind of the result; `gguf` if unsaid.")
@click.option(
    "--type",
    "type_",
    default="f16",
    show_default=True,
    type=click.Choice(["f32", "f16", "bf16", "q8_0", "q4_0"], case_sensitive=False),
    help="Type of the matrices; `q4_0` is for ONNX.",
)
@click.option(
    "--eps",
    type=float,
    default=0.0,
    help="For files from before GGUF, which do not say it: 1e-6 for LLaMA, 1e-5 for Llama 2;"
    " 5e-6 if unsaid.",
)
@click.option(
    "--context",
    type=int,
    default=0,
    help="Tokens of context, for the same files; 2048 if unsaid.",
)
@click.option("--base", metavar="MODEL", help="For an adapter: the model it was made for.")
@click.option("--plan", "only_plan", is_flag=True, help="Show the steps and convert nothing.")
@click.option("--force", is_flag=True, help="Replace DST.")
def command(  # noqa: PLR0913 - one per option
    source: str,
    target: Path | None,
    want: str | None,
    type_: str,
    *,
    eps: float,
    context: int,
    base: str | None,
    only_plan: bool,
    force: bool,
) -> int:
    """Convert the model SRC, a file, folder or reference, to DST.

    Without DST the result lies beside SRC, or here if SRC is a reference. A folder with a LoRA
    adapter of PEFT becomes a GGUF adapter for the model of `--base`.
    """
    from llm_runner_router.convert import run
    from llm_runner_router.convert.base import Options
    from llm_runner_router.convert.plan import PACKED

    path = _source(source)
    want = want or _kind_named(target)
    have = run.kind_of(path)
    is_adapter = have.removeprefix(PACKED) == "peft"
    if is_adapter and want == "gguf":
        want = "gguf-adapter"
    steps = run.steps_for(path, want, have=have)
    target = target or _beside(source, path, want, "" if have in KEPT else type_)
    if only_plan:
        _show(path, have, want, steps)
        return 0
    if base is not None and not is_adapter:
        raise BadRequest(f"`--base` is for adapters, and `{path}` is none", param="base")
    asked = _base(base, path) if want == "gguf-adapter" else ""
    options = Options(type=type_.lower(), eps=eps, context=context, base=asked)
    result = asyncio.run(_convert(path, target, want, options, force))
    output.dim(f"{result.have} → {result.want}")
    print(f"{result.path}  {_bytes(result.bytes)}")
    return 0


def _source(source: str) -> Path:
    """The path of SRC.

    Raises:
        RunnerError: there is no such model.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    from llm_runner_router.models.resolve import resolve
    from llm_runner_router.refs import parse

    return resolve(parse(source), part=None).path


def _base(base: str | None, path: Path) -> str:
    """What is to be known of the model that the adapter at `path` was made for.

    Raises:
        RunnerError: it is not said, or there is no such model.
    """
    if base is None:
        raise BadRequest(
            f"`{path}` is a LoRA adapter, and it is not said for which model",
            param="base",
            hint="name it: `--base ./model`, a folder, a GGUF file or a reference",
        )
    from llm_runner_router.convert.peft import base_settings

    return base_settings(_source(base))


def _kind_named(target: Path | None) -> str:
    """The kind that DST's name says, else `gguf`."""
    if target is None or target.suffix.lower() == ".gguf":
        return "gguf"
    raise BadRequest(
        f"`{target}` does not say which kind of model it is to be",
        hint="add `--to safetensors`, or another kind",
    )


def _beside(source: str, path: Path, want: str, type_: str) -> Path:
    from llm_runner_router.convert.plan import FILES

    folder = path.absolute().parent if Path(source).expanduser().exists() else Path.cwd()
    stem = path.absolute().name if path.is_dir() else path.stem
    name = f"{stem}-{type_.upper()}".rstrip("-") + ".gguf" if want in FILES else f"{stem}-{want}"
    return folder / name


def _show(path: Path, have: str, want: str, steps: tuple[Step, ...]) -> None:
    from llm_runner_router.convert.plan import disk

    if not steps:
        print(f"`{path}` is `{want}` already: nothing to do")
        return
    rows = [
        (step.have, step.want, _bytes(step.bytes), f"{max(1, round(step.seconds))} s",
         "yes" if step.converter.exact else "no")
        for step in steps
    ]  # fmt: skip
    output.table(("FROM", "TO", "DISK", "TIME", "EXACT"), rows, numbers=("DISK", "TIME"))
    output.dim(f"needs {_bytes(disk(steps))} on disk while it runs")


async def _convert(source: Path, target: Path, want: str, options: Options, force: bool) -> Result:
    from llm_runner_router.convert.job import converting

    async with converting(source, want, target=target, options=options, overwrite=force) as job:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                       TimeRemainingColumn())  # fmt: skip
            with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(want, total=None)
                async for progress in job.progress():
                    label = f"{progress.have} → {progress.want}"
                    bar.update(
                        task, description=label, total=progress.total, completed=progress.done
                    )
        else:
            last = (0, -1)
            async for progress in job.progress():
                last = _line(progress, last)
        return await job.result()


def _line(progress: Progress, last: tuple[int, int]) -> tuple[int, int]:
    """A line on standard error every ten per cent."""
    share = 100 * progress.done // max(1, progress.total)
    now = (progress.step, share // EVERY)
    if now != last:
        print(f"{progress.have} to {progress.want}: {share} %", file=sys.stderr)
    return now


def _bytes(count: int) -> str:
    for size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
