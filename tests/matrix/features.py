"""What may be asked beside plain text, and whether it arrived: one probe per feature.

A probe asks one thing and looks at both ends. Three outcomes are right: it arrived, it was noted
(translated, emulated, dropped), or it was refused. What is lost in silence is a defect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from llm_runner_router.errors import BadRequest, RunnerError, Unsupported
from llm_runner_router.types import (
    AudioPart,
    Delta,
    FileData,
    FilePart,
    ImagePart,
    ImageURL,
    InputAudio,
    Mark,
    Message,
    Part,
    Reasoning,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
    Usage,
)

from .pairs import MODEL, Seen, pair

State = Literal["yes", "translated", "emulated", "dropped", "refused", "unsaid", "lost"]
"""`unsaid`: the client's dialect has no word for it."""
HI = (Message("user", "hi"),)
ADD = Tool("add", "Adds.", Raw(b'{"type":"object","properties":{}}'))
PICTURE = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
LOGPROBS = Raw(
    b'{"content":[{"token":"Hi","logprob":-0.5,"bytes":[72,105],"top_logprobs":'
    b'[{"token":"Hi","logprob":-0.5,"bytes":[72,105]}]}]}'
)
TALKS = (
    Delta(role="assistant", text="Hi"),
    Delta(finish="stop", usage=Usage(9, 4)),
)


class Probe(Struct, frozen=True):
    """One feature."""

    request: Request
    arrived: Callable[[Seen], bool]
    script: tuple[Delta, ...] = TALKS
    untold: dict[str, str] = {}
    """Dialects whose answers do not say all of it, and what they leave out."""


class Outcome(Struct, frozen=True):
    """What became of a feature on one way."""

    state: State
    why: str = ""


def asked(**fields: Any) -> Request:
    """A request; with a limit, which one of the dialects wants in any case."""
    limit = Sampling(max_tokens=64)
    return Request(MODEL, **{"messages": HI, "include_usage": True, "sampling": limit, **fields})


def drawn(**fields: Any) -> Probe:
    """A parameter of the sampler."""
    request = asked(sampling=Sampling(**{"max_tokens": 64, **fields}))

    def arrived(seen: Seen) -> bool:
        return all(getattr(seen.asked.sampling, name) == value for name, value in fields.items())

    return Probe(request, arrived)


def shown(part: Part, same: Callable[[Any], bool]) -> Probe:
    """Something in a message."""

    def arrived(seen: Seen) -> bool:
        found = seen.asked.messages[0].content
        parts = found if isinstance(found, tuple) else ()
        return any(type(one) is type(part) and same(one) for one in parts)

    return Probe(asked(messages=(Message("user", (TextPart("Look."), part)),)), arrived)


def told(script: tuple[Delta, ...], arrived: Callable[[Seen], bool], **fields: Any) -> Probe:
    """Something in an answer."""
    return Probe(asked(**fields), arrived, script)


def _thought(seen: Seen) -> bool:
    # Whoever was not asked to show them does not.
    wanted = seen.asked.reasoning is not None and seen.asked.reasoning.shown is not False
    return seen.answer.choices[0].reasoning == ("Hm." if wanted else "")


def _spent(seen: Seen) -> bool:
    return seen.answer.usage == Usage(9, 8, cached_tokens=4, reasoning_tokens=3)


