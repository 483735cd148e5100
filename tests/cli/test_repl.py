"""The chat without a terminal: lines, commands, settings, saved conversations."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.cli.output import safe
from llm_runner_router.cli.repl import Chat, Lines, Turn, act, is_command
from llm_runner_router.errors import BadRequest

CHAT = Chat(model="m")


def test_a_line_is_a_text() -> None:
    lines = Lines()
    assert lines.feed("hello") == "hello"
    assert not lines.more


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (['"""one', "two", 'three"""'], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one line"""'], "one line"),
        (['"""', "/bye", '"""'], "/bye"),
    ],
)
def test_a_fence_makes_one_text_of_many_lines(typed: list[str], text: str) -> None:
    lines = Lines()
    for line in typed[:-1]:
        assert lines.feed(line) is None
        assert lines.more
    assert lines.feed(typed[-1]) == text
    assert not lines.more


def test_an_open_fence_can_be_dropped() -> None:
    lines = Lines()
    lines.feed('"""begun')
    lines.drop()
    assert lines.feed("next") == "next"


@given(st.lists(st.text(st.characters(exclude_characters='"\n\r')), min_size=1))
def test_whatever_stands_in_a_fence_comes_out(rows: list[str]) -> None:
    lines = Lines()
    assert lines.feed('"""') is None
    for row in rows:
        assert lines.feed(row) is None
    assert lines.feed('"""') == "\n".join(rows).strip("\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/help", True),
        ("/set temperature 0.5", True),
        ("/", True),
        ("hello /help", False),
        ("/etc/hosts is a file", False),
        ("/help\nme", False),
        ("", False),
    ],
)
def test_what_is_a_command(text: str, expected: bool) -> None:
    assert is_command(text) is expected


def test_help_names_every_command() -> None:
    from llm_runner_router.cli.repl import _COMMANDS

    says = act(CHAT, "/help").says
    assert [name for name in _COMMANDS if name not in says] == []
    assert act(CHAT, "/?").says == says


@pytest.mark.parametrize("word", ["/bye", "/exit", "/BYE"])
def test_leaving(word: str) -> None:
    assert act(CHAT, word).leave


def test_settings() -> None:
    chat = CHAT
    for text in ("temperature 0.5", "max_tokens 7", "system Be brief.", "verbose", "stop END"):
        chat = act(chat, f"/set {text}").chat
    assert chat.options == {"temperature": 0.5, "max_tokens": 7, "stop": "END"}
    assert (chat.system, chat.verbose) == ("Be brief.", True)
    assert "temperature  0.5" in act(chat, "/show").says
    chat = act(chat, "/set temperature").chat
    assert "temperature" not in chat.options
    assert not act(chat, "/set quiet").chat.verbose


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/hepl", "no command is called `/hepl`; did you mean `/help`?"),
        ("/set temprature 1", "nothing is called `temprature`; did you mean `temperature`?"),
        ("/set max_tokens many", "`max_tokens` needs a number, got 'many'"),
        ("/save", "where to?"),
        ("/load /nowhere/at/all", "cannot read `/nowhere/at/all`: No such file or directory"),
        ("/save /nowhere/at/all", "cannot write `/nowhere/at/all`: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_said(text: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        act(CHAT, text)
    assert caught.value.message == message


def test_a_conversation_grows_and_is_forgotten() -> None:
    chat = act(CHAT.asked("hi").answered("hello"), "/set system Be kind.").chat
    assert chat.messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    assert act(chat, "/clear").chat.messages == [{"role": "system", "content": "Be kind."}]
    assert act(chat, "/model other").chat.model == "other"


def test_a_question_without_an_answer_does_not_stay() -> None:
    assert CHAT.asked("hi").answered("").turns == ()


def test_saving_and_loading(tmp_path: Path) -> None:
    chat = act(CHAT.asked("hi").answered("hello"), "/set temperature 0.1").chat
    path = tmp_path / "chat.json"
    assert act(chat, f"/save {path}").says == f"2 turns written to {path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert act(Chat(model="other"), f"/load {path}").chat == chat
    path.write_text('{"model": 3}')
    with pytest.raises(BadRequest, match="is not a saved conversation"):
        act(CHAT, f"/load {path}")


def test_a_model_cannot_steer_the_terminal() -> None:
    assert safe("a\x1b[2Jb\r\x07\x9bc\n\td é 👩‍🚀") == "a[2Jbc\n\td é 👩‍🚀"


def test_turns_have_roles() -> None:
    assert Turn("user", "x").role == "user"
