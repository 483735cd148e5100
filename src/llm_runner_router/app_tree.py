"""From configuration to targets: which name means which tree, and what is known of it.

Knows: names, nodes, references and the concrete strategies. Does not know: how a leaf runs or
connects (`Leaves` makes those) and what holds around every answer (`app.py` wraps that).
Trees are built on first use and kept; names that come from clients are kept in a bounded number.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Protocol

import msgspec
from msgspec import Struct

from . import refs
from .config import Auto as AutoSettings
from .config import Config, Node, Objective
from .config_check import adapted
from .engine.adopted import NOWHERE
from .errors import BadRequest, ConfigError, RunnerError, UnknownModel, Unsupported
from .models.info import LocalModel
from .strategies.auto import Auto, Choice, Classify
from .strategies.fallback import Fallback
from .strategies.race import Race
from .strategies.stats import LiveStats
from .strategies.sticky import Sticky
from .strategies.weighted import Weighted
from .types import Embedder, ModelCard, Outlook, Request, Reranker, Target

AUTOS: dict[str, Objective] = {
    "auto": "balanced",
    "auto:balanced": "balanced",
    "auto:quality": "quality",
    "auto:cost": "cost",
    "auto:speed": "speed",
    "balanced": "balanced",
    "quality-first": "quality",
    "cost-optimized": "cost",
    "speed-priority": "speed",
    "random": "random",
    "round-robin": "round-robin",
    "least-loaded": "least-loaded",
}
"""Virtual models that are always there, and what each prefers."""

LISTED = ("auto", "auto:balanced", "auto:quality", "auto:cost", "auto:speed")
"""Those of `AUTOS` that appear in lists; the others are spellings of the same."""

AGAIN = 5.0
"""Seconds between two tries to make a strategy anew of which a file is gone."""

MAX_PASSING = 512
"""Names outside the configuration (`openai/anything`) that are remembered."""


class Entry(Struct, frozen=True):
    """One name: what answers for it and what is known of it."""

    card: ModelCard
    target: Target
    embedder: Embedder | None = None
    reranker: Reranker | None = None
    model: LocalModel | None = None
    """The file behind it, if it runs here."""
    outlook: Callable[[Request], Outlook | None] | None = None
    """Tells what its runner has of a request, if it is one model that runs here."""
    kind: str = "target"
    members: tuple[Entry, ...] = ()
    """What a strategy chooses from."""


class Leaves(Protocol):
    """Makes leaf targets from references."""

    def names(self) -> Sequence[str]:
        """References that are served without being configured: the zoo."""
        ...

    def stored(self) -> Sequence[str]:
        """Names in the store of models, as it is now."""
        ...

    def leaf(self, ref: refs.Ref, name: str, facts: Node) -> Entry:
        """The leaf for `ref`, called `name`; `facts` override what is known of it.

        Raises:
            UnknownModel, ModelFileError, Unsupported, ConfigError
        """
        ...

    def adapted(self, name: str, base: Entry, adapter: str) -> Entry:
        """The leaf, called `name`, for the local model of `base` with one of its adapters."""
        ...

    def adopted(self, name: str, node: Node) -> Entry:
        """The leaf for the server that `node` adopts, called `name`.

        Raises:
            ConfigError: a variable that it names is not set.
        """
        ...


class Tree:
    """All names of one configuration.

    Args:
        config: the models and aliases.
        leaves: makes the leaves.
        stats, classify, clock, rng: for the strategies that choose.
    """

    def __init__(
        self,
        config: Config,
        leaves: Leaves,
        *,
        stats: LiveStats,
        classify: Classify,
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._config = config
        self._leaves = leaves
        self._stats = stats
        self._classify = classify
        self._clock = clock
        self._rng = rng
        self._kept: dict[str, Entry] = {}
        self._passing: OrderedDict[str, Entry] = OrderedDict()
        self._again: dict[str, float] = {}
        """When strategies of which a file is gone are made anew, if that failed."""
        self._building: list[str] = []
        self._aliases = dict(config.aliases)
        for name, node in config.models.items():
            if isinstance(node, Node):
                self._aliases |= dict.fromkeys(node.aliases, name)
        self._adapted = adapted(config)

    def find(self, name: str) -> Entry:
        """What `name` stands for.

        Raises:
            UnknownModel: with the nearest names.
            RunnerError: the name is known and cannot be built; says why.
        """
        name = self._aliases.get(name, name)
        if name in self._adapted:
            name = "+".join(self._adapted[name])
        entry = self._kept.get(name) or self._passing.get(name)
        if entry is not None and (not _gone(entry) or self._clock() < self._again.get(name, 0.0)):
            return entry
        if name in self._building:
            raise ConfigError(f"`{name}` refers to itself: {' → '.join([*self._building, name])}")
        self._building.append(name)
        try:
            return self._build(name)
        except RunnerError:
            if entry is None or not entry.members:
                raise
            self._again[name] = self._clock() + AGAIN
            return entry  # the others of them still answer
        finally:
            self._building.pop()

    def names(self) -> list[str]:
        """Every name that is listed, configured ones first; `<…>` is the library's own."""
        offered = (*self._leaves.names(), *self._leaves.stored(), *LISTED)
        configured: list[str] = []
        for name, node in self._config.models.items():
            if not name.startswith("<"):
                adapters = node.adapters if isinstance(node, Node) else ()
                configured += [name, *(f"{name}+{adapter}" for adapter in adapters)]
        return [*configured, *(n for n in offered if n not in self._config.models)]

    def entries(self) -> Iterator[tuple[str, Entry | RunnerError]]:
        """Every listed name with what it stands for, or why it cannot be built."""
        for name in self.names():
            try:
                yield name, self.find(name)
            except RunnerError as error:
                yield name, error

    # ------------------------------------------------------------ building

    def _build(self, name: str) -> Entry:
        node = self._config.models.get(name)
        if node is not None:
            entry = self._node(name, Node(target=node) if isinstance(node, str) else node)
        elif name in self._adapted:
            model, adapter = self._adapted[name]
            entry = self._leaves.adapted(name, self.find(model), adapter)
        elif name in AUTOS:
            entry = self._auto(name, AutoSettings(objective=AUTOS[name]))
        else:
            return self._referred(name)
        self._kept[name] = entry
        return entry

    def _referred(self, name: str) -> Entry:
        """A name outside the configuration: a reference that a leaf can be made of."""
        try:
            ref = refs.parse(name)
        except BadRequest as error:
            raise UnknownModel(error.message, hint=error.hint, param="model") from error
        zoo = f"zoo:{name}"
        if ref.kind == "name" and zoo in self._leaves.names():
            return self.find(zoo)
        if ref.kind == "name" and name not in self._leaves.stored():
            raise self.unknown(name)
        entry = self._leaves.leaf(ref, str(ref), Node())
        self._passing[name] = entry
        if len(self._passing) > MAX_PASSING:
            _, old = self._passing.popitem(last=False)
            self._stats.forget(old.target.name)
        return entry

    def unknown(self, name: str) -> UnknownModel:
        """The error for `name`, with the names that look most like it."""
        served = (*self.names(), *AUTOS, *self._aliases, *self._adapted)
        known = [n for n in dict.fromkeys(served) if n != name]
        near = difflib.get_close_matches(name, [*known, *_bare(known)], n=3, cutoff=0.5)
        meant = " or ".join(f"`{n}`" for n in near)
        return UnknownModel(
            f"there is no model {name[:200]!r}" + (f"; did you mean {meant}?" if near else ""),
            hint="`llmrr ls` or GET /v1/models lists them all",
            param="model",
        )

    def _node(self, name: str, node: Node) -> Entry:
        if node.target is not None:
            return self._single(name, node.target, node)
        if node.adopt is not None:
            return self._leaves.adopted(name, node)
        if node.auto is not None:
            return self._auto(name, node.auto)
        if node.fallback:
            entries = self._children(name, node.fallback)
            return _composite(
                name, "fallback", Fallback(name, [e.target for e in entries]), entries
            )
        if node.race:
            entries = self._children(name, node.race)
            return _composite(name, "race", Race(name, [e.target for e in entries]), entries)
        if node.weighted:
            return self._weighted(name, node)
        raise ConfigError(f"model `{name}` has no target", hint="see `llmrr config check`")

    def _single(self, name: str, target: str, node: Node) -> Entry:
        ref = refs.parse(target)
        configured = target in self._config.models and target != name
        if configured or target in self._aliases:
            return self._renamed(name, self.find(target))
        if target in AUTOS:
            return self._auto(name, AutoSettings(objective=AUTOS[target]))
        if ref.kind == "name" and f"zoo:{target}" in self._leaves.names():
            ref = refs.parse(f"zoo:{target}")
        if ref.kind == "name" and target not in self._leaves.stored():
            raise self.unknown(target)
        return self._leaves.leaf(ref, name, node)

    @staticmethod
    def _renamed(name: str, entry: Entry) -> Entry:
        return msgspec.structs.replace(entry, card=msgspec.structs.replace(entry.card, name=name))

    def _children(self, name: str, children: Sequence[str | Node]) -> list[Entry]:
        return [
            self.find(child) if isinstance(child, str) else self._node(f"{name}[{i}]", child)
            for i, child in enumerate(children)
        ]

    def _weighted(self, name: str, node: Node) -> Entry:
        entries = [self.find(child) for child in node.weighted]
        pairs = [(e.target, w) for e, w in zip(entries, node.weighted.values(), strict=True)]
        if node.sticky:
            target: Target = Sticky(name, pairs, node.sticky, self._rng)
        else:
            target = Weighted(name, pairs, self._rng)
        return _composite(name, "weighted", target, entries)

    def _auto(self, name: str, settings: AutoSettings) -> Entry:
        entries = [self.find(option) for option in settings.models or self._options()]
        if not entries:
            raise ConfigError(
                f"`{name}` has nothing to choose from",
                hint="configure `models`, or set `zoo: true`",
            )
        unique = {entry.target.name: entry for entry in entries}
        target = Auto(
            name,
            [Choice(entry.target, entry.card, entry.outlook) for entry in unique.values()],
            settings.objective,
            stats=self._stats,
            classify=self._classify,
            clock=self._clock,
            rng=self._rng,
        )
        card = ModelCard(
            name=name,
            local=all(entry.card.local for entry in unique.values()),
            strategy="auto",
            description=f"chooses for each request ({settings.objective})",
            source=", ".join(unique),
        )
        return Entry(card, target, kind="auto", members=tuple(unique.values()))

    def _options(self) -> list[str]:
        """What `auto` chooses from when it is not told: the configured models, else the zoo.

        The demonstration models join real ones only when someone says so.
        """
        own = [
            name
            for name, node in self._config.models.items()
            if isinstance(node, str)
            or node.adopt is not None
            or (node.target is not None and node.target not in AUTOS)
        ]
        return own or list(self._leaves.names())


