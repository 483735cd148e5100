"""`llmrr quick`: one prompt, one answer, and who gave it."""

from __future__ import annotations

import sys

import click

from . import asking, output
from .group import Verb, place


@click.command("quick", cls=Verb)
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", default="auto", help="Whom to ask; `auto` chooses.")
@click.option("--max-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always says the likeliest.")
@click.option("--json", "as_json", is_flag=True, help="Answer and facts as JSON.")
def command(
    prompt: tuple[str, ...],
    model: str,
    max_tokens: int | None,
    temperature: float | None,
    as_json: bool,
) -> int:
    """Answer one prompt, with whatever fits it best.

    Uses the running server; without one, the models run in this process and are gone afterwards.
    The prompt may also come from standard input.
    """
    text = read_prompt(prompt)
    given = {"max_tokens": max_tokens, "temperature": temperature}
    options = {name: value for name, value in given.items() if value is not None}
    with (
        asking.voice(place()) as voice,
        voice.ask(model, [{"role": "user", "content": text}], options) as speech,
    ):
        pieces = []
        for piece in speech:
            pieces.append(piece)
            if not as_json:
                print(output.safe(piece), end="", flush=True)
    if as_json:
        output.json({"answer": "".join(pieces), **facts_json(speech.facts)})
        return 0
    print()
    output.dim(line(speech.facts))
    return 0


def read_prompt(words: tuple[str, ...]) -> str:
    """The prompt from the arguments and, if it is piped, standard input.

    Raises:
        UsageError: there is none.
    """
    parts = [" ".join(words)]
    if not sys.stdin.isatty() and (not words or words == ("-",)):
        parts = [sys.stdin.read()]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    if not text:
        raise click.UsageError("there is no prompt", click.get_current_context())
    return text


def line(facts: asking.Facts) -> str:
    """`zoo:tiny-math · best at arithmetic · 812 tok/s · $0`."""
    speed = facts.tokens_per_second
    parts = [
        facts.target,
        facts.reason,
        f"{speed:.0f} tok/s" if speed else "",
        output.money(facts.cost),
    ]
    return " · ".join(output.safe(part) for part in parts if part)


def facts_json(facts: asking.Facts) -> dict[str, object]:
    """The facts for scripts."""
    return {
        "model": facts.target,
        "reason": facts.reason,
        "task": facts.task,
        "finish": facts.finish,
        "cost": facts.cost,
        "prompt_tokens": facts.prompt_tokens,
        "completion_tokens": facts.completion_tokens,
        "seconds": round(facts.seconds, 4),
        "tokens_per_second": facts.tokens_per_second,
    }
