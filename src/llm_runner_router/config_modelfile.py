"""An Ollama Modelfile in our terms: one model.

Knows: the instructions and their multi-line values. Pure, but for asking whether a path exists.
Does not know: Go templates, or how a model of Ollama's registry gets here.
Instructions are those of Ollama's documentation, `docs/modelfile.mdx`, read in November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from .config_foreign import Foreign, Notes
from .config_yaml import MAX_BYTES
from .config_yaml import Path as Where
from .errors import ConfigError

_WORD = re.compile(r"\s*([A-Za-z]+)(?:\s+|$)")
_ASKED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Parameters that are a matter of each request, with what OpenAI's API calls them."""


class Instruction(Struct, frozen=True):
    """One instruction of a Modelfile."""

    line: int
    word: str
    """In capitals."""
    value: str


def instructions(text: str, label: str) -> Iterator[Instruction]:
    """The instructions of a Modelfile in order.

    Raises:
        ConfigError: a line is no instruction, or a quotation has no end.
    """
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        start, line = index, lines[index]
        index += 1
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _WORD.match(line)
        if found is None:
            raise ConfigError(f"{label}:{start + 1}: not an instruction of a Modelfile")
        value = line[found.end() :]
        head, quote = _quoted(value)
        if quote:
            value = value[len(head) + len(quote) :]
            while quote not in value:
                if index == len(lines):
                    raise ConfigError(
                        f"{label}:{start + 1}: the {quote} that opens here has no end"
                    )
                value += "\n" + lines[index]
                index += 1
            value = head + value.partition(quote)[0]
        yield Instruction(start + 1, found[1].upper(), value.strip())


def _quoted(value: str) -> tuple[str, str]:
    """What stands before the quotation (a parameter's name, a role), and the quotation mark."""
    found = re.match(r'((?:[A-Za-z_]+\s+)?)("""|")', value)
    return (found[1], found[2]) if found else ("", "")


def convert(
    data: bytes, label: str, name: str, folder: Path, exists: Callable[[Path], bool]
) -> Foreign:
    """The model of a Modelfile in our terms.

    Args:
        data: the file.
        label: what to call the file in messages.
        name: what the model is to be called.
        folder: where the file lies; its paths start there.
        exists: whether there is something at a path.

    Raises:
        ConfigError: it is no Modelfile.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{label}: more than {MAX_BYTES:,} bytes")
    try:
        found = list(instructions(data.decode("utf-8-sig"), label))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{label}: not UTF-8 text (byte {exc.start})") from exc
    return _Reading(found, label, name, folder, exists).run()


class _Reading:
    """One pass over a Modelfile."""

    def __init__(
        self,
        found: list[Instruction],
        label: str,
        name: str,
        folder: Path,
        exists: Callable[[Path], bool],
    ) -> None:
        self.found = found
        self.label = label
        self.name = name
        self.folder = folder
        self.exists = exists
        self.lines: dict[Where, int] = {}
        places: dict[Where, int] = {(one.word, n): one.line for n, one in enumerate(found)}
        self.notes = Notes(places)
        self.node: dict[str, Any] = {}
        self.engine: dict[str, Any] = {}

    def run(self) -> Foreign:
        by_word: dict[str, Callable[[Where, Instruction], None]] = {
            "FROM": self._from,
            "PARAMETER": self._parameter,
            "ADAPTER": self._adapter,
            "TEMPLATE": self._template,
        }
        for index, one in enumerate(self.found):
            at: Where = (one.word, index)
            if one.word in by_word:
                by_word[one.word](at, one)
            elif one.word in ("SYSTEM", "MESSAGE"):
                self.notes.lost(at, "a model has no messages of its own: clients send them")
            elif one.word in ("LICENSE", "REQUIRES", "CAPABILITY"):
                self.notes.moot(at, "is read from the model itself, or concerns Ollama only")
            else:
                self.notes.lost(at, "is no instruction that is known here")
        if "target" not in self.node:
            raise ConfigError(f"{self.label}: there is no `FROM`")
        node = self.node["target"] if len(self.node) == 1 else self.node
        settings: dict[str, Any] = {"models": {self.name: node}}
        if self.engine:
            settings["engine"] = self.engine
        return Foreign(settings, {}, self.notes.done(), self.lines)

    def _from(self, at: Where, one: Instruction) -> None:
        if "target" in self.node:
            self.notes.lost(at, "a second file: parts of one model are found by the first's name")
            return
        if not one.value:
            raise ConfigError(f"{self.label}:{one.line}: `FROM` names nothing")
        self.node["target"] = target = self._reference(one.value)
        self.lines["models", self.name] = self.lines["models", self.name, "target"] = one.line
        self.notes.became(at, f"the target `{target}`")

    def _reference(self, value: str) -> str:
        path = self._path(value)
        if path is not None:
            return str(path)
        known = re.match(r"hf\.co/|huggingface\.co/|https?://|s3://|ollama:|hf:", value)
        return value if known else f"ollama:{value}"

    def _path(self, value: str) -> Path | None:
        """`value` as a path, if it is one or names something beside the file."""
        path = Path(value).expanduser()
        looks = value.startswith(("/", "./", "../", "~", ".")) or value.endswith(".gguf")
        whole = path if path.is_absolute() else self.folder / path
        return whole if looks or self.exists(whole) else None

    def _adapter(self, at: Where, one: Instruction) -> None:
        path = self._path(one.value) or self.folder / one.value
        name = re.sub(r"[^\w.-]+", "-", path.stem) or "adapter"
        adapters = self.node.setdefault("adapters", {})
        while name in adapters:
            name += "-2"
        adapters[name] = str(path)
        self.lines["models", self.name, "adapters", name] = one.line
        self.notes.became(at, f"an adapter: `{self.name}+{name}` asks for the model with it")

    def _template(self, at: Where, one: Instruction) -> None:
        if "{{ ." in one.value or "{{." in one.value or "{{-" in one.value or "{{ if" in one.value:
            text = "a template in Go's language: the model's own is used, or a Jinja one that you"
            self.notes.lost(at, f"{text} give as `chat_template`")
            return
        self.node["chat_template"] = one.value
        self.lines["models", self.name, "chat_template"] = one.line
        self.notes.became(at, "`chat_template`")

    def _parameter(self, at: Where, one: Instruction) -> None:
        name, _, value = one.value.partition(" ")
        name, value = name.lower(), value.strip()
        ours = {"num_ctx": "context", "num_thread": "threads"}.get(name)
        if ours is not None:
            if not value.isdecimal() or not int(value[:9]):
                raise ConfigError(f"{self.label}:{one.line}: `{name}` wants a number above 0")
            self.engine[ours] = int(value[:9])
            self.lines["engine", ours] = one.line
            self.notes.became(at, f"`engine.{ours}`, which holds for every local model")
        elif name in _ASKED:
            self.notes.lost(
                at, f"`{name}`: a model has no default parameters; clients send `{_ASKED[name]}`"
            )
        else:
            self.notes.lost(at, f"`{name[:60]}` is chosen by the engine, or is not known here")
