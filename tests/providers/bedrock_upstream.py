"""Bedrock's Converse API for tests, strict about what it receives.

What may be in a request is read from AWS's own description of the service, which is part of
`botocore`: a field that is not there, a value of another type, out of its range, not of its pattern
fails the test. `Bedrock` answers with what it is told to.
"""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from typing import Any
from urllib.parse import unquote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.loaders import Loader
from botocore.model import ServiceModel

from llm_runner_router.eventstream import MEDIA_TYPE, write

from .upstream import CHUNKED, Seen, reply

MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
SIGNATURE = "c2lnbmVk"
STREAM = b"content-type: %b\r\n" % MEDIA_TYPE.encode()


@cache
def service() -> ServiceModel:
    """The description of `bedrock-runtime`."""
    told = Loader().load_service_model("bedrock-runtime", "service-2")
    return ServiceModel(told, "bedrock-runtime")


def check(value: Any, shape: Any, path: str) -> None:
    """`value` is what `shape` allows."""
    kind = shape.type_name
    if kind == "structure":
        _structure(value, shape, path)
    elif kind == "list":
        assert isinstance(value, list), path
        _size(len(value), shape, path)
        for i, item in enumerate(value):
            check(item, shape.member, f"{path}[{i}]")
    elif kind == "map":
        assert isinstance(value, dict), path
        for key, item in value.items():
            check(key, shape.key, f"{path}.{key}")
            check(item, shape.value, f"{path}.{key}")
    elif kind == "boolean":
        assert isinstance(value, bool), path
    elif kind in ("integer", "long"):
        assert type(value) is int, path
        _size(value, shape, path)
    elif kind in ("float", "double"):
        assert type(value) in (int, float), path
        _size(value, shape, path)
    elif kind == "blob":
        assert base64.b64decode(value, validate=True), path
    else:
        assert kind == "string", kind
        _text(value, shape, path)


def _structure(value: Any, shape: Any, path: str) -> None:
    assert isinstance(value, dict), f"{path} is no object"
    if getattr(shape, "is_document_type", False):
        return
    unknown = value.keys() - shape.members.keys()
    assert not unknown, f"{path} has {unknown}"
    missing = set(shape.required_members) - value.keys()
    assert not missing, f"{path} lacks {missing}"
    if getattr(shape, "is_tagged_union", False):
        assert len(value) == 1, f"{path} is not one of its kinds: {value.keys()}"
    for name, inner in value.items():
        check(inner, shape.members[name], f"{path}.{name}")


def _size(size: float, shape: Any, path: str) -> None:
    rules = shape.metadata
    assert rules.get("min", size) <= size <= rules.get("max", size), f"{path} is {size}"


def _text(value: Any, shape: Any, path: str) -> None:
    assert isinstance(value, str), f"{path} is no text"
    _size(len(value), shape, path)
    if shape.enum:
        assert value in shape.enum, f"{path} is {value!r}"
    pattern = shape.metadata.get("pattern")
    assert pattern is None or re.fullmatch(pattern, value), f"{path} is {value!r}"


def checked(body: bytes, operation: str = "Converse") -> Any:
    """`body` as the service reads it."""
    asked = json.loads(body)
    shape = service().operation_model(operation).input_shape
    check({"modelId": MODEL, **asked}, shape, "body")
    if operation == "CountTokens":
        return asked
    sides = [turn["role"] for turn in asked["messages"]]
    assert sides == (["user", "assistant"] * len(sides))[: len(sides)], "turns change sides"
    blocks = [block for turn in asked["messages"] for block in turn["content"]]
    assert all(block["text"].strip() for block in blocks if "text" in block), "a blank text"
    if any(block.keys() & {"toolUse", "toolResult"} for block in blocks):
        assert "toolConfig" in asked, "calls without the tools"
    return asked


