"""The rows of `hosts.toml` and `families.toml` are whole, and what is looked up is found."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from llm_runner_router.providers import dial, hosts
from llm_runner_router.types import Price

REQUIRED = (
    "openai azure groq mistral together fireworks deepinfra deepseek openrouter perplexity xai"
    " cerebras nvidia huggingface ollama vllm lmstudio llama-server anthropic gemini google"
).split()


@pytest.mark.parametrize("name", REQUIRED)
def test_the_promised_hosts_are_there(name: str) -> None:
    host = hosts.find(name.upper())
    assert host is not None
    assert host.name == name
    assert host.title


def test_most_hosts_speak_openais_dialect() -> None:
    assert sum(host.dialect == "openai" for host in hosts.hosts().values()) >= 40


@pytest.mark.parametrize("name", sorted(hosts.hosts()))
def test_every_row_can_be_used(name: str) -> None:
    host = hosts.hosts()[name]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name), "a name is the front part of a reference"
    assert host.docs.startswith("https://")
    if host.base_url is not None:
        address = dial.parse(host.base_url)
        assert address.tls != host.local, "keys do not go over the network in the clear"
        assert dial.is_loopback(address.host) == host.local
        assert not host.base_url.endswith("/")
    else:
        assert "base_url" in host.title, "who needs an address of his own is told its form"
    assert host.key_env is not None or host.local
    assert host.key_env is None or re.fullmatch(r"[A-Z][A-Z0-9_]+", host.key_env)
    assert host.quirks.stream_options == host.stream_options


def test_an_unknown_host() -> None:
    assert hosts.find("nobody") is None
    card = hosts.card_for("nobody", "nothing")
    assert (card.name, card.context, card.price, card.local) == ("nobody/nothing", 0, None, False)


@pytest.mark.parametrize(
    "model",
    ["gpt-4o-mini", "GPT-4o-mini", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"],
)
def test_a_model_is_found_by_its_names(model: str) -> None:
    card = hosts.card_for("openai", model)
    assert card.name == f"openai/{model}"
    assert card.context == 128_000
    assert card.capabilities.tools
    assert card.price == Price(0.15, 0.6, 0.075)
    assert card.source


def test_a_price_is_that_of_its_host_only() -> None:
    assert hosts.card_for("openrouter", "openai/gpt-4o-mini").price is None
    assert hosts.card_for("openrouter", "openai/gpt-4o-mini").context == 128_000
    assert hosts.card_for("groq", "llama-3.1-8b-instant").price == Price(0.05, 0.08)
    assert hosts.card_for("openai", "gpt-4o-mini:extra").price is None
    assert hosts.card_for("ollama", "llama-3.1-8b").local


def test_similar_names_are_not_the_same_model() -> None:
    assert hosts.card_for("openai", "gpt-4o-audio-preview").context == 0
    assert hosts.card_for("openai", "gpt-4").context == 0


@pytest.mark.parametrize("name", sorted(hosts._families()))
def test_every_family_is_plausible(name: str) -> None:
    family = hosts._families()[name]
    assert name == name.lower()
    assert re.search(r"20\d\d-\d\d", family.source), "a fact has a date"
    assert "https://" in family.source
    assert family.context >= 2048
    assert (family.price is None) == (not family.price_hosts)
    assert all(hosts.find(host) for host in family.price_hosts)
    if family.price is not None and not family.embeddings:
        cheap, dear, *cached = family.price
        assert 0 < cheap <= dear
        assert all(0 < price <= cheap for price in cached)


def test_names_are_unique() -> None:
    rows = {id(family): family for family in hosts._families().values()}.values()
    names = [name for family in rows for name in family.names]
    assert len(names) == len(set(names))


def test_importing_reads_no_file_and_no_tls() -> None:
    code = """
import sys, builtins, llm_runner_router.providers.remote as r
from llm_runner_router.providers import hosts
assert hosts.hosts.cache_info().currsize == 0
assert "urllib.request" not in sys.modules and "email.utils" not in sys.modules
assert "http.client" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
