"""Answers that never stop by themselves: a zoo model with a longer context, told to go on."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
from msgspec import Raw

from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import ZOO, resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import Message, Request, Sampling


def endless(folder: Path, context: int) -> LocalModel:
    """The smallest zoo model with room for `context` tokens, written to `folder`."""
    content = (ZOO / "tiny-math.gguf").read_bytes()
    key = "llama.context_length"
    head = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 4)
    at = content.index(head) + len(head)
    path = folder / "endless.gguf"
    path.write_bytes(content[:at] + struct.pack("<I", context) + content[at + 4 :])
    return resolve(parse(f"file:{path}"))


def go_on(tokens: int) -> Request:
    """A request for exactly `tokens` tokens; its answer is nonsense."""
    return Request(
        model="any",
        messages=(Message("user", "Count."),),
        sampling=Sampling(max_tokens=tokens),
        extra={"ignore_eos": Raw(msgspec.json.encode(True))},
    )
