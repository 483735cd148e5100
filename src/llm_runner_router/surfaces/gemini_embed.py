"""Embeddings in Gemini's API: bytes to `EmbedRequest`, `Embeddings` to bytes. Pure, no sockets.

Knows: `embedContent` and `batchEmbedContents`. Does not know: who embeds, HTTP.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, Unsupported
from llm_runner_router.types import Embeddings, EmbedRequest, Mark

from .codec import check_model
from .gemini_read import Content, read
from .gemini_write import counted

MAX_INPUTS = 2048


class Asked(Struct, frozen=True):
    """A request and how its vectors are to be written."""

    request: EmbedRequest
    many: bool
    titles: bool = False
    """A text came with a title, which no embedder here is told."""


class _One(Struct, frozen=True, rename="camel"):
    content: Content
    task_type: str | None = None
    title: str | None = None
    output_dimensionality: int | None = None


class _All(Struct, frozen=True):
    requests: list[_One]


_one = msgspec.json.Decoder(_One)
_all = msgspec.json.Decoder(_All)


def decode(body: bytes, model: str, *, many: bool) -> Asked:
    """Read a request for one vector, or for `many`.

    Raises:
        BadRequest: malformed, of wrong types, empty, or requests that differ in more than texts.
        Unsupported: something else than text.
    """
    check_model(model)
    if not many:
        one, _ = read(_one, body)
        return _asked([one], [_text(one, "content")], model, many=False)
    asked = read(_all, body)[0].requests
    if not asked:
        raise BadRequest("'requests' is empty", param="requests", code="invalid_value")
    if len(asked) > MAX_INPUTS:
        raise BadRequest(f"'requests' has {len(asked)} items; at most {MAX_INPUTS}",
                         param="requests")  # fmt: skip
    texts = [_text(one, f"requests[{i}].content") for i, one in enumerate(asked)]
    for i, one in enumerate(asked):
        for name in ("task_type", "output_dimensionality"):
            if getattr(one, name) != getattr(asked[0], name):
                theirs = {"task_type": "taskType"}.get(name, "outputDimensionality")
                raise BadRequest(
                    f"'requests[{i}].{theirs}' differs from that of the first; one batch has one",
                    param=f"requests[{i}].{theirs}",
                    hint="send a batch for each",
                )
    return _asked(asked, texts, model, many=True)


def _asked(asked: list[_One], texts: list[str], model: str, *, many: bool) -> Asked:
    first = asked[0]
    size = first.output_dimensionality
    if size is not None and not 1 <= size <= 65536:
        raise BadRequest(
            "'outputDimensionality' must be between 1 and 65536", param="outputDimensionality"
        )
    task = None if first.task_type in (None, "TASK_TYPE_UNSPECIFIED") else first.task_type
    request = EmbedRequest(model, tuple(texts), size, task=task)
    return Asked(request, many, any(one.title for one in asked))


def _text(one: _One, path: str) -> str:
    for k, part in enumerate(one.content.parts):
        if part.text is None:
            raise Unsupported("only texts are embedded here", param=f"{path}.parts[{k}]")
    text = "\n".join(part.text or "" for part in one.content.parts)
    if not text:
        raise BadRequest(f"{path!r} is empty", param=path, code="invalid_value")
    return text


def marked(result: Embeddings, asked: Asked) -> Embeddings:
    """`result`, whose origin tells what was left out of the request."""
    if not asked.titles or result.origin is None:
        return result
    lost = Mark("dropped", "an embedder is told the text alone")
    fidelity = {**result.origin.fidelity, "title": lost}
    origin = msgspec.structs.replace(result.origin, fidelity=fidelity)
    return msgspec.structs.replace(result, origin=origin)


def encode(result: Embeddings, asked: Asked) -> bytes:
    """`{"embedding": {"values": […]}}`, or the list of many."""
    vectors = [{"values": vector} for vector in result.vectors]
    found: dict[str, object] = {"embeddings": vectors} if asked.many else {"embedding": vectors[0]}
    told = {"promptTokenCount": counted(result.usage)["promptTokenCount"]}
    return msgspec.json.encode({**found, "usageMetadata": told})
