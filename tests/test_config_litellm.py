"""LiteLLM's file in our terms: what is carried, what is noted, and what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_runner_router import config_litellm, config_yaml
from llm_runner_router.config import Config, Node
from llm_runner_router.config_foreign import Foreign, variable
from llm_runner_router.config_load import check_secrets, load
from llm_runner_router.errors import ConfigError
from llm_runner_router.types import Capabilities, Price


def converted(text: str, **env: str) -> Foreign:
    raw, lines = config_yaml.parse(text.encode(), "litellm.yaml")
    return config_litellm.convert(raw, lines, "litellm.yaml", env)


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a text as `litellm.yaml`; gives the configuration and the environment after it."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str, **env: str) -> tuple[Config, dict[str, str]]:
        Path("litellm.yaml").write_text(text, "utf-8")
        environ = {"LLMRR_HOME": str(tmp_path / "home"), **env}
        return load(Path("litellm.yaml"), environ, {}), environ

    return from_text


def lost(found: Foreign) -> dict[str, str]:
    return {note.key: note.text for note in found.lost}


BALANCED = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: os.environ/EU
      api_key: "os.environ/AZURE_API_KEY_EU"
      api_version: "2024-10-21"
      rpm: 600
      timeout: 30
      stream_timeout: 10
    model_info: {id: az-eu, input_cost_per_token: 2.5e-6, output_cost_per_token: 1e-5}
  - model_name: gpt-4o
    litellm_params:
      model: azure/gpt-4o-ca
      api_base: https://ca.openai.azure.com/
      api_key: sk-literal
      rpm: 200
  - model_name: spare
    litellm_params: {model: claude-sonnet-4-5, api_key: sk-literal}
router_settings:
  routing_strategy: simple-shuffle
  model_group_alias: {"gpt-4": "gpt-4o"}
  timeout: 45
litellm_settings:
  fallbacks: [{"gpt-4o": ["spare"]}, {"spare": ["gpt-4o"]}]
general_settings:
  master_key: os.environ/PROXY_KEY
environment_variables:
  EU: https://eu.openai.azure.com/
"""


def test_a_balanced_group_with_accounts_of_its_own(loaded: Any) -> None:
    config, env = loaded(BALANCED, PROXY_KEY="a-long-key", AZURE_API_KEY_EU="x")
    eu, ca = config.providers["azure"], config.providers["azure-2"]
    assert eu.base_url == "https://eu.openai.azure.com?api-version=2024-10-21"
    assert (eu.host, eu.api_key) == ("azure", "${AZURE_API_KEY_EU}")
    assert (eu.first_token_timeout, eu.idle_timeout) == (30.0, 10.0)
    assert ca.base_url == "https://ca.openai.azure.com"
    assert ca.api_key == "${LITELLM_AZURE_API_KEY}"
    assert env["LITELLM_AZURE_API_KEY"] == "sk-literal"
    assert config.models["<az-eu>"] == Node(target="azure/gpt-4o-eu", price=Price(2.5, 10.0))
    assert config.models["<gpt-4o 2>"] == "azure-2/gpt-4o-ca"
    shared = Node(weighted={"<az-eu>": 600.0, "<gpt-4o 2>": 200.0})
    assert config.models["<gpt-4o>"] == Node(fallback=(shared, "<az-eu>", "<gpt-4o 2>"))
    assert config.models["gpt-4o"] == Node(fallback=("<gpt-4o>", "<spare>"))
    # LiteLLM's groups may name each other; here each falls back to the other's own deployments.
    assert config.models["spare"] == Node(fallback=("<spare>", "<gpt-4o>"))
    assert config.aliases == {"gpt-4": "gpt-4o"}
    assert config.deadline == 45.0
    assert not config.zoo
    assert env["LLMRR_API_KEY"] == "a-long-key"
    check_secrets(config, env)


def test_the_key_of_the_environment_comes_first(loaded: Any) -> None:
    _, env = loaded(BALANCED, PROXY_KEY="a-long-key", LLMRR_API_KEY="another-key")
    assert env["LLMRR_API_KEY"] == "another-key"


def test_loading_twice_makes_no_further_variables(loaded: Any) -> None:
    _, env = loaded(BALANCED, PROXY_KEY="a-long-key")
    _, again = loaded(BALANCED, **env)
    assert again == env


