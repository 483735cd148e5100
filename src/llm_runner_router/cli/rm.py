"""`llmrr rm`: forget models."""

from __future__ import annotations

import os

import click

from llm_runner_router.app_store import forget_made, opened_at
from llm_runner_router.errors import RunnerError, UnknownModel
from llm_runner_router.home import find
from llm_runner_router.models.blobs import Store
from llm_runner_router.models.discard import Removed
from llm_runner_router.models.manifest import Stored
from llm_runner_router.units import format_size

from . import output
from .group import Verb
from .stored import changing, locate_other, opened, plural, stored_name


@click.command("rm", cls=Verb)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
def command(models: tuple[str, ...]) -> int:
    """Forget MODELs and delete what was pulled for them and no other name needs.

    What was converted from them goes, too. Files that other programs put where they are stay there.
    """
    from llm_runner_router.models.discard import remove
    from llm_runner_router.models.hubcache import HubCache, folder

    store = opened()
    cache = HubCache(folder(os.environ))
    failed = 0
    for model in models:
        try:
            name = stored_name(model, store)
            path = opened_at(name, store)
            with changing(store):
                gone = remove(name, store, cache)
        except UnknownModel as exc:
            failed = 1
            built_in = model.startswith("zoo:")
            output.note("error", f"the store has no {model!r}" if built_in else exc.message)
            output.note("hint", _whose(model) or exc.hint or "")
            continue
        except RunnerError as exc:
            failed = 1
            output.note("error", exc.message)
            output.note("hint", exc.hint or "")
            continue
        made = forget_made(path, store, find(os.environ))
        freed = format_size(gone.bytes + made.bytes)
        what = output.line(model) + (
            f" and {plural(made.conversions, 'conversion')} of it" if made.conversions else ""
        )
        print(f"removed {what}, {freed} freed{_tail(gone, store)}")
    return failed


def _tail(gone: Removed, store: Store) -> str:
    """Why something of it is still there; empty where nothing is."""
    stored = gone.stored
    if gone.waits:
        return "; `llmrr prune` frees the rest when no download runs"
    if stored is None:
        return ""
    if (sharing := _sharing(stored, store)) is not None:
        return f"; `{sharing}` has the same files"
    if any(file.place and not file.ours for file in stored.files):
        return "; its files stay where another program put them"
    if any(file.place and os.path.exists(file.place) for file in stored.files):
        return "; a branch or tag that another program asked for has the same files"
    return ""


def _whose(model: str) -> str:
    """Who has a model that the store does not know."""
    if model.startswith("zoo:"):
        return "it is part of the package and goes with it"
    other = locate_other(model)
    return f"`{model}` belongs to {other.owner}; delete it there" if other else ""


def _sharing(gone: Stored, store: Store) -> str | None:
    """A name that means some of the same contents, so that they stay."""
    sums = {file.sha256 for file in gone.files}
    mine = (s.name for s in store.all() if any(file.sha256 in sums for file in s.files))
    return next(mine, None)
