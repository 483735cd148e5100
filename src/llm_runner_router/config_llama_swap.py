"""A llama-swap `config.yaml` in our terms: commands become adopted servers, groups groups.

Knows: `models`, `groups`, `peers`, `hooks`, macros. Pure. Does not know: what the commands are.
Keys are those of llama-swap's `config.example.yaml`, read in November 2026.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from .config_foreign import Foreign, Notes, spelled, texts, variable
from .config_yaml import Path as Where
from .errors import ConfigError

KEY = "LLMRR_API_KEY"
FOREVER = 365 * 86_400.0
"""Seconds that stand for never."""
MAX_ROUNDS = 20
"""How deep macros may stand in macros."""
_MACRO = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")
_ENV = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_PORT = "${PORT}"
_LOCAL = re.compile(r"https?://(localhost|127\.0\.0\.1):\$\{PORT\}/?")

MOOT = frozenset(
    "logLevel logTimeFormat logToStdout metricsMaxInMemory captureBuffer startPort macros"
    " sendLoadingState includeAliasesInList performance".split()
)
MODEL_MOOT = frozenset("name description metadata macros sendLoadingState".split())
MODEL_LOST = {
    "filters": "requests are not changed on the way: clients send what they mean",
    "unlisted": "every model of the configuration is listed",
    "concurrencyLimit": "`engine.slots` and `engine.max_queue` hold for every local model",
    "cmdStop": "the command gets SIGTERM and, if it stays, SIGKILL",
    "timeouts": "`engine.load_timeout` and `deadline` hold for every local model",
}


def is_one(raw: Mapping[str, Any]) -> bool:
    """Whether a parsed file is one of llama-swap's."""
    models = raw.get("models")
    if not isinstance(models, dict):
        return False
    return any(isinstance(one, dict) and "cmd" in one for one in models.values())


def convert(
    raw: Mapping[str, Any], lines: Mapping[Where, int], label: str, env: Mapping[str, str]
) -> Foreign:
    """The configuration `raw` in our terms.

    Args:
        raw: the parsed file.
        lines: path to line.
        label: what to call the file in messages.
        env: the environment, for `${env.NAME}` where our settings take no variable.

    Raises:
        ConfigError: it is no such configuration.
    """
    return _Reading(raw, lines, label, env).run()


