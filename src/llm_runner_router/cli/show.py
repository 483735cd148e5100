"""`llmrr show`: everything that is known about one name."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from llm_runner_router import refs
from llm_runner_router.config import Config, Node
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import RunnerError
from llm_runner_router.types import ModelCard
from llm_runner_router.units import format_size

from . import asking, output
from .group import Verb, place
from .ls import abilities, cards, kind


@click.command("show", cls=Verb)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(model: str, as_json: bool) -> int:
    """Tell what is known about MODEL: card, file, scores per task, and where requests go.

    MODEL is a name that is served, a built-in model, or a model file.
    """
    where = place()
    config = asking.load(where)
    name = _canonical(model, config)
    listed = {card.name: card for card in cards(where)}
    file = _file(name, config)
    card = listed.get(name) or (file.card if file is not None else None)
    if card is None:
        card = _card_of(name, config)
    routes = tree(name, config)
    if as_json:
        facts = None if file is None else _file_facts(file, text=False)
        stored = _stored(file.name if file is not None else name)
        judged = [] if file is None else EngineSelector().rank(file.info)
        output.json(
            {
                "card": card,
                "file": facts,
                "engines": judged,
                "stored": stored,
                "conversions": [
                    {"path": str(one.path), **msgspec.to_builtins(one.note)}
                    for one in _conversions(file)
                ],
                "routes": routes,
            }
        )
        return 0
    _print(card, file, routes)
    return 0


def _canonical(name: str, config: Config) -> str:
    """The name behind an alias, and `zoo:tiny-math` for its short form."""
    from llm_runner_router.config_check import zoo

    aliases = dict(config.aliases)
    for own, node in config.models.items():
        aliases |= {alias: own for alias in node.aliases} if isinstance(node, Node) else {}
    name = aliases.get(name, name)
    return f"zoo:{name}" if name not in config.models and name in zoo() else name


def _card_of(name: str, config: Config) -> ModelCard:
    """The card of a name that no list has, such as `openai/gpt-4o`.

    Raises:
        UnknownModel: with the nearest names.
    """
    from llm_runner_router.app import App

    target = App(config, local_files=True).target(name)
    return ModelCard(target.name)


def _file(name: str, config: Config) -> Any:
    """The model file behind a name, or None if there is none.

    Raises:
        RunnerError: the name is that of a file, and it cannot be read.
    """
    from llm_runner_router.models.resolve import resolve

    entry = config.models.get(name)
    if isinstance(entry, Node):
        entry = entry.target
    for _ in range(len(config.models) + 1):  # names may stand for names
        following = config.models.get(entry or "")
        if following is None or following == entry:
            break
        entry = following.target if isinstance(following, Node) else following
    if entry is None and name in config.models:
        return None
    try:
        ref = refs.parse(entry or name)
        if ref.kind == "provider" or (ref.kind == "name" and _stored(ref.name) is None):
            return None
        return resolve(ref)
    except RunnerError:
        if name in config.models:
            return None  # the card still has something to tell
        raise


def _stored(name: str) -> Any:
    """What the store remembers of a name, or None."""
    from .stored import opened, stored_name

    store = opened()
    try:
        return store.get(stored_name(name, store))
    except RunnerError:
        return None


def tree(name: str, config: Config, depth: int = 0) -> list[str]:
    """Where requests for `name` go, one line per node, indented."""
    entry = config.models.get(name)
    if entry is None:
        return [("  " * depth) + name]
    return [("  " * depth) + name, *_below(entry, config, depth + 1)]


def _below(entry: str | Node, config: Config, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(entry, str):
        return tree(entry, config, depth)
    if entry.target is not None:
        return tree(entry.target, config, depth)
    if entry.weighted:
        lines = [f"{pad}weighted" + (f", sticky by {entry.sticky}" if entry.sticky else "")]
        total = sum(entry.weighted.values())
        for child, weight in entry.weighted.items():
            first, *rest = tree(child, config, depth + 1)
            lines += [f"{first}  ({weight / total:.0%})", *rest]
        return lines
    if entry.auto is not None:
        lines = [f"{pad}auto, prefers {entry.auto.objective}"]
        for child in entry.auto.models:
            lines += tree(child, config, depth + 1)
        return lines
    lines = [pad + ("fallback, in order" if entry.fallback else "race, the first to answer")]
    for node in entry.fallback or entry.race:
        below = tree(node, config, depth + 1) if isinstance(node, str) else None
        lines += below or _below(node, config, depth + 1)
    return lines


def _file_facts(file: Any, *, text: bool) -> dict[str, Any]:
    """What the file says; the chat template only as its length."""
    facts: dict[str, Any] = msgspec.to_builtins(file.info)
    template = facts.pop("chat_template") or ""
    facts["chat_template"] = f"{len(template)} characters" if text else template
    return {"path": str(Path(file.path)), **facts}


def _judged(verdict: Any) -> tuple[str, str]:
    """An engine's name, and whether it would run the model."""
    lacks = f", but needs {', '.join(verdict.missing)}: {verdict.hint}" if verdict.missing else ""
    named = " (if the configuration names it)" if verdict.by_name and verdict.can else ""
    mark = "yes" if verdict.can else "no"
    return verdict.engine, f"{mark}: {verdict.why}{lacks}{named}"


