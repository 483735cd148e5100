"""`llmrr migrate`: what the configuration of another program becomes, line by line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from llm_runner_router.errors import ConfigError

from . import output
from .group import Verb

if TYPE_CHECKING:
    from llm_runner_router.config_foreign import Foreign

KINDS = ("litellm", "ollama", "llama-swap")


@click.command("migrate", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "kind", type=click.Choice(KINDS), help="Whose it is; told by its content.")
@click.option("--to", type=click.Path(path_type=Path), help="Write the configuration there.")
@click.option("--name", help="With a Modelfile: what the model is to be called.")
@click.option("--force", is_flag=True, help="Write over a file that exists.")
def command(file: Path, kind: str | None, to: Path | None, name: str | None, force: bool) -> int:
    """Print what the configuration FILE of LiteLLM, Ollama (a Modelfile) or llama-swap becomes.

    The configuration goes to the standard output (or `--to`), with the line that each setting came
    from. What became of every line, and what cannot be carried, is told beside it. Secrets are in
    neither: they are named as variables.
    """
    from llm_runner_router import config_load
    from llm_runner_router.config_written import written
    from llm_runner_router.home import write_atomic

    if to is not None and to.exists() and not force:
        raise ConfigError(f"`{to}` exists already", hint="`--force` writes over it")
    found = converted(file, kind, name)
    text = written(found, file.name)
    # What is printed must load; a setting that does not fit is told by its line there.
    config_load.check_text(text.encode(), f"what `{file}` becomes", os.environ)
    if to is None:
        print(text, end="")
        told(found, sys.stderr)
        return 0
    try:
        write_atomic(to, text.encode(), 0o644)
    except OSError as exc:
        raise ConfigError(f"cannot write `{to}`: {exc.strerror}") from exc
    told(found, sys.stdout)
    print(f"wrote {to}; `llmrr --config {to} serve` serves it")
    return 0


def converted(file: Path, kind: str | None, name: str | None) -> Foreign:
    """The configuration in our terms.

    Raises:
        ConfigError: it cannot be read, or it is not told whose it is.
    """
    from llm_runner_router import config_litellm, config_llama_swap, config_load, config_yaml
    from llm_runner_router.config_modelfile import convert

    data, label = config_load.text_of(file), str(file)
    if kind is None and "modelfile" in file.name.lower():
        kind = "ollama"
    if kind == "ollama":
        called = name or called_by(file)
        return convert(data, label, called, file.parent.resolve(), Path.exists)
    raw, lines = config_yaml.parse(data, label)
    if kind is None:
        kind = "litellm" if config_litellm.MARK in raw else None
        kind = "llama-swap" if config_llama_swap.is_one(raw) else kind
    if kind is None:
        raise ConfigError(
            f"`{file}` is told to be no configuration of {', '.join(KINDS)}",
            hint="`--from` says whose it is",
        )
    if kind == "litellm":
        return config_litellm.convert(raw, lines, label, os.environ)
    return config_llama_swap.convert(raw, lines, label, os.environ)


def called_by(file: Path) -> str:
    """A name for its model: of `mario.Modelfile`, `Modelfile.mario`, `mario/Modelfile`."""
    parts = [part for part in file.name.split(".") if part.lower() != "modelfile"]
    return ".".join(parts) or file.resolve().parent.name or "model"


def told(found: Foreign, stream: TextIO) -> None:
    """Say what became of every line, and what cannot be carried last."""
    titles = (
        ("became", "carried"),
        ("moot", "not needed"),
        ("lost", "cannot be carried"),
    )
    for outcome, title in titles:
        notes = [note for note in found.notes if note.outcome == outcome]
        if not notes:
            continue
        print(f"\n{title}:", file=stream)
        for note in notes:
            where = f"line {note.line}" if note.line else "-"
            print(output.line(f"  {where:<9} {note.key or 'the file'}: {note.text}"), file=stream)
