"""`llmrr search`: models on the Hub, and whether and how they would run here."""

from __future__ import annotations

import asyncio
import os
import re

import click
from msgspec import Struct

from llm_runner_router.models.pick import BITS, DEFAULT_QUANT, PREFERENCE, Listed, quant_of
from llm_runner_router.models.sources.huggingface import Card, HubSource
from llm_runner_router.units import format_size, parse_size

from . import output
from .group import Verb

MORE = 4
"""With filters the Hub is asked for this many times more, because they are applied here."""
OVERHEAD = 1.15
"""Memory over the weights: keys and values of a few thousand tokens, and what computes."""
SHARE = 0.8
"""Of the machine's memory, what a model may take."""
_FROM_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([bm])(?![a-z])", re.IGNORECASE)


class Hit(Struct, frozen=True):
    """One model of the Hub, as it would be here."""

    name: str
    """What `llmrr pull` takes."""
    task: str
    license: str
    downloads: int
    parameters: int
    """0 where neither the Hub nor the name tells."""
    quant: str
    """The quantisation that would be brought; empty: the weights as they are."""
    bytes: int
    """About how much would be downloaded; 0 where nobody knows."""
    memory: int
    """About how much memory it would take."""
    runs: str
    """How it would run here, or why not."""
    fits: bool


@click.command("search", cls=Verb)
@click.argument("text", nargs=-1)
@click.option("--task", metavar="TASK", help="As the Hub calls it: text-generation, …")
@click.option("--author", metavar="NAME", help="A user or an organisation.")
@click.option("--license", "license_", metavar="NAME", help="For example mit, apache-2.0.")
@click.option("--max-size", metavar="SIZE", help="Largest download, for example 4GiB.")
@click.option("--fits", is_flag=True, help="Only what fits this machine's memory.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    text: tuple[str, ...],
    task: str | None,
    author: str | None,
    license_: str | None,
    max_size: str | None,
    fits: bool,
    limit: int,
    as_json: bool,
) -> int:
    """Search the Hub for TEXT, the most downloaded first.

    Sizes are estimates: parameters times the bits of the quantisation that would be brought.
    """
    try:
        largest = None if max_size is None else parse_size(max_size)
    except ValueError as exc:
        raise click.UsageError(f"--max-size: {exc}", click.get_current_context()) from exc
    filtered = bool(license_ or largest is not None or fits)
    cards = asyncio.run(_ask(" ".join(text), task, author, limit * MORE if filtered else limit))
    hits = [hit(card, memory_here()) for card in cards]
    hits = [
        h
        for h in hits
        if (license_ is None or h.license.lower() == license_.lower())
        and (largest is None or 0 < h.bytes <= largest)
        and (h.fits or not fits)
    ][:limit]
    if as_json:
        output.json(hits)
        return 0
    if not hits:
        print("nothing found")
        return 1
    head = ("MODEL", "PARAMETERS", "DOWNLOAD", "LICENSE", "DOWNLOADS", "HERE")
    output.table(head, [_row(h) for h in hits], numbers=("PARAMETERS", "DOWNLOAD", "DOWNLOADS"))
    return 0


async def _ask(text: str, task: str | None, author: str | None, limit: int) -> list[Card]:
    source = HubSource(os.environ)
    try:
        return await source.search(text, task=task, author=author, limit=limit)
    finally:
        await source.close()


def memory_here() -> int:
    """Bytes a model may take on this machine."""
    import psutil

    return int(psutil.virtual_memory().total * SHARE)


def hit(card: Card, memory: int) -> Hit:
    """What a search result means on a machine with so much memory for models."""
    parameters = card.parameters or _told_by(card.name)
    ggufs = [f for f in card.files if f.path.lower().endswith(".gguf") and "mmproj" not in f.path]
    quant, bits, how = _way(card.files, ggufs)
    size = int(parameters * bits / 8)
    needed = int(size * OVERHEAD)
    fits = bool(how) and 0 < needed <= memory
    if not how:
        runs = "no model files known here"
    elif not size:
        runs = f"{how}; its size is not known"
    elif fits:
        runs = f"{how}, about {format_size(needed)} of memory"
    else:
        runs = f"too large: about {format_size(needed)} of {format_size(memory)}"
    if card.gated:
        runs += "; gated: needs HF_TOKEN"
    return Hit(
        name=f"hf:{card.name}",
        task=card.task,
        license=card.license,
        downloads=card.downloads,
        parameters=parameters,
        quant=quant,
        bytes=size,
        memory=needed,
        runs=runs,
        fits=fits,
    )


def _way(files: tuple[Listed, ...], ggufs: list[Listed]) -> tuple[str, float, str]:
    """The quantisation that would be brought, its bits per weight, and what runs it."""
    if ggufs:
        quants = {quant_of(f.path) for f in ggufs} - {""}
        known = [quant for quant in PREFERENCE if quant in quants]
        best = known[0] if known else next(iter(sorted(quants)), "")
        return best, BITS.get(best, BITS[DEFAULT_QUANT]), f"GGUF {best}".strip()
    for suffix, bits, how in (
        (".safetensors", 16.0, "safetensors"),
        (".onnx", 16.0, "ONNX"),
        ("pytorch_model.bin", 32.0, "PyTorch weights"),
    ):
        if any(f.path.endswith(suffix) for f in files):
            return "", bits, how
    return "", 16.0, ""


def _told_by(name: str) -> int:
    """Parameters by the habit of writing them into names: `Qwen3-4B`, `SmolLM2-135M`."""
    found = _FROM_NAME.findall(name.replace("-", " ").replace("_", " "))
    if not found:
        return 0
    number, unit = found[0]
    return int(float(number) * (10**9 if unit.lower() == "b" else 10**6))


def _row(found: Hit) -> tuple[str, ...]:
    return (
        found.name,
        output.count(found.parameters) if found.parameters else "",
        format_size(found.bytes) if found.bytes else "",
        found.license,
        output.count(found.downloads),
        found.runs,
    )