def frame(kind: str, **payload: Any) -> bytes:
    """An event."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return write(headers, json.dumps(payload, ensure_ascii=False).encode())


def exception(kind: str, message: str) -> bytes:
    """An exception within a stream."""
    headers = {":exception-type": kind, ":content-type": "application/json"}
    return write(
        {**headers, ":message-type": "exception"}, json.dumps({"message": message}).encode()
    )


def delta(index: int, **piece: Any) -> bytes:
    """A piece of a block."""
    return frame("contentBlockDelta", contentBlockIndex=index, delta=piece, p="abcd")


USAGE = {
    "inputTokens": 5,
    "outputTokens": 9,
    "totalTokens": 24,
    "cacheReadInputTokens": 7,
    "cacheWriteInputTokens": 3,
}
END = (
    frame("messageStop", stopReason="tool_use"),
    frame("metadata", usage=USAGE, metrics={"latencyMs": 12}),
)
CALLS = (
    frame("messageStart", role="assistant"),
    delta(0, reasoningContent={"text": "hm"}),
    delta(0, reasoningContent={"signature": SIGNATURE}),
    frame("contentBlockStop", contentBlockIndex=0),
    delta(1, text="Let me see. "),
    delta(1, text="日本"),
    frame("contentBlockStop", contentBlockIndex=1),
    frame(
        "contentBlockStart",
        contentBlockIndex=2,
        start={"toolUse": {"toolUseId": "t1", "name": "add"}},
    ),
    delta(2, toolUse={"input": '{"a":'}),
    delta(2, toolUse={"input": " 1}"}),
    frame("contentBlockStop", contentBlockIndex=2),
    frame(
        "contentBlockStart",
        contentBlockIndex=3,
        start={"toolUse": {"toolUseId": "t2", "name": "sub"}},
    ),
    frame("contentBlockStop", contentBlockIndex=3),
    *END,
)
"""A stream with thoughts, text and two calls."""


def body(*blocks: Any, stop: str = "end_turn", usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    """A whole answer."""
    return {
        "metrics": {"latencyMs": 12},
        "output": {"message": {"role": "assistant", "content": list(blocks)}},
        "stopReason": stop,
        "usage": usage,
        **more,
    }


WHOLE = body(
    {"reasoningContent": {"reasoningText": {"text": "hm", "signature": SIGNATURE}}},
    {"text": "Let me see. 日本"},
    {"toolUse": {"toolUseId": "t1", "name": "add", "input": {"a": 1}}},
    {"toolUse": {"toolUseId": "t2", "name": "sub", "input": {}}},
    stop="tool_use",
)


class Bedrock:
    """Answers streams with `frames` and the rest with `whole`; notes what it was asked."""

    def __init__(self, *frames: bytes, whole: Any = WHOLE, model: str = MODEL) -> None:
        self.frames = frames or CALLS
        self.whole = whole
        self.model = model
        self.asked: list[Any] = []

    async def __call__(self, seen: Seen) -> None:
        _, _, model, verb = seen.target.split("/")
        assert unquote(model) == self.model
        assert seen.method == "POST"
        assert seen.headers["content-type"] == "application/json"
        operation = {
            "converse": "Converse",
            "converse-stream": "ConverseStream",
            "count-tokens": "CountTokens",
        }[verb]
        self.asked.append(checked(seen.body, operation))
        if verb != "converse-stream":
            await reply(200, json.dumps(self.whole).encode())(seen)
            return
        assert seen.headers["accept"] == MEDIA_TYPE
        await seen.head(headers=CHUNKED + STREAM)
        for one in self.frames:
            await seen.chunk(one)
        await seen.end()


def error(kind: str, status: int, message: str, more: bytes = b"") -> Any:
    """A refusal, as AWS words it."""
    headers = (
        b"content-type: application/json\r\nx-amzn-errortype: %b:http://x/\r\n" % kind.encode()
    )
    return reply(status, json.dumps({"message": message}).encode(), headers + more)


def signed(seen: Seen, keys: Credentials, region: str) -> None:
    """The signature of what was sent is the one that AWS's own signer makes of it."""
    told = seen.headers["authorization"]
    found = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=([0-9a-f]{64})", told
    )
    assert found is not None, told
    date = seen.headers["x-amz-date"]
    assert found[1] == f"{keys.access_key}/{date[:8]}/{region}/bedrock/aws4_request"
    names = found[2].split(";")
    assert {"host", "x-amz-date", "content-type"} <= set(names)
    url = f"http://{seen.headers['host']}{seen.target}"
    headers = {name: seen.headers[name] for name in names}
    request = AWSRequest("POST", url, headers, seen.body)
    request.context["timestamp"] = date
    signer = SigV4Auth(keys, "bedrock", region)
    text = signer.string_to_sign(request, signer.canonical_request(request))
    assert signer.signature(text, request) == found[3]
