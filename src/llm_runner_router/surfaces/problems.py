"""The errors that only HTTP can have, as leaves of the one error tree.

RunnerError                       status  type
├─ BadRequest
│  ├─ UnsupportedMedia            415     invalid_request_error
│  ├─ HeadersTooLarge             431     invalid_request_error
│  └─ BodyTimeout                 408     timeout_error
└─ NotFound
   └─ MethodNotAllowed            405     invalid_request_error
"""

from __future__ import annotations

from llm_runner_router.errors import BadRequest, NotFound


class UnsupportedMedia(BadRequest):
    """The body cannot be read, and its content type says that it is not JSON."""

    status = 415
    default_code = "unsupported_media_type"


class HeadersTooLarge(BadRequest):
    """The request's headers are over the limit."""

    status = 431
    default_code = "headers_too_large"


class BodyTimeout(BadRequest):
    """The body did not arrive in time."""

    status = 408
    type = "timeout_error"
    default_code = "body_timeout"


class MethodNotAllowed(NotFound):
    """The route exists, for another method."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.allow = allow
