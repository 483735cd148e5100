"""The process that renders chat templates: strangers' programs, run where they can do no harm.

Started by `templates.py` as `python -P -m llm_runner_router.tokens.rendering`. Knows: Jinja, what
Hugging Face adds to it. Does not know: files, models; nothing of the package is imported.

    stdin   one JSON object per line: {"template", "variables", "limit"}
    stdout  one per line: {"text"} or {"error": KIND, "message"}; first {"ready": true}

Limits that hold whatever the template does: processor time by a timer of the kernel that ends the
process, memory by its address space, output by counting pieces as they come. Jinja's immutable
sandbox keeps templates from Python's insides; there is nothing to find in this process anyway.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 768 * 1024 * 1024
"""Bytes of address space; an empty Python has about 50 MiB of it."""


class Raised(TemplateError):
    """The template called `raise_exception`: it does not take this conversation."""


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own way to declare tags

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside, as if the tag were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up for chat templates (`utils/chat_template_utils.py`)."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    del env.globals["lipsum"]
    env.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda format: datetime.now().strftime(format),
    }
    env.filters["tojson"] = _json
    return env


def _raise(message: str) -> None:
    raise Raised(message)


def _json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes what HTML would misread."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=16)
def compiled(template: str) -> Any:
    """The template, parsed."""
    return environment().from_string(template)


def answer(order: dict[str, Any], parse: Callable[[str], Any] = compiled) -> dict[str, Any]:
    """Render one order; never raises but for what ends the process."""
    try:
        parts, size = [], 0
        for part in parse(order["template"]).generate(order["variables"]):
            size += len(part)
            if size > order["limit"]:
                return _failed("limit", f"it writes more than {order['limit']} characters")
            parts.append(part)
        return {"text": "".join(parts)}
    except Raised as exc:
        return _failed("raised", exc.message or "it gives no reason")
    except TemplateSyntaxError as exc:
        return _failed("syntax", f"line {exc.lineno}: {exc.message}")
    except SecurityError as exc:
        return _failed("unsafe", str(exc))
    except (MemoryError, RecursionError, OverflowError) as exc:
        return _failed("limit", f"{type(exc).__name__} {exc}".strip())
    except Exception as exc:  # whatever a stranger's program runs into is told, not raised
        return _failed("failed", f"{_line(exc)}{type(exc).__name__}: {exc}")


def _line(exc: Exception) -> str:
    """`line 7: `, where the template was when it failed; Jinja puts its lines into tracebacks."""
    trace, line = exc.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"error": kind, "message": message[:1000]}


def main() -> None:
    """Serve orders until stdin closes."""
    import resource
    import signal

    seconds = float(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":  # elsewhere the kernel does not hold this limit
        bound = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (bound, most))
    out, lines = sys.stdout.buffer, sys.stdin.buffer
    sys.stdout = sys.stderr
    out.write(b'{"ready": true}\n')
    out.flush()
    for line in iter(lines.readline, b""):
        # Counts processor time, so a busy machine fails nobody, and ends us inside C code too.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = json.dumps(answer(json.loads(line))).encode()
        except MemoryError:
            found = b'{"error": "limit", "message": "MemoryError"}'
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(found + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
