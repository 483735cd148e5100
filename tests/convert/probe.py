"""Asks a GGUF file through llama.cpp: `python probe.py FILE ANSWER < ORDER`, in its own process.

The order is JSON: `{"prompts": [[id, …], …], "steps": n, "embed": false, "texts": [...]}`, and
`lora` for the path of an adapter that is applied. The answer is JSON in the file `ANSWER`: for each
prompt the greedy ids and the log-probabilities of every token at every step, or its embedding; for
each text its ids.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import xllamacpp

LETTER = 35
"""The letter `A` in the vocabulary of `models.py`."""


def main() -> None:
    """Load the file, answer the order."""
    order = json.loads(sys.stdin.read())
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = 512, 512, 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.fit_params = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.ui = False
    params.embedding = order.get("embed", False)
    if order.get("lora"):
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(order["lora"], 1.0)]
    server = xllamacpp.Server(params)
    answer = {
        "prompts": [
            embed(server, prompt) if params.embedding else complete(server, prompt, order["steps"])
            for prompt in order.get("prompts", ())
        ],
        "texts": [tokenize(server.listening_address, text) for text in order.get("texts", ())],
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))
    os._exit(0)


def complete(server: Any, prompt: list[int], steps: int) -> dict[str, Any]:
    """Greedy ids, and every token's log-probability at each step.

    One request per step, each made to say the letter `A`: tokens that are half a character would
    be left out of the answer. The log-probabilities are those before that bias.
    """
    ids, seen = list(prompt), []
    for _ in range(steps):
        body = {
            "prompt": ids,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": 1 << 16,
            "cache_prompt": False,
            "logit_bias": [[LETTER, 1000]],
        }
        reply = post(f"{server.listening_address}/completion", body)
        tops = reply["completion_probabilities"][0]["top_logprobs"]
        seen.append({top["id"]: top["logprob"] for top in tops})
        ids.append(tops[0]["id"])
    return {"ids": ids[len(prompt) :], "logprobs": seen}


def embed(server: Any, prompt: list[int]) -> list[float]:
    """The vector of one input."""
    reply = server.handle_embeddings({"input": [prompt], "encoding_format": "float"})
    if "data" not in reply:
        raise RuntimeError(str(reply))
    vector: list[float] = reply["data"][0]["embedding"]
    return vector


def tokenize(address: str, text: str) -> list[int]:
    """The engine's ids of a text, with what it puts around it."""
    body = {"content": text, "add_special": True, "parse_special": True}
    ids: list[int] = post(f"{address}/tokenize", body)["tokens"]
    return ids


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a JSON request."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_file()
    main()