STRATEGIES = {
    "least-busy": "least-loaded",
    "latency-based-routing": "speed",
    "cost-based-routing": "cost",
    "usage-based-routing-v2": "least-loaded",
}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_strategies_that_choose(loaded: Any, strategy: str) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: m, litellm_params: {model: groq/a}}\n"
        "  - {model_name: m, litellm_params: {model: groq/b}, model_info: {supports_vision: false}}"
        f"\nrouter_settings: {{routing_strategy: {strategy}}}"
    )
    auto = config.models["m"].auto
    assert auto.objective == STRATEGIES[strategy]
    assert auto.models == ("<m 1>", "<m 2>")
    # What the file does not say is for the provider to say; `auto` would rule it out.
    every = Capabilities(tools=True, json=True, images=True, audio=True, logprobs=True)
    assert config.models["<m 1>"].capabilities == every
    assert config.models["<m 2>"].capabilities == Capabilities(
        tools=True, json=True, audio=True, logprobs=True
    )


def test_order_is_a_fallback_of_groups(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: m, litellm_params: {model: groq/c, order: 2}}\n"
        "  - {model_name: m, litellm_params: {model: groq/a, order: 1, weight: 3}}\n"
        "  - {model_name: m, litellm_params: {model: groq/b, order: 1}}\n"
        "litellm_settings: {num_retries: 0}"
    )
    first = Node(weighted={"<m 2>": 3.0, "<m 3>": 3.0})
    assert config.models["m"] == Node(fallback=(first, "<m 1>"))


def test_a_group_named_as_what_it_asks_for(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: openai/gpt, litellm_params: {model: openai/gpt}}\n"
        "  - {model_name: openai/gpt, litellm_params: {model: openai/gpt}}\n"
    )
    assert config.models["<openai/gpt 1>"] == "openai-2/gpt"
    assert config.providers["openai-2"].host == "openai"


def test_names_that_pass_through(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: mine, litellm_params: {model: openai/a, api_base: 'http://h:1/v1'}}\n"
        "  - {model_name: '*', litellm_params: {model: '*'}}\n"
        "  - {model_name: 'gemini/*', litellm_params: {model: 'gemini/*', api_key: os.environ/G}}\n"
    )
    # `openai/…` means OpenAI to whoever passes it through, so the other address is called otherwise
    assert config.models == {"mine": "openai-2/a"}
    assert config.providers["openai-2"].base_url == "http://h:1/v1"
    assert (config.providers["gemini"].host, config.providers["gemini"].api_key) == (
        "google",
        "${G}",
    )


def test_hosts_by_their_other_names_and_servers_by_address(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: together_ai/meta/llama}}\n"
        "  - {model_name: b, litellm_params: {model: ollama_chat/q:4b, api_base: 'http://h:11434'}}\n"
        "  - {model_name: c, litellm_params: {model: xinference/bge, api_base: 'http://h:9997/v1'}}\n"
        "  - {model_name: d, litellm_params: {model: gpt-4o, organization: org-1}}\n"
        "  - {model_name: e, litellm_params: {model: openai/responses/gpt-5}}\n"
        "  - model_name: f\n"
        "    litellm_params: {model: bedrock/converse/us.x-v1:0, aws_region_name: us-east-1}\n"
        "  - {model_name: g, litellm_params: {model: bedrock/x}}\n",
        AWS_REGION="eu-west-1",
    )
    assert config.models["f"] == "bedrock/us.x-v1:0"
    assert config.providers["bedrock"].base_url == "https://bedrock-runtime.us-east-1.amazonaws.com"
    assert config.models["g"] == "bedrock-2/x"
    assert (
        config.providers["bedrock-2"].base_url == "https://bedrock-runtime.eu-west-1.amazonaws.com"
    )
    assert config.models["a"] == "together_ai/meta/llama"
    assert config.providers["together_ai"].host == "together"
    assert config.providers["ollama_chat"].base_url == "http://h:11434/v1"
    assert config.providers["xinference"].base_url == "http://h:9997/v1"
    assert config.providers["openai"].headers == {"OpenAI-Organization": "org-1"}
    assert config.models["e"] == "openai-2/gpt-5"
    assert config.providers["openai-2"].host == "openai-responses"


def test_a_single_deployment_keeps_its_id(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: groq/a}, model_info: {id: one}}\n"
        "  - {model_name: b, litellm_params: {model: groq/b}, model_info: {id: a}}\n"
        "  - {model_name: c, litellm_params: {model: groq/c}, model_info: {id: c}}\n"
        "litellm_settings: {fallbacks: [{c: [a]}]}"
    )
    assert config.models["a"] == "<one>"
    assert config.models["<one>"] == "groq/a"
    assert config.models["b"] == "<a 1>"  # `<a>` is the group `a` without its fallbacks
    assert config.models["<c>"] == "groq/c"
    assert config.models["c"] == Node(fallback=("<c>", "a"))


