"""Every error a caller can meet, as one tree. Each knows its HTTP status and what helps.

    RunnerError                       status  type                    retry  elsewhere
    ├─ BadRequest                     400     invalid_request_error
    │  ├─ ContextTooLong              400     (context_length_exceeded)       yes
    │  ├─ ContentFiltered             400     (content_filter)
    │  └─ Unsupported                 400     (unsupported_parameter)         yes
    ├─ Unauthenticated                401     authentication_error
    ├─ Forbidden                      403     permission_error
    ├─ NotFound                       404     not_found_error
    │  └─ UnknownModel                404     (model_not_found)
    ├─ TooLarge                       413     request_too_large
    ├─ DeadlineExceeded               504     timeout_error
    ├─ Overloaded                     503     overloaded_error        yes     yes
    ├─ Unavailable                    503     unavailable_error       yes     yes
    ├─ UpstreamError                  502     upstream_error          yes     yes
    │  ├─ ConnectFailed               502
    │  ├─ UpstreamTimeout             504
    │  ├─ BadResponse                 502
    │  ├─ StreamBroken                502
    │  ├─ UpstreamRefused             502     (our key or account)    no      yes
    │  └─ RateLimited                 429     rate_limit_error        yes     yes
    ├─ EngineError                    500     engine_error            no      yes
    │  ├─ ModelFileError              500     names the file and the reason
    │  ├─ LoadFailed                  500     the engine's own words
    │  └─ RunnerCrashed               502                             yes     yes
    └─ ConfigError                    500     bad configuration; the CLI exits with 2

`retryable`: the same target may answer if asked again. `elsewhere`: another target may answer;
`Fallback` moves on only then. `hint` is the next step for the person who reads the message.
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """Base of all errors this package raises on purpose.

    Args:
        message: one sentence that says what is wrong, with the offending value.
        hint: the next thing to do, as a command or a short advice.
        param: path of the offending request field, for example `messages[0].role`.
        target: name of the target that failed.
        code: machine-readable code; the class default is used when absent.
        retry_after: seconds after which trying again makes sense.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        target: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.target = target
        self.code = code or self.default_code
        self.retry_after = retry_after

    def __str__(self) -> str:
        """The message, and the hint when there is one."""
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class BadRequest(RunnerError):
    """The request itself is wrong; no target could answer it."""

    status = 400
    type = "invalid_request_error"


class ContextTooLong(BadRequest):
    """Prompt and answer do not fit the model's context. Never truncated silently."""

    default_code = "context_length_exceeded"
    elsewhere = True


class ContentFiltered(BadRequest):
    """A provider's content policy refused the request. Not routed around."""

    default_code = "content_filter"


class Unsupported(BadRequest):
    """This target cannot do what the request asks for; another one may."""

    default_code = "unsupported_parameter"
    elsewhere = True


class Unauthenticated(RunnerError):
    """No key, or a wrong one."""

    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(RunnerError):
    """The key is known and may not do this."""

    status = 403
    type = "permission_error"


class NotFound(RunnerError):
    """No such route or object."""

    status = 404
    type = "not_found_error"


class UnknownModel(NotFound):
    """No model of that name; the message carries the nearest names."""

    type = "invalid_request_error"
    default_code = "model_not_found"


class TooLarge(RunnerError):
    """The body is over the configured limit."""

    status = 413
    type = "request_too_large"


class DeadlineExceeded(RunnerError):
    """The request's own deadline passed; nobody may go on."""

    status = 504
    type = "timeout_error"
    default_code = "deadline_exceeded"


class Overloaded(RunnerError):
    """A bounded queue is full; `retry_after` says when to come back."""

    status = 503
    type = "overloaded_error"
    default_code = "overloaded"
    retryable = True
    elsewhere = True


class Unavailable(RunnerError):
    """Every target failed, or none is healthy."""

    status = 503
    type = "unavailable_error"
    default_code = "unavailable"
    retryable = True
    elsewhere = True


class UpstreamError(RunnerError):
    """A remote provider (or a local runner's HTTP) failed. `upstream_status` is its status."""

    status = 502
    type = "upstream_error"
    retryable = True
    elsewhere = True
    upstream_status: int | None = None


class ConnectFailed(UpstreamError):
    """No connection could be made."""

    default_code = "connect_failed"


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for too long."""

    status = 504
    default_code = "upstream_timeout"


class BadResponse(UpstreamError):
    """The upstream answered something that is not its own protocol."""

    default_code = "bad_response"


class StreamBroken(UpstreamError):
    """A stream ended without its terminal event."""

    default_code = "stream_broken"


class UpstreamRefused(UpstreamError):
    """The upstream refused our key, account, region or model name."""

    default_code = "upstream_refused"
    retryable = False


class RateLimited(UpstreamError):
    """The upstream's limit is reached; `retry_after` if it said so."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class EngineError(RunnerError):
    """A local engine failed."""

    status = 500
    type = "engine_error"
    elsewhere = True


class ModelFileError(EngineError):
    """A model file is missing, truncated or not what it claims to be."""

    default_code = "model_file_error"


class LoadFailed(EngineError):
    """The engine would not load the model; the message carries the engine's reason."""

    default_code = "load_failed"


class RunnerCrashed(EngineError):
    """The runner process died while it worked."""

    status = 502
    default_code = "runner_crashed"
    retryable = True


class ConfigError(RunnerError):
    """The configuration cannot be used."""

    type = "config_error"
    default_code = "config_error"
