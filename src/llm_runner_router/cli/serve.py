"""`llmrr serve`: start the server and say how to use it."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import click
import msgspec

from llm_runner_router import __version__
from llm_runner_router.config import Config

from . import output
from .group import Place, Verb, place

if TYPE_CHECKING:
    from llm_runner_router.app import App
    from llm_runner_router.policy.auth import Key
    from llm_runner_router.server import Ready

MAX_NAMES = 12
"""Names that are listed at the start; more are counted."""


@click.command("serve", cls=Verb)
@click.option("--pin", multiple=True, metavar="MODEL", help="Load at the start and keep loaded.")
@click.option("--quiet", is_flag=True, help="Print the address only.")
def command(pin: tuple[str, ...], quiet: bool) -> int:
    """Start the server and answer until Ctrl-C.

    Running answers may finish first (`server.drain`); a second Ctrl-C ends them. Without a
    configuration it serves the built-in models and `auto`, on this machine only.
    """
    config = configuration(place(), pin)
    # After the configuration: a mistake in it is told at once.
    from llm_runner_router import home, server
    from llm_runner_router.app import App

    made: list[App] = []

    def make(key: Key) -> App:
        made.append(App(config))
        return made[0]

    def ready(found: Ready) -> None:
        names = [card.name for card in made[0].cards()]
        print(found.url if quiet else greeting(found, names), flush=True)

    server.run(make, config, home.find(os.environ).create(), ready=ready)
    return 0


def configuration(where: Place, pin: tuple[str, ...]) -> Config:
    """The configuration of this start; every secret it names is there.

    Raises:
        ConfigError: it cannot be used.
    """
    from llm_runner_router import config_load
    from llm_runner_router.config_check import check
    from llm_runner_router.tokens import given

    config = config_load.load(where.config, os.environ, where.flags)
    config_load.check_secrets(config, os.environ)
    given.check(config)
    if pin:
        pinned = (*config.engine.pin, *pin)
        engine = msgspec.structs.replace(config.engine, pin=tuple(dict.fromkeys(pinned)))
        config = msgspec.structs.replace(config, engine=engine)
        check(config, lambda _: "--pin")
    return config


def greeting(ready: Ready, names: list[str]) -> str:
    """What is served where, where the key is, and two ways to ask."""
    more = f" … ({len(names)} in all)" if len(names) > MAX_NAMES else ""
    listed = ", ".join(output.safe(name) for name in names[:MAX_NAMES]) + more
    in_variable = ready.key.name == "env"
    path = str(ready.home.key)
    value = "$LLMRR_API_KEY" if in_variable else f"$(cat {shlex.quote(path)})"
    python = 'os.environ["LLMRR_API_KEY"]' if in_variable else f"open({path!r}).read().strip()"
    return f"""\
llmrr {__version__} serves {ready.url}  (ready in {ready.seconds:.2f} s)

  models   {listed}
  key      {ready.key.source}

  curl {ready.url}/v1/chat/completions -H "Authorization: Bearer {value}" \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "What is 12 + 30?"}}]}}'

  client = openai.OpenAI(base_url="{ready.url}/v1", api_key={python})

`llmrr quick "What is 12 + 30?"` and `llmrr ps` find this server. Ctrl-C ends it."""
