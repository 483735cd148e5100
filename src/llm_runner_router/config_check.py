"""How the entries of a configuration hang together: kinds, names, cycles, weights, providers.

Knows: the finished `Config`, the reference grammar, the names of known hosts and built-in models.
Does not know: files or variables; a caller-given function says where a setting stands.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import get_args

from . import refs
from .config import Auto, Config, Node, Objective
from .errors import BadRequest, ConfigError

Where = tuple[str | int, ...]
Place = Callable[[Where], str]

KINDS = ("target", "adopt", "fallback", "race", "weighted", "auto")
FACTS = ("price", "context", "capabilities", "scores", "speed")
VIRTUAL = frozenset(
    {
        "auto",
        *(f"auto:{objective}" for objective in get_args(Objective)),
        *("balanced", "quality-first", "cost-optimized", "speed-priority"),
        *("random", "round-robin", "least-loaded"),
    }
)
"""Names that are always served: the router by objective, and what such choosers are also called."""
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}|os\.environ/[A-Za-z_][A-Za-z0-9_]*")
_HERE = Path(__file__).parent


def check(config: Config, place: Place, stored: Callable[[], Iterable[str]] = tuple) -> None:
    """See that every entry can be built.

    Args:
        place: from the path of a setting to its place and name, for messages.
        stored: the names in the store of models; asked only if a name is not known otherwise.

    Raises:
        ConfigError: the first entry that cannot.
    """
    _Check(config, place, stored).run()


def hosts() -> dict[str, dict[str, object]]:
    """The rows of `providers/hosts.toml` by name; data, so nothing of `providers` is imported."""
    rows: dict[str, dict[str, object]] = tomllib.loads(
        (_HERE / "providers" / "hosts.toml").read_text("utf-8")
    )
    return rows


def zoo() -> tuple[str, ...]:
    """The names of the built-in models."""
    return tuple(sorted(path.stem for path in (_HERE / "zoo").glob("*.gguf")))


def references(config: Config) -> Iterator[tuple[Where, str]]:
    """Every name or reference the models and aliases mention, with its place."""
    for name, entry in config.models.items():
        yield from _mentioned(entry, ("models", name))
    for alias, name in config.aliases.items():
        yield ("aliases", alias), name


def meant(word: str, known: Iterable[object]) -> str:
    """`; did you mean …?` for the nearest of `known`, or nothing."""
    near = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


def adapted(config: Config) -> dict[str, tuple[str, str]]:
    """`NAME+ADAPTER` for every LoRA adapter of every model, by its aliases too: (model, adapter).

    A name that means something else already is left out.
    """
    names = {name: name for name in config.models} | config.aliases
    for name, entry in config.models.items():
        names |= dict.fromkeys(entry.aliases if isinstance(entry, Node) else (), name)
    found: dict[str, tuple[str, str]] = {}
    for called, name in names.items():
        entry = config.models.get(name, "")
        for adapter in entry.adapters if isinstance(entry, Node) else ():
            whole = f"{called}+{adapter}"
            if whole not in names:
                found.setdefault(whole, (name, adapter))
    return found


class _Check:
    """One pass over a configuration; see `check`."""

    def __init__(self, config: Config, place: Place, stored: Callable[[], Iterable[str]]) -> None:
        self.config = config
        self.place = place
        self.stored = stored
        self._hosts: dict[str, dict[str, object]] | None = None
        self.aliases = dict(config.aliases)
        self.adapted = adapted(config)

    @property
    def hosts(self) -> dict[str, dict[str, object]]:
        if self._hosts is None:  # read only if the configuration names a provider at all
            self._hosts = hosts()
        return self._hosts

    def run(self) -> None:
        for name in self.config.providers:
            self._provider(name)
        for name, entry in self.config.models.items():
            self._name(name, ("models", name))
            if isinstance(entry, Node):
                self._node(entry, ("models", name))
                self._own_aliases(name, entry)
                self._own_adapters(name, entry)
        for alias in self.config.aliases:
            self._name(alias, ("aliases", alias))
            if alias in self.config.models:
                raise self._wrong(("aliases", alias), "a model has this name already")
        for at, name in references(self.config):
            self._reference(name, at)
        for index, name in enumerate(self.config.engine.pin):
            self._reference(name, ("engine", "pin", index))
        self._cycles()

    # ------------------------------------------------------------ single entries

    def _provider(self, name: str) -> None:
        provider = self.config.providers[name]
        at: Where = ("providers", name)
        if "/" in name or ":" in name or not name.strip():
            raise self._wrong(at, "a provider's name may not contain `/` or `:`")
        if provider.host is not None and provider.host.lower() not in self.hosts:
            near = meant(provider.host, self.hosts)
            raise self._wrong((*at, "host"), f"no host is called `{provider.host}`{near}")
        host = self.hosts.get((provider.host or name).lower())
        if provider.base_url is None:
            if host is None:
                raise self._wrong(at, f"unknown provider{meant(name, self.hosts)}", BASE_URL)
            if not host.get("base_url"):
                raise self._wrong(at, "this host has no common address", BASE_URL)
        elif not re.match(r"https?://[^/\s]+", provider.base_url):
            raise self._wrong((*at, "base_url"), f"{provider.base_url!r} is not a URL", BASE_URL)
        key = provider.api_key
        if key is not None and not _VARIABLE.fullmatch(key):
            raise self._wrong(
                (*at, "api_key"),
                "keys do not belong in a file; name a variable",
                f"write `api_key: ${{{name.upper().replace('-', '_')}_API_KEY}}` and export it",
            )

    def _name(self, name: str, at: Where) -> None:
        if not name.strip() or len(name) > 200 or any(ord(c) < 32 for c in name):
            raise self._wrong(at, "a name needs 1 to 200 printable characters")

    def _own_aliases(self, name: str, entry: Node) -> None:
        for index, alias in enumerate(entry.aliases):
            at = ("models", name, "aliases", index)
            if alias in self.config.models or self.aliases.get(alias, name) != name:
                raise self._wrong(at, f"`{alias}` is taken by another model")
            self.aliases[alias] = name

    def _own_adapters(self, name: str, entry: Node) -> None:
        for adapter in entry.adapters:
            at, whole = ("models", name, "adapters", adapter), f"{name}+{adapter}"
            self._name(whole, at)
            if self.adapted.get(whole) != (name, adapter):
                raise self._wrong(at, f"`{whole}` is taken by another model")

    def _node(self, node: Node, at: Where) -> None:
        given = [kind for kind in KINDS if getattr(node, kind)]
        if len(given) != 1:
            found = " and ".join(f"`{kind}`" for kind in given) or "none of them"
            options = ", ".join(f"`{kind}`" for kind in KINDS)
            raise self._wrong(at, f"exactly one of {options} is needed, got {found}")
        if node.sticky and not node.weighted:
            raise self._wrong((*at, "sticky"), "`sticky` works with `weighted` only")
        if node.weighted and sum(node.weighted.values()) <= 0:
            raise self._wrong((*at, "weighted"), "one weight must be above 0")
        facts = [fact for fact in FACTS if getattr(node, fact) not in (None, {})]
        if facts and node.target is None and node.adopt is None:
            raise self._wrong((*at, facts[0]), f"`{facts[0]}` works with `target` only")
        self._run(node, at)
        for task, score in node.scores.items():
            if not 0 <= score <= 1:
                raise self._wrong((*at, "scores", task), f"a score is 0 to 1, got {score}")
        for kind in ("fallback", "race"):
            for index, child in enumerate(getattr(node, kind)):
                if isinstance(child, Node):
                    if child.aliases:
                        below = (*at, kind, index, "aliases")
                        raise self._wrong(below, "only a top-level entry can have aliases")
                    self._node(child, (*at, kind, index))

    def _run(self, node: Node, at: Where) -> None:
        """How a local model is to be run."""
        if node.engine is not None and node.target is None:
            raise self._wrong((*at, "engine"), "`engine` works with `target` only")
        if node.adapters:
            self._adapters(node, at)
        if node.options and node.engine is None:
            raise self._wrong((*at, "options"), "`options` are for an `engine`, which is not named")
        if node.chat_template is not None and node.target is None:
            raise self._wrong((*at, "chat_template"), "`chat_template` works with `target` only")
        if node.chat_template is not None and not node.chat_template.strip():
            raise self._wrong(
                (*at, "chat_template"), "it is empty", "give a path or a text, or remove it"
            )
        adopt = node.adopt
        if adopt is None:
            return
        ported = any("{port}" in part for part in adopt.command)
        if adopt.url is None and not ported:
            raise self._wrong(
                (*at, "adopt"),
                "give a `url`, or a `command` with `{port}` in it",
                "for example `adopt: {command: [llama-server, -m, a.gguf, --port, '{port}']}`",
            )
        if adopt.url is not None and not re.match(r"https?://[^/\s]+", adopt.url):
            raise self._wrong((*at, "adopt", "url"), f"{adopt.url!r} is not a URL", BASE_URL)
        if adopt.env and not adopt.command:
            raise self._wrong((*at, "adopt", "env"), "`env` is for a `command`")
        if adopt.api_key is not None and not _VARIABLE.fullmatch(adopt.api_key):
            raise self._wrong(
                (*at, "adopt", "api_key"),
                "keys do not belong in a file; name a variable",
                "write `api_key: ${MY_SERVER_KEY}` and export it",
            )

    def _adapters(self, node: Node, at: Where) -> None:
        """The LoRA adapters of a local model."""
        at, target = (*at, "adapters"), node.target
        if target is None:
            raise self._wrong(at, "`adapters` work with `target` only")
        if node.engine not in (None, "llamacpp"):
            raise self._wrong(
                at,
                f"`adapters` work on `llamacpp`, not on `{node.engine}`",
                "leave `engine` out; mistralrs has adapters of its own among its `options`",
            )
        if target in self.config.models or target in self.aliases or target in VIRTUAL:
            raise self._wrong(at, f"`{target}` is an entry of its own; give the adapters to that")
        try:
            kind = refs.parse(target).kind
        except BadRequest as exc:
            raise self._wrong((*at[:-1], "target"), exc.message, exc.hint) from exc
        if kind == "provider":
            raise self._wrong(at, "`adapters` are for models that run here")
        for name, text in node.adapters.items():
            self._name(name, (*at, name))
            try:
                ref = refs.parse(text)
            except BadRequest as exc:
                raise self._wrong((*at, name), exc.message, exc.hint) from exc
            if ref.kind == "provider" or (ref.kind == "name" and text not in self.stored()):
                raise self._wrong(
                    (*at, name),
                    f"{text!r} is no file, folder or reference",
                    f"a path is `./{text}`",
                )

    # ------------------------------------------------------------ names

    def _reference(self, text: str, at: Where) -> None:
        if text in self.config.models or text in self.aliases or text in VIRTUAL:
            return
        if text in self.adapted:
            return
        try:
            ref = refs.parse(text)
        except BadRequest as exc:
            raise self._wrong(at, exc.message, exc.hint) from exc
        served = [*self.config.models, *self.aliases, *self.adapted, *zoo(), *VIRTUAL]
        if ref.kind == "name" and text in zoo():
            return  # `tiny-math` is short for `zoo:tiny-math`
        if ref.kind == "name" and text in self.stored():
            return
        if ref.kind == "name" or ref.provider == "auto":
            raise self._wrong(
                at,
                f"no model is called `{text}`{meant(text, served)}",
                "a model of a provider is `provider/model`, a file needs its path",
            )
        if ref.kind == "zoo" and ref.name not in zoo():
            known = [f"zoo:{name}" for name in zoo()]
            raise self._wrong(at, f"no built-in model is called `{text}`{meant(text, known)}")
        if ref.kind == "provider":
            provider = (ref.provider or "").lower()
            if ref.provider in self.config.providers:
                return
            if provider not in self.hosts:
                known = [*self.config.providers, *self.hosts]
                raise self._wrong(
                    at,
                    f"no provider is called `{ref.provider}` (in `{text}`){meant(provider, known)}",
                    f"add it under `providers:` with its `base_url`, or see {HOSTS_DOC}",
                )
            if not self.hosts[provider].get("base_url"):
                raise self._wrong(at, f"`{provider}` has no common address", BASE_URL)

    def _cycles(self) -> None:
        done: set[str] = set()

        def visit(name: str, trail: tuple[str, ...]) -> None:
            if name in trail:
                ring = " → ".join([*trail[trail.index(name) :], name])
                raise self._wrong(("models", name), f"goes round in a circle: {ring}")
            if name in done:
                return
            for child in self._children(name):
                visit(child, (*trail, name))
            done.add(name)

        for name in self.config.models:
            visit(name, ())

    def _children(self, name: str) -> Iterator[str]:
        for at, text in _mentioned(self.config.models[name], ("models", name)):
            child = self.aliases.get(text, text)
            if child not in self.config.models:
                continue
            # `openai/gpt: openai/gpt` gives a reference its own name; `a: a` means nothing
            alone = child == name and at[2:] in ((), ("target",))
            if alone and (refs.parse(text).kind != "name" or text in zoo()):
                continue
            yield child

    def _wrong(self, at: Where, problem: str, hint: str | None = None) -> ConfigError:
        return ConfigError(f"{self.place(at)}: {problem}", hint=hint)


BASE_URL = "give it a `base_url`, for example `http://127.0.0.1:8000/v1`"
HOSTS_DOC = "docs/reference/providers.md for the known ones"


def _mentioned(entry: str | Node, at: Where) -> Iterator[tuple[Where, str]]:
    """Every name or reference in an entry, with its place."""
    if isinstance(entry, str):
        yield at, entry
        return
    if entry.target is not None:
        yield (*at, "target"), entry.target
    for kind in ("fallback", "race"):
        for index, child in enumerate(getattr(entry, kind)):
            yield from _mentioned(child, (*at, kind, index))
    for name in entry.weighted:
        yield (*at, "weighted", name), name
    if isinstance(entry.auto, Auto):
        for index, name in enumerate(entry.auto.models):
            yield (*at, "auto", "models", index), name
