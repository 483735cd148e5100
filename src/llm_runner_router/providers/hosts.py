"""What is known of hosts and of models: the rows of `hosts.toml` and `families.toml`.

Knows: those two files, read on first use. Does not know: accounts, keys, the configuration.
A new host is a row there, not code here.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from llm_runner_router.types import Capabilities, ModelCard, Price

from .dialects.base import Quirks

Dollars = Annotated[float, Meta(ge=0)]


class Host(Struct, frozen=True, forbid_unknown_fields=True):
    """A host: a row of `hosts.toml`."""

    name: str
    dialect: str = "openai"
    """How it is talked to, see `dialects`."""
    title: str = ""
    base_url: str | None = None
    """Up to and including the version; None where every account has its own."""
    key_env: str | None = None
    """The environment variable that usually holds the key; None: no key is needed."""
    local: bool = False
    """It usually runs on this machine, costs nothing and needs no account."""
    key_header: str = "Authorization"
    key_prefix: str = "Bearer "
    auth: Literal["key", "sigv4", "entra"] = "key"
    """Without a key, `sigv4`: requests are signed with AWS credentials (`sigv4.py`); `entra`: they
    carry a token of Microsoft Entra's (`entra.py`)."""
    path: str = ""
    """Put between base URL and route; `{model}` is replaced (Azure's deployments)."""
    query: str = ""
    """Query string of every request, unless the base URL has one."""
    max_tokens: Literal["max_tokens", "max_completion_tokens"] | None = None
    stream_options: bool = True
    top_k: bool = False
    signatures: bool = False
    json_schema: bool = True
    drop: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    """Sent with every request, for example a version; the configuration's own come after."""
    docs: str = ""

    @property
    def quirks(self) -> Quirks:
        """How its bodies differ."""
        return Quirks(
            max_tokens=self.max_tokens,
            stream_options=self.stream_options,
            drop=self.drop,
            top_k=self.top_k,
            signatures=self.signatures,
            json_schema=self.json_schema,
        )


class _Family(Struct, frozen=True, forbid_unknown_fields=True):
    """A model as many hosts serve it; the price is that of `price_hosts` only."""

    names: tuple[str, ...]
    source: str
    description: str = ""
    context: int = 0
    max_output: int = 0
    parameters: int = 0
    tools: bool = False
    json: bool = False
    images: bool = False
    audio: bool = False
    embeddings: bool = False
    logprobs: bool = False
    price_hosts: tuple[str, ...] = ()
    price: Annotated[tuple[Dollars, ...], Meta(min_length=2, max_length=3)] | None = None
    """US dollars per million tokens: input, output, cached input."""
    license: str = ""


class _Families(Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[_Family, ...]


def _read(name: str) -> bytes:
    return resources.files(__package__).joinpath(name).read_bytes()


@cache
def hosts() -> dict[str, Host]:
    """All known hosts by name."""
    rows = tomllib.loads(_read("hosts.toml").decode())
    return {
        name: msgspec.convert({"name": name, **row}, Host, strict=True)
        for name, row in rows.items()
    }


@cache
def _families() -> dict[str, _Family]:
    rows = tomllib.loads(_read("families.toml").decode())
    found = msgspec.convert(rows, _Families, strict=True)
    return {name: family for family in found.model for name in family.names}


def find(name: str) -> Host | None:
    """The host of that name, if it is known; case does not matter."""
    return hosts().get(name.lower())


_DATED = re.compile(r"[-@](20\d\d-\d\d-\d\d|20\d{6}|latest)$")


def card_for(provider: str, model: str) -> ModelCard:
    """What is known of `model` at `provider` (a host's name); zeros where nothing is known.

    The name is looked up as it is, then without a vendor (`meta-llama/…`), a variant (`:free`) and
    a date (`-2024-07-18`). A price is given only for the hosts whose price list it is from.
    """
    known = find(provider)
    local = known is not None and known.local
    family = _family(model)
    if family is None:
        return ModelCard(name=f"{provider}/{model}", local=local)
    # Variants have prices of their own.
    priced = provider.lower() in family.price_hosts and ":" not in model
    return ModelCard(
        name=f"{provider}/{model}",
        local=local,
        description=family.description,
        context=family.context,
        max_output=family.max_output,
        parameters=family.parameters,
        price=Price(*family.price) if family.price is not None and priced else None,
        capabilities=Capabilities(
            tools=family.tools,
            json=family.json,
            images=family.images,
            audio=family.audio,
            embeddings=family.embeddings,
            logprobs=family.logprobs,
        ),
        license=family.license,
        source=family.source,
    )


def _family(model: str) -> _Family | None:
    families = _families()
    whole = model.lower()
    bare = whole.rpartition("/")[2].partition(":")[0]
    for name in (whole, bare, _DATED.sub("", bare)):
        family = families.get(name)
        if family is not None:
            return family
    return None
