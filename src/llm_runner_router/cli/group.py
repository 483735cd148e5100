"""The group of verbs: their names and one-line helps, loaded one by one, and the common options.

Knows: which verbs there are; `--host`, `--port` and `--config`, before or after the verb. Does
not know: what they do. Adding a verb is a file with a `command` in it and a line in `VERBS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from llm_runner_router import __version__

VERBS = {
    "serve": "Start the server.",
    "quick": "Answer one prompt.",
    "run": "Chat with a model.",
    "ps": "Show the loaded models.",
    "ls": "List the models that can be asked.",
    "show": "Tell what is known about a model.",
    "inspect": "Tell what a model file is, needs, and runs on.",
    "convert": "Convert a model file to another kind.",
    "quantize": "Write a model with fewer bits per weight.",
    "tokenize": "Cut a text into a model's tokens, or count them.",
    "search": "Search the Hub, and tell what would run here.",
    "pull": "Bring models to this machine.",
    "cp": "Give a model another name.",
    "rm": "Forget models and delete their files.",
    "verify": "Hash the files of models again.",
    "export": "Copy the files of a model into a folder.",
    "prune": "Delete what no name means any more.",
    "stop": "Unload a model, or stop the server.",
    "explain": "Tell which model would answer a prompt, and why.",
    "doctor": "Check this machine and this installation.",
    "config": "Check, describe or start a configuration.",
    "migrate": "Explain what another program's configuration becomes.",
}


class Place(Struct, frozen=True):
    """What the common options said; None where nothing was said."""

    host: str | None = None
    port: int | None = None
    config: Path | None = None

    @property
    def flags(self) -> dict[str, object]:
        """As flags of `config_load.load`."""
        return {"server.host": self.host, "server.port": self.port}


def place() -> Place:
    """The common options of the running command; those after the verb win."""
    found = click.get_current_context().find_object(dict) or {}
    return Place(**found)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is not None and param.name is not None:
        ctx.ensure_object(dict)[param.name] = value
    return value


def common() -> list[click.Parameter]:
    """Fresh `--host --port --config`; every command and the group get their own."""
    return [
        click.Option(
            ["--host"],
            metavar="ADDRESS",
            callback=_keep,
            expose_value=False,
            help="Address of the server (LLMRR_HOST).",
        ),
        click.Option(
            ["--port"],
            type=click.IntRange(0, 65535),
            metavar="PORT",
            callback=_keep,
            expose_value=False,
            help="Port of the server (LLMRR_PORT).",
        ),
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            callback=_keep,
            expose_value=False,
            help="Configuration file (LLMRR_CONFIG).",
        ),
    ]


class Verb(click.Command):
    """A command that takes the common options too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common()


class Verbs(click.Group):
    """A group that also takes the common options."""

    command_class = Verb

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common()


class LazyVerbs(Verbs):
    """`VERBS`, each imported when it is used; the list of them imports nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order people need them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One verb, imported now."""
        if cmd_name not in VERBS:
            return None
        command = import_module(f"{__package__}.{cmd_name}").command
        assert isinstance(command, click.Command), f"cli/{cmd_name}.py has no `command`"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As usual, with the nearest verb when there is none of that name."""
        from llm_runner_router.config_check import meant

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"no verb is called `{args[0]}`{meant(args[0], VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, from `VERBS` alone."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="llmrr %(version)s")
def llmrr() -> None:
    """Run local language models and route prompts among them and remote providers.

    `--host`, `--port` and `--config` work before and after every verb.
    """
