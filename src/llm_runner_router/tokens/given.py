"""Chat templates that the configuration gives: a file's or the text itself, read and tried.

Knows: the setting `chat_template` of a model, limits. Does not know: Jinja (`rendering.py`), the
models. A template is rendered in a process with limits only, also to try it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from llm_runner_router.config import Config, Node
from llm_runner_router.errors import BadRequest, ConfigError, RunnerError

from .templates import MAX_TEMPLATE, Renderer

TRIED: Final = [{"role": "user", "content": "What is seven?"}]
"""What every template must take."""


def read(given: str, setting: str) -> str:
    """The template: `given` itself if it has Jinja's marks or more than a line, else the file.

    Args:
        given: the text, or a path; a relative one begins where the program was started.
        setting: where it stands, for messages.

    Raises:
        ConfigError: the file cannot be read, or is too long for a template.
    """
    if any(mark in given for mark in ("{{", "{%", "\n")):
        return given
    path = Path(given).expanduser()
    try:
        if path.stat().st_size > 4 * MAX_TEMPLATE:  # a character has up to four bytes
            raise ConfigError(f"{setting}: `{path}` is too large for a chat template")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"{setting}: cannot read the chat template `{path}`: {why}",
            hint="give the path of a file with a Jinja template, or the template itself",
        ) from exc
    if not text.strip():
        raise ConfigError(f"{setting}: `{path}` is empty", hint="remove the setting, or fill it")
    return text


def check(config: Config) -> None:
    """See that every chat template of the configuration can be read and renders one question.

    Raises:
        ConfigError: the first one that does not; names the setting, and the line where it failed.
    """
    with Renderer() as renderer:  # starts nothing unless it is asked
        for setting, given in settings(config):
            try:
                renderer.render(read(given, setting), TRIED)
            except ConfigError:
                raise
            except BadRequest as exc:
                raise ConfigError(
                    f"{setting}: it refuses one plain question: {exc.message.rpartition(': ')[2]}",
                    hint="a template must take a conversation of one message",
                ) from exc
            except RunnerError as exc:
                why = exc.message.partition(": ")[2]
                raise ConfigError(f"{setting}: {why}", hint="mend the template") from exc


def settings(config: Config) -> Iterator[tuple[str, str]]:
    """Every chat template that is given, with the name of its setting."""
    for name, entry in config.models.items():
        yield from _below(entry, f"models.{name}")


def _below(entry: str | Node, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(entry, str):
        return
    if entry.chat_template is not None:
        yield f"{at}.chat_template", entry.chat_template
    for kind in ("fallback", "race"):
        for index, child in enumerate(getattr(entry, kind)):
            yield from _below(child, f"{at}.{kind}[{index}]")
