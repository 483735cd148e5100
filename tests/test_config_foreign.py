"""Files of other programs, written as ours: the same trees, and no secret in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router import config_litellm, config_llama_swap, config_modelfile, config_yaml
from llm_runner_router.config import Adopt, ModelGroup, Node
from llm_runner_router.config_foreign import Foreign
from llm_runner_router.config_load import check_text, load
from llm_runner_router.config_written import written
from llm_runner_router.errors import ConfigError

from .test_config_litellm import BALANCED

LITELLM = {
    "balanced": BALANCED,
    "chosen": """\
model_list:
  - {model_name: m, litellm_params: {model: groq/a, order: 1}, model_info: {id: one}}
  - {model_name: m, litellm_params: {model: groq/b, order: 1, extra_headers: {X-Key: hush-hush}}}
  - model_name: m
    litellm_params: {model: ollama/qwen3:4b, api_base: "http://127.0.0.1:11434", order: 2}
    model_info: {max_input_tokens: 4096, input_cost_per_token: 0.00000015, supports_vision: true}
  - {model_name: "yes", litellm_params: {model: mistral/embed-x}}
router_settings: {routing_strategy: least-busy, model_group_alias: {"on": m}}
litellm_settings: {default_fallbacks: [m], request_timeout: 12.5}
general_settings: {master_key: sk-long-enough, max_request_size_mb: 4}
""",
    "passing": """\
model_list:
  - {model_name: "*", litellm_params: {model: "openai/*", api_key: hush-hush}}
  - {model_name: "anthropic/*", litellm_params: {model: "anthropic/*"}}
""",
}


@pytest.mark.parametrize("name", sorted(LITELLM))
def test_a_migrated_file_means_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"LLMRR_HOME": str(tmp_path / "home"), "PROXY_KEY": "a-long-key"}
    Path("theirs.yaml").write_text(LITELLM[name])
    raw, lines = config_yaml.parse(LITELLM[name].encode(), "theirs.yaml")
    found = config_litellm.convert(raw, lines, "theirs.yaml", env)
    Path("ours.yaml").write_text(written(found, "theirs.yaml"))
    assert load(Path("ours.yaml"), env, {}) == load(Path("theirs.yaml"), dict(env), {})
    text = Path("ours.yaml").read_text()
    for variable, secret in found.environment.items():
        if variable != "EU":  # an address, which is no secret
            assert variable in text
            assert secret not in text


def test_each_line_says_where_it_is_from() -> None:
    raw, lines = config_yaml.parse(LITELLM["passing"].encode(), "theirs.yaml")
    text = written(config_litellm.convert(raw, lines, "theirs.yaml", {}), "theirs.yaml")
    assert (
        text
        == """\
# From theirs.yaml, by `llmrr migrate`.
# It wants these variables, whose values are left where they were:
#   LITELLM_OPENAI_API_KEY  (theirs.yaml:2)

zoo: false

server:
  litellm_headers: true

providers:
  openai: {host: openai, api_key: "${LITELLM_OPENAI_API_KEY}"}  # theirs.yaml:2
  anthropic: {host: anthropic}  # theirs.yaml:3
"""
    )


# ---------------------------------------------------------------- Modelfile

MODELFILE = '''\
# a comment
FROM ./weights.gguf
parameter num_ctx 4096
PARAMETER temperature 0.7
PARAMETER stop "<|im_end|>"
TEMPLATE """{{ if .System }}<|system|>
FROM nowhere
{{ .System }}{{ end }}"""
SYSTEM "You are
Mario."
ADAPTER ./mario lora.gguf
LICENSE MIT
MESSAGE user hello
MESSAGE assistant "it is
me"
NONSENSE 1
'''


def modelfile(text: str, *there: str) -> Foreign:
    folder = Path("/models")
    paths = {folder / name for name in there}
    return config_modelfile.convert(text.encode(), "Modelfile", "m", folder, paths.__contains__)


def test_a_modelfile() -> None:
    found = modelfile(MODELFILE)
    assert found.settings == {
        "models": {
            "m": {
                "target": "/models/weights.gguf",
                "adapters": {"mario-lora": "/models/mario lora.gguf"},
            }
        },
        "engine": {"context": 4096},
    }
    fates = [(note.line, note.key.partition("[")[0], note.outcome) for note in found.notes]
    assert fates == [
        (2, "FROM", "became"),
        (3, "PARAMETER", "became"),
        (4, "PARAMETER", "lost"),
        (5, "PARAMETER", "lost"),
        (6, "TEMPLATE", "lost"),
        (9, "SYSTEM", "lost"),
        (11, "ADAPTER", "became"),
        (12, "LICENSE", "moot"),
        (13, "MESSAGE", "lost"),
        (14, "MESSAGE", "lost"),
        (16, "NONSENSE", "lost"),
    ]
    config = check_text(written(found, "Modelfile").encode(), "ours", {})
    assert config.engine.context == 4096


FROM = {
    "llama3.2:3b": "ollama:llama3.2:3b",
    "user/name": "ollama:user/name",
    "hf.co/org/repo:Q4_K_M": "hf.co/org/repo:Q4_K_M",
    "/abs/model": "/abs/model",
    "beside": "/models/beside",
}


@pytest.mark.parametrize("value", sorted(FROM))
def test_where_a_model_is_from(value: str) -> None:
    assert modelfile(f"FROM {value}", "beside").settings["models"] == {"m": FROM[value]}


NO_MODELFILE = {
    "": "Modelfile: there is no `FROM`",
    "FROM a\n= b": "Modelfile:2: not an instruction of a Modelfile",
    'FROM a\nSYSTEM """b\nc': 'Modelfile:2: the """ that opens here has no end',
    "FROM": "Modelfile:1: `FROM` names nothing",
    "FROM a\nPARAMETER num_ctx many": "Modelfile:2: `num_ctx` wants a number above 0",
}


@pytest.mark.parametrize("text", sorted(NO_MODELFILE))
def test_what_is_no_modelfile(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        modelfile(text)
    assert caught.value.message == NO_MODELFILE[text]


# ---------------------------------------------------------------- llama-swap

LLAMA_SWAP = """\
healthCheckTimeout: 500
logLevel: info
startPort: 10001
macros:
  server: >
    /opt/llama-server
    --port ${PORT}
  ctx: 4096
  args: "--ctx-size ${ctx}"
