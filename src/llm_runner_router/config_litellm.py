"""A LiteLLM `config.yaml` in our terms: groups become trees, accounts become providers.

Knows: `model_list`, `litellm_settings`, `router_settings`, `general_settings`,
`environment_variables`, `credential_list`, and what of them has a counterpart here; the rest gets a
note. Pure. Does not know: hosts and accounts (`config_litellm_hosts.py`), the settings without a
counterpart (`config_litellm_rest.py`), files.
Keys and meanings are those of LiteLLM's documentation, `docs/proxy/configs.md`,
`docs/proxy/config_settings.md` and `docs/routing.md`, read in November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from . import config_litellm_rest as rest
from . import refs
from .config_check import hosts
from .config_foreign import Foreign, Notes, spelled, texts
from .config_litellm_hosts import ABSENT, HOSTS, Account, Accounts, split
from .config_yaml import Path as Where
from .errors import BadRequest, ConfigError

MARK = "model_list"
"""The key that tells such a file."""
KEY = "LLMRR_API_KEY"
STRATEGIES = {
    "simple-shuffle": "",
    "least-busy": "least-loaded",
    "usage-based-routing": "least-loaded",
    "usage-based-routing-v2": "least-loaded",
    "latency-based-routing": "speed",
    "cost-based-routing": "cost",
}
"""`routing_strategy` to the objective of `auto`; empty: `weighted`."""
ABILITIES = {
    "supports_function_calling": "tools",
    "supports_response_schema": "json",
    "supports_vision": "images",
    "supports_audio_input": "audio",
}
COSTS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cached",
    "cache_creation_input_token_cost": "cache_write",
}
SHARES = ("weight", "rpm", "tpm")


class Deployment(Struct):
    """One entry of `model_list`."""

    group: str
    account: Account
    model: str
    at: Where
    order: float
    shares: dict[str, float]
    facts: dict[str, Any]
    embeds: bool
    name: str = ""
    """What it is called here; known once its group is."""


def convert(
    raw: Mapping[str, Any], lines: Mapping[Where, int], label: str, env: Mapping[str, str]
) -> Foreign:
    """The configuration `raw` in our terms.

    Args:
        raw: the parsed file, with `model_list` in it.
        lines: path to line.
        label: what to call the file in messages.
        env: the environment, for addresses that are variables.

    Raises:
        ConfigError: it is no such configuration, or nothing of it can be served.
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
        self.notes = Notes(lines)
        self.added: dict[str, str] = {}
        self.router = self._section("router_settings")
        self.library = self._section("litellm_settings")
        self.general = self._section("general_settings")
        self._variables()
        self.env = {**env, **self.added}
        self.accounts = Accounts(self.env, self.added, self.notes, self.where)
        self.credentials = self._credentials()
        self.models: dict[str, Any] = {}
        self.lines: dict[Where, int] = {}
        self.groups: dict[str, list[Deployment]] = {}
        self.settings: dict[str, Any] = {"zoo": False}
        self.objective, self.retries = self._routing()

    def where(self, at: Where) -> str:
        """A place for messages."""
        return f"{self.label}:{self.notes.line(at)}: {spelled(at)}"

    def run(self) -> Foreign:
        entries = list(self._entries())
        # Names that clients pass through must be the providers' own, so they come first.
        for at, name, params in (e for e in entries if "*" in e[1]):
            self._wildcard(at, name, params)
        for at, name, params in (e for e in entries if "*" not in e[1]):
            self._deployments(at, name, params)
        aliases = self._aliases()
        taken = {**self.groups, **aliases}
        for group, found in self.groups.items():
            self._name(group, found, taken)
        chains = self._chains(aliases)
        for group, found in self.groups.items():
            self._group(group, found, chains)
        if not self.models and not self.accounts.entries and not self.accounts.passing:
            raise ConfigError(
                f"{self.where((MARK,))}: none of these models can be served here",
                hint=f"`llmrr migrate {self.label}` says why, line by line",
            )
        self._rest()
        providers = {name: account.settings for name, account in self.accounts.entries.items()}
        for name, account in self.accounts.entries.items():
            self.lines["providers", name] = account.line
            for setting, line in account.lines.items():
                self.lines["providers", name, setting] = line
        self.settings |= {"providers": providers, "models": self.models, "aliases": aliases}
        return Foreign(self.settings, self.added, self.notes.done(), self.lines)

    # ------------------------------------------------------------ sections as a whole

    def _section(self, name: str) -> Mapping[str, Any]:
        found = self.raw.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise ConfigError(f"{self.where((name,))}: expected a mapping (`key: value`)")
        return found

    def _variables(self) -> None:
        for name, value in self._section("environment_variables").items():
            at = ("environment_variables", name)
            if value is None or str(value).startswith("os.environ/"):
                self.notes.moot(at, "is in the environment already")
                continue
            self.added[name] = str(value).lower() if isinstance(value, bool) else str(value)
            self.notes.became(at, f"the variable `{name}`")

    def _credentials(self) -> dict[str, Mapping[str, Any]]:
        known: dict[str, Mapping[str, Any]] = {}
        for index, entry in enumerate(self._list((), "credential_list", self.raw)):
            at = ("credential_list", index)
            values = entry.get("credential_values") if isinstance(entry, dict) else None
            if not isinstance(values, dict):
                raise ConfigError(f"{self.where(at)}: expected `credential_values`")
            known[str(entry.get("credential_name"))] = values
            self.notes.became(at, "part of the providers that name it")
        return known

    def _list(self, at: Where, name: str, section: Mapping[str, Any]) -> list[Any]:
        found = section.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            raise ConfigError(f"{self.where((*at, name))}: expected a list")
        return found

    # ------------------------------------------------------------ model_list

    def _entries(self) -> Iterator[tuple[Where, str, Mapping[str, Any]]]:
        for index, entry in enumerate(self._list((), MARK, self.raw)):
            at: Where = (MARK, index)
            name = entry.get("model_name") if isinstance(entry, dict) else None
            params = entry.get("litellm_params") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name.strip():
                raise ConfigError(f"{self.where(at)}: `model_name` is missing")
            if not isinstance(params, dict) or not isinstance(params.get("model"), str):
                raise ConfigError(f"{self.where(at)}: `litellm_params` with a `model` is missing")
            credential = params.get("litellm_credential_name")
            if credential is not None:
                if not isinstance(credential, str) or credential not in self.credentials:
                    raise ConfigError(
                        f"{self.where((*at, 'litellm_params', 'litellm_credential_name'))}: no"
                        f" credential is called {credential!r}"
                    )
                params = {**self.credentials[credential], **params}
            custom = params.get("custom_llm_provider")
            if custom is not None and not isinstance(custom, str):
                place = (*at, "litellm_params", "custom_llm_provider")
                raise ConfigError(f"{self.where(place)}: expected a name")
            provider, _ = split(params["model"], custom)
            if provider in ABSENT and HOSTS.get(provider, provider) not in hosts():
                self.notes.lost(
                    (*at, "litellm_params", "model"),
                    f"`{name}` is not served by this entry: `{provider}` is not reached yet",
                )
                continue
            if self._elsewhere(at, entry):
                continue
            yield at, name, params

    def _elsewhere(self, at: Where, entry: Mapping[str, Any]) -> bool:
        """Whether the entry is for another stage (`supported_environments`)."""
        info = entry.get("model_info")
        stages = texts(info.get("supported_environments")) if isinstance(info, dict) else []
        here = self.env.get("LITELLM_ENVIRONMENT", "")
        if not stages or not here or here in stages:
            return False
        self.notes.moot(
            (*at, "model_info", "supported_environments"), f"left out: this is {here!r}"
        )
        return True

    def _wildcard(self, at: Where, name: str, params: Mapping[str, Any]) -> None:
        place = (*at, "litellm_params")
        model: str = params["model"]
        if model == "*":
            self.accounts.passing = True
            self.notes.became(
                at, "`PROVIDER/MODEL` of every known host whose key is set; bare names are not"
            )
            return
        provider, rest_of_it = split(model, params.get("custom_llm_provider"))
        prefix = provider if name == "*" else name.removesuffix("/*")
        if rest_of_it != "*" or "/" in prefix or "*" in prefix or not prefix:
            self.notes.lost(at, "only `*` and `NAME/*` for `PROVIDER/*` pass names through here")
            return
        organizations = params.get("organization")
        if isinstance(organizations, list):
            self.notes.lost((*place, "organization"), "the first is used; names cannot be balanced")
            params = {**params, "organization": organizations[0] if organizations else None}
        if self.accounts.claim(prefix, self.accounts.account(provider, "", params, place)):
            what = f"the provider `{prefix}`: `{prefix}/MODEL` asks for any of its models"
            self.notes.became(at, what + ("; bare names do not" if name == "*" else ""))
        else:
            self.notes.lost(at, f"`{prefix}/MODEL` goes to an earlier entry; give this a name")

    def _deployments(self, at: Where, group: str, params: Mapping[str, Any]) -> None:
        organizations = params.get("organization")
        several = organizations if isinstance(organizations, list) else [organizations]
        for organization in several:
            self._deployment(at, group, {**params, "organization": organization})

    def _deployment(self, at: Where, group: str, params: Mapping[str, Any]) -> None:
        place = (*at, "litellm_params")
        provider, model = split(params["model"], params.get("custom_llm_provider"))
        account = self.accounts.account(provider, model, params, place)
        route = {"openai": "responses/", "bedrock": "converse/"}.get(provider, "")
        model = model.removeprefix(route)
        try:
            readable = refs.parse(f"{provider}/{model}").kind == "provider"
        except BadRequest:
            readable = False
        if not readable:
            self.notes.lost((*place, "model"), f"`{provider}/{model}` reads as something else here")
            return
        info = self.raw[MARK][at[1]].get("model_info") or {}
        if not isinstance(info, dict):
            raise ConfigError(f"{self.where((*at, 'model_info'))}: expected a mapping")
        embeds = info.get("mode") == "embedding" or ("mode" not in info and "embed" in model)
        order = self._number(params, "order", place)
        self.groups.setdefault(group, []).append(
            Deployment(
                group,
                account,
                model,
                at,
                order=float("inf") if order is None else order,
                shares=self._shares(params, place),
                facts=self._facts({**params, **info}, info, at, embeds),
                embeds=embeds,
                name=str(info.get("id") or ""),
            )
        )
        rest.params(params, place, self.notes)
        rest.info(info, (*at, "model_info"), self.notes)

    def _shares(self, params: Mapping[str, Any], at: Where) -> dict[str, float]:
        found = {name: self._number(params, name, at) for name in SHARES}
        return {name: value for name, value in found.items() if value is not None}

    def _number(self, section: Mapping[str, Any], name: str, at: Where) -> float | None:
        value = section.get(name)
        if isinstance(value, str):
            value = self.accounts.text(section, (name,), at)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0 <= number < float("inf"):
            raise ConfigError(f"{self.where((*at, name))}: expected a number from 0")
        return number

    def _facts(
        self, said: Mapping[str, Any], info: Mapping[str, Any], at: Where, embeds: bool
    ) -> dict[str, Any]:
        place = (*at, "model_info")
        facts: dict[str, Any] = {}
        price = {ours: self._number(said, theirs, place) for theirs, ours in COSTS.items()}
        # By the million here; rounded, because 2.8e-07 × 1e6 is not 0.28.
        price_known = {n: round(v * 1e6, 9) for n, v in price.items() if v is not None}
        if price_known:
            facts["price"] = price_known
        context = self._number(info, "max_input_tokens", place)
        context = context or self._number(info, "max_tokens", place)
        if context:
            facts["context"] = int(context)
        stated = {ours: bool(info[n]) for n, ours in ABILITIES.items() if info.get(n) is not None}
        if embeds:
            facts["capabilities"] = {"embeddings": True}
        elif stated or self.objective:
            # What is not stated is left to the provider, as there; `auto` would rule it out.
            able = dict.fromkeys((*ABILITIES.values(), "logprobs"), True)
            facts["capabilities"] = able | stated
        return facts

    # ------------------------------------------------------------ groups

    def _routing(self) -> tuple[str, bool]:
        """The objective of `auto` (empty: by weight), and whether other deployments stand in."""
        strategy = self.router.get("routing_strategy", "simple-shuffle")
        at = ("router_settings", "routing_strategy")
        objective = STRATEGIES.get(str(strategy))
        if objective is None:
            self.notes.lost(at, "there is no such strategy here; requests are shared by weight")
        elif "routing_strategy" in self.router:
            what = f"`auto` with the objective `{objective}`" if objective else "`weighted`"
            self.notes.became(at, f"groups of several are {what}")
        retries = self.router.get("num_retries", self.library.get("num_retries", 1))
        for name, section in (("router_settings", self.router), ("litellm_settings", self.library)):
            if "num_retries" in section:
                self.notes.became(
                    (name, "num_retries"),
                    "each other deployment of a group is tried once; the same one is not"
                    if retries
                    else "no other deployment of a group is tried",
                )
        return objective or "", retries != 0

    def _name(self, group: str, found: list[Deployment], taken: Mapping[str, Any]) -> None:
        """Give the deployments of a group their names, and put them among the models."""
        for index, one in enumerate(found):
            line = self.notes.line((*one.at, "model_name"))
            target = self.accounts.name(one.account, one.model, taken)
            own = one.name or (f"{group} {index + 1}" if len(found) > 1 else group)
            # `<group>` is the group itself without its fallbacks.
            while f"<{own}>" in self.models or (
                own in self.groups and (own, len(found)) != (group, 1)
            ):
                own = f"{own} {index + 1}"
            own = f"<{own}>"
            one.name = own
            self.models[own] = {"target": target, **one.facts} if one.facts else target
            self.lines["models", own] = line
            self.notes.became(one.at, f"`{target}` for `{group}`")

    def _group(self, group: str, found: list[Deployment], chains: Mapping[str, list[str]]) -> None:
        line = self.notes.line((*found[0].at, "model_name"))
        self.lines["models", group] = line
        chain = chains.get(group, [])
        embeds = any(one.embeds for one in found)
        if embeds:
            # Vectors of different models cannot stand in for each other.
            for one in found[1:]:
                self.notes.lost(one.at, f"embeddings are not balanced: the first of `{group}` does")
                del self.models[one.name]
        if embeds or (len(found) == 1 and not chain):
            # With an id of its own it keeps that name, for headers and records.
            only = found[0].name
            made = only in (f"<{group}>", f"<{group} 1>")
            self.models[group] = self.models.pop(only) if made else only
            return
        body = self._balanced(found)
        if not chain:
            self.models[group] = body if isinstance(body, dict) else {"target": body}
            return
        base = f"<{group}>"
        if body != base:
            self.models[base] = body
            self.lines["models", base] = line
        others = [self._base(name, chains) for name in chain]
        self.models[group] = {"fallback": [base, *others]}

    def _base(self, name: str, chains: Mapping[str, list[str]]) -> str:
        """`name` without its own fallbacks: LiteLLM's groups may name each other in a circle."""
        plain = name in self.groups and not any(one.embeds for one in self.groups[name])
        return f"<{name}>" if plain and chains.get(name) else name

    def _balanced(self, found: list[Deployment]) -> str | dict[str, Any]:
        orders = sorted({one.order for one in found})
        parts = [self._among([o for o in found if o.order == order]) for order in orders]
        flat = [part for several in parts for part in several]
        return flat[0] if len(flat) == 1 else {"fallback": flat}

    def _among(self, found: list[Deployment]) -> list[Any]:
        """Deployments of the same order, as steps of a fallback."""
        names = [one.name for one in found]
        if len(names) == 1:
            return list(names)
        if self.objective:
            return [{"auto": {"objective": self.objective, "models": names}}]
        share = next((s for s in SHARES if any(s in one.shares for one in found)), None)
        weights = dict.fromkeys(names, 1.0)
        if share is not None:
            least = min(one.shares[share] for one in found if share in one.shares)
            weights = {one.name: one.shares.get(share, least) for one in found}
            if not any(weights.values()):
                weights = dict.fromkeys(names, 1.0)
        return [{"weighted": weights}, *(names if self.retries else ())]

    # ------------------------------------------------------------ aliases and fallbacks

    def _aliases(self) -> dict[str, str]:
        aliases: dict[str, str] = {}
        given = self.router.get("model_group_alias") or {}
        if not isinstance(given, dict):
            raise ConfigError(f"{self.where(('router_settings', 'model_group_alias'))}: a mapping")
        for alias, meant in given.items():
            at = ("router_settings", "model_group_alias", alias)
            name = meant.get("model") if isinstance(meant, dict) else meant
            if alias in self.groups or not isinstance(name, str) or name not in self.groups:
                self.notes.lost(at, f"`{alias}` is a model itself, or `{name}` is none here")
                continue
            aliases[alias] = name
            self.lines["aliases", alias] = self.notes.line(at)
            self.notes.became(at, f"an alias of `{name}`")
        return aliases

    def _chains(self, aliases: Mapping[str, str]) -> dict[str, list[str]]:
        chains: dict[str, list[str]] = {}
        usual: list[str] = []
        for name, section in (("litellm_settings", self.library), ("router_settings", self.router)):
            if section.get("default_fallbacks"):
                at: Where = (name, "default_fallbacks")
                usual = self._named(at, self._list((name,), "default_fallbacks", section), aliases)
            for index, pair in enumerate(self._list((name,), "fallbacks", section)):
                at = (name, "fallbacks", index)
                for group, names in (pair if isinstance(pair, dict) else {}).items():
                    found = self._named(at, names if isinstance(names, list) else [names], aliases)
                    group = aliases.get(group, group)
                    if group == "*":
                        usual = found
                    elif group in self.groups:
                        chains[group] = [one for one in found if one != group]
                    else:
                        self.notes.lost((*at, group), f"`{group}` is not served")
        for group in self.groups:
            chains.setdefault(group, [one for one in usual if one != group])
        for name, section in (("litellm_settings", self.library), ("router_settings", self.router)):
            rest.special_fallbacks(name, section, chains, self.notes)
        return chains

    def _named(self, at: Where, names: list[Any], aliases: Mapping[str, str]) -> list[str]:
        known = [aliases.get(n, n) for n in names if isinstance(n, str)]
        found = [n for n in known if n in self.groups or self._passes(n)]
        if len(found) < len(names):
            gone = ", ".join(f"`{n}`" for n in names if aliases.get(str(n), n) not in found)
            self.notes.lost(at, f"not served here, so left out of the fallback: {gone[:200]}")
        if found:
            self.notes.became(at, "`fallback`: " + ", ".join(found))
        return found

    def _passes(self, name: str) -> bool:
        """Whether a name without an entry goes to a provider."""
        provider, cut, _ = name.partition("/")
        return bool(cut) and (provider in self.accounts.entries or provider in hosts())

    # ------------------------------------------------------------ the rest

    def _rest(self) -> None:
        self._deadline()
        self._key()
        server: dict[str, Any] = {"litellm_headers": True}
        for name, ours, factor in (
            ("global_max_parallel_requests", "max_requests", 1),
            ("max_request_size_mb", "max_body", 1 << 20),
        ):
            value = self._number(self.general, name, ("general_settings",))
            if value:
                server[ours] = int(value * factor)
                self.lines["server", ours] = self.notes.line(("general_settings", name))
                self.notes.became(("general_settings", name), f"`server.{ours}`")
        self.settings["server"] = server
        rest.sections(self.raw, self.notes)

    def _deadline(self) -> None:
        router = self._number(self.router, "timeout", ("router_settings",))
        library = self._number(self.library, "request_timeout", ("litellm_settings",))
        chosen = router or library
        if not chosen:
            return
        at = ("router_settings", "timeout") if router else ("litellm_settings", "request_timeout")
        self.settings["deadline"] = chosen
        self.lines["deadline",] = self.notes.line(at)
        self.notes.became(at, "`deadline`: of a whole request, with all its attempts")
        if router and library:
            self.notes.moot(("litellm_settings", "request_timeout"), "`timeout` of the router wins")

    def _key(self) -> None:
        at = ("general_settings", "master_key")
        key = self.general.get("master_key")
        text = self.accounts.text(self.general, ("master_key",), ("general_settings",))
        text = text or self.env.get("LITELLM_MASTER_KEY", "").strip()
        if self.env.get(KEY, "").strip():
            if key:
                self.notes.moot(at, f"`{KEY}` is set and comes first")
        elif text:
            self.added[KEY] = text
            if key:
                self.notes.became(at, f"the server's key, as the variable `{KEY}`")
