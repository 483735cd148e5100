"""`llmrr ls`: every name that can be asked, with the facts one chooses by."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from llm_runner_router.errors import RunnerError
from llm_runner_router.types import Capabilities, ModelCard
from llm_runner_router.units import format_size

from . import asking, client, output
from .group import Place, Verb, place

TOP_SCORES = 3
"""Scores shown in the table; `show` has them all."""


@click.command("ls", cls=Verb)
@click.option("-a", "--all", "everything", is_flag=True, help="Also other programs' models.")
@click.option("--json", "as_json", is_flag=True, help="The cards as JSON.")
def command(everything: bool, as_json: bool) -> int:
    """List the models that can be asked, of the running server or of the configuration.

    With --all, list instead every model file on this machine: those in the store, and those that
    Hugging Face's tools, Ollama, LM Studio and llama.cpp have; all of them can be run where they
    are. CONVERTED tells how much other forms of a model take in the data folder.
    """
    if everything:
        return _files(as_json)
    found = cards(place())
    if as_json:
        output.json(found)
        return 0
    head = ("MODEL", "KIND", "SIZE", "CONTEXT", "$/M IN", "$/M OUT", "TOOLS", "JSON", "GOOD AT")
    rows = [_row(card) for card in found]
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    output.table(
        [head[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        numbers=("SIZE", "CONTEXT", "$/M IN", "$/M OUT"),
    )
    return 0


class File(msgspec.Struct, frozen=True):
    """A model file on this machine."""

    name: str
    """What to ask for."""
    size: int
    owner: str
    path: str
    converted: int = 0
    """Bytes of other forms of it that are kept in the data folder."""


def _files(as_json: bool) -> int:
    found = files()
    if as_json:
        output.json(found)
        return 0
    if not found:
        print("no model files on this machine; `llmrr pull` brings some, `llmrr search` finds them")
        return 0
    head = ("MODEL", "SIZE", "CONVERTED", "OF", "PATH")
    rows = [
        (f.name, format_size(f.size), format_size(f.converted) if f.converted else "",
         f.owner, f.path)
        for f in found
    ]  # fmt: skip
    shown = [i for i in range(len(head)) if head[i] != "CONVERTED" or any(row[i] for row in rows)]
    output.table(
        [head[i] for i in shown],
        [[row[i] for i in shown] for row in rows],
        numbers=("SIZE", "CONVERTED"),
    )
    return 0


def files() -> list[File]:
    """The store's models, then those of other programs that the store does not name, then what was
    converted from others."""
    from llm_runner_router.models.found import everything

    from .stored import opened

    store = opened()
    listed = []
    for stored in store.all():
        try:
            path = str(store.path_of(stored))
        except RunnerError as exc:
            path = f"({exc.message})"
        listed.append(File(stored.name, stored.size, "store", _printable(path)))
    known = {file.path for file in listed}
    for other in everything(os.environ):
        if str(other.path) not in known:
            name, path = _printable(other.name), _printable(str(other.path))
            listed.append(File(name, other.size, other.owner, path))
    return _with_conversions(listed)


def _with_conversions(listed: list[File]) -> list[File]:
    """`listed` with the bytes of what was converted from each, and what came from elsewhere."""
    from llm_runner_router.convert.cache import kept
    from llm_runner_router.home import find

    sizes: dict[str, int] = {}
    others = []
    known = {file.path for file in listed}
    for one in kept(find(os.environ)):
        origins = [path for o in one.note.origins if (path := _printable(o.path)) in known]
        for path in origins:
            sizes[path] = sizes.get(path, 0) + one.note.bytes
        if not origins:
            path = _printable(str(one.path))
            others.append(File(f"file:{path}", one.note.bytes, "conversions", path))
    changed = [msgspec.structs.replace(f, converted=sizes.get(f.path, 0)) for f in listed]
    return changed + others


def _printable(path: str) -> str:
    """`path` as text that JSON can hold; a file's name may be bytes that are none."""
    return os.fsencode(path).decode("utf-8", "replace")


def cards(where: Place) -> list[ModelCard]:
    """A card for every served name.

    The server's list of names counts; facts it does not tell come from the same configuration
    read here.
    """
    server = client.running(where)
    if server is None:
        return local_cards(where)
    listed: list[dict[str, Any]] = server.get("/v1/models")["data"]
    try:
        known = {card.name: card for card in local_cards(where)}
    except RunnerError:  # the server may run with another configuration than the one found here
        known = {}
    return [known.get(model["id"]) or _told(model) for model in listed]


def local_cards(where: Place) -> list[ModelCard]:
    """The cards of what the configuration serves, without a server.

    Raises:
        ConfigError: it cannot be used.
    """
    from llm_runner_router.app import App

    return list(App(asking.load(where)).cards())


def _told(model: dict[str, Any]) -> ModelCard:
    owner = model.get("owned_by", "")
    return ModelCard(
        name=model["id"],
        local=owner == "local",
        strategy="" if owner in ("local", "remote") else owner,
        description=model.get("description", ""),
        context=model.get("context_length", 0),
    )


def kind(card: ModelCard) -> str:
    """`local`, `remote`, or what a name that stands for several models does: `auto` …"""
    return card.strategy or ("local" if card.local else "remote")


def scores(card: ModelCard, most: int = TOP_SCORES) -> str:
    """The best scores: `arithmetic 99%, compare 98%`."""
    best = sorted(card.scores.items(), key=lambda item: (-item[1], item[0]))[:most]
    return ", ".join(f"{task} {score:.0%}" for task, score in best)


def abilities(capabilities: Capabilities) -> list[str]:
    """The names of what a model can do."""
    return [name for name, able in msgspec.structs.asdict(capabilities).items() if able]


def _row(card: ModelCard) -> tuple[str, ...]:
    price = card.price
    virtual = bool(card.strategy)
    return (
        card.name,
        kind(card),
        output.count(card.parameters) if card.parameters else "",
        str(card.context) if card.context else "",
        "" if price is None else f"{price.input:g}",
        "" if price is None else f"{price.output:g}",
        "" if virtual else ("yes" if card.capabilities.tools else "no"),
        "" if virtual else ("yes" if card.capabilities.json else "no"),
        card.description if virtual else scores(card),
    )