class _Reading:
    """One pass over a file."""

    def __init__(
        self,
        raw: Mapping[str, Any],
        lines: Mapping[Where, int],
        label: str,
        env: Mapping[str, str],
    ) -> None:
        self.raw = raw
        self.label = label
        self.env = env
        self.notes = Notes(lines)
        self.macros = {k: str(v) for k, v in self._mapping(raw, "macros", ()).items()}
        self.models: dict[str, Any] = {}
        self.providers: dict[str, Any] = {}
        self.engine: dict[str, Any] = {}
        self.added: dict[str, str] = {}
        self.lines: dict[Where, int] = {}
        self.stays: dict[str, float] = {}

    def run(self) -> Foreign:
        for name, model in self._mapping(self.raw, "models", ()).items():
            self._model(name, model, ("models", name))
        self._groups()
        self._peers()
        self._engine()
        self._keys()
        for name in self.raw:
            if name in MOOT:
                self.notes.moot((name,), "concerns parts that are not here")
            elif name == "matrix":
                self.notes.lost((name,), "list under `engine.groups` what may be loaded together")
            elif name not in (
                *("models", "groups", "peers", "hooks", "apiKeys"),
                *("healthCheckTimeout", "globalTTL"),
            ):
                self.notes.lost((name,), "has no counterpart here")
        settings: dict[str, Any] = {"zoo": False, "models": self.models}
        for key, value in (("providers", self.providers), ("engine", self.engine)):
            if value:
                settings[key] = value
        return Foreign(settings, self.added, self.notes.done(), self.lines)

    # ------------------------------------------------------------ models

    def _model(self, name: str, model: Any, at: Where) -> None:
        if not isinstance(model, dict) or not str(model.get("cmd") or "").strip():
            raise ConfigError(f"{self._where(at)}: `cmd` is missing")
        own = {k: str(v) for k, v in self._mapping(model, "macros", at).items()}
        macros = {**self.macros, **own, "MODEL_ID": name}
        adopt: dict[str, Any] = {"command": self._command(str(model["cmd"]), macros, at)}
        self.lines[at] = self.notes.line(at)
        self.lines[*at, "adopt", "command"] = self.notes.line((*at, "cmd"))
        self.notes.became((*at, "cmd"), "`adopt.command`; `memory` says what it counts for")
        self._address(model, macros, at, adopt)
        health = model.get("checkEndpoint")
        if health == "none":
            self.notes.lost((*at, "checkEndpoint"), "a page must say when it is ready")
        elif health:
            adopt["health"] = self._expanded(str(health), macros, (*at, "checkEndpoint"))
            self.notes.became((*at, "checkEndpoint"), "`adopt.health`")
        if model.get("useModelName"):
            adopt["model"] = self._expanded(str(model["useModelName"]), macros, at)
            self.notes.became((*at, "useModelName"), "`adopt.model`")
        if model.get("env"):
            adopt["env"] = self._variables(model["env"], macros, (*at, "env"))
        node: dict[str, Any] = {"adopt": adopt}
        given = model.get("aliases")
        listed = given if isinstance(given, list) else []
        aliases = texts([a.get("id") if isinstance(a, dict) else a for a in listed])
        if aliases:
            node["aliases"] = aliases
            self.notes.became((*at, "aliases"), "`aliases`")
        self.models[name] = node
        self.stays[name] = self._seconds(model, "ttl", at, self._seconds(self.raw, "globalTTL"))
        self._rest(model, at)

    def _rest(self, model: Mapping[str, Any], at: Where) -> None:
        carried = {"cmd", "proxy", "checkEndpoint", "useModelName", "env", "aliases", "ttl"}
        for key, value in model.items():
            if key in carried or value in (None, 0, False, ""):
                continue
            if key in MODEL_MOOT:
                self.notes.moot((*at, key), "a remark, or filled in")
            else:
                self.notes.lost((*at, key), MODEL_LOST.get(key, "has no counterpart here"))

    def _command(self, text: str, macros: Mapping[str, str], at: Where) -> list[str]:
        place = (*at, "cmd")
        lines = self._expanded(text, macros, place).splitlines()
        kept = [line.rstrip().removesuffix("\\") for line in lines if line.strip()[:1] != "#"]
        try:
            words = shlex.split(" ".join(kept))
        except ValueError as exc:
            raise ConfigError(f"{self._where(place)}: {exc}") from exc
        if not words:
            raise ConfigError(f"{self._where(place)}: there is no command")
        return [word.replace(_PORT, "{port}") for word in words]

    def _address(
        self, model: Mapping[str, Any], macros: Mapping[str, str], at: Where, adopt: dict[str, Any]
    ) -> None:
        place = (*at, "proxy")
        proxy = self._expanded(str(model.get("proxy") or ""), macros, place)
        ported = any("{port}" in word for word in adopt["command"])
        if not proxy or (_LOCAL.fullmatch(proxy) and ported):
            if not ported:
                raise ConfigError(
                    f"{self._where(at)}: neither `cmd` has a `${{PORT}}` nor is there a `proxy`"
                )
            if proxy:
                self.notes.moot(place, "is where an adopted server is looked for anyway")
            return
        url = proxy.rstrip("/")
        url = url.replace(_PORT, "{port}")
        adopt["url"] = url if url.endswith("/v1") else f"{url}/v1"
        self.lines[*at, "adopt", "url"] = self.notes.line(place)
        self.notes.became(place, "`adopt.url`, with `/v1`")

    def _variables(self, given: Any, macros: Mapping[str, str], at: Where) -> dict[str, str]:
        found: dict[str, str] = {}
        for one in given if isinstance(given, list) else []:
            name, cut, value = str(one).partition("=")
            if not cut:
                raise ConfigError(f"{self._where(at)}: expected `NAME=value`, got {one!r}")
            value = _ENV.sub(r"${\1}", value)
            found[name] = self._expanded(value, {**macros, **_named(value)}, at)
        self.notes.became(at, "`adopt.env`")
        return found

    # ------------------------------------------------------------ groups, peers, the engine

    def _groups(self) -> None:
        groups: dict[str, Any] = {}
        left = list(self.models)
        for name, group in self._mapping(self.raw, "groups", ()).items():
            at: Where = ("groups", name)
            group = group if isinstance(group, dict) else {}
            members = [m for m in texts(group.get("members")) if m in self.models]
            left = [m for m in left if m not in members]
            if group.get("swap", True) and members:
                groups[name] = {"models": members, "at_once": 1}
                self.lines["engine", "groups", name] = self.notes.line(at)
                self.notes.became(at, "`engine.groups`: one of them at a time")
            else:
                self.notes.moot(at, "its models may be loaded together, as `engine.memory` allows")
            if group.get("exclusive", True) and len(self.raw["groups"]) > 1:
                self.notes.lost((*at, "exclusive"), "groups do not unload each other")
            if group.get("persistent"):
                self.notes.lost((*at, "persistent"), "name its models under `engine.pin`")
        if len(left) > 1 and "matrix" not in self.raw:
            name = variable("default", taken={k.upper(): "" for k in groups}).lower()
            groups[name] = {"models": left, "at_once": 1}
            self.notes.became(("models",), "one of them is loaded at a time (`engine.groups`)")
        if groups:
            self.engine["groups"] = groups

    def _peers(self) -> None:
        for name, peer in self._mapping(self.raw, "peers", ()).items():
            at: Where = ("peers", name)
            peer = peer if isinstance(peer, dict) else {}
            url = self._expanded(str(peer.get("proxy") or ""), self.macros, at).rstrip("/")
            provider = re.sub(r"[^\w.+-]", "-", name)
            settings = {"base_url": url if url.endswith("/v1") else f"{url}/v1"}
            key = str(peer.get("apiKey") or "")
            if key:
                settings["api_key"] = self._secret(key, f"{provider}_api_key", (*at, "apiKey"))
            self.providers[provider] = settings
            self.lines["providers", provider] = self.notes.line(at)
            self.notes.became(at, f"the provider `{provider}`")
            for model in texts(peer.get("models")):
                if model not in self.models:
                    self.models[model] = f"{provider}/{model}"
                    self.lines["models", model] = self.notes.line((*at, "models"))
            for key in peer:
                if key not in ("proxy", "apiKey", "models"):
                    self.notes.lost((*at, key), "has no counterpart here")

    def _engine(self) -> None:
        timeout = self.raw.get("healthCheckTimeout")
        if timeout:
            self.engine["load_timeout"] = self._seconds(self.raw, "healthCheckTimeout")
            self.lines["engine", "load_timeout"] = self.notes.line(("healthCheckTimeout",))
            self.notes.became(("healthCheckTimeout",), "`engine.load_timeout`")
        if self.stays:
            longest = max(stay or FOREVER for stay in self.stays.values())
            self.engine["keep_alive"] = longest
            for name, stay in self.stays.items():
                at = ("models", name, "ttl")
                if (stay or FOREVER) != longest:
                    self.notes.lost(at, f"`engine.keep_alive` is the longest: {longest:g} s")
                elif "ttl" in self.raw["models"][name]:
                    self.notes.became(at, "`engine.keep_alive`")
            if "globalTTL" in self.raw:
                self.notes.became(("globalTTL",), "`engine.keep_alive`")
        startup = self._mapping(self._mapping(self.raw, "hooks", ()), "on_startup", ("hooks",))
        pinned = [name for name in texts(startup.get("preload")) if name in self.models]
        if pinned:
            self.engine["pin"] = pinned
            self.notes.became(("hooks", "on_startup", "preload"), "`engine.pin`: they stay loaded")

    def _keys(self) -> None:
        keys = texts(self.raw.get("apiKeys"))
        if not keys:
            self.notes.moot((), "without `apiKeys` anybody is let in there; here the key is made")
            return
        value = self._expanded(str(keys[0]), self.macros, ("apiKeys", 0))
        self.added[KEY] = value
        self.notes.became(("apiKeys", 0), f"the server's key, as the variable `{KEY}`")
        for index in range(1, len(keys)):
            self.notes.lost(("apiKeys", index), "there is one key")

    # ------------------------------------------------------------ values

    def _secret(self, value: str, words: str, at: Where) -> str:
        found = _ENV.fullmatch(value)
        if found is None:
            name = variable("llama_swap", words, taken={**self.env, **self.added})
            self.added[name] = self._expanded(value, self.macros, at)
            self.notes.became(at, f"the variable `{name}`")
            return f"${{{name}}}"
        self.notes.became(at, f"`${{{found[1]}}}`")
        return f"${{{found[1]}}}"

    def _expanded(self, text: str, macros: Mapping[str, str], at: Where) -> str:
        """`text` with its macros replaced; `${PORT}` stays."""
        for _ in range(MAX_ROUNDS):
            if len(text) > 100_000:
                break
            replaced = _MACRO.sub(lambda match: self._macro(match[1], macros, at), text)
            if replaced == text:
                return text
            text = replaced
        raise ConfigError(f"{self._where(at)}: macros grow without end")

    def _macro(self, name: str, macros: Mapping[str, str], at: Where) -> str:
        if name in ("PORT", "PID"):
            return f"${{{name}}}"
        if name.startswith("env."):
            value = self.env.get(name.removeprefix("env."))
            if value is None:
                raise ConfigError(
                    f"{self._where(at)} wants the variable `{name.removeprefix('env.')}`, which is"
                    " not set"
                )
            return value
        if name not in macros:
            raise ConfigError(f"{self._where(at)}: no macro is called `{name}`")
        return macros[name]

    def _mapping(self, section: Mapping[str, Any], name: str, at: Where) -> Mapping[str, Any]:
        found = section.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self._where((*at, name))}: expected a mapping (`key: value`)")
        return found

    def _seconds(
        self, section: Mapping[str, Any], name: str, at: Where = (), usual: float = 0.0
    ) -> float:
        value = section.get(name)
        if value is None or value == -1:
            return usual
        if not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"{self._where((*at, name))}: expected seconds")
        return float(value)

    def _where(self, at: Where) -> str:
        return f"{self.label}:{self.notes.line(at)}: {spelled(at)}"


def _named(text: str) -> dict[str, str]:
    """Macros that stand for themselves: what our settings take as `${NAME}`."""
    return {match[1]: match[0] for match in _MACRO.finditer(text)}
