"""LiteLLM's providers in our terms: which host, which account, which address.

Knows: what LiteLLM calls the hosts of `hosts.toml`, what it appends to an `api_base`, and that one
account (host, address, key, headers, timeouts) is one entry of `providers`. Does not know: groups,
routing, the other sections (`config_litellm.py`).
Names and parameters are those of LiteLLM's documentation, `docs/proxy/configs.md` and
`docs/providers/`, read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from .config_check import hosts
from .config_foreign import Notes, variable
from .config_yaml import Path as Where
from .errors import ConfigError

HOSTS = {
    "ai_studio": "google",
    "anthropic_text": "anthropic",
    "bedrock_converse": "bedrock",
    "cohere_chat": "cohere",
    "custom_openai": "openai",
    "dashscope": "alibaba",
    "fireworks_ai": "fireworks",
    "friendliai": "friendli",
    "gemini": "google",
    "hosted_vllm": "vllm",
    "lm_studio": "lmstudio",
    "llamafile": "llama-server",
    "meta_llama": "llama-api",
    "nvidia_nim": "nvidia",
    "ollama_chat": "ollama",
    "openai_like": "openai",
    "text-completion-openai": "openai",
    "together_ai": "together",
    "vercel_ai_gateway": "vercel",
}
"""LiteLLM's name of a provider to ours, where they differ."""

ABSENT = frozenset(
    "ai21 aleph_alpha azure_text bedrock bedrock_converse clarifai cohere cohere_chat datarobot"
    " deepgram elevenlabs gradient_ai jina_ai nlp_cloud oci oobabooga petals predibase"
    " recraft replicate sagemaker sagemaker_chat snowflake triton vertex_ai vertex_ai_beta voyage"
    " watsonx watsonx_text".split()
)
"""Providers of LiteLLM with a format of their own. One that has no row in `hosts.toml` is left
out; the rest of the file is served."""

SOURCES = {
    "model": "host",
    "base_url": "base_url",
    "api_base": "base_url",
    "api_key": "api_key",
    "organization": "headers",
    "headers": "headers",
    "extra_headers": "headers",
    "timeout": "first_token_timeout",
    "stream_timeout": "idle_timeout",
}
"""What of `litellm_params` becomes which setting of a provider."""

SUFFIXES = {"ollama": "/v1", "huggingface": "/v1", "anthropic": "/v1", "google": "/v1beta"}
"""What LiteLLM appends itself to an `api_base` and we expect in a `base_url`, by our host."""

