"""`llmrr prune`: delete what no name means any more."""

from __future__ import annotations

import os

import click

from llm_runner_router.home import find
from llm_runner_router.units import format_size

from . import output
from .group import Verb
from .stored import changing, opened, plural


@click.command("prune", cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> int:
    """Delete what is of no use any more.

    Contents of the store that no name means; what names meant before their sources moved on;
    downloads that rest for a week; conversions whose source is gone or is not what it was; and what
    conversions left that were killed.
    """
    from llm_runner_router.convert import cache
    from llm_runner_router.models.discard import prune
    from llm_runner_router.models.hubcache import HubCache, folder

    store = opened()
    with changing(store):
        pruned = prune(store, HubCache(folder(os.environ)))
        made = cache.prune(find(os.environ))
    freed = pruned.bytes + made.bytes
    if as_json:
        told = {"files": pruned.files, "conversions": made.conversions, "bytes": freed}
        output.json(told)
    else:
        what = plural(pruned.files, "file")
        if made.conversions:
            what += f" and {plural(made.conversions, 'conversion')}"
        print(f"{what} deleted, {format_size(freed)} freed")
    return 0
