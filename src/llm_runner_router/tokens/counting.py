"""How many tokens a conversation takes, as the engine will count it.

Knows: template, tokenizer, and that a BOS is not put twice. Does not know: files, processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_runner_router.errors import ModelFileError

from .base import Tokenizer
from .templates import Renderer, as_text


def prompt_ids(
    tokenizer: Tokenizer,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    renderer: Renderer,
    add_generation_prompt: bool = True,
    extra: Mapping[str, Any] = {},
) -> list[int]:
    """The ids that a conversation becomes.

    Where the tokenizer puts a BOS (or EOS) around a text, one that the template wrote is taken
    away first, as llama.cpp does it.

    Raises:
        BadRequest, ModelFileError: as `Renderer.render`.
    """
    bos = "" if tokenizer.bos is None else tokenizer.piece(tokenizer.bos).decode("utf-8", "replace")
    eos = "" if tokenizer.eos is None else tokenizer.piece(tokenizer.eos).decode("utf-8", "replace")
    if "<|channel|>" not in template:
        messages = [_without_developer(message) for message in messages]

    def rendered(talk: Sequence[Mapping[str, Any]]) -> str:
        return renderer.render(
            template,
            talk,
            tools,
            bos=bos,
            eos=eos,
            add_generation_prompt=add_generation_prompt,
            extra=extra,
        )

    try:
        text = rendered(messages)
    except ModelFileError as exc:
        if exc.code != "template_failed" or not any(m.get("tool_calls") for m in messages):
            raise
        text = rendered([_with_text(message) for message in messages])
    around = tokenizer.encode("", add_bos=None)
    if bos and tokenizer.bos in around[:1]:
        text = text.removeprefix(bos)
    if eos and tokenizer.eos in around[1 if tokenizer.bos == tokenizer.eos else 0 :][-1:]:
        text = text.removesuffix(eos)
    return tokenizer.encode(text, special=True, add_bos=None)


def count_messages(
    tokenizer: Tokenizer,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    renderer: Renderer,
) -> int:
    """How many tokens of prompt a conversation takes.

    Raises:
        BadRequest, ModelFileError: as `Renderer.render`.
    """
    return len(prompt_ids(tokenizer, template, messages, tools, renderer=renderer))


def _with_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of calls as JSON text, for templates that join them to other text."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [as_text(call) for call in calls]} if calls else message


def _without_developer(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message
