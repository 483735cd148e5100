"""How many tokens a conversation takes, as the engine will count it.

Knows: template, tokenizer, and what llama.cpp b11549 does around a template (`common/chat.cpp`):
the variables it gives, a BOS that is not put twice, conversations that a template does not take
as they are. Does not know: files, processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from llm_runner_router.errors import BadRequest, RunnerError

from .base import Tokenizer
from .templates import Renderer, as_text

Talk = Sequence[Mapping[str, Any]]


def prompt_ids(
    tokenizer: Tokenizer,
    template: str,
    messages: Talk,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    renderer: Renderer,
    add_generation_prompt: bool = True,
    extra: Mapping[str, Any] = {},
) -> list[int]:
    """The ids that a conversation becomes.

    Where the tokenizer puts a BOS (or EOS) around a text, one that the template wrote is taken
    away first. What the template does not take is tried as the engine would send it: the system
    message before the first question, arguments of calls as JSON text, no tools as an empty list.

    Raises:
        BadRequest: the template refuses the conversation, or works with others alone.
        ModelFileError: as `Renderer.render`.
    """
    bos = "" if tokenizer.bos is None else tokenizer.piece(tokenizer.bos).decode("utf-8", "replace")
    eos = "" if tokenizer.eos is None else tokenizer.piece(tokenizer.eos).decode("utf-8", "replace")
    if "<|channel|>" not in template:
        messages = [_without_developer(message) for message in messages]
    first: RunnerError | None = None
    for talk, more in _ways(messages, tools):
        try:
            text = renderer.render(
                template,
                talk,
                tools,
                bos=bos,
                eos=eos,
                add_generation_prompt=add_generation_prompt,
                extra={**_variables(), **more, **extra},
            )
            break
        except RunnerError as exc:
            first = first or exc
            if exc.code not in ("template_failed", "template_refused"):
                raise
    else:
        assert first is not None, "there is always one way"
        if first.code == "template_failed" and _works(template, renderer, bos, eos):
            why = first.message.partition(": ")[2]
            raise BadRequest(
                f"the model's chat template does not take this conversation: {why}",
                hint="begin with words of the user's, and leave out what is no text",
                param="messages",
                code="template_refused",
            ) from first
        raise first
    around = tokenizer.encode("", add_bos=None)
    if bos and tokenizer.bos in around[:1]:
        text = text.removeprefix(bos)
    if eos and tokenizer.eos in around[1 if tokenizer.bos == tokenizer.eos else 0 :][-1:]:
        text = text.removesuffix(eos)
    return tokenizer.encode(text, special=True, add_bos=None)


def _works(template: str, renderer: Renderer, bos: str, eos: str) -> bool:
    """Whether a template takes any conversation at all: then a failure is not its file's fault.

    Templates join texts where clients send lists of parts, or look for a first question where
    there is none; such a request is at fault, and must not look like a broken model.
    """
    try:
        renderer.render(
            template,
            [{"role": "user", "content": "a"}],
            bos=bos,
            eos=eos,
            extra={**_variables(), "tools": []},
        )
    except RunnerError:
        return False
    return True


def count_messages(
    tokenizer: Tokenizer,
    template: str,
    messages: Talk,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    renderer: Renderer,
) -> int:
    """How many tokens of prompt a conversation takes.

    Raises:
        BadRequest, ModelFileError: as `Renderer.render`.
    """
    return len(prompt_ids(tokenizer, template, messages, tools, renderer=renderer))


def _variables() -> dict[str, Any]:
    """What the engine gives to every template beside the conversation."""
    now = datetime.now()
    return {
        "enable_thinking": True,
        "datetime": now.strftime("%b %d %Y"),
        "date_string": now.strftime("%d %b %Y"),
    }


def _ways(
    messages: Talk, tools: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Talk, dict[str, Any]]]:
    """A conversation as it is, then as templates with less skill take it."""
    yield messages, {}
    if not tools:
        yield messages, {"tools": []}
    if any(message.get("tool_calls") for message in messages):
        yield [_with_text(message) for message in messages], {}
    if messages and messages[0].get("role") == "system":
        yield _merged(messages), {}


def _merged(messages: Talk) -> Talk:
    """The system message at the head of the next one; alone it is left out."""
    system, *others = messages
    if not others:
        return []
    first = others[0]
    joined = f"{system.get('content') or ''}\n{first.get('content') or ''}"
    return [{**first, "content": joined}, *others[1:]]


def _with_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of calls as JSON text, for templates that join them to other text."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [as_text(call) for call in calls]} if calls else message


def _without_developer(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**message, "role": "system"} if message.get("role") == "developer" else message
