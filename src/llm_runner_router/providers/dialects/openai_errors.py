"""Errors of OpenAI-compatible hosts as ours. Pure.

Knows: the error bodies of OpenAI, Azure, llama-server, vLLM, Mistral, OpenRouter and of proxies
that answer text or HTML; the headers that say when to come back. Does not know: which target.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContentFiltered,
    ContextTooLong,
    RateLimited,
    RunnerError,
    TooLarge,
    Unsupported,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)

Header = Callable[[str], str | None]
"""Looks up a response header, whatever its case."""

MAX_MESSAGE = 1000
"""Characters of a provider's own words that are kept."""

_CONTEXT = re.compile(
    r"context[ _](length|window|size)|maximum context|max_model_len|prompt is too long"
    r"|exceeds? the (model's )?(maximum|available) (context|number of tokens|sequence)"
    r"|too many (input )?tokens|input (is )?too long",
    re.IGNORECASE,
)
_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"}
_FILTER_CODES = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "moderation_blocked",
    "content_filtered",
}
_KEY_CODES = {"invalid_api_key", "invalid_authentication", "api_key_invalid", "unauthorized"}
_MODEL_CODES = {"model_not_found", "deploymentnotfound", "model_not_available", "invalid_model"}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_UNSUPPORTED_CODES = {"unsupported_parameter", "unsupported_value", "unsupported_model"}
_WRONG_KEY = re.compile(
    r"\bapi[ _-]?key\b.*\b(invalid|incorrect|not valid)|incorrect api key", re.I
)

_TYPE_STATUS: tuple[tuple[str, int], ...] = (
    ("rate_limit", 429),
    ("too_many", 429),
    ("insufficient_quota", 429),
    ("authentication", 401),
    ("permission", 403),
    ("not_found", 404),
    ("invalid_request", 400),
    ("badrequest", 400),
    ("exceed_context", 400),
    ("content_filter", 400),
    ("overloaded", 503),
    ("unavailable", 503),
    ("timeout", 504),
)


class Told(Struct, frozen=True):
    """What an error body says. `codes` are all its machine-readable words, in lower case."""

    message: str
    codes: frozenset[str] = frozenset()
    param: str | None = None
    code: str | None = None
    status: int | None = None


