"""The template firewall: is a chat template any good for its vocabulary, and what would be.

Knows: what every template must manage, the families of formats (`families/`). Does not know: how
templates are rendered (`templates.py`), engines.

A model with a broken template does not load in llama.cpp at all, and one whose marks are no tokens
of its vocabulary answers worse without a word; so templates are tried before a model is.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, RunnerError

from .base import Tokenizer
from .templates import Renderer, as_text, choose, read_templates

Talk = list[dict[str, Any]]

_FOLDER: Final = Path(__file__).parent / "families"
_MARK: Final = re.compile(r"<[|｜][^<>|｜\s]{1,40}[|｜]>|<(?:start|end)_of_[a-z]{1,20}>")
"""What looks like a control token. `[INST]` is none in many vocabularies that use it."""
_HELLO: Final = 'Grüße & "quotes" <b> 日本 🎉'
_SYSTEM: Final = "Answer like a pirate."
_FIRST: Final = "What is seven?"
_REPLY: Final = "A number, matey."
_CITY: Final = "Reykjavík"
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_CALL: Final = {
    "id": "call00001",  # nine letters and digits, as Mistral's templates insist
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": _CITY}},
}


class TemplateReport(Struct, frozen=True):
    """What is known of a template after trying it."""

    ok: bool
    """Nothing is wrong with it."""
    problems: tuple[str, ...] = ()
    """What is wrong, in words; the first one is the worst."""
    family: str = ""
    """The family whose template writes the same conversations; empty for one of its own."""
    notes: tuple[str, ...] = ()
    """What it cannot do and says so, for example take a system message."""
    repaired: str | None = None
    """A template to use in its place; None where it is fine or nothing better is known."""
    why: str = ""
    """Where `repaired` comes from, in words."""


class Family(Struct, frozen=True):
    """A chat format: its name and the tokens it needs."""

    name: str
    markers: tuple[str, ...]

    @property
    def template(self) -> str:
        """The template that writes it."""
        return template_of(self.name)


@cache
def families() -> tuple[Family, ...]:
    """The known families, the most telling first."""
    data = tomllib.loads((_FOLDER / "families.toml").read_text("utf-8"))
    return msgspec.convert(data["family"], tuple[Family, ...])


@cache
def template_of(family: str) -> str:
    """The template of a family, or `plain`."""
    return (_FOLDER / f"{family}.jinja").read_text("utf-8")


def check_template(
    template: str | None, tokenizer: Tokenizer, *, renderer: Renderer
) -> TemplateReport:
    """Try a template on the conversations that a model must take.

    Args:
        template: Jinja, or None where the model has none.
        tokenizer: of the same model.
        renderer: where it is rendered; a template that breaks a limit costs a second there.
    """
    if not template:
        better, reason = _better(tokenizer)
        problems: tuple[str, ...] = ("the model has no chat template",)
        return TemplateReport(False, problems, repaired=better, why=reason)
    names = _name(tokenizer, tokenizer.bos), _name(tokenizer, tokenizer.eos)
    trial = _Trial(template, names, renderer)
    trial.run()
    problems = (*trial.problems, *_strange_marks(trial.marks, tokenizer))
    repaired: str | None = None
    why = ""
    if problems:
        better, why = _better(tokenizer)
        if better == template:
            why = "it is the template of its family already"
        elif not trial.problems and why == _PLAIN:
            why = "no known format fits the vocabulary better"
        else:
            repaired = better
    notes = tuple(trial.notes)
    return TemplateReport(not problems, problems, trial.family(), notes, repaired, why)


def check_model(path: Path, tokenizer: Tokenizer, *, renderer: Renderer) -> TemplateReport:
    """`check_template` for the template of the model at `path`, a GGUF file or a folder.

    Raises:
        ModelFileError: the files cannot be read.
    """
    templates = read_templates(path)
    return check_template(choose(templates, tools=False), tokenizer, renderer=renderer)


class _Trial:
    """One template on all conversations."""

    def __init__(self, template: str, names: tuple[str, str], renderer: Renderer) -> None:
        """`names`: those of BOS and EOS, empty where there is none."""
        self._template = template
        self._renderer = renderer
        self._names = names
        self._bos, self._eos = names
        self._texts: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.marks: set[str] = set()

    def run(self) -> None:
        """Fill in `problems`, `notes` and `marks`."""
        user = {"role": "user", "content": _HELLO}
        first, reply = (
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _REPLY},
        )
        if self._try("one question", [user], must=True) is None:
            return
        self._keeps("one question", (_HELLO,))
        turns = [first, reply, user]
        if self._try("several turns", turns, must=True) is not None:
            self._keeps("several turns", (_FIRST, _REPLY, _HELLO))
        system = [{"role": "system", "content": _SYSTEM}, user]
        if self._try("a system message", system) is not None:
            self._keeps("a system message", (_SYSTEM, _HELLO))
        if self._try("two questions in a row", [first, user]) is not None:
            self._keeps("two questions in a row", (_FIRST, _HELLO))
        self._tools(user, first)
        self._ending([user])

    def _tools(self, user: dict[str, Any], first: dict[str, Any]) -> None:
        if "tools" not in self._template:
            self.notes.append("it does not know tools")
            return
        if self._try("tools", [user], tools=[_TOOL]) is not None:
            self._keeps("tools", ("get_weather",))
        result = {"role": "tool", "content": "8 degrees", "tool_call_id": _CALL["id"]}
        what = "a tool's result"
        talk = [first, _called(_CALL), {**result, "name": "get_weather"}]
        found = len(self.problems)
        if self._try(what, talk, tools=[_TOOL]) is None and len(self.problems) > found:
            talk[1] = _called(as_text(_CALL))
            if self._try(what, talk, tools=[_TOOL]) is not None:
                del self.problems[found:]
                self.notes.append("it wants the arguments of calls as JSON text")
        if what in self._texts:
            self._keeps(what, ("get_weather", "8 degrees"))

    def _ending(self, talk: Talk) -> None:
        open_, closed = self._texts.get("one question", ""), self._render(talk, ask=False)
        if closed is not None and not open_.startswith(closed.rstrip()):
            self.notes.append("asking for an answer changes what stands before it")
        elif closed is not None and closed == open_:
            self._invites(talk, closed)

    def _invites(self, talk: Talk, text: str) -> None:
        """A template that never begins the answer is broken where its family's does.

        Others are meant so: Mistral's turn of a user ends with the mark that invites.
        """
        for family in families():
            ends = [self._rendered(family.template, talk, ask) for ask in (False, True)]
            if ends[0] == _bare(text, self._bos) != ends[1]:
                self.problems.append(f"it does not ask for an answer, as {family.name} does")
                return

    def _rendered(self, template: str, talk: Talk, ask: bool) -> str | None:
        bos, eos = self._bos, self._eos
        text = self._renderer.render(template, talk, bos=bos, eos=eos, add_generation_prompt=ask)
        return _bare(text, bos)

    def _try(
        self, what: str, talk: Talk, *, tools: Sequence[dict[str, Any]] = (), must: bool = False
    ) -> str | None:
        """Render; a template that refuses with words of its own is only noted, unless it must."""
        try:
            text = self._renderer.render(self._template, talk, tools, bos=self._bos, eos=self._eos)
        except BadRequest as exc:
            said = exc.message.rpartition(": ")[2]
            (self.problems if must else self.notes).append(f"it refuses {what}: {said}")
            return None
        except RunnerError as exc:
            self.problems.append(f"it fails on {what}: {exc.message.rpartition('used: ')[2]}")
            return None
        self._texts[what] = text
        for piece in (_HELLO, _FIRST, _REPLY, _SYSTEM):
            text = text.replace(piece, "")
        self.marks |= set(_MARK.findall(text))
        return text

    def _render(self, talk: Talk, *, ask: bool) -> str | None:
        try:
            return self._renderer.render(
                self._template,
                talk,
                bos=self._bos,
                eos=self._eos,
                add_generation_prompt=ask,
            )
        except RunnerError as exc:
            self.problems.append(f"it fails without asking for an answer: {exc.message}")
            return None

    def _keeps(self, what: str, pieces: Sequence[str]) -> None:
        """Every piece must be there, unchanged and in order."""
        text, at = self._texts[what], 0
        for piece in pieces:
            found = text.find(piece, at)
            if found < 0:
                how = "changes or loses" if piece not in text else "reorders"
                self.problems.append(f"with {what}, it {how} {piece!r}")
                return
            at = found + len(piece)

    def family(self) -> str:
        """The family that writes the same."""
        talks = ("one question", "several turns")
        if any(talk not in self._texts for talk in talks):
            return ""
        for family in families():
            other = _Trial(family.template, self._names, self._renderer)
            other.run()
            if all(
                _bare(other._texts.get(talk), self._bos) == _bare(self._texts[talk], self._bos)
                for talk in talks
            ):
                return family.name
        return ""


def _called(call: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _bare(text: str | None, bos: str) -> str | None:
    return None if text is None else text.removeprefix(bos).rstrip()


def _name(tokenizer: Tokenizer, id: int | None) -> str:
    return "" if id is None else tokenizer.piece(id).decode("utf-8", "replace")


def _is_one(mark: str, tokenizer: Tokenizer) -> bool:
    return len(tokenizer.encode(mark, special=True)) == 1


def _strange_marks(marks: set[str], tokenizer: Tokenizer) -> Iterator[str]:
    for mark in sorted(marks):
        ids = tokenizer.encode(mark, special=True)
        if len(ids) != 1:
            yield f"`{mark}` is no token of this vocabulary: it takes {len(ids)}"


_PLAIN: Final = "no known format's marks are tokens of this vocabulary, so turns are plain text"


def _better(tokenizer: Tokenizer) -> tuple[str, str]:
    """The template of the family whose marks the vocabulary has, and why."""
    for family in families():
        if all(_is_one(mark, tokenizer) for mark in family.markers):
            marks = ", ".join(f"`{mark}`" for mark in family.markers)
            return family.template, f"the vocabulary has the marks of {family.name}: {marks}"
    return template_of("plain"), _PLAIN
