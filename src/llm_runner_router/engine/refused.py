"""Why the scheduler will not serve a request, as an error with the next step. Pure."""

from __future__ import annotations

from llm_runner_router.errors import LoadFailed, Overloaded, RunnerError, Unavailable

from .effects import Refuse

TOO_BIG = "model_too_big"
"""The error's code where a model needs more memory than there is: no fault of its file."""


def refusal(effect: Refuse) -> RunnerError:
    """The error for a refusal, with the next step."""
    match effect.why:
        case "overloaded" | "timeout":
            return Overloaded(
                effect.message,
                hint="try again later, or raise `engine.slots` or `engine.max_queue`",
                retry_after=effect.retry_after,
            )
        case "too_big":
            return LoadFailed(
                effect.message,
                hint="raise `engine.memory`, lower `engine.context` or `engine.slots`, or use a"
                " smaller model",
                code=TOO_BIG,
            )
        case "load_failed":
            template = "chat template" in effect.message
            mend = "`llmrr verify --deep --repair` with its name mends the chat template"
            what = "`llmrr show` tells what the file is"
            return LoadFailed(effect.message, hint=mend if template else what)
        case "parked":
            return Unavailable(
                effect.message,
                hint="see the runner's log; it is tried again by itself",
                retry_after=effect.retry_after,
            )
        case "closing":
            return Unavailable(effect.message)
