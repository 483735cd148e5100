"""The chat templates of a Hugging Face folder.

Knows: the places where they are kept. Does not know: what they say; they are never run here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from llm_runner_router.errors import ModelFileError

from .vocabulary import read_json

MAX_TEMPLATE: Final = 4 * 1024 * 1024
DEFAULT: Final = "default"


def read(folder: Path) -> dict[str, str]:
    """Templates by name; the usual one is `default`.

    A file beside the weights counts more than a string in `tokenizer_config.json`, as in
    transformers: `chat_template.jinja`, `additional_chat_templates/NAME.jinja`, and
    `chat_template.json` of older processors.

    Raises:
        ModelFileError: a file is too large or unreadable.
    """
    found = _named(read_json(folder / "tokenizer_config.json").get("chat_template"))
    found |= _named(read_json(folder / "chat_template.json").get("chat_template"))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _text(path)
    if (folder / "chat_template.jinja").is_file():
        found[DEFAULT] = _text(folder / "chat_template.jinja")
    return found


def fields(templates: dict[str, str]) -> list[tuple[str, Any, str | None]]:
    """`(key, value, kind)` of the GGUF fields for `templates`."""
    rows: list[tuple[str, Any, str | None]] = []
    if DEFAULT in templates:
        rows.append(("tokenizer.chat_template", templates[DEFAULT], None))
    named = {name: text for name, text in sorted(templates.items()) if name != DEFAULT}
    if named:
        rows.append(("tokenizer.chat_templates", list(named), "STRING"))
    rows += [(f"tokenizer.chat_template.{name}", text, None) for name, text in named.items()]
    return rows


def _named(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    return {
        str(entry["name"]): str(entry["template"])
        for entry in (value if isinstance(value, list) else ())
        if isinstance(entry, dict) and "name" in entry and "template" in entry
    }


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE:
            raise ModelFileError(f"the template `{path}` has more than {MAX_TEMPLATE} bytes")
        return path.read_text("utf-8")
    except UnicodeDecodeError as exc:
        raise ModelFileError(f"the template `{path}` is not UTF-8: {exc.reason}") from exc
    except OSError as exc:
        raise ModelFileError(f"cannot read the template `{path}`: {exc.strerror}") from exc
