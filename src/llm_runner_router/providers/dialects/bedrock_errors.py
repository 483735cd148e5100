"""Bedrock's errors as ours: by the name that AWS gives them. Pure.

Knows: the exceptions of the service, as answers and as events of a stream. Does not know: which
target. What the words mean, `openai_errors.py` knows.
"""

from __future__ import annotations

import re

import msgspec

from llm_runner_router.errors import RunnerError, UpstreamRefused

from .base import Header
from .openai_errors import classify, read, retry_after

_STATUS = {
    "throttlingexception": 429,
    "toomanyrequestsexception": 429,
    "servicequotaexceededexception": 429,
    "validationexception": 400,
    "accessdeniedexception": 403,
    "unrecognizedclientexception": 403,
    "resourcenotfoundexception": 404,
    "modeltimeoutexception": 408,
    "internalserverexception": 500,
    "serviceunavailableexception": 503,
    # Of the model's side, not of ours: asking again, or another host, may help.
    "modelnotreadyexception": 503,
    "modelerrorexception": 502,
    "modelstreamerrorexception": 502,
}
"""What an exception means; the service's own status for some says less."""
_MODEL = re.compile(
    r"model identifier is invalid|on-demand throughput isn.t supported|inference profile"
    r"|model is not supported|end of its life|doesn't support (the )?converse",
    re.IGNORECASE,
)
_PROFILE = re.compile(r"on-demand throughput|inference profile", re.IGNORECASE)


def parse_error(status: int, header: Header, body: bytes, *, now: float) -> RunnerError:
    """The error that a response of `status` (not 200) means.

    Args:
        now: seconds since 1970, to read an HTTP date in `Retry-After`.
    """
    kind = (header("x-amzn-errortype") or "").partition(":")[0]
    error = named_error(kind, body, status)
    if status in (408, 429) or status >= 500:
        error.retry_after = retry_after(header, now)
    return error


def named_error(kind: str, body: bytes, status: int = 502) -> RunnerError:
    """The error of that name, for example `ThrottlingException`.

    Args:
        body: JSON that says more.
        status: what it means if the name is not known.
    """
    told = read(body)
    message = told.message or _capital(body) or f"{kind or f'HTTP status {status}'} without words"
    name = kind.rpartition("#")[2].lower()
    status = _STATUS.get(name, status)
    told = msgspec.structs.replace(told, message=message, codes=told.codes | {name})
    if status == 400 and _MODEL.search(message):
        hint = "check the model's id and that it is there in this region"
        if _PROFILE.search(message):
            hint = "use the id of an inference profile, for example `us.` before the model's id"
        error: RunnerError = UpstreamRefused(message, hint=hint)
    elif status == 403:
        hint = "check the key or the credentials, and that they may use this model"
        error = UpstreamRefused(message, hint=hint)
    else:
        error = classify(status, told)
    if isinstance(error, UpstreamRefused):
        error.upstream_status = status
    return error


def _capital(body: bytes) -> str:
    """What AWS's front says: `{"Message": …}`."""
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("Message")
        return "" if found is None else read(b'{"message":' + bytes(found) + b"}").message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
