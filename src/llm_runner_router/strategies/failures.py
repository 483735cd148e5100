"""One error out of many: what to say when every target failed.

Knows: the error tree. Does not know: targets or requests. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_runner_router.errors import RunnerError, Unavailable


def combined(name: str, failures: Sequence[RunnerError]) -> RunnerError:
    """The error to raise for `failures` (at least one) of the strategy `name`.

    1. One failure speaks for itself.
    2. All of one class, or none that asking again would help: the class of the first, since that
       is what the caller must act on (429 stays 429, a context too long for all stays 400).
    3. Otherwise `Unavailable`.

    In 2 and 3 the message names every target with its reason, `retry_after` is the shortest that
    was told, and the cause is an `ExceptionGroup` of them all.
    """
    first = failures[0]
    if len(failures) == 1:
        return first  # 1
    same = len({type(failure) for failure in failures}) == 1
    message = f"every target of {name!r} failed: " + "; ".join(
        f"{failure.target or '?'}: {failure.message}" for failure in failures
    )
    hint = next((failure.hint for failure in failures if failure.hint), None)
    waits = [f.retry_after for f in failures if f.retry_after is not None]
    wait = min(waits, default=None)
    if same or not any(failure.retryable for failure in failures):
        kind, code = type(first), first.code  # 2
    else:
        kind, code = Unavailable, None  # 3
    error = kind(message, hint=hint, target=name, code=code, retry_after=wait, param=first.param)
    error.__cause__ = ExceptionGroup(name, list(failures))
    return error
