"""A model that never stops by itself: a zoo model with a longer context and another end token."""

from __future__ import annotations

import struct
from pathlib import Path

from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import ZOO, resolve
from llm_runner_router.refs import parse


def endless(folder: Path, context: int) -> LocalModel:
    """Write and describe it. Its answers are nonsense, and as long as they may be."""
    content = (ZOO / "tiny-math.gguf").read_bytes()
    content = _put(content, "llama.context_length", context)
    content = _put(content, "tokenizer.ggml.eos_token_id", 1)  # never the most likely one
    path = folder / "endless.gguf"
    path.write_bytes(content)
    return resolve(parse(f"file:{path}"))


def _put(content: bytes, key: str, value: int) -> bytes:
    head = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 4)
    at = content.index(head) + len(head)
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]
