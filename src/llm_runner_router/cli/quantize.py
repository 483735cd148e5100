"""`llmrr quantize`: a model file with its matrices in fewer bits."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from llm_runner_router.errors import BadRequest
from llm_runner_router.units import format_size

from . import output
from .group import Verb

if TYPE_CHECKING:
    from llm_runner_router.convert.base import Tick
    from llm_runner_router.convert.perplexity import Perplexity
    from llm_runner_router.convert.quantize import Report
    from llm_runner_router.models.info import ModelInfo

CONTEXT = 4096
"""Tokens of context that `dynamic` leaves room for."""
LEFT = 0.9
"""Share of the free memory that `dynamic` uses."""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("quantize", cls=Verb)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", required=False, type=click.Path(path_type=Path))
@click.option(
    "--type",
    "mix",
    default="dynamic",
    show_default=True,
    help="Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, Q3_K_M, Q2_K, IQ4_NL, TQ2_0 and others.",
)
@click.option("--imatrix", type=FILE, help="Importance matrix, of llama.cpp or `--calibrate`.")
@click.option(
    "--calibrate", type=FILE, metavar="TEXT", help="Make an importance matrix from this text."
)
@click.option("--perplexity", type=FILE, metavar="TEXT", help="Measure both models on this text.")
@click.option("--threads", type=click.IntRange(1, 1024), help="As many as there are cores.")
@click.option("--report", is_flag=True, help="Show every tensor's error.")
@click.option("--requantize", is_flag=True, help="Take a model that is quantised already.")
@click.option("--force", is_flag=True, help="Replace DST.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def command(source: str, target: Path | None, mix: str, **options: Any) -> int:
    """Write the GGUF model SRC with its matrices in fewer bits to DST.

    `dynamic` is the best type that fits this machine's memory and speed.
    """
    from llm_runner_router.convert.quantize import quantize
    from llm_runner_router.engine.devices import look

    _check_target(source, target)
    path = _source(source)
    threads = options["threads"] or look().cores
    if mix.lower() == "dynamic":
        mix = _dynamic(path, threads)
    target = target or _beside(source, path, mix)
    if target.exists() and not options["force"]:
        raise BadRequest(f"`{target}` exists", hint="add `--force`, or name another file")
    before = _perplexity(path, options["perplexity"], threads, "before")
    weights = _weights(path, target, threads, options)
    with _progress(f"to {mix}") as tick:
        report = quantize(
            path, target, mix, imatrix=weights, threads=threads,
            requantize=options["requantize"], tick=tick,
        )  # fmt: skip
    after = _perplexity(target, options["perplexity"], threads, "after")
    if options["as_json"]:
        told = {"before": before, "after": after} if before is not None else None
        facts = msgspec.to_builtins(report, enc_hook=str)  # a path is text
        output.json({**facts, "bits": report.bits, "perplexity": told})
        return 0
    _show(report, before, after, every=options["report"])
    return 0


def _check_target(source: str, target: Path | None) -> None:
    """A type in the place of DST, as other programs have it, is a mistake.

    Raises:
        UsageError: it is.
    """
    from llm_runner_router.convert.mixes import ALIASES, MIXES

    if target is not None and target.name.upper() in {*MIXES, *ALIASES}:
        raise click.UsageError(
            f"`{target}` is a type, not a file: `llmrr quantize --type {target.name} {source}`",
            click.get_current_context(),
        )


def _source(source: str) -> Path:
    """The file of SRC, a path or a reference.

    Raises:
        RunnerError: there is no such model, or it is of another format.
    """
    path = Path(source).expanduser()
    if not path.exists():
        from llm_runner_router.models.resolve import resolve
        from llm_runner_router.refs import parse

        path = resolve(parse(source)).path
    if path.is_dir():
        raise BadRequest(
            f"`{path}` is a folder, and GGUF files are quantised",
            hint=f"first `llmrr convert {source} model.gguf`",
        )
    return path


def _beside(source: str, path: Path, mix: str) -> Path:
    folder = path.absolute().parent if Path(source).expanduser().exists() else Path.cwd()
    stem = path.stem
    for ending in ("F32", "F16", "BF16", "Q8_0"):
        for mark in ("-", "."):
            stem = stem.removesuffix(f"{mark}{ending}").removesuffix(f"{mark}{ending.lower()}")
    return folder / f"{stem}-{mix.upper()}.gguf"


def _dynamic(path: Path, threads: int) -> str:
    """The mix for this machine; says why.

    Raises:
        BadRequest: the file is best taken as it is.
    """
    from llm_runner_router.convert.dynamic import choose, read_bandwidth
    from llm_runner_router.engine.devices import look
    from llm_runner_router.engine.fit import kv_bytes, work_bytes
    from llm_runner_router.models.formats.gguf import describe

    info = describe(path)
    tokens = min(info.context or CONTEXT, CONTEXT)
    budget = int(look().available * LEFT) - kv_bytes(info, tokens) - work_bytes(info, tokens)
    choice = choose(info, max(0, budget), read_bandwidth(threads), sizes=_sizes(path, info))
    if not choice.mix:
        raise BadRequest(
            f"`{path.name}` is best taken as it is: {choice.why}",
            hint="name a type: `--type Q4_K_M`",
        )
    output.dim(f"{choice.mix}: {choice.why}")
    return choice.mix


def _sizes(path: Path, info: ModelInfo) -> dict[str, int]:
    """Exact bytes of the weights in every mix that `dynamic` may choose."""
    from llm_runner_router.convert import mixes
    from llm_runner_router.convert.dynamic import LADDER
    from llm_runner_router.convert.quantize import shape_of
    from llm_runner_router.models.formats.gguf import open_checkpoint

    with open_checkpoint(path) as model:
        items = [mixes.Item(w.name, w.dtype, w.shape) for w in model.weights.values()]
        shape = shape_of(model)
    return {m: mixes.size(items, mixes.plan(mixes.MIXES[m], shape, items)) for m in LADDER}


def _weights(path: Path, target: Path, threads: int, options: dict[str, Any]) -> Any:
    """The importance matrix that was given or is made now; None without one."""
    from llm_runner_router.convert import imatrix

    if options["imatrix"] and options["calibrate"]:
        raise BadRequest("either `--imatrix` or `--calibrate`", hint="leave one of them away")
    if options["imatrix"]:
        return imatrix.read(options["imatrix"]).weights
    if not options["calibrate"]:
        return None
    with (
        tempfile.TemporaryDirectory(prefix=".llmrr-", dir=target.absolute().parent) as folder,
        _progress("calibrate") as tick,
    ):
        made = imatrix.compute(
            path, _text(options["calibrate"]), Path(folder) / "imatrix.gguf", threads=threads,
            tick=tick,
        )  # fmt: skip
    return made.weights


def _perplexity(path: Path, text: Path | None, threads: int, when: str) -> Perplexity | None:
    if text is None:
        return None
    from llm_runner_router.convert.perplexity import measure

    with _progress(f"perplexity {when}") as tick:
        return measure(path, _text(text), threads=threads, tick=tick)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


@contextmanager
def _progress(label: str) -> Iterator[Tick]:
    """A bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total)


