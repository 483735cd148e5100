"""Google's errors as ours: `google.rpc.Status` with its details. Pure.

Knows: the details that say why, where and for how long. Does not know: which target. What the
words mean, `openai_errors.py` knows: they are the same for all hosts.

Details from googleapis' `google/rpc/error_details.proto`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.errors import RunnerError, UpstreamRefused

from .base import Header
from .openai_errors import Told, classify, read, retry_after, shorten

_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


class _Found(Struct, frozen=True):
    """What the details say."""

    codes: frozenset[str] = frozenset()
    param: str | None = None
    retry: float | None = None


def parse_error(status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
    """The error that a response of `status` (not 200) means.

    Args:
        now: seconds since 1970, to read an HTTP date in `Retry-After`.
    """
    told = read(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if isinstance(value, list) and value:
        value = value[0]  # a stream without SSE begins so
    error = value.get("error") if isinstance(value, dict) else None
    return _error(status, told, _details(error), retry_after(header, now))


def parse_event_error(error: Any) -> RunnerError:
    """The error that an `error` object inside a stream, or a body with status 200, means."""
    told = read(msgspec.json.encode({"error": error}))
    return _error(told.status or 502, told, _details(error), None)


def _error(status: int, told: Told, found: _Found, wait: float | None) -> RunnerError:
    codes = told.codes | found.codes
    message = told.message or f"HTTP status {status} without a message"
    told = msgspec.structs.replace(
        told, message=message, codes=codes, param=told.param or found.param
    )
    error: RunnerError
    if status == 400 and "failed_precondition" in codes:
        hint = "check the account: its country, its billing"
        error = UpstreamRefused(message, hint=hint)
        error.upstream_status = status
    else:
        error = classify(status, told)
    if status in (408, 429) or status >= 500:
        error.retry_after = found.retry if wait is None else wait
    return error


def _details(error: Any) -> _Found:
    details = error.get("details") if isinstance(error, dict) else None
    codes: set[str] = set()
    param, retry = None, None
    for one in details[:32] if isinstance(details, list) else ():
        if not isinstance(one, dict):
            continue
        kind = str(one.get("@type")).rpartition(".")[2]
        if kind == "ErrorInfo" and isinstance(one.get("reason"), str):
            codes.add(one["reason"].lower())
        elif kind == "RetryInfo":
            delay = _DELAY.fullmatch(str(one.get("retryDelay")))
            retry = float(delay[1]) if delay else retry
        elif kind == "BadRequest" and param is None:
            param = _field(one.get("fieldViolations"))
    return _Found(frozenset(codes), param, retry)


def _field(violations: Any) -> str | None:
    first = violations[0] if isinstance(violations, list) and violations else None
    field = first.get("field") if isinstance(first, dict) else None
    return shorten(field, 200) if isinstance(field, str) and field else None