apiKeys: ["${env.SWAP_KEY}", other]
models:
  big:
    cmd: |
      # a comment
      ${server} ${args} \\
      --model '/models/${MODEL_ID} one.gguf'
    macros: {ctx: 16384}
    env: ["CUDA_VISIBLE_DEVICES=0,1", "HF_TOKEN=${env.HF_TOKEN}"]
    aliases: [gpt-4o-mini, {id: other-name}]
    ttl: 60
    filters: {stripParams: temperature}
  docker:
    proxy: "http://127.0.0.1:${PORT}"
    cmd: docker run --name ${MODEL_ID} -p ${PORT}:8080 image
    cmdStop: docker stop ${MODEL_ID}
    useModelName: inner
    ttl: 60
  fixed:
    cmd: vllm serve x --port 8999
    proxy: http://127.0.0.1:8999
    checkEndpoint: /ready
    ttl: 30
groups:
  together: {swap: false, exclusive: false, members: [fixed]}
hooks: {on_startup: {preload: [fixed]}}
peers:
  open router:
    proxy: https://openrouter.ai/api
    apiKey: ${env.OPENROUTER_API_KEY}
    models: [meta-llama/llama]
"""


def llama_swap(text: str, **env: str) -> Foreign:
    raw, lines = config_yaml.parse(text.encode(), "config.yaml")
    assert config_llama_swap.is_one(raw)
    return config_llama_swap.convert(raw, lines, "config.yaml", env)


def test_a_llama_swap_configuration() -> None:
    found = llama_swap(LLAMA_SWAP, SWAP_KEY="a-long-key")
    config = check_text(written(found, "config.yaml").encode(), "ours", {})
    assert config.models["big"] == Node(
        adopt=Adopt(
            command=(
                *("/opt/llama-server", "--port", "{port}", "--ctx-size", "16384", "--model"),
                "/models/big one.gguf",
            ),
            env={"CUDA_VISIBLE_DEVICES": "0,1", "HF_TOKEN": "${HF_TOKEN}"},
        ),
        aliases=("gpt-4o-mini", "other-name"),
    )
    run = ("docker", "run", "--name", "docker", "-p", "{port}:8080", "image")
    assert config.models["docker"] == Node(adopt=Adopt(command=run, model="inner"))
    assert config.models["fixed"] == Node(
        adopt=Adopt(
            command=("vllm", "serve", "x", "--port", "8999"),
            url="http://127.0.0.1:8999/v1",
            health="/ready",
        )
    )
    assert config.models["meta-llama/llama"] == "open-router/meta-llama/llama"
    assert config.providers["open-router"].base_url == "https://openrouter.ai/api/v1"
    assert config.providers["open-router"].api_key == "${OPENROUTER_API_KEY}"
    assert config.engine.groups == {"default": ModelGroup(models=("big", "docker"))}
    assert (config.engine.load_timeout, config.engine.keep_alive) == (500.0, 60.0)
    assert config.engine.pin == ("fixed",)
    assert found.environment == {"LLMRR_API_KEY": "a-long-key"}
    assert {note.key for note in found.lost} == {
        "apiKeys[1]",
        "models.big.filters",
        "models.docker.cmdStop",
        "models.fixed.ttl",
    }
    assert {n.line for n in found.lost if n.key == "models.fixed.ttl"} == {32}


NO_LLAMA_SWAP = {
    "models: {a: {cmd: x}}": (
        "config.yaml:1: models.a: neither `cmd` has a `${PORT}` nor is there a `proxy`"
    ),
    "models: {a: {cmd: '${b}'}}": "config.yaml:1: models.a.cmd: no macro is called `b`",
    "macros: {b: '${b} ${b}'}\nmodels: {a: {cmd: '${b}'}}": (
        "config.yaml:2: models.a.cmd: macros grow without end"
    ),
    "models: {a: {cmd: '${env.GONE}'}}": (
        "config.yaml:1: models.a.cmd wants the variable `GONE`, which is not set"
    ),
    'models:\n  a: {cmd: "x \'${PORT}"}': "config.yaml:2: models.a.cmd: No closing quotation",
    "models: {a: {cmd: 'x ${PORT}', ttl: soon}}": "config.yaml:1: models.a.ttl: expected seconds",
}


@pytest.mark.parametrize("text", sorted(NO_LLAMA_SWAP))
def test_what_is_no_llama_swap_configuration(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        llama_swap(text)
    assert caught.value.message == NO_LLAMA_SWAP[text]
