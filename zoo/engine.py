"""Asks a GGUF file through the engine users get (llama.cpp inside xllamacpp), greedily.

Knows the engine's chat call and how to put a parsed tool call back into text. Judges nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xllamacpp

from zoo.chat import openai_messages, openai_tools
from zoo.sample import Sample
from zoo.tasks.structured import call_text_of


class Engine:
    """One loaded GGUF file."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = 1024
        params.verbosity = 0
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(params)

    def chat(self, messages: list[dict[str, object]], **options: object) -> dict[str, Any]:
        """The assistant's message, as an OpenAI client would see it."""
        request = {"messages": messages, "temperature": 0.0, "max_tokens": 128, **options}
        reply = self.server.handle_chat_completions(request)
        if "choices" not in reply:
            raise RuntimeError(f"the engine answered with an error: {reply}")
        message: dict[str, Any] = reply["choices"][0]["message"]
        return message

    def answer(self, sample: Sample) -> str:
        """The answer as text; a tool call is written the way the model says it."""
        options = {"tools": openai_tools(sample.tools)} if sample.tools else {}
        message = self.chat(openai_messages(sample.turns), **options)
        calls = message.get("tool_calls") or []
        if len(calls) != 1:
            return str(message.get("content") or "")
        function = calls[0]["function"]
        return call_text_of(function["name"], json.loads(function["arguments"]))