def _gone(entry: Entry) -> bool:
    """Whether the file behind it was removed: its name may mean another one by now."""
    model = entry.model
    if model is None:
        return any(map(_gone, entry.members))
    return model.path != NOWHERE and not model.path.exists()


def _bare(names: Sequence[str]) -> list[str]:
    return [name.removeprefix("zoo:") for name in names if name.startswith("zoo:")]


def _composite(name: str, kind: str, target: Target, entries: Sequence[Entry]) -> Entry:
    """A strategy's entry; what is known of it is what is known of its first member."""
    first = entries[0].card
    card = msgspec.structs.replace(
        first,
        name=name,
        strategy=kind,
        description=f"{kind}: " + ", ".join(entry.card.name for entry in entries),
        local=all(entry.card.local for entry in entries),
    )
    return Entry(card, target, kind=kind, members=tuple(entries))


def embedder_of(entry: Entry) -> Embedder:
    """Who embeds for `entry`.

    Raises:
        Unsupported: it is a strategy, or its leaf cannot embed.
    """
    if entry.embedder is None:
        raise Unsupported(
            f"`{entry.card.name}` cannot embed: it is a {entry.kind}",
            hint="name one model, for example `zoo:tiny-general`",
            param="model",
        )
    return entry.embedder


def reranker_of(entry: Entry) -> Reranker:
    """Who reranks for `entry`.

    Raises:
        Unsupported: it is a strategy, or its leaf cannot rerank.
    """
    if entry.reranker is None:
        raise Unsupported(
            f"`{entry.card.name}` cannot rerank: it is a {entry.kind}",
            hint="name one model that was made to score a query and a document",
            param="model",
        )
    return entry.reranker
