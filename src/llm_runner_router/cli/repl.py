"""The chat of `llmrr run` without a terminal: what a line means and what it changes.

Knows: `/commands`, settings, multi-line text in `\"\"\"`, saved chats. Does not know: terminals,
key presses (`run.py`), servers or models (`asking.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from llm_runner_router.config_check import meant
from llm_runner_router.errors import BadRequest
from llm_runner_router.home import write_atomic

FENCE = '"""'
HELP = """\
/help, /?              this list
/bye, /exit            leave (Ctrl-D too)
/clear                 forget the conversation
/model NAME            ask another model from now on
/set system TEXT       instructions for the model (empty: none)
/set temperature 0.7   also top_p, max_tokens, seed, stop; `/set temperature` alone unsets it
/set verbose           tell figures after every answer; /set quiet stops that
/show                  the settings
/save FILE             write the conversation; /load FILE goes on with one
\"\"\"                    begins and ends a text of several lines; Alt-Enter starts a new line
Ctrl-C                 stops the answer, not the program"""


class Turn(Struct, frozen=True):
    """One message."""

    role: Literal["user", "assistant"]
    content: str


class Chat(Struct, frozen=True, kw_only=True):
    """A conversation and how it is held; commands give a new one."""

    model: str
    system: str = ""
    options: dict[str, Any] = {}
    turns: tuple[Turn, ...] = ()
    verbose: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """In OpenAI's shape."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return head + [{"role": turn.role, "content": turn.content} for turn in self.turns]

    def asked(self, text: str) -> Chat:
        """With a question of the user's."""
        return msgspec.structs.replace(self, turns=(*self.turns, Turn("user", text)))

    def answered(self, text: str) -> Chat:
        """With the answer; the question goes too if there is none, so that roles alternate."""
        if not text:
            return msgspec.structs.replace(self, turns=self.turns[:-1])
        return msgspec.structs.replace(self, turns=(*self.turns, Turn("assistant", text)))


class Done(Struct, frozen=True):
    """What a command did: the chat from now on, what to tell, whether to leave."""

    chat: Chat
    says: str = ""
    leave: bool = False


class Lines:
    """Puts lines together to one text: a line, or everything between two `\"\"\"`."""

    def __init__(self) -> None:
        self._open: list[str] | None = None

    @property
    def more(self) -> bool:
        """Whether a text has begun and not ended."""
        return self._open is not None

    def feed(self, line: str) -> str | None:
        """The whole text once it is complete, else None."""
        if self._open is None:
            if not line.lstrip().startswith(FENCE):
                return line
            line = line.lstrip()[len(FENCE) :]
            self._open = []
        if line.rstrip().endswith(FENCE):
            self._open.append(line.rstrip()[: -len(FENCE)])
            text = "\n".join(self._open)
            self._open = None
            return text.strip("\n")
        self._open.append(line)
        return None

    def drop(self) -> None:
        """Forget what has begun."""
        self._open = None


def is_command(text: str) -> bool:
    """Whether a text is for us and not for the model; a path such as `/etc/hosts` is not."""
    word = text.split(maxsplit=1)[0] if text.strip() else ""
    return word.startswith("/") and "/" not in word[1:] and "\n" not in text.strip()


def act(chat: Chat, text: str) -> Done:
    """Carry out a command.

    Raises:
        BadRequest: there is no such command, or it cannot be done; nothing has changed then.
    """
    word, _, rest = text.strip().partition(" ")
    command = _COMMANDS.get(word.lower())
    if command is None:
        raise BadRequest(f"no command is called `{word}`{meant(word, _COMMANDS)}", hint="/help")
    return command(chat, rest.strip())


def _help(chat: Chat, rest: str) -> Done:
    return Done(chat, HELP)


def _leave(chat: Chat, rest: str) -> Done:
    return Done(chat, leave=True)


def _clear(chat: Chat, rest: str) -> Done:
    return Done(msgspec.structs.replace(chat, turns=()), "the conversation is forgotten")


def _model(chat: Chat, rest: str) -> Done:
    if not rest:
        return Done(chat, f"model: {chat.model}")
    return Done(msgspec.structs.replace(chat, model=rest), f"asking {rest} from now on")


def _show(chat: Chat, rest: str) -> Done:
    rows = [
        ("model", chat.model),
        ("system", chat.system or "none"),
        *((name, str(value)) for name, value in sorted(chat.options.items())),
        ("turns", str(len(chat.turns))),
        ("verbose", "yes" if chat.verbose else "no"),
    ]
    return Done(chat, "\n".join(f"{name.ljust(12)} {value}" for name, value in rows))


_OPTIONS: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "seed": int,
    "stop": str,
}


def _set(chat: Chat, rest: str) -> Done:
    name, _, value = rest.partition(" ")
    value = value.strip().strip('"')
    if name in ("verbose", "quiet"):
        return Done(msgspec.structs.replace(chat, verbose=name == "verbose"), f"{name} now")
    if name == "system":
        return Done(msgspec.structs.replace(chat, system=value), f"system: {value or 'none'}")
    if name not in _OPTIONS:
        known = ["system", "verbose", "quiet", *_OPTIONS]
        hint = f"/set {' | '.join(known)}"
        raise BadRequest(f"nothing is called `{name}`{meant(name, known)}", hint=hint)
    options = {key: old for key, old in chat.options.items() if key != name}
    if not value:
        return Done(msgspec.structs.replace(chat, options=options), f"{name}: the model's own")
    try:
        options[name] = _OPTIONS[name](value)
    except ValueError as exc:
        raise BadRequest(f"`{name}` needs a number, got {value!r}") from exc
    return Done(msgspec.structs.replace(chat, options=options), f"{name}: {options[name]}")


def _save(chat: Chat, rest: str) -> Done:
    if not rest:
        raise BadRequest("where to?", hint="/save FILE")
    path = Path(rest).expanduser()
    try:
        write_atomic(path, msgspec.json.format(msgspec.json.encode(chat), indent=1) + b"\n")
    except OSError as exc:
        raise BadRequest(f"cannot write `{path}`: {exc.strerror}") from exc
    return Done(chat, f"{len(chat.turns)} turns written to {path}")


def _load(chat: Chat, rest: str) -> Done:
    if not rest:
        raise BadRequest("which one?", hint="/load FILE")
    path = Path(rest).expanduser()
    try:
        loaded = msgspec.json.decode(path.read_bytes(), type=Chat)
    except OSError as exc:
        raise BadRequest(f"cannot read `{path}`: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise BadRequest(f"`{path}` is not a saved conversation: {exc}") from exc
    return Done(loaded, f"{len(loaded.turns)} turns with {loaded.model}")


_COMMANDS: dict[str, Callable[[Chat, str], Done]] = {
    "/help": _help,
    "/?": _help,
    "/bye": _leave,
    "/exit": _leave,
    "/clear": _clear,
    "/model": _model,
    "/set": _set,
    "/show": _show,
    "/save": _save,
    "/load": _load,
}
