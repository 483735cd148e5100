"""The command line `llmrr`: one file per verb, imported when it is used.

Knows: how a run ends (exit codes, `error:` and `hint:` lines, tracebacks only with
`LLMRR_DEBUG=1`). Does not know: what any verb does (`group.py` lists them).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from llm_runner_router import __version__

DEBUG = "LLMRR_DEBUG"
USAGE = 2
"""Exit code for wrong usage and for a configuration that cannot be used."""
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    0 done · 1 it failed · 2 wrong usage or configuration · 130 interrupted with Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):  # here: scripts ask this often, and click costs 30 ms
        print(f"llmrr {__version__}")
        return 0
    try:
        return _run(args)
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this Python complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED


def _run(args: list[str]) -> int:
    import click

    from llm_runner_router.errors import ConfigError, RunnerError

    from .group import llmrr

    try:
        result = llmrr.main(args, prog_name="llmrr", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.Abort:  # how click tells Ctrl-C, after ending the line
        return INTERRUPTED
    except click.UsageError as exc:
        hint = f"{exc.ctx.command_path} --help" if exc.ctx is not None else "llmrr --help"
        _complain(exc.format_message(), f"`{hint}` shows what can be written")
        return USAGE
    except click.ClickException as exc:
        _complain(exc.format_message(), None)
        return 1
    except RunnerError as exc:
        if os.environ.get(DEBUG) == "1":
            raise
        _complain(exc.message, exc.hint)
        return USAGE if isinstance(exc, ConfigError) else 1
    except Exception as exc:  # the last border: people see one line, LLMRR_DEBUG=1 the rest
        if os.environ.get(DEBUG) == "1" or isinstance(exc, BrokenPipeError):
            raise
        text = " ".join(f"{type(exc).__name__}: {exc}".split())
        _complain(f"something went wrong that should not: {text}", f"{DEBUG}=1 shows where")
        return 1


def _complain(message: str, hint: str | None) -> None:
    from .output import note

    note("error", " ".join(message.split()))
    if hint:
        note("hint", " ".join(hint.split()))
