"""Chat templates: found beside a model, and rendered in a process of their own.

Knows: where models keep templates, their variables as Hugging Face names them, what a conversation
looks like to them. Does not know: Jinja (`rendering.py`), whether a template is any good
(`check.py`), tokens.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from llm_runner_router.errors import BadRequest, ModelFileError, RunnerError
from llm_runner_router.models.formats.gguf import read_header
from llm_runner_router.types import ImagePart, Message, TextPart, Tool

MAX_TEMPLATE: Final = 1024 * 1024
"""Characters; the longest in use has about 30,000."""
MAX_TEXT: Final = 8 * 1024 * 1024
SECONDS: Final = 2.0
"""Processor time of one rendering; usual is a millisecond."""
START_SECONDS: Final = 20.0

_HINTS: Final = {
    "syntax": "`llmrr verify --deep` says what is wrong with it",
    "unsafe": "it tries to reach what is none of its business; do not trust this model's files",
    "limit": "the conversation is too long, or the template never ends",
}


class Renderer:
    """Renders templates in one process, started when first needed; safe in any thread.

    Whoever makes one owns it and closes it. A rendering that breaks a limit ends the process, and
    the next one starts another.

    Args:
        seconds: processor time of one rendering.
        limit: characters of one result.
    """

    def __init__(self, *, seconds: float = SECONDS, limit: int = MAX_TEXT) -> None:
        self._seconds = seconds
        self._limit = limit
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._closed = False

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        bos: str = "",
        eos: str = "",
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] = {},
    ) -> str:
        """The prompt that `template` makes of a conversation.

        Args:
            template: Jinja, as models carry it.
            messages: as in OpenAI's API, arguments of calls as objects; see `plain`.
            tools: as in OpenAI's API.
            bos, eos: the names of these tokens, which some templates write.
            extra: further variables, such as `enable_thinking`.

        Raises:
            BadRequest: the template itself refuses the conversation; carries its words.
            ModelFileError: it is broken, unsafe, or over a limit; `code` is `template_` and
                `syntax`, `failed`, `unsafe` or `limit`.
        """
        if len(template) > MAX_TEMPLATE:
            raise _broken("limit", f"it has more than {MAX_TEMPLATE} characters")
        variables = {
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": add_generation_prompt,
            **extra,
        }
        order = {"template": template, "variables": variables, "limit": self._limit}
        line = msgspec.json.encode(order) + b"\n"
        with self._lock:
            found = self._ask(line)
        if "text" in found:
            return str(found["text"])
        message = str(found.get("message", ""))
        if found.get("error") == "raised":
            raise BadRequest(
                f"the model's chat template refuses this conversation: {message}",
                hint="use the roles in the order that the model knows",
                param="messages",
                code="template_refused",
            )
        raise _broken(str(found.get("error")), message)

    def close(self) -> None:
        """End the process. Safe to repeat."""
        with self._lock:
            self._closed = True
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------ the process

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            # The kernel bounds its processor time; this bounds the wait on a very busy machine.
            return self._read(process, self._seconds * 5 + START_SECONDS)
        except (TimeoutError, EOFError, OSError):
            self._end()
            return {"error": "limit", "message": f"it takes more than {self._seconds:g} s"}
        except BaseException:
            self._end()
            raise

    def _started(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise RunnerError("this renderer is closed", hint="make a new one")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.rendering", str(self._seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={name: os.environ[name] for name in kept if name in os.environ},
        )
        try:
            self._read(self._process, START_SECONDS)
        except (TimeoutError, EOFError, OSError) as exc:
            self._end()
            raise RunnerError(
                "the process that renders chat templates did not start",
                hint="`llmrr doctor` checks the installation",
            ) from exc
        return self._process

    def _read(self, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
        """One line from the process."""
        assert process.stdout is not None
        until = time.monotonic() + seconds
        most = self._limit * 12 + 65536  # a character takes up to 12 bytes in ASCII JSON
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            left = until - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                raise TimeoutError
            chunk = os.read(process.stdout.fileno(), 1 << 20)
            size += len(chunk)
            if not chunk or size > most:
                raise EOFError
            parts.append(chunk)
        line, _, self._rest = b"".join(parts).partition(b"\n")
        found: dict[str, Any] = msgspec.json.decode(line)
        return found

    def _end(self) -> None:
        process, self._process, self._rest = self._process, None, b""
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not written yet has no reader
                    pass


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    bos: str = "",
    eos: str = "",
    add_generation_prompt: bool = True,
    seconds: float = SECONDS,
    limit: int = MAX_TEXT,
) -> str:
    """Render once, in a process that is gone afterwards (about 0.2 s). See `Renderer.render`.

    Raises:
        BadRequest, ModelFileError
    """
    with Renderer(seconds=seconds, limit=limit) as renderer:
        return renderer.render(
            template,
            messages,
            tools,
            bos=bos,
            eos=eos,
            add_generation_prompt=add_generation_prompt,
        )


def _broken(kind: str, message: str) -> ModelFileError:
    return ModelFileError(
        f"the model's chat template cannot be used: {message}",
        hint=_HINTS.get(kind, _HINTS["syntax"]),
        code=f"template_{kind}",
    )


# ---------------------------------------------------------------- conversations


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates expect them: plain text where it is all text, arguments as objects."""
    return [_plain(message) for message in messages]