def _print(card: ModelCard, file: Any, routes: list[str]) -> None:
    price = card.price
    paid = f"${price.input:g} in, ${price.output:g} out per million tokens" if price else ""
    output.pairs(
        [
            ("name", card.name),
            ("kind", kind(card)),
            ("description", card.description),
            ("parameters", output.count(card.parameters) if card.parameters else ""),
            ("context", f"{card.context} tokens" if card.context else ""),
            ("price", paid),
            ("can", ", ".join(abilities(card.capabilities))),
            ("speed", f"{card.speed:g} tok/s" if card.speed else ""),
            ("license", card.license),
            ("source", card.source),
        ]
    )
    if card.scores:
        print("\nscores")
        best = sorted(card.scores.items(), key=lambda item: (-item[1], item[0]))
        output.pairs([(task, f"{score:.1%}") for task, score in best], "  ")
    if file is not None:
        print("\nfile")
        facts = _file_facts(file, text=True)
        facts["bytes"] = format_size(facts["bytes"])
        facts["types"] = ", ".join(f"{t} {format_size(n)}" for t, n in facts["types"].items())
        shown = [(name, str(value)) for name, value in facts.items() if value]
        output.pairs(shown, "  ")
        print("\nengines")
        output.pairs([_judged(v) for v in EngineSelector().rank(file.info)], "  ")
    _print_stored(_stored(file.name if file is not None else card.name))
    _print_conversions(file)
    if len(routes) > 1:
        print("\nroutes")
        print("\n".join(f"  {output.line(line)}" for line in routes))


def _conversions(file: Any) -> list[Any]:
    """Other forms of the model that are kept in the data folder."""
    if file is None:
        return []
    from llm_runner_router.convert.cache import made_of
    from llm_runner_router.home import find

    return made_of(find(os.environ), Path(file.path))


def _print_conversions(file: Any) -> None:
    kept = _conversions(file)
    if kept:
        print("\nconversions")
    for one in kept:
        form = one.note.options.quantize or one.note.options.type.upper()
        size = format_size(one.note.bytes)
        print(output.line(f"  {size:>10}  {one.note.want} {form}  {one.path}"))


def _print_stored(stored: Any) -> None:
    """Where it came from, and its files; nothing for what was not pulled."""
    if stored is None:
        return
    print("\nstore")
    when = datetime.fromtimestamp(stored.pulled).astimezone().isoformat(" ", "minutes")
    rows = [("name", stored.name), ("source", stored.source), ("revision", stored.revision)]
    if stored.template is not None:
        rows.append(("template", f"in place of the file's own: {stored.template.why}"))
    rows += [("pulled", when), *(("note", note) for note in stored.notes)]
    output.pairs([(name, value) for name, value in rows], "  ")
    for file in stored.files:
        where = f"  {file.place}" if file.place else ""
        line = f"  {format_size(file.size):>10}  sha256:{file.sha256[:12]}…  {file.path}{where}"
        print(output.line(line))
