"""The headers that clients of a LiteLLM proxy look for, where there is a true value.

Knows: their names. Does not know: routes, or why a target was chosen. LiteLLM's version, spend and
limits of keys have no counterpart here, so their headers are never sent.
Names are those of LiteLLM's documentation, `docs/proxy/response_headers.md`, read in November 2026.
"""

from __future__ import annotations

from . import veil
from .base import Reply
from .exchange import Exchange, Headers, printable

PREFIX = b"x-litellm-"
HONOURED = frozenset({b"x-litellm-timeout", b"x-litellm-session-id", b"x-litellm-api-key"})
"""What clients may say with such headers; others are named in `x-llmrr-ignored`."""


def wanted(exchange: Exchange, always: bool) -> bool:
    """Whether this client looks for such headers: it sent one, or everyone does.

    They take about twice as long as our own (9 µs, 4 µs), so they are not for everyone unless that
    is set. One search through the joined names takes a third of what looking at each does.
    """
    return always or PREFIX in b"\n".join(exchange.headers)


def answer_headers(
    exchange: Exchange, model: str, reply: Reply, seconds: float | None = None
) -> Headers:
    """What is told of an answer.

    Args:
        exchange: the request.
        model: the model that was asked for.
        reply: what is known of the answer.
        seconds: how long it took; None while it goes on, when its cost is not known either.
    """
    headers: Headers = [
        (b"x-litellm-call-id", exchange.id.encode()),
        (b"x-litellm-model-group", printable(veil.text(model))),
    ]
    tried = [one.target for one in reply.trace.attempts if one.outcome not in ("ok", "cancelled")]
    if reply.origin is not None:
        target = reply.origin.target
        headers.append((b"x-litellm-model-id", printable(veil.text(deployment(target)))))
        tried.append(target)
    # Asking the same one again is a retry, asking another is a fallback, as LiteLLM counts.
    again = len(tried) - len(set(tried))
    headers.append((b"x-litellm-attempted-retries", str(again).encode()))
    moves = max(0, len(tried) - 1 - again)
    headers.append((b"x-litellm-attempted-fallbacks", str(moves).encode()))
    ignored = [n for n in exchange.headers if n.startswith(PREFIX) and n not in HONOURED]
    if ignored:
        told = b", ".join(ignored).decode("latin-1")
        headers.append((b"x-llmrr-ignored", printable(told)))
    if seconds is not None:
        headers.append((b"x-litellm-response-duration-ms", f"{seconds * 1e3:.3f}".encode()))
        if reply.cost is not None:
            cost = f"{reply.cost:.12f}".rstrip("0").rstrip(".")
            headers.append((b"x-litellm-response-cost", cost.encode()))
    return headers


def deployment(name: str) -> str:
    """The id of a deployment: our name of it without the brackets of names that are not listed."""
    return name[1:-1] if name[:1] == "<" and name[-1:] == ">" else name