def parse_error(status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
    """The error that a response of `status` (not 200) means.

    Args:
        now: seconds since 1970, to read an HTTP date in `Retry-After`.
    """
    told = read(body)
    if not told.message:
        told = msgspec.structs.replace(told, message=f"HTTP status {status} without a message")
    error = classify(status, told)
    if status in (408, 409, 425, 429) or status >= 500:
        error.retry_after = retry_after(header, now)
    return error


def parse_event_error(error: Any) -> RunnerError:
    """The error that an `error` object inside a stream (or a 200 body) means."""
    told = _from_object(error) if isinstance(error, dict) else Told(shorten(str(error)))
    if not told.message:
        told = msgspec.structs.replace(told, message="an error without a message")
    return classify(told.status or _status_by_type(told.codes), told)


def _status_by_type(codes: frozenset[str]) -> int:
    for part, status in _TYPE_STATUS:
        if any(part in code for code in codes):
            return status
    if codes & (_CONTEXT_CODES | _FILTER_CODES):
        return 400
    return 502


# ---------------------------------------------------------------- what kind


def classify(status: int, told: Told) -> RunnerError:
    """The class for a status and what was told."""
    error = _asked_wrong(status, told)
    if error is not None:
        return error
    found = _upstream(status, told)
    found.upstream_status = status
    return found


def _asked_wrong(status: int, told: Told) -> RunnerError | None:
    """The errors that lie in the request."""
    codes, message = told.codes, told.message
    if codes & _FILTER_CODES:
        return ContentFiltered(message, param=told.param)
    by_words = status in (400, 413, 422, 500) and _CONTEXT.search(message)
    if codes & _CONTEXT_CODES or (by_words and status != 429):
        return ContextTooLong(message, param=told.param)
    if status not in (400, 422):
        if status == 413 and "rate_limit_exceeded" not in codes:
            return TooLarge(message)
        return None
    if codes & _UNSUPPORTED_CODES:
        return Unsupported(message, param=told.param)
    if codes & (_KEY_CODES | _MODEL_CODES | _QUOTA_CODES) or _WRONG_KEY.search(message):
        return None
    return BadRequest(message, param=told.param, code=told.code)


def _upstream(status: int, told: Told) -> UpstreamError:
    """The errors that lie with the upstream or our account there."""
    codes, message = told.codes, told.message
    if codes & _QUOTA_CODES:
        return UpstreamRefused(message, hint="check the account's balance", code=told.code)
    if status == 429 or "rate_limit_exceeded" in codes:
        return RateLimited(message)
    if status in (401, 403, 407) or codes & _KEY_CODES or _WRONG_KEY.search(message):
        return UpstreamRefused(message, hint="check the provider's API key and its rights")
    if status == 402:
        return UpstreamRefused(message, hint="check the account's balance")
    if status in (404, 405, 410) or codes & _MODEL_CODES:
        return UpstreamRefused(message, hint="check the model's name and the provider's base_url")
    if status in (408, 504):
        return UpstreamTimeout(message)
    if 300 <= status < 400:
        return UpstreamRefused(
            f"redirected (HTTP {status}), which is not followed", hint="correct the base_url"
        )
    if status < 300:
        return BadResponse(f"HTTP status {status}: {message}")
    if status < 500 and status not in (400, 409, 422, 425, 498):
        return UpstreamRefused(message, hint="check the provider's base_url")
    return UpstreamError(message, code=told.code)


# ---------------------------------------------------------------- what was said


def read(body: bytes) -> Told:
    """What a body says, whatever its shape."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Told(_from_text(body))
    if isinstance(value, list) and value:
        value = value[0]  # Google's compatible endpoint wraps its error in a list
    if isinstance(value, str):
        return Told(shorten(value))
    if not isinstance(value, dict):
        return Told("")
    inner = value.get("error")
    if isinstance(inner, dict):
        return _from_object(inner)
    if isinstance(inner, str) and inner:
        told = _from_object(value)
        return msgspec.structs.replace(told, message=shorten(inner))
    return _from_object(value)


def _from_object(error: dict[str, Any]) -> Told:
    inner = error.get("innererror")
    inner = inner if isinstance(inner, dict) else {}
    words = (error.get("code"), error.get("type"), error.get("status"), inner.get("code"))
    codes = frozenset(str(w).lower() for w in words if isinstance(w, str) and w)
    message = (
        _words(error.get("message")) or _words(error.get("detail")) or _words(error.get("msg"))
    )
    param, code = error.get("param"), error.get("code")
    return Told(
        shorten(message),
        codes,
        shorten(param, 200) if isinstance(param, str) else None,
        shorten(code, 100) if isinstance(code, str) and not code.isdigit() else None,
        _status(code) or _status(error.get("status")),
    )


def _words(value: Any) -> str:
    """Text out of a message that may be a string, or FastAPI's list of `{loc, msg}`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _words(value.get("detail") or value.get("message") or value.get("msg"))
    if isinstance(value, list):
        return "; ".join(filter(None, map(_detail, value[:5])))
    return ""


def _detail(item: Any) -> str:
    if not isinstance(item, dict):
        return item if isinstance(item, str) else ""
    where = item.get("loc")
    path = ".".join(str(part) for part in where) if isinstance(where, list) else ""
    return f"{path}: {_words(item)}" if path else _words(item)


def _status(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
        return value
    return None


def _from_text(body: bytes) -> str:
    """The words of a text or HTML answer."""
    text = body[: 64 * 1024].decode("utf-8", "replace")
    if "<" in text and re.search(r"<\s*(!doctype|html|head|body|h1|title)\b", text, re.I):
        title = re.search(r"<title[^>]*>([^<]*)", text, re.I)
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    return shorten(text)


def shorten(text: str, limit: int = MAX_MESSAGE) -> str:
    """`text` on one line without control characters, at most `limit` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 8 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ---------------------------------------------------------------- when to come back

_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?$")


def retry_after(header: Header, now: float) -> float | None:
    """Seconds to wait, from `retry-after-ms`, `Retry-After` or the `x-ratelimit-reset` headers."""
    milliseconds = _number(header("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = header("retry-after")
    if given:
        seconds = _number(given)
        return _until_date(given, now) if seconds is None else seconds
    waits: list[float] = []
    for kind in ("requests", "tokens"):
        reset = _span(header(f"x-ratelimit-reset-{kind}"), now)
        if reset is not None:
            if _number(header(f"x-ratelimit-remaining-{kind}")) == 0:
                return reset
            waits.append(reset)
    plain = _span(header("x-ratelimit-reset"), now)
    return plain if plain is not None else min(waits, default=None)


def _number(text: str | None) -> float | None:
    if not text or not re.fullmatch(r"\s*\d{1,15}(\.\d{1,9})?\s*", text):
        return None
    return float(text)


def _span(text: str | None, now: float) -> float | None:
    """Seconds from `6m0s`, `7.66s`, `120ms`, a number of seconds, or an instant since 1970."""
    if not text:
        return None
    number = _number(text)
    if number is None:
        match = _DURATION.match(text.strip())
        if not match or not match[0]:
            return None
        hours, minutes, seconds, milliseconds = (float(g or 0) for g in match.groups())
        return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    if number > 1e11:  # OpenRouter: milliseconds since 1970
        return max(0.0, number / 1000 - now)
    return max(0.0, number - now) if number > 1e9 else number


def _until_date(text: str, now: float) -> float | None:
    from email.utils import parsedate_to_datetime  # 30 modules that only a date needs

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