def _plain(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return found


def _content(message: Message) -> Any:
    if not isinstance(message.content, tuple):
        return message.content or ""
    if all(isinstance(part, TextPart) for part in message.content):
        return message.text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image" if isinstance(part, ImagePart) else "audio"}
        for part in message.content
    ]


def _arguments(text: str) -> Any:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return found if isinstance(found, dict) else text


def as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call of `plain` with its arguments as JSON text, which some templates want."""
    function = dict(call.get("function") or {})
    if not isinstance(function.get("arguments"), str):
        function["arguments"] = msgspec.json.encode(function.get("arguments")).decode()
    return {**call, "function": function}


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates expect them, which is as OpenAI's API has them."""
    found = []
    for tool in tools:
        function: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.parameters is not None:
            function["parameters"] = msgspec.json.decode(tool.parameters)
        found.append({"type": "function", "function": function})
    return found


# ---------------------------------------------------------------- templates of a model


def read_templates(path: Path) -> dict[str, str]:
    """The chat templates of a model by name; the usual one is `default`. Empty where it has none.

    Args:
        path: a GGUF file or a Hugging Face folder.

    Raises:
        ModelFileError: a file that is damaged or too large.
    """
    return _from_folder(path) if path.is_dir() else _from_gguf(path)


def choose(templates: Mapping[str, str], *, tools: bool) -> str | None:
    """The template for a conversation: `tool_use` if tools are given and there is one."""
    if tools and "tool_use" in templates:
        return templates["tool_use"]
    return templates.get("default") or next(iter(templates.values()), None)


def _from_gguf(path: Path) -> dict[str, str]:
    key = "tokenizer.chat_template"
    fields = read_header(path).fields
    found = {
        name.removeprefix(key).removeprefix(".") or "default": value
        for name, value in fields.items()
        if isinstance(value, str) and (name == key or name.startswith(f"{key}."))
    }
    return {name: text for name, text in found.items() if text}


def _from_folder(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        found |= _named(_object(settings).get("chat_template"))
    for name in ("chat_template.json", "processor_config.json"):
        if (folder / name).is_file():
            found |= _named(_object(folder / name).get("chat_template"))
    if (folder / "chat_template.jinja").is_file():
        found["default"] = _text(folder / "chat_template.jinja")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[file.stem] = _text(file)
    return found


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {"default": value}
    pairs = [(v.get("name"), v.get("template")) for v in value or () if isinstance(v, dict)]
    return {n: t for n, t in pairs if isinstance(n, str) and isinstance(t, str)}


def _object(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(_text(path), type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise ModelFileError(f"`{path}` cannot be read: {exc}", hint="download it again") from exc


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > 64 * MAX_TEMPLATE:
            raise ModelFileError(f"`{path}` is too large", hint="is it a model's own file?")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelFileError(f"`{path}` cannot be read: {exc}", hint="download it again") from exc
