"""`llmrr cp`: another name for a model, or a place in the store for a file."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from llm_runner_router import refs
from llm_runner_router.errors import BadRequest

from . import output
from .group import Verb
from .stored import changing, kept, opened


@click.command("cp", cls=Verb)
@click.argument("model")
@click.argument("name")
def command(model: str, name: str) -> int:
    """Give MODEL the NAME as well: a stored model, one of another program, a file or a folder.

    Nothing is copied where it can be helped: a file is taken into the store by sharing its blocks
    or by a hard link; a model of another program is named where it is.
    """
    store = opened()
    refs.plain(name)
    if name in store.names():
        raise BadRequest(f"the store has {name!r} already", hint=f"`llmrr rm {name}` first")
    with changing(store), store.pulling():
        stored = msgspec.structs.replace(kept(model, store), name=name, pulled=0.0, former=())
        if stored.source == "path" and stored.files and model_is_path(model):
            files = tuple(
                msgspec.structs.replace(store.adopt(Path(file.place), file.sha256), path=file.path)
                for file in stored.files
            )
            stored = msgspec.structs.replace(stored, files=files)
        path = store.put(stored)
    print(output.line(f"{name} is {path}"))
    return 0


def model_is_path(model: str) -> bool:
    """Whether it was named by its path, so that it may go away with its folder."""
    return refs.parse(model).kind == "file"
