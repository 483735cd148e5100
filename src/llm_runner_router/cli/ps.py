"""`llmrr ps`: the runner processes of the server, and how they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from llm_runner_router.units import format_duration, format_size

from . import client, output
from .group import Verb, place

HEAD = (
    *("MODEL", "STATE", "ENGINE", "PID", "THREADS", "WAIT", "MEMORY", "PREDICTED", "TOK/S"),
    *("QUEUE", "ACTIVE", "SERVED", "KEPT", "HITS", "RESTORED", "EXPIRES"),
)
NUMBERS = tuple(name for name in HEAD if name not in ("MODEL", "STATE", "ENGINE", "WAIT"))


@click.command("ps", cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> int:
    """Show the loaded models: process, threads, memory, speed, queue, and when they go."""
    server = client.connect(place())
    found = server.get("/llmrr/ps")
    if as_json:
        output.json(found)
        return 0
    rows = [row(runner) for runner in found]
    if rows:
        output.table(HEAD, rows, numbers=NUMBERS)
    else:
        print("no model is loaded; the first request loads one")
    conversions = server.get("/llmrr/status").get("conversions") or ()
    for line in [*adapters(found), *evicted(found), *converted(conversions)]:
        print(line)
    return 0


def row(runner: Mapping[str, Any]) -> tuple[str, ...]:
    """One runner as cells; what is not known is empty."""
    speed = runner.get("tokens_per_second")
    memory = runner.get("memory")
    return (
        str(runner.get("name", "")),
        str(runner.get("state", "")),
        str(runner.get("engine", "")),
        _number(runner.get("pid")),
        _number(runner.get("threads")),
        str(runner.get("wait_policy") or ""),
        format_size(memory) if memory else "",
        _predicted(runner),
        f"{speed:.0f}" if speed else "",
        _number(runner.get("queued")),
        _number(runner.get("active")),
        _number(runner.get("served")),
        _number(runner.get("tokens_kept")),
        _share(runner.get("cached_tokens"), runner.get("prompt_tokens")),
        _number(runner.get("tokens_restored")),
        _expires(runner),
    )


def adapters(runners: Sequence[Mapping[str, Any]]) -> list[str]:
    """The LoRA adapters that are loaded with models."""
    return [
        f"adapters of {output.safe(str(runner.get('name', '')))}:"
        f" {output.safe(', '.join(map(str, runner['adapters'])))}"
        for runner in runners
        if runner.get("adapters")
    ]


def evicted(runners: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which models went for those that are loaded, and what that was expected to cost."""
    return [
        f"evicted for {output.safe(str(runner.get('name', '')))}: {output.safe(str(what))}"
        for runner in runners
        for what in runner.get("made_room") or ()
    ]


def converted(conversions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which models are being made ready, how far that is, and which wait for it."""
    lines = []
    for one in conversions:
        name, kind = (output.safe(str(one.get(key, ""))) for key in ("model", "kind"))
        if one.get("state") == "waits":
            lines.append(f"{name} waits to become {kind}: another conversion runs")
        else:
            share = f", {100 * one['done'] // one['total']} %" if one.get("total") else ""
            lines.append(f"{name} becomes {kind}{share}")
    return lines


def _number(value: Any) -> str:
    return "" if value is None else str(value)


def _share(part: Any, whole: Any) -> str:
    return f"{part / whole:.0%}" if whole else ""


def _predicted(runner: Mapping[str, Any]) -> str:
    """What it was expected to take with every slot full, and what kept prompts may add."""
    serving, prompts = runner.get("predicted") or 0, runner.get("predicted_prompts") or 0
    if not serving:
        return ""
    return format_size(serving) + (f" +{format_size(prompts)}" if prompts else "")


def _expires(runner: Mapping[str, Any]) -> str:
    if runner.get("pinned"):
        return "pinned"
    seconds = runner.get("expires_in")
    return "" if seconds is None else f"in {format_duration(max(0.0, seconds))}"