_REFERENCE = re.compile(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRETIVE = re.compile(r"auth|key|token|secret|cookie|password|credential", re.IGNORECASE)


class Account(Struct, frozen=True):
    """One entry of `providers`, and what it answers for."""

    provider: str
    """LiteLLM's name."""
    settings: dict[str, Any]
    line: int
    lines: dict[str, int]
    """Setting to the line it came from."""


def split(model: str, custom: str | None) -> tuple[str, str]:
    """LiteLLM's `model` as provider and name; bare names are OpenAI's, or those of its rivals."""
    if custom:
        return custom, model.removeprefix(f"{custom}/")
    provider, cut, name = model.partition("/")
    if cut:
        return provider, name
    return ("anthropic" if model.startswith("claude-") else "openai"), model


class Accounts:
    """The providers of one file. Equal accounts are one entry.

    Args:
        env: the environment, with what the file itself sets; for addresses, which may not be
            variables in our settings.
        added: variables for secrets that stand in the file; new ones are put in.
        notes: where problems are noted.
        where: a place for error messages.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        added: dict[str, str],
        notes: Notes,
        where: Callable[[Where], str],
    ) -> None:
        self._env = env
        self._added = added
        self._notes = notes
        self._where = where
        self.entries: dict[str, Account] = {}
        self.passing = False
        """Clients may name any known host, so its name must mean that host."""
        self._literals: dict[str, str] = {}

    def claim(self, name: str, account: Account) -> bool:
        """Call `account` exactly `name`, for names that clients pass through; False: it is taken
        by another one."""
        return self.entries.setdefault(name, account).settings == account.settings

    def name(self, account: Account, model: str, taken: Mapping[str, Any]) -> str:
        """The reference to `model` at `account`; never one of `taken`, which mean other things."""
        base = account.provider
        for name, known in self.entries.items():
            if known.settings == account.settings and f"{name}/{model}" not in taken:
                return f"{name}/{model}"
        name, count = base, 1
        address = hosts().get(base, {}).get("base_url")
        elsewhere = self.passing and "base_url" in account.settings and address
        while name in self.entries or f"{name}/{model}" in taken or (elsewhere and name == base):
            count += 1
            name = f"{base}-{count}"
        self.entries[name] = account
        return f"{name}/{model}"

    def account(self, provider: str, name: str, params: Mapping[str, Any], at: Where) -> Account:
        """The account that `params` (a `litellm_params`, at `at`) describe.

        Raises:
            ConfigError: nobody knows the provider and there is no address, or a value is wrong.
        """
        host = HOSTS.get(provider, provider)
        known = hosts()
        if host == "openai" and name.startswith("responses/"):
            host = "openai-responses"
        base = self.text(params, ("api_base", "base_url"), at)
        if host == "bedrock" and base is None:
            base = self._amazon(params, at)
        settings: dict[str, Any] = {}
        if host in known:
            settings["host"] = host
        elif base is None:
            raise ConfigError(
                f"{self._where((*at, 'model'))}: no provider is called `{provider}`, and there is"
                " no `api_base`",
                hint="give the address of an OpenAI-compatible server as `api_base`",
            )
        if base is not None:
            settings["base_url"] = self._address(base, host, params, at)
        elif host in known and not known[host].get("base_url"):
            raise ConfigError(
                f"{self._where(at)}: `{provider}` has no common address", hint="give an `api_base`"
            )
        elif "api_version" in params:
            self._notes.lost((*at, "api_version"), "works with an `api_base` of Azure's only")
        self._key(provider, params, at, settings)
        self._headers(provider, params, at, settings)
        self._timeouts(params, at, settings)
        lines = {
            ours: self._notes.line((*at, theirs))
            for theirs, ours in SOURCES.items()
            if ours in settings and theirs in params
        }
        return Account(provider, settings, self._notes.line((*at, "model")), lines)

    def _amazon(self, params: Mapping[str, Any], at: Where) -> str:
        region = self.text(params, ("aws_region_name",), at)
        names = ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION")
        region = region or next((self._env[n] for n in names if self._env.get(n)), None)
        if region is None:
            region = "us-west-2"  # what LiteLLM takes then
        if not re.fullmatch(r"[a-z0-9-]{1,40}", region):
            raise ConfigError(f"{self._where((*at, 'aws_region_name'))}: no region of AWS's")
        if "aws_region_name" in params:
            self._notes.became((*at, "aws_region_name"), "part of the `base_url`")
        return f"https://bedrock-runtime.{region}.amazonaws.com"

    def _address(self, base: str, host: str, params: Mapping[str, Any], at: Where) -> str:
        url = base.strip().rstrip("/")
        if not re.match(r"https?://[^/\s]+", url):
            raise ConfigError(f"{self._where((*at, 'api_base'))}: {base!r} is not a URL")
        suffix = SUFFIXES.get(host, "")
        if suffix and not re.search(r"/v\d\w*(/|$)", url):
            url += suffix
        if "api_version" in params:
            version = self.text(params, ("api_version",), at)
            if host == "azure":
                url += f"?api-version={version}"
                self._notes.became((*at, "api_version"), "the query of `base_url`")
            else:
                self._notes.lost((*at, "api_version"), f"`{host}` has no such thing")
        return url

    def _key(
        self, provider: str, params: Mapping[str, Any], at: Where, settings: dict[str, Any]
    ) -> None:
        key = params.get("api_key")
        if key is None or key == "":
            return
        settings["api_key"] = self.secret(str(key), f"{provider}_api_key", (*at, "api_key"))

    def _headers(
        self, provider: str, params: Mapping[str, Any], at: Where, settings: dict[str, Any]
    ) -> None:
        headers: dict[str, str] = {}
        for name in ("headers", "extra_headers"):
            given = params.get(name)
            if given is None:
                continue
            if not isinstance(given, dict):
                raise ConfigError(f"{self._where((*at, name))}: expected a mapping of headers")
            for header, value in given.items():
                place = (*at, name, header)
                if not _HEADER.fullmatch(header):
                    self._notes.lost(place, "a header's name may not contain spaces; left out")
                    continue
                headers[header] = self._header(provider, header, str(value), place)
        organization = params.get("organization")
        if organization is not None:
            place = (*at, "organization")
            headers["OpenAI-Organization"] = self._header(
                provider, "organization", str(organization), place
            )
            self._notes.became(place, "the header `OpenAI-Organization` of its provider")
        if headers:
            settings["headers"] = headers

    def _header(self, provider: str, header: str, value: str, at: Where) -> str:
        if _SECRETIVE.search(header) or _REFERENCE.fullmatch(value):
            return self.secret(value, f"{provider}_{header}", at)
        return value

    def _timeouts(self, params: Mapping[str, Any], at: Where, settings: dict[str, Any]) -> None:
        whole = self._seconds(params, "timeout", at)
        stream = self._seconds(params, "stream_timeout", at)
        first, idle = whole or stream, stream or whole
        if first is not None and idle is not None:
            settings |= {"first_token_timeout": first, "idle_timeout": idle}
        for name, what in (("timeout", "first_token_timeout"), ("stream_timeout", "idle_timeout")):
            if params.get(name) is not None:
                self._notes.became((*at, name), f"`{what}` of its provider")

    def _seconds(self, params: Mapping[str, Any], name: str, at: Where) -> float | None:
        value = params.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            value = self.text(params, (name,), at)
        try:
            return float(value or "")
        except (TypeError, ValueError):
            raise ConfigError(f"{self._where((*at, name))}: expected seconds") from None

    # ------------------------------------------------------------ values

    def text(self, params: Mapping[str, Any], names: tuple[str, ...], at: Where) -> str | None:
        """The first of `names` that is given, with `os.environ/X` replaced.

        Raises:
            ConfigError: the variable is not set.
        """
        for name in names:
            value = params.get(name)
            if value is None or value == "":
                continue
            found = _REFERENCE.fullmatch(str(value))
            if found is None:
                return str(value)
            if not self._env.get(found[1], "").strip():
                raise ConfigError(
                    f"{self._where((*at, name))} wants the variable `{found[1]}`, which is not set",
                    hint=f"export {found[1]}=… before the start",
                )
            return self._env[found[1]].strip()
        return None

    def secret(self, value: str, words: str, at: Where) -> str:
        """How our settings say `value`: `${NAME}`; a literal becomes a variable that is added."""
        found = _REFERENCE.fullmatch(value)
        if found is not None:
            self._notes.became(at, f"`${{{found[1]}}}`")
            return f"${{{found[1]}}}"
        name = self._literals.get(value)
        if name is None:
            known = {**self._env, **self._added}
            # The same file read twice by one process finds the variables of the first time.
            others = {k: v for k, v in known.items() if v != value}
            name = self._literals[value] = variable("litellm", words, taken=others)
            self._added[name] = value
        self._notes.became(at, f"the variable `{name}`, because secrets do not stand in files here")
        return f"${{{name}}}"
