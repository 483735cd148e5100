"""`llmrr stop`: unload a model, or end the server."""

from __future__ import annotations

import time

import click

from llm_runner_router.errors import RunnerError, Unavailable

from . import client
from .group import Verb, place

STOP_SECONDS = 60.0
"""How long to wait for a server that drains."""
PAUSE_SECONDS = 0.1


@click.command("stop", cls=Verb)
@click.argument("model", required=False)
@click.option("--server", is_flag=True, help="End the server; running answers may finish.")
def command(model: str | None, server: bool) -> int:
    """Unload MODEL and give its memory back, or end the server with `--server`."""
    if (model is None) == (not server):
        problem = "say which model, or `--server`" if model is None else "a model or `--server`?"
        raise click.UsageError(problem, click.get_current_context())
    running = client.connect(place())
    if model is not None:
        running.post("/llmrr/stop", {"model": model})
        print(f"{model} is unloaded")
        return 0
    running.post("/llmrr/shutdown", {})
    _wait(running)
    print(f"the server at {running.url} has ended")
    return 0


def _wait(running: client.Client) -> None:
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        try:
            running.probe()
        except Unavailable:
            return
        time.sleep(PAUSE_SECONDS)
    raise RunnerError(
        f"the server at {running.url} still answers after {STOP_SECONDS:.0f} s",
        hint="it waits for running answers (`server.drain`)",
    )
