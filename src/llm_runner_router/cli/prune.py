"""`llmrr prune`: delete what no name means any more."""

from __future__ import annotations

import os

import click

from llm_runner_router.units import format_size

from . import output
from .group import Verb
from .stored import opened


@click.command("prune", cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> int:
    """Delete contents of the store that no name means, and downloads that rest for a week."""
    from llm_runner_router.models.discard import prune
    from llm_runner_router.models.hubcache import HubCache, folder

    pruned = prune(opened(), HubCache(folder(os.environ)))
    if as_json:
        output.json(pruned)
    else:
        print(f"{pruned.files} files deleted, {format_size(pruned.bytes)} freed")
    return 0