def _show(
    report: Report, before: Perplexity | None, after: Perplexity | None, *, every: bool
) -> None:
    mib = report.before / (1 << 20) / max(report.seconds, 1e-9)
    output.pairs(
        [
            ("file", str(report.path)),
            ("type", f"{report.mix}, {report.bits:.2f} bits per weight"),
            ("size", f"{format_size(report.before)} → {format_size(report.after)}"),
            ("time", f"{report.seconds:.1f} s, {mib:.0f} MiB/s on {report.threads} threads"),
        ]
    )
    if before is not None and after is not None:
        change = after.value / before.value - 1
        told = f"{before.value:.4f} → {after.value:.4f} ± {after.error:.4f} ({change:+.2%})"
        output.pairs([("perplexity", f"{told}, {after.tokens} tokens")])
    print()
    rows = _rows(report) if every else _classes(report)
    head = ("TENSOR" if every else "CLASS", "TYPE", "SIZE", "ERROR", "WEIGHTED")
    output.table(head, rows, numbers=("SIZE", "ERROR", "WEIGHTED"))


def _rows(report: Report) -> list[tuple[str, ...]]:
    return [
        (t.name, t.after, format_size(t.bytes_after), f"{t.error:.3%}",
         "" if t.weighted is None else f"{t.weighted:.3%}")
        for t in report.tensors
    ]  # fmt: skip


def _classes(report: Report) -> list[tuple[str, ...]]:
    """Tensors of a role and type together: size, root of the mean squared error."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for tensor in report.tensors:
        role = ".".join(part for part in tensor.name.split(".")[:-1] if not part.isdigit())
        groups.setdefault((role.removeprefix("blk."), tensor.after), []).append(tensor)
    rows: list[tuple[str, ...]] = []
    for (role, kind), some in groups.items():
        weighed = [t.weighted for t in some if t.weighted is not None]
        rows.append(
            (role, kind, format_size(sum(t.bytes_after for t in some)),
             f"{_mean([t.error for t in some]):.3%}", f"{_mean(weighed):.3%}" if weighed else "")
        )  # fmt: skip
    return rows


def _mean(errors: list[float]) -> float:
    return float((sum(e * e for e in errors) / max(1, len(errors))) ** 0.5)
