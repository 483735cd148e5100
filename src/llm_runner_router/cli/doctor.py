"""`llmrr doctor`: is this machine and this installation fit to work?

Knows: what has to hold, and the next step where it does not. Every check is a function from the
surroundings to one `Check`; none changes anything.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import click
import msgspec
from msgspec import Struct

from llm_runner_router import __version__, home
from llm_runner_router.config import Config
from llm_runner_router.errors import ConfigError, RunnerError
from llm_runner_router.policy.auth import find_key

from . import client, output
from .group import Place, Verb, place

State = Literal["ok", "warning", "fail"]
SMALLEST_PYTHON = (3, 11)


class Check(Struct, frozen=True):
    """What one check found. Only `fail` makes the exit code 1."""

    name: str
    state: State
    found: str
    hint: str = ""


@click.command("doctor", cls=Verb)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(as_json: bool) -> int:
    """Check this machine and this installation; each failure tells the next step."""
    checks = []
    for check in examine(place(), os.environ):
        checks.append(check)
        if not as_json:
            _print(check)
    if as_json:
        output.json(checks)
    return 1 if any(check.state == "fail" for check in checks) else 0


def examine(where: Place, env: Mapping[str, str]) -> Iterator[Check]:
    """All checks, in the order in which one would look."""
    from . import doctor_engine as engine

    config, found = configuration(where, env)
    yield python()
    yield Check("platform", "ok", f"{platform.platform()}, llmrr {__version__}")
    yield engine.machine()
    yield engine.imported()
    yield engine.engines()
    yield engine.threads(config)
    yield zoo()
    yield folder(home.find(env))
    yield key(home.find(env), env)
    yield found
    yield port(where, env, config)
    yield providers(env)


def _print(check: Check) -> None:
    mark = {"ok": "ok", "warning": "warn", "fail": "FAIL"}[check.state]
    print(f"{output.paint(mark.ljust(4), check.state)}  {check.name.ljust(9)}  {check.found}")
    if check.hint:
        print(f"{'':4}  {'':9}  hint: {check.hint}")


def python() -> Check:
    """The interpreter is new enough."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < SMALLEST_PYTHON:
        return Check("python", "fail", found, "install Python 3.11 or newer")
    return Check("python", "ok", found)


def zoo() -> Check:
    """The built-in models are whole."""
    from llm_runner_router.models.resolve import ZOO

    try:
        content = msgspec.json.decode((ZOO / "cards.json").read_bytes())
    except (OSError, msgspec.DecodeError) as exc:
        return Check("zoo", "fail", f"the models' cards cannot be read: {exc}", REINSTALL)
    cards = content["models"] if isinstance(content, dict) else content
    wrong = []
    for card in cards:
        name = Path(card.get("file") or f"{card['name']}.gguf").name
        try:
            digest = hashlib.sha256((ZOO / name).read_bytes()).hexdigest()
        except OSError as exc:
            wrong.append(f"{name}: {exc.strerror}")
            continue
        if digest != card.get("sha256"):
            wrong.append(f"{name}: not the file its card is about")
    if wrong:
        return Check("zoo", "fail", "; ".join(wrong), REINSTALL)
    return Check("zoo", "ok", f"{len(cards)} built-in models, checksums right")


REINSTALL = "reinstall llm-runner-router"


def folder(found: home.Home) -> Check:
    """The data folder can be written, or made."""
    path = found.path
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as exc:
        hint = f"set {home.VARIABLE} to a folder you can write to"
        return Check("data", "fail", f"{found.path}: {exc.strerror}", hint)
    state = "" if found.path.exists() else " (will be made)"
    if os.name == "posix" and found.path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        hint = f"chmod 700 {found.path}"
        return Check("data", "warning", f"{found.path}: open to other users", hint)
    return Check("data", "ok", f"{found.path}{state}")


def key(found: home.Home, env: Mapping[str, str]) -> Check:
    """The key is there, safe, or will be made."""
    try:
        known = find_key(found, env)
    except ConfigError as exc:
        return Check("key", "fail", exc.message, exc.hint or "")
    if known is None:
        return Check("key", "ok", f"the first `llmrr serve` makes it at {found.key}")
    return Check("key", "ok", f"from {known.source}")


def configuration(where: Place, env: Mapping[str, str]) -> tuple[Config, Check]:
    """The configuration in force, the defaults if it is wrong."""
    from llm_runner_router import config_load

    try:
        path = config_load.find_file(where.config, env)
        config = config_load.load(where.config, env, where.flags)
        config_load.check_secrets(config, env)
    except ConfigError as exc:
        return Config(), Check("config", "fail", exc.message, exc.hint or "")
    return config, Check("config", "ok", str(path or "no file; the defaults"))


def port(where: Place, env: Mapping[str, str], config: Config) -> Check:
    """Our server runs, or it could."""
    from llm_runner_router import server

    try:
        found = client.running(where, env)
    except RunnerError:
        found = None
    if found is not None:
        return Check("server", "ok", f"runs at {found.url}")
    try:
        server.bind(config.server).close()
    except ConfigError as exc:
        return Check("server", "fail", exc.message, exc.hint or "")
    listens = f"{config.server.host}:{config.server.port}"
    return Check("server", "ok", f"does not run; {listens} is free")


def providers(env: Mapping[str, str]) -> Check:
    """Which remote hosts have a key in the environment; names only."""
    from llm_runner_router.providers.hosts import hosts

    known = sorted(
        {host.key_env for host in hosts().values() if host.key_env and env.get(host.key_env)}
    )
    if not known:
        return Check("providers", "ok", "no key of a remote provider is set; local models only")
    return Check("providers", "ok", f"keys set: {', '.join(known)}")
