"""`llmrr explain`: which model would answer, and why, without asking any."""

from __future__ import annotations

from typing import Any

import click
import msgspec
from msgspec import Struct

from llm_runner_router.types import Candidate, Decision

from . import asking, client, output
from .group import Place, Verb, place
from .quick import read_prompt

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
"""Stands for whatever tools the real request brings; only that there is one matters."""


class Explained(Struct, frozen=True):
    """What `/llmrr/explain` answers."""

    model: str
    decision: Decision | None


@click.command("explain", cls=Verb)
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", default="auto", help="The name that would be asked: auto:cost …")
@click.option("--tools", is_flag=True, help="As if the request brought a tool.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
def command(prompt: tuple[str, ...], model: str, tools: bool, as_json: bool) -> int:
    """Tell which model would answer PROMPT, and why. Nothing is asked and nothing is loaded."""
    explained = _explain(place(), read_prompt(prompt), model, tools)
    if as_json:
        output.json(explained)
        return 0
    if explained.decision is None:
        print(f"{explained.model} answers itself; there is nothing to choose")
        return 0
    _print(explained.decision)
    return 0


def _explain(where: Place, text: str, model: str, tools: bool) -> Explained:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}]}
    extra = {"tools": [TOOL]} if tools else {}
    server = client.running(where)
    if server is not None:
        found = server.post("/llmrr/explain", {**body, **extra})
        return msgspec.convert(found, Explained)
    with asking.Local(asking.load(where)) as local:
        decision = local.explain(model, body["messages"], extra)
        return Explained(model, decision)


def _print(decision: Decision) -> None:
    confidence = f" ({decision.confidence:.0%} sure)" if decision.confidence is not None else ""
    output.pairs(
        [
            ("chosen", decision.chosen),
            ("because", decision.reason),
            ("task", f"{decision.task}{confidence}" if decision.task else ""),
            ("strategy", decision.strategy),
        ]
    )
    if not decision.candidates:
        return
    print()
    head = ("MODEL", "SCORE", "QUALITY", "COST", "SECONDS", "HAS", "REJECTED")
    rows = [_row(candidate, decision.chosen) for candidate in decision.candidates]
    output.table(head, rows, numbers=head[1:-1])


def _row(candidate: Candidate, chosen: str) -> tuple[str, ...]:
    return (
        ("* " if candidate.name == chosen else "  ") + candidate.name,
        "" if candidate.rejected else f"{candidate.score:.3f}",
        "" if candidate.quality is None else f"{candidate.quality:.0%}",
        "" if candidate.cost is None else output.money(candidate.cost),
        "" if candidate.seconds is None else f"{candidate.seconds:.2f}",
        _has(candidate),
        candidate.rejected or "",
    )


def _has(candidate: Candidate) -> str:
    """Prompt tokens that its runner has already, of how many."""
    if candidate.cached_tokens is None:
        return ""
    return f"{candidate.cached_tokens:,} of {candidate.prompt_tokens:,}"
