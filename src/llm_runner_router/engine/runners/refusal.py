"""A request that a runner will not answer, as llama.cpp's server words it."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """Answered with `status` and an OpenAI error object.

    Args:
        message: one sentence.
        status: the HTTP status.
        type: the error's type, of llama.cpp's or OpenAI's words.
        param: the field at fault.
        facts: further fields of the error object.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.facts = facts or {}

    def body(self) -> dict[str, Any]:
        """The answer's body."""
        error = {"code": self.status, "message": self.message, "type": self.type, **self.facts}
        if self.param is not None:
            error["param"] = self.param
        return {"error": error}


def too_long(prompt: int, context: int, param: str | None = None) -> Refusal:
    """The prompt leaves no room in the context; both in tokens. `param` is the field at fault."""
    return Refusal(
        f"request ({prompt} tokens) exceeds the available context size ({context} tokens)",
        type="exceed_context_size_error",
        param=param,
        facts={"n_prompt_tokens": prompt, "n_ctx": context},
    )


def unsupported(message: str, param: str) -> Refusal:
    """This engine does not do that."""
    return Refusal(message, param=param, type="unsupported_parameter")
