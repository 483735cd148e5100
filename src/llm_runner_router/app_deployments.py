"""Which single targets stand behind each served name, for whoever lists or watches them.

Knows: how the entries of a configuration lead to leaves. Does not know: how a leaf works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .app_tree import Entry, Tree
from .config import Config, Node
from .errors import RunnerError
from .surfaces.base import Deployment

Leaf = tuple[str, str]
"""What a leaf is called here, and what it refers to."""


def deployments(
    config: Config, tree: Tree, healthy: Callable[[str], bool]
) -> tuple[Deployment, ...]:
    """The leaves behind every listed name that can be used or should be; virtual models have none.

    Args:
        config: what the names mean.
        tree: makes of a name what is known of it.
        healthy: whether a target may be asked now; it rests after failures in a row.
    """
    found: list[Deployment] = []
    for name in tree.names():
        for called, target in dict.fromkeys(_leaves(config, name, ())):
            try:
                entry = tree.find(called)
            except RunnerError as exc:
                found.append(Deployment(name, called, target, problem=exc.message))
                continue
            found.extend(_deployment(name, called, target, entry, healthy))
    return tuple(found)


def _deployment(
    name: str, called: str, target: str, entry: Entry, healthy: Callable[[str], bool]
) -> Iterator[Deployment]:
    if entry.kind in ("auto", "fallback", "race", "weighted"):
        return
    resting = "" if healthy(entry.target.name) else "failed several times in a row and rests"
    yield Deployment(name, called, target, entry.card, resting)


def _leaves(config: Config, name: str, above: tuple[str, ...]) -> Iterator[Leaf]:
    name = config.aliases.get(name, name)
    entry = config.models.get(name)
    if entry is None or name in above:  # a reference; `a/b: a/b` gives one its own name
        yield name, name
        return
    yield from _of(config, name, entry, (*above, name))


def _of(config: Config, name: str, entry: str | Node, above: tuple[str, ...]) -> Iterator[Leaf]:
    target = entry if isinstance(entry, str) else entry.target
    if target is not None:
        named = target in config.models or target in config.aliases
        if named and target not in above:
            yield from _leaves(config, target, above)
        else:
            yield name, target
        return
    assert isinstance(entry, Node), "a string is a target"
    if entry.adopt is not None:
        yield name, entry.adopt.model or name
        return
    if entry.auto is not None:
        children: tuple[str | Node, ...] = entry.auto.models
    else:
        children = entry.fallback or entry.race or tuple(entry.weighted)
    # `<name>` is the group itself; what follows it are other groups that stand in for it.
    own = f"<{name}>"
    for child in (own,) if entry.fallback and children[0] == own else children:
        if isinstance(child, str):
            yield from _leaves(config, child, above)
        else:
            yield from _of(config, name, child, above)
