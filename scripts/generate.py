"""Writes the files that are made from the source; `--check` names those that are stale.

Knows: which files, and where each comes from. Does not know what they say: the command line's
own help, the docstrings of `config.py` and the table of variables below are the sources.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from llm_runner_router import config_schema
from llm_runner_router.cli.group import VERBS, llmrr
from llm_runner_router.config_load import variables
from llm_runner_router.config_schema import Setting, settings
from llm_runner_router.providers.hosts import hosts

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- Made by `make gen`. Do not edit. -->\n"
WIDTH = 96

VARIABLES = {
    "LLMRR_HOME": "Data folder: key, state, records, logs. Default: the platform's user data.",
    "LLMRR_CONFIG": "Configuration file, as `--config`.",
    "LLMRR_API_KEY": "The key the server lets in and the command line sends, instead of the file.",
    "LLMRR_DEBUG": "`1` shows tracebacks instead of one-line errors.",
    "LLMRR_OFFLINE": "`1`: nothing is downloaded.",
    "LLMRR_OLLAMA_REGISTRY": "Address of a mirror of Ollama's registry.",
    "HF_TOKEN": "Token for the Hub: gated and private repositories.",
    "HF_ENDPOINT": "Address of a mirror of the Hub.",
    "HF_HUB_OFFLINE": "`1`: nothing is downloaded from the Hub.",
    "HF_HOME, HF_HUB_CACHE": "Where Hugging Face's cache is; what is pulled from there goes there.",
    "OLLAMA_MODELS, LLAMA_CACHE": "Where Ollama's and llama.cpp's models are looked for.",
    "NO_COLOR": "Set to anything: no colours.",
}
"""Variables that are not settings."""


def main(argv: list[str]) -> int:
    """Write every file, or with `--check` only compare; the exit code."""
    if argv not in ([], ["--check"]):
        print("usage: generate.py [--check]", file=sys.stderr)
        return 2
    stale = []
    for path, text in files().items():
        old = path.read_text("utf-8") if path.exists() else None
        if old == text:
            continue
        stale.append(path.relative_to(ROOT))
        if not argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    for name in stale:
        print(f"{'stale' if argv else 'wrote'}: {name}")
    if argv and stale:
        print("hint: `make gen` writes them", file=sys.stderr)
    return 1 if argv and stale else 0


def files() -> dict[Path, str]:
    """Every generated file with what it must hold."""
    reference = ROOT / "docs" / "reference"
    schema = json.dumps(config_schema.schema(), indent=2, ensure_ascii=False)
    return {
        reference / "cli.md": "\n".join(cli()),
        reference / "config.md": "\n".join(config()),
        reference / "config.schema.json": schema + "\n",
        reference / "environment.md": "\n".join(environment()),
        reference / "providers.md": "\n".join(providers()),
        ROOT / "llmrr.example.yaml": config_schema.example(),
    }


def cli() -> Iterator[str]:
    """The help of every verb."""
    yield f"# Command line\n\n{MADE}"
    yield (
        "Exit codes: 0 done · 1 it failed · 2 wrong usage or configuration · 130 Ctrl-C. "
        "Errors are one line `error: …` and mostly a line `hint: …` on standard error.\n"
    )
    root = click.Context(
        llmrr,
        info_name="llmrr",
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield from _help(llmrr, root)
    for name in VERBS:
        command = llmrr.get_command(root, name)
        assert command is not None
        yield from _verb(command, name, root)


def _verb(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    ctx = click.Context(command, parent, name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"## {ctx.command_path}\n"
    yield from _help(command, ctx)
    if isinstance(command, click.Group):
        for below in command.commands:
            yield from _verb(command.commands[below], below, ctx)


def _help(command: click.Command, ctx: click.Context) -> Iterator[str]:
    lines = (line.rstrip() for line in command.get_help(ctx).splitlines())
    yield "```text\n" + "\n".join(lines) + "\n```\n"


def config() -> Iterator[str]:
    """Every key, section by section."""
    yield f"# Configuration\n\n{MADE}"
    yield (
        "Every key is optional. Seconds may be written `90s`, `5m`, `1h30m`; bytes `512MiB`, "
        "`4GiB`. How to use it: [configure](../how-to/configure.md). Schema: "
        "[config.schema.json](config.schema.json).\n"
    )
    sections: dict[str, list[Setting]] = {}
    for setting in settings():
        sections.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    for head, rows in sections.items():
        yield f"\n## {f'`{head}`' if head else 'Top level'}\n"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for row in rows:
            key = row.path.rpartition(".")[2]
            yield f"| `{key}` | {row.type} | `{row.default}` | {row.meaning} |"
    yield ""


def environment() -> Iterator[str]:
    """Every variable that is read."""
    yield f"# Environment variables\n\n{MADE}"
    yield "| variable | meaning |\n|---|---|"
    for name, meaning in VARIABLES.items():
        yield f"| `{name}` | {meaning} |"
    yield (
        "\n## Settings\n\n"
        "They win over the file; flags win over them. Lists are separated by commas.\n"
    )
    meanings = {setting.path: setting.meaning for setting in settings()}
    yield "| variable | setting | meaning |\n|---|---|---|"
    for name, path in variables().items():
        dotted = ".".join(str(part) for part in path)
        yield f"| `{name}` | `{dotted}` | {meanings[dotted]} |"
    yield (
        "\nThe keys of remote providers are read from the variables in the "
        "[table of hosts](providers.md), or from those that the configuration names.\n"
    )


def providers() -> Iterator[str]:
    """Every known host."""
    yield f"# Known providers\n\n{MADE}"
    yield (
        "`<name>/<model>` can be asked once the key is set. Where no address stands, "
        "`providers.<name>.base_url` has to be set "
        "([configure](../how-to/configure.md#remote-providers)).\n"
    )
    yield "| name | host | address | key |\n|---|---|---|---|"
    for name, host in sorted(hosts().items()):
        address = f"`{host.base_url}`" if host.base_url else "your own"
        key = f"`{host.key_env}`" if host.key_env else "none"
        yield f"| `{name}` | {host.title} | {address} | {key} |"
    yield ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