PROBES: dict[str, Probe] = {
    "temperature": drawn(temperature=0.5),
    "top_p": drawn(top_p=0.9),
    "top_k": drawn(top_k=40),
    "limit": drawn(max_tokens=64),
    "stop sequences": drawn(stop=("END", "STOP")),
    "seed": drawn(seed=7),
    "presence penalty": drawn(presence_penalty=0.5),
    "frequency penalty": drawn(frequency_penalty=0.5),
    "log-probabilities": told(
        (msgspec.structs.replace(TALKS[0], logprobs=LOGPROBS), TALKS[1]),
        lambda seen: seen.asked.sampling.logprobs and bool(seen.answer.choices[0].logprobs),
        sampling=Sampling(max_tokens=64, logprobs=True),
    ),
    "likely other tokens": drawn(logprobs=True, top_logprobs=1),
    "several choices": told(
        (*TALKS, Delta(index=1, text="Hey"), Delta(index=1, finish="stop", usage=Usage(9, 8))),
        lambda seen: len(seen.answer.choices) == 2,
        sampling=Sampling(max_tokens=64, n=2),
    ),
    "tools": Probe(asked(tools=(ADD,)), lambda seen: seen.asked.tools[0].name == "add"),
    "one call at a time": Probe(
        asked(tools=(ADD,), tool_choice="auto", parallel_tool_calls=False),
        lambda seen: seen.asked.parallel_tool_calls is False,
    ),
    "JSON": Probe(
        asked(response_format=ResponseFormat("json_object")),
        lambda seen: getattr(seen.asked.response_format, "type", "") == "json_object",
    ),
    "JSON schema": Probe(
        asked(
            response_format=ResponseFormat(
                "json_schema", Raw(b'{"type":"object","properties":{}}'), "answer", True
            )
        ),
        lambda seen: getattr(seen.asked.response_format, "type", "") == "json_schema",
    ),
    "pictures": shown(ImagePart(ImageURL(PICTURE)), lambda part: part.image_url.url == PICTURE),
    "documents": shown(FilePart(FileData(PDF)), lambda part: part.file.file_data == PDF),
    "sound": shown(
        AudioPart(InputAudio("UklGRg==", "wav")), lambda part: part.input_audio.data == "UklGRg=="
    ),
    "how much to think": Probe(
        asked(reasoning=Reasoning("high")),
        lambda seen: getattr(seen.asked.reasoning, "effort", None) == "high",
    ),
    "tokens to think": Probe(
        asked(reasoning=Reasoning(budget=2048), sampling=Sampling(max_tokens=4096)),
        lambda seen: getattr(seen.asked.reasoning, "budget", None) == 2048,
    ),
    "thoughts": told(
        (Delta(role="assistant", reasoning="Hm."), *TALKS),
        _thought,
        reasoning=Reasoning("high", shown=True),
    ),
    "kinds of tokens": Probe(
        asked(),
        _spent,
        (TALKS[0], Delta(finish="stop", usage=Usage(9, 8, cached_tokens=4, reasoning_tokens=3))),
        untold={
            "Cohere": "Cohere's dialect counts cached tokens, but not those of thoughts",
            "Bedrock": "Bedrock's dialect counts cached tokens, but not those of thoughts",
        },
    ),
    "service tier": Probe(
        asked(service_tier="flex"), lambda seen: seen.asked.service_tier == "flex"
    ),
    "end user": Probe(asked(user="u-1"), lambda seen: seen.asked.user == "u-1"),
    "cache marks": shown(
        TextPart("Mark.", {"type": "ephemeral"}),
        lambda part: part.cache_control == {"type": "ephemeral"},
    ),
}


async def probe(feature: str, way_in: str, way_out: str) -> Outcome:
    """What becomes of `feature` for a client of `way_in` with an upstream of `way_out`."""
    tried = PROBES[feature]
    for dialect in (way_in, way_out):
        if dialect in tried.untold:
            return Outcome("unsaid", tried.untold[dialect])
    async with pair(way_in, way_out, tried.script) as through:
        try:
            seen = await through.ask(tried.request)
        except (Unsupported, BadRequest) as exc:
            mine = through.middle.asked is None
            return Outcome("unsaid" if mine else "refused", "" if mine else exc.message)
        except RunnerError as exc:
            return Outcome("refused", f"{type(exc).__name__}: {exc.message}")
    origin = seen.answer.origin
    said = origin.fidelity if origin is not None else {}
    if any(mark.fate == "dropped" for mark in said.values()):
        return Outcome("unsaid")
    if seen.marks:
        return _noted(seen.marks)
    if tried.arrived(seen):
        return Outcome("yes")
    # Said by the client in other words, which then arrived as such.
    return Outcome("unsaid") if said else Outcome("lost", f"{seen.asked}\n{seen.answer}")


def _noted(marks: dict[str, Mark]) -> Outcome:
    order: tuple[Literal["dropped", "emulated", "translated"], ...]
    order = ("dropped", "emulated", "translated")
    for fate in order:
        hows = [mark.how for mark in marks.values() if mark.fate == fate]
        if hows:
            return Outcome(fate, hows[0])
    raise AssertionError("a mark has one of three fates")
