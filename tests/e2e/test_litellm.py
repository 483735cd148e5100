"""`llmrr serve` with a LiteLLM configuration as its documentation shows them, unchanged."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from .served import served


class Upstream(ThreadingHTTPServer):
    """An OpenAI host for every deployment; what is called `down` fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.seen: list[tuple[str, str, str]] = []
        """Path, model and key of every request."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        key: str = self.headers["api-key"] or self.headers["authorization"] or ""
        model: str = asked["model"]
        self.server.seen.append((self.path, model, key.removeprefix("Bearer ")))
        if "down" in model:
            self._say(503, {"error": {"message": "down", "type": "server_error"}})
        elif self.path.partition("?")[0].endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self._say(200, {"object": "list", "data": [vector], "model": model, "usage": usage})
        elif asked.get("stream"):
            self._stream(model)
        else:
            message = {"role": "assistant", "content": f"I am {model}"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            head = {"id": "c1", "object": "chat.completion", "created": 1, "model": model}
            self._say(200, {**head, "choices": [choice], "usage": usage})

    def _stream(self, model: str) -> None:
        head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": model}
        parts: list[Any] = [{"role": "assistant", "content": "I am "}, {"content": model}]
        data = b""
        for part, end in ((parts[0], None), (parts[1], None), ({}, "stop")):
            chunk = {**head, "choices": [{"index": 0, "delta": part, "finish_reason": end}]}
            data += b"data: " + json.dumps(chunk).encode() + b"\n\n"
        self._send(200, "text/event-stream", data + b"data: [DONE]\n\n")

    def _say(self, status: int, body: object) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


CONFIG = """\
model_list:
  - model_name: gpt-4o ### RECEIVED MODEL NAME ###
    litellm_params:
      model: azure/gpt-4o-eu
      api_base: {base}/
      api_key: "os.environ/AZURE_API_KEY_EU"
      api_version: "2024-10-21"
      rpm: 6
    model_info:
      id: az-eu
      input_cost_per_token: 0.00001
      output_cost_per_token: 0.00002
  - model_name: bedrock-claude-v1
    litellm_params:
      model: bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0
      aws_region_name: us-east-1
  - model_name: sagemaker-model
    litellm_params:
      model: sagemaker/berri-benchmarking-gpt-j-6b-fp16
  - model_name: vllm-models
    litellm_params:
      model: openai/facebook/opt-down
      api_base: {base}/v1
      api_key: none
      rpm: 1440
    model_info:
      version: 2
  - model_name: vllm-models
    litellm_params:
      model: openai/facebook/opt-125m
      api_base: {base}/v1
      api_key: none
      rpm: 1
  - model_name: only-down
    litellm_params: {{model: hosted_vllm/down, api_base: "{base}/v1"}}
  - model_name: text-embedding-ada-002
    litellm_params:
      model: text-embedding-ada-002
      api_key: sk-embedding
      api_base: {base}/v1
  - model_name: "*"
    litellm_params:
      model: "*"

litellm_settings:
  drop_params: True
  success_callback: ["langfuse"]
  num_retries: 3
  request_timeout: 60
  fallbacks: [{{"only-down": ["gpt-4o"]}}]

router_settings:
  routing_strategy: simple-shuffle
  model_group_alias: {{"gpt-4": "gpt-4o"}}

general_settings:
  master_key: sk-1234
  alerting: ["slack"]
"""


def told(client: openai.OpenAI, model: str) -> str | None:
    hello: Any = [{"role": "user", "content": "hello"}]
    return client.chat.completions.create(model=model, messages=hello).choices[0].message.content


def test_a_documented_configuration_starts_and_answers(tmp_path: Path) -> None:
    hello: Any = [{"role": "user", "content": "hello"}]
    with upstream() as host:
        file = tmp_path / "config.yaml"
        base = f"http://127.0.0.1:{host.server_port}"
        file.write_text(CONFIG.format(base=base))
        arguments = ["--config", str(file)]
        with served(tmp_path / "home", arguments, AZURE_API_KEY_EU="eu-key") as server:
            with openai.OpenAI(
                base_url=f"{server.url}/v1", api_key="sk-1234", max_retries=0
            ) as client:
                assert told(client, "gpt-4o") == "I am gpt-4o-eu"
                assert told(client, "gpt-4") == "I am gpt-4o-eu"
                path = "/openai/deployments/gpt-4o-eu/chat/completions?api-version=2024-10-21"
                assert host.seen[0] == (path, "gpt-4o-eu", "eu-key")
                raw = client.chat.completions.with_raw_response.create(
                    model="gpt-4", messages=hello
                )
                # 100 tokens in and 10 out, at the prices that the file says
                assert raw.headers["x-litellm-response-cost"] == "0.0012"
                assert raw.headers["x-litellm-model-id"] == "az-eu"
                assert raw.headers["x-litellm-model-group"] == "gpt-4"
                # The heavier deployment is down; the lighter one stands in.
                assert told(client, "vllm-models") == "I am facebook/opt-125m"
                assert told(client, "only-down") == "I am gpt-4o-eu"
                stream = client.chat.completions.create(model="gpt-4o", messages=hello, stream=True)
                text = "".join(part.choices[0].delta.content or "" for part in stream)
                assert text == "I am gpt-4o-eu"
                vectors = client.embeddings.create(model="text-embedding-ada-002", input="a")
                assert vectors.data[0].embedding == [0.5, 0.25]
                assert host.seen[-1] == ("/v1/embeddings", "text-embedding-ada-002", "sk-embedding")
                names = [model.id for model in client.models.list()]
                assert [n for n in names if not n.startswith("auto")] == [
                    "gpt-4o",
                    "bedrock-claude-v1",
                    "vllm-models",
                    "only-down",
                    "text-embedding-ada-002",
                ]
                with pytest.raises(openai.NotFoundError):
                    told(client, "sagemaker-model")
                with pytest.raises(openai.AuthenticationError):
                    told(client.with_options(api_key="sk-12345"), "gpt-4o")
            log = server.log()
    assert "settings have no counterpart here; `llmrr migrate" in log
    assert log.count("llmrr migrate") == 1
    assert "sk-embedding" not in log


def test_the_documented_key_is_for_this_machine_only(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG.format(base="http://127.0.0.1:9"))
    arguments = ["--config", str(file), "--host", "0.0.0.0"]
    with (
        pytest.raises(AssertionError, match="from LiteLLM's documentation"),
        served(tmp_path / "home", arguments, AZURE_API_KEY_EU="eu-key"),
    ):
        raise RuntimeError("it started")
