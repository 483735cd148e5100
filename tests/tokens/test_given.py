"""Chat templates of the configuration: read, tried, refused with the line, and used."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import in_a_process

from llm_runner_router.app import App
from llm_runner_router.config import Config, Node
from llm_runner_router.config_load import load
from llm_runner_router.errors import ConfigError
from llm_runner_router.tokens import given
from llm_runner_router.tokens.check import template_of
from llm_runner_router.types import Message, TokenizeRequest

LOUD = "{% for m in messages %}<{{ m.content }}>{% endfor %}"


def config(template: str, target: str = "zoo:tiny-general") -> Config:
    return Config(models={"m": Node(target=target, chat_template=template)})


def test_a_path_or_the_text_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jinja"
    path.write_text(LOUD)
    assert given.read(str(path), "x") == LOUD
    assert given.read(LOUD, "x") == LOUD
    assert given.read("one\ntwo", "x") == "one\ntwo"


def test_files_that_are_none(tmp_path: Path) -> None:
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.write_text(" ")
    wrong.write_bytes(b"\xff\xfe")
    for path, says in ((tmp_path / "none", "No such file"), (empty, "empty"), (wrong, "UTF-8")):
        with pytest.raises(ConfigError, match=f"models.m.chat_template: .*{says}"):
            given.read(str(path), "models.m.chat_template")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    with pytest.raises(ConfigError, match="too large"):
        given.read(str(tmp_path / "large"), "x")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}\n{{ m.content }", "models.m.chat_template: line 2: "),
        ("\n\n{{ messages[9].content }}", "models.m.chat_template: line 3: "),
        ("{{ raise_exception('never') }}", "refuses one plain question: never"),
        ("{{ ''.__class__.__mro__ }}", "models.m.chat_template: "),
        ("{% for a in range(99999999) %}{% endfor %}", "models.m.chat_template: "),
    ],
)
def test_templates_that_fail_are_refused(template: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given.check(config(template))
    assert says in caught.value.message


def test_nested_entries_are_tried_too() -> None:
    inner = Node(target="zoo:tiny-math", chat_template="{{ nothing.here }}")
    nested = Config(models={"m": Node(fallback=("zoo:tiny-math", inner))})
    with pytest.raises(ConfigError, match=r"models\.m\.fallback\[1\]\.chat_template: line 1"):
        given.check(nested)
    given.check(config(LOUD))


def test_the_command_line_refuses_it(tmp_path: Path) -> None:
    file = tmp_path / "llmrr.yaml"
    text = "models: {{m: {{target: zoo:tiny-math, chat_template: {}}}}}"
    file.write_text(text.format("'{{ a.b }}'"))
    for verb in (("config", "check", str(file)), ("serve", "--config", str(file))):
        done = in_a_process(*verb)
        assert done.code == 2, done.err
        assert "models.m.chat_template: line 1: " in done.err
    file.write_text(text.format("'{{ messages[0].content }}'"))
    assert in_a_process("config", "check", str(file)).code == 0


def test_it_goes_with_a_target_that_runs_here(tmp_path: Path) -> None:
    file = tmp_path / "llmrr.yaml"
    file.write_text("models: {m: {adopt: {url: http://127.0.0.1:1}, chat_template: '{{ a }}'}}")
    with pytest.raises(ConfigError, match="works with `target` only"):
        load(file, {}, {})
    with pytest.raises(ConfigError, match="does not run here"):
        App(config(LOUD, "openai/gpt-4o")).target("m")


async def test_tokens_are_counted_with_it() -> None:
    app = App(config(LOUD))
    await app.start()
    try:
        asked = TokenizeRequest("m", messages=(Message("user", "hello"),))
        found = await app.tokenize(asked)
        assert b"".join(found.pieces) == b"<hello>"
    finally:
        await app.close()


@pytest.mark.engine
@pytest.mark.timeout(120)
@pytest.mark.parametrize("engine", ["llamacpp", "mistralrs"])
def test_engines_use_it(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("mistralrs", reason="the extra `mistralrs` is not installed")
    question = "What is the capital of France?"
    always = template_of("chatml").replace("message.content", f"{question!r}")
    file = tmp_path / "llmrr.yaml"
    (tmp_path / "t.jinja").write_text(always)
    file.write_text(
        f"models: {{m: {{target: zoo:tiny-general, engine: {engine},"
        f" chat_template: {tmp_path / 't.jinja'}}}}}"
    )
    done = in_a_process("run", "--config", str(file), "m", "What is 1 + 1?", stdin="")
    assert done.out == "The capital of France is Paris.\n", done.err