def test_credentials_by_name(loaded: Any) -> None:
    config, _ = loaded(
        "model_list:\n"
        "  - {model_name: a, litellm_params: {model: azure/d, litellm_credential_name: c}}\n"
        "credential_list:\n"
        "  - {credential_name: c, credential_values: {api_key: os.environ/K, "
        "api_base: 'https://a.b'}, credential_info: {}}"
    )
    assert config.providers["azure"].base_url == "https://a.b"
    assert config.providers["azure"].api_key == "${K}"


def test_embeddings_are_one_model() -> None:
    found = converted(
        "model_list:\n"
        "  - {model_name: e, litellm_params: {model: text-embedding-3-small}}\n"
        "  - {model_name: e, litellm_params: {model: text-embedding-3-small, api_key: other-key}}\n"
        "litellm_settings: {default_fallbacks: [e]}"
    )
    assert found.settings["models"] == {
        "e": {"target": "openai/text-embedding-3-small", "capabilities": {"embeddings": True}}
    }
    assert "model_list[1]" in lost(found)


def test_what_has_no_counterpart_is_noted_by_line_and_never_shown() -> None:
    found = converted(
        """\
model_list:
  - model_name: a
    litellm_params:
      model: groq/a
      temperature: 0.2
      extra_headers: {"AI-Resource Group": x, X-Api-Token: hush}
      something_new: 1
  - model_name: b
    litellm_params: {model: sagemaker/x, aws_region_name: us-east-1}
litellm_settings:
  callbacks: [langfuse]
  fallbacks: [{a: [b]}, {nobody: [a]}]
  context_window_fallbacks: [{a: [big]}]
general_settings: {database_url: "postgresql://user:hush@host/db", brand_new: true}
mcp_servers: {}
later: 1
"""
    )
    assert set(lost(found)) == {
        "model_list[0].litellm_params.temperature",
        "model_list[0].litellm_params.extra_headers.AI-Resource Group",
        "model_list[0].litellm_params.something_new",
        "model_list[1].litellm_params.model",
        "litellm_settings.callbacks",
        "litellm_settings.fallbacks[0]",
        "litellm_settings.fallbacks[1].nobody",
        "litellm_settings.context_window_fallbacks[0].a",
        "general_settings.database_url",
        "general_settings.brand_new",
        "mcp_servers",
        "later",
    }
    assert {n.line for n in found.lost if n.key.endswith("temperature")} == {5}
    assert found.environment == {"LITELLM_GROQ_X_API_TOKEN": "hush"}
    assert "hush" not in str(found.notes) + str(found.settings)


WRONG = {
    "model_list: []": "litellm.yaml:1: model_list: none of these models can be served here",
    "model_list: {}": "litellm.yaml:1: model_list: expected a list",
    "model_list:\n  - {litellm_params: {model: a}}": (
        "litellm.yaml:2: model_list[0]: `model_name` is missing"
    ),
    "model_list:\n  - {model_name: a}": (
        "litellm.yaml:2: model_list[0]: `litellm_params` with a `model` is missing"
    ),
    "model_list:\n  - model_name: a\n    litellm_params:\n      model: nobody/x": (
        "litellm.yaml:4: model_list[0].litellm_params.model: no provider is called `nobody`, and "
        "there is no `api_base`"
    ),
    "model_list:\n  - {model_name: a, litellm_params: {model: azure/x}}": (
        "litellm.yaml:2: model_list[0].litellm_params: `azure` has no common address"
    ),
    "model_list:\n  - model_name: a\n"
    "    litellm_params: {model: azure/x, api_base: os.environ/GONE}": (
        "litellm.yaml:3: model_list[0].litellm_params.api_base wants the variable `GONE`, which is "
        "not set"
    ),
    "model_list:\n  - {model_name: a, litellm_params: {model: b/x, api_base: mine}}": (
        "litellm.yaml:2: model_list[0].litellm_params.api_base: 'mine' is not a URL"
    ),
    "model_list:\n  - {model_name: a, litellm_params: {model: groq/x, weight: -1}}": (
        "litellm.yaml:2: model_list[0].litellm_params.weight: expected a number from 0"
    ),
    "model_list:\n  - {model_name: a, litellm_params: {model: groq/x}}\nrouter_settings: 1": (
        "litellm.yaml:3: router_settings: expected a mapping (`key: value`)"
    ),
}


@pytest.mark.parametrize("text", sorted(WRONG))
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        converted(text)
    assert caught.value.message == WRONG[text]


def test_names_of_variables() -> None:
    assert variable("litellm", "x-y_key", taken={}) == "LITELLM_X_Y_KEY"
    assert variable("1", taken={"_1": ""}) == "_1_2"
