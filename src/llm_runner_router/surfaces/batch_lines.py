"""The lines of a batch: what clients put in, what they find in the end. No sockets.

Knows: OpenAI's form of both. Does not know: who answers, where files are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.policy.batches import Problem

MAX_PROBLEMS = 100
"""Problems that are told of one file."""
MAX_ID = 512
"""Characters of a `custom_id`."""


class Line(Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    method: Literal["POST"]
    url: str
    body: Raw


class Place(Struct, frozen=True):
    """Where a line stands in its file."""

    custom_id: str
    start: int
    size: int


class Checked(Struct, frozen=True):
    """What a look through a whole file found."""

    places: list[Place]
    problems: tuple[Problem, ...]


_line = msgspec.json.Decoder(Line)
_object = msgspec.json.Decoder(dict[str, Raw])


def check(
    path: Path, endpoint: str, *, most: int, longest: int, wanted: Callable[[], bool]
) -> Checked:
    """Look through a file of requests for `endpoint`.

    Args:
        most: lines it may have.
        longest: bytes of one.
        wanted: whether to go on.
    """
    places: list[Place] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    start = number = 0
    with path.open("rb") as file:
        while wanted() and len(problems) < MAX_PROBLEMS:
            raw = file.readline(longest + 2)
            if not raw:
                break
            number += 1
            if raw.strip():
                found = _checked(raw, number, endpoint, longest, seen)
                if isinstance(found, Problem):
                    problems.append(found)
                else:
                    places.append(Place(found.custom_id, start, len(raw)))
            start += len(raw)
            if len(places) > most:
                message = f"the file has over {most} requests (`batches.max_lines`)"
                problems.append(Problem("too_many_tasks", message))
                break
            if len(raw) > longest and not raw.endswith(b"\n"):
                break  # what follows is the middle of a line
    if not places and not problems:
        problems.append(Problem("empty_file", "the file has no requests"))
    return Checked(places, tuple(problems))


def _checked(
    raw: bytes, number: int, endpoint: str, longest: int, seen: set[str]
) -> Line | Problem:
    if len(raw.rstrip(b"\r\n")) > longest:
        return Problem("line_too_long", f"the line is over {longest} bytes", line=number)
    try:
        line = _line.decode(raw)
        _object.decode(line.body)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as exc:
        return Problem("invalid_request", f"the line is no request: {exc}", line=number)
    except msgspec.DecodeError as exc:
        return Problem("invalid_json_line", f"the line is not JSON: {exc}", line=number)
    if not 0 < len(line.custom_id) <= MAX_ID:
        message = f"'custom_id' must have 1 to {MAX_ID} characters"
        return Problem("invalid_custom_id", message, "custom_id", number)
    if line.custom_id in seen:
        message = f"the custom_id {line.custom_id!r} was there before"
        return Problem("duplicate_custom_id", message, "custom_id", number)
    if line.url != endpoint:
        message = f"'url' must be {endpoint!r} as the batch says, not {line.url[:100]!r}"
        return Problem("mismatched_endpoint", message, "url", number)
    seen.add(line.custom_id)
    return line


def read(path: Path, place: Place) -> Line:
    """The request at `place`."""
    with path.open("rb") as file:
        file.seek(place.start)
        return _line.decode(file.read(place.size))


def answered(id: str, custom_id: str, request_id: str, status: int, body: bytes) -> bytes:
    """What is written for a request that got an answer, or an error of its own."""
    response = {"status_code": status, "request_id": request_id, "body": Raw(_on_one_line(body))}
    return _written(id, custom_id, response, None)


def unanswered(id: str, custom_id: str, code: str, message: str) -> bytes:
    """What is written for a request that was not asked."""
    return _written(id, custom_id, None, {"code": code, "message": message})


def _written(id: str, custom_id: str, response: Any, error: Any) -> bytes:
    told = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(told)


def _on_one_line(body: bytes) -> bytes:
    """JSON as it came from an upstream, perhaps over several lines."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body
