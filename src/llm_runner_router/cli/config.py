"""`llmrr config`: check a file, print its schema, write a first one."""

from __future__ import annotations

import os
from pathlib import Path

import click

from llm_runner_router.config import Config, Node
from llm_runner_router.errors import ConfigError

from . import output
from .group import Verbs, place


@click.group("config", cls=Verbs)
def command() -> None:
    """Check, describe or start a configuration."""


@command.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="What would be served, as JSON.")
def check(file: Path | None, as_json: bool) -> int:
    """Validate FILE (else the one that would be read) and tell what it would serve.

    Nothing is connected or loaded; chat templates are rendered once, with limits. Exit code 2 if
    it cannot be used.
    """
    from llm_runner_router import config_load
    from llm_runner_router.tokens import given

    where = place()
    path = config_load.find_file(file or where.config, os.environ)
    config = config_load.load(path, os.environ, where.flags)
    given.check(config)
    names = served(config)
    missing = missing_variables(config)
    if as_json:
        found = {"file": str(path) if path else None, "serves": names, "missing": missing}
        output.json(found)
        return 0
    print(f"{path or 'no file; the defaults'}: ok")
    print(f"listens on {config.server.host}:{config.server.port} and serves:")
    output.pairs(list(names.items()), "  ")
    for variable, setting in missing.items():
        output.note("warning", f"{setting} wants the variable `{variable}`, which is not set here")
    return 0


@command.command("schema")
def schema() -> int:
    """Print the JSON Schema of the file, for editors and other checkers."""
    from llm_runner_router import config_schema

    output.json(config_schema.schema())
    return 0


@command.command("init")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Write over a file that exists.")
def init(file: Path | None, force: bool) -> int:
    """Write a commented FILE (default `llmrr.yaml`) with every key at its default."""
    from llm_runner_router import config_load, config_schema
    from llm_runner_router.home import write_atomic

    path = file or place().config or Path(config_load.FILE)
    if path.exists() and not force:
        raise ConfigError(f"`{path}` exists already", hint="`--force` writes over it")
    try:
        write_atomic(path, config_schema.example().encode(), 0o644)
    except OSError as exc:
        raise ConfigError(f"cannot write `{path}`: {exc.strerror}") from exc
    print(f"wrote {path}; `llmrr config check {path}` tells what it serves")
    return 0


def served(config: Config) -> dict[str, str]:
    """Every name that would be served, with what stands behind it in words."""
    from llm_runner_router.config_check import zoo

    names = {"auto": "chooses for each request; auto:quality, auto:cost, auto:speed too"}
    if config.zoo:
        names |= {f"zoo:{name}": "built-in demonstration model" for name in zoo()}
    for name, entry in config.models.items():
        names[name] = tree(entry)
        if isinstance(entry, Node):
            names |= {f"{name}+{a}": f"{name} with {path}" for a, path in entry.adapters.items()}
            names |= dict.fromkeys(entry.aliases, f"= {name}")
    return names | {alias: f"= {name}" for alias, name in config.aliases.items()}


def tree(entry: str | Node) -> str:
    """An entry on one line: `fallback[ a, race[ b, c ] ]`."""
    if isinstance(entry, str):
        return entry
    if entry.target is not None:
        return entry.target
    if entry.weighted:
        parts = [f"{weight:g}× {name}" for name, weight in entry.weighted.items()]
        sticky = f" by {entry.sticky}" if entry.sticky else ""
        return f"weighted{sticky}[ {', '.join(parts)} ]"
    if entry.auto is not None:
        return f"auto {entry.auto.objective}[ {', '.join(entry.auto.models) or 'every model'} ]"
    kind = "fallback" if entry.fallback else "race"
    return f"{kind}[ {', '.join(tree(child) for child in entry.fallback or entry.race)} ]"


def missing_variables(config: Config) -> dict[str, str]:
    """Variables that would be needed and are not set here, with who needs them."""
    from llm_runner_router import refs
    from llm_runner_router.config_check import hosts, references
    from llm_runner_router.config_load import wanted_variables

    wanted = list(wanted_variables(config))
    for _, text in references(config):
        ref = None if text in config.models else refs.parse(text)
        if ref is None or ref.provider is None or ref.provider in config.providers:
            continue
        variable = hosts().get(ref.provider.lower(), {}).get("key_env")
        if variable:
            wanted.append((str(variable), f"`{text}`"))
    return {name: by for name, by in wanted if not os.environ.get(name, "").strip()}
