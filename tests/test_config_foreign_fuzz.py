"""Files of other programs with anything in any place: an error of ours with a line, or a result."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llm_runner_router import config_litellm, config_llama_swap, config_modelfile, config_yaml
from llm_runner_router.config_foreign import Foreign
from llm_runner_router.config_load import check_text
from llm_runner_router.config_written import written
from llm_runner_router.errors import ConfigError

from .test_config_foreign import LITELLM, LLAMA_SWAP, MODELFILE, modelfile

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, float("nan"), "", "x", "*", "a/b", "os.environ/GONE", "${PORT}"),
    *([], [None], [[]], [{}], ["m"], {}, {"m": None}, {"m": ["m"]}, {"m": {"model": []}}),
)
RICH = """\
model_list:
  - model_name: m
    litellm_params: {model: groq/a, litellm_credential_name: c, organization: [o, p], weight: 1}
    model_info: {id: x, mode: chat, supported_environments: [dev], supports_vision: true}
  - {model_name: m, litellm_params: {model: azure/b, api_base: "http://h", extra_headers: {a: b}}}
  - {model_name: "o/*", litellm_params: {model: "openai/*", organization: [o]}}
credential_list: [{credential_name: c, credential_values: {api_key: k}, credential_info: {}}]
litellm_settings:
  fallbacks: [{m: [m]}]
  context_window_fallbacks: [{m: [m]}]
  content_policy_fallbacks: [{m: [m]}]
  default_fallbacks: [m]
  num_retries: 1
  request_timeout: 3
router_settings: {routing_strategy: least-busy, model_group_alias: {n: {model: m}}, timeout: 3}
general_settings: {master_key: k, global_max_parallel_requests: 3}
environment_variables: {A: b}
"""


def spoilt(value: Any, rng: Random) -> Any:
    """`value` with something odd in one place of it."""
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        keys: list[Any] = []
        if isinstance(inner, dict):
            keys = list(inner)
        elif isinstance(inner, list):
            keys = list(range(len(inner)))
        for key in keys:
            places.append((inner, key))
            walk(inner[key])

    changed = copy.deepcopy(value)
    walk(changed)
    where, key = rng.choice(places)
    where[key] = copy.deepcopy(rng.choice(ODD))
    return changed


def survives(found: Foreign) -> None:
    """What it became is a configuration, or is refused as one."""
    try:
        check_text(written(found, "theirs").encode(), "ours", {})
    except ConfigError:
        pass


@pytest.mark.parametrize("text", [*LITELLM.values(), RICH, LLAMA_SWAP])
def test_odd_values_are_told(text: str) -> None:
    raw, lines = config_yaml.parse(text.encode(), "theirs")
    reader = config_litellm if config_litellm.MARK in raw else config_llama_swap
    rng = Random(3)
    refused: list[str] = []
    for _ in range(80):
        odd = spoilt(spoilt(raw, rng), rng) if rng.random() < 0.3 else spoilt(raw, rng)
        try:
            found = reader.convert(odd, lines, "theirs", {"PROXY_KEY": "k", "SWAP_KEY": "k"})
        except ConfigError as exc:
            refused.append(exc.message)
        else:
            survives(found)
    assert len(refused) > 3
    assert all(message.startswith("theirs:") for message in refused)


def test_odd_bytes_are_told() -> None:
    rng = Random(4)
    refused: list[str] = []
    for _ in range(150):
        text = list(MODELFILE)
        for _ in range(rng.randint(1, 8)):
            text[rng.randrange(len(text))] = rng.choice('"\n{}#\x00 €')
        try:
            survives(modelfile("".join(text)))
        except ConfigError as exc:
            refused.append(exc.message)
    assert refused
    assert all(message.startswith("Modelfile:") for message in refused)
    with pytest.raises(ConfigError, match="not UTF-8"):
        config_modelfile.convert(b"FROM \xff", "Modelfile", "m", Path("/"), Path.exists)
