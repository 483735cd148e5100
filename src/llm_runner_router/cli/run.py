"""`llmrr run`: chat with a model in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from llm_runner_router import refs
from llm_runner_router.errors import RunnerError
from llm_runner_router.home import find
from llm_runner_router.units import format_duration

from . import asking, output, pulling
from .group import Verb, place
from .repl import Chat, Lines, act, is_command

PROMPT, MORE = ">>> ", "... "


@click.command("run", cls=Verb)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", help="Instructions for the model.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always says the likeliest.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--engine", metavar="NAME", help="Run it on this engine, in this process.")
@click.option(
    "--lora",
    metavar="NAME[=SCALE]",
    multiple=True,
    help="Apply this LoRA adapter of the model; or a path or reference, which is loaded with it, in"
    " this process. May be given several times.",
)
@click.option("--verbose", is_flag=True, help="Tell figures after every answer.")
def command(
    model: str,
    prompt: tuple[str, ...],
    system: str,
    temperature: float | None,
    max_tokens: int | None,
    engine: str | None,
    lora: tuple[str, ...],
    verbose: bool,
) -> int:
    """Chat with MODEL: a name that is served, `zoo:tiny-chat`, a file, or `hf:…`, which is pulled.

    With a PROMPT, or with text piped in, gives one answer and ends. Uses the running server;
    without one, the model runs in this process.
    """
    given = {"temperature": temperature, "max_tokens": max_tokens}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    wanted = [_adapter(one) for one in lora]
    if wanted:
        options["lora"] = wanted
    files = {one["name"]: one["name"] for one in wanted if _is_reference(one["name"])}
    chat = Chat(model=model, system=system, options=options, verbose=verbose)
    once = _once(prompt)
    for reference in (model, *files):
        pulling.ensure(reference)
    with asking.voice(place(), model, engine, files) as voice:
        if once is not None:
            _answer(voice, chat.asked(once))
            return 0
        _talk(voice, chat)
    return 0


def _adapter(text: str) -> dict[str, Any]:
    """`sea=0.5` as a request says it.

    Raises:
        click.BadParameter: the scale is no number.
    """
    name, equals, scale = text.rpartition("=")
    if not equals:
        return {"name": text}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        raise click.BadParameter(f"{scale!r} is no number", param_hint="--lora") from None


def _is_reference(name: str) -> bool:
    """Whether it is a path or something on a hub, not the name of an adapter."""
    return refs.parse(name).kind not in ("name", "provider")


def _once(words: tuple[str, ...]) -> str | None:
    """The one prompt, from the arguments and from what is piped in; None: talk."""
    parts = [" ".join(words)] if words else []
    if not sys.stdin.isatty():
        parts.append(sys.stdin.read())
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    if not text and not sys.stdin.isatty():
        raise click.UsageError("there is no prompt", click.get_current_context())
    return text or None


def _talk(voice: asking.Voice, chat: Chat) -> None:
    print(f"{chat.model} ({voice.where}). /help tells the commands, Ctrl-D leaves.")
    ask = _reader()
    lines = Lines()
    while True:
        try:
            text = lines.feed(ask(MORE if lines.more else PROMPT))
        except KeyboardInterrupt:
            lines.drop()
            print("Ctrl-D or /bye leaves.")
            continue
        except EOFError:
            return
        if text is None or not text.strip():
            continue
        try:
            if is_command(text):
                done = act(chat, text)
                chat = done.chat
                if done.says:
                    print(done.says)
                if done.leave:
                    return
                continue
            chat = _turn(voice, chat, text)
        except RunnerError as exc:
            output.note("error", exc.message)
            if exc.hint:
                output.note("hint", exc.hint)


def _turn(voice: asking.Voice, chat: Chat, text: str) -> Chat:
    """One question and its answer; what was said before Ctrl-C stays in the conversation."""
    pieces: list[str] = []
    asked = chat.asked(text)
    try:
        _answer(voice, asked, pieces.append)
    except KeyboardInterrupt:
        print()
        output.dim("stopped")
    except RunnerError:
        if pieces:
            print()  # the message stands on its own line
        raise
    return asked.answered("".join(pieces))


def _answer(
    voice: asking.Voice, chat: Chat, keep: Callable[[str], object] = lambda _: None
) -> None:
    with voice.ask(chat.model, chat.messages, chat.options) as speech:
        for piece in speech:
            keep(piece)
            print(output.safe(piece), end="", flush=True)
    print()
    if chat.verbose:
        output.dim(figures(speech.facts))


def figures(facts: asking.Facts) -> str:
    """The timings of one answer, one line each."""
    timings = facts.timings
    rows = [("total", format_duration(facts.seconds))]
    if facts.first_token is not None:
        rows.append(("first token", format_duration(facts.first_token)))
    prefill = timings.get("prompt_per_second")
    speed = facts.tokens_per_second
    rate = f", {prefill:.0f} tok/s" if prefill else ""
    rows.append(("prompt", f"{facts.prompt_tokens} tokens{rate}"))
    rate = f", {speed:.0f} tok/s" if speed else ""
    rows.append(("answer", f"{facts.completion_tokens} tokens{rate}"))
    if timings.get("cache_n"):
        rows.append(("from cache", f"{timings['cache_n']} tokens"))
    rows.append(("answered by", facts.target))
    rows.append(("because", facts.reason))
    rows.append(("cost", output.money(facts.cost)))
    return "\n".join(f"{name.ljust(12)} {output.safe(value)}" for name, value in rows if value)


def _reader() -> Callable[[str], str]:
    """Reads lines with history and editing; Alt-Enter puts a new line into the text."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    home = find(os.environ)
    history: History = InMemoryHistory()
    try:
        home.create().history.touch(mode=0o600)
        history = FileHistory(str(home.history))
    except (OSError, RunnerError):
        output.note("warning", f"what you type is not kept: cannot write `{home.history}`")
    session: PromptSession[str] = PromptSession(history=history, key_bindings=keys)
    return session.prompt
