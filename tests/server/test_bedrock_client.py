"""`boto3` against a real server: what users of Converse do and what failures look like."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any, Self

import boto3
import pytest
from botocore.config import Config as Settings
from botocore.exceptions import ClientError, EventStreamError
from tests.providers.bedrock_upstream import CALLS, MODEL, WHOLE, Bedrock, delta
from tests.providers.upstream import Seen, Upstream, event, reply

from llm_runner_router import errors
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Secret, Server
from llm_runner_router.home import find as find_home
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeTarget, deltas_of
from llm_runner_router.types import (
    AudioPart,
    Call,
    Delta,
    FilePart,
    ImagePart,
    InputAudio,
    Message,
    Reasoning,
    RedactedPart,
    Request,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)

HELLO: Any = [{"role": "user", "content": [{"text": "hello"}]}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: Any = {
    "tools": [
        {
            "toolSpec": {
                "name": "weather",
                "description": "Tells it.",
                "inputSchema": {"json": SCHEMA},
            }
        },
        {"cachePoint": {"type": "default"}},
    ],
    "toolChoice": {"any": {}},
}
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 60


def talks(request: Request, call: Call) -> list[Delta]:
    return list(deltas_of("Good morning.", usage=Usage(7, 3, cached_tokens=2)))


def calls(request: Request, call: Call) -> list[Delta]:
    assert request.tools[0].name == "weather"
    return [
        Delta(role="assistant", reasoning="They want "),
        Delta(reasoning="weather.", signature="c2ln"),
        Delta(redacted="openai:gAAA"),
        Delta(text="Let me see."),
        Delta(tool_calls=(ToolCallDelta(0, "c1", "weather", '{"city":'),)),
        Delta(tool_calls=(ToolCallDelta(1, None, "weather"),)),
        Delta(tool_calls=(ToolCallDelta(0, arguments='"Oslo"}'),)),
        Delta(finish="tool_calls", usage=Usage(9, 9)),
    ]


class Client:
    """The calls of `boto3`'s client, each in a thread."""

    def __init__(self, url: str, key: str | None = KEY) -> None:
        self.url = url
        self.api = boto3.client(
            "bedrock-runtime",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="AKIDEXAMPLE",
            aws_secret_access_key="secret",
            aws_session_token=key,
            config=Settings(retries={"total_max_attempts": 1}, read_timeout=20),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.api.close()

    async def converse(self, model: str = "m", messages: Any = HELLO, **more: Any) -> Any:
        def ask() -> Any:
            return self.api.converse(modelId=model, messages=messages, **more)

        return await asyncio.to_thread(ask)

    async def stream(self, model: str = "m", messages: Any = HELLO, **more: Any) -> list[Any]:
        def ask() -> list[Any]:
            answer = self.api.converse_stream(modelId=model, messages=messages, **more)
            with closing(answer["stream"]) as told:
                return list(told)

        return await asyncio.to_thread(ask)

    async def count(self, asked: Any) -> Any:
        def ask() -> Any:
            return self.api.count_tokens(modelId="m", input={"converse": asked})

        return await asyncio.to_thread(ask)


@asynccontextmanager
async def client(
    script: Any = talks, key: str | None = KEY
) -> AsyncIterator[tuple[Client, FakeTarget]]:
    target = FakeTarget("m", script)
    async with serve(FakeGateway({"m": target, "a/b:c": target}), Server(port=0, drain=0)) as url:
        with Client(url, key) as api:
            yield api, target


# ---------------------------------------------------------------- answers


async def test_an_answer_with_parameters() -> None:
    async with client() as (api, target):
        answer = await api.converse(
            system=[{"text": "Be brief."}, {"cachePoint": {"type": "default"}}],
            inferenceConfig={
                "maxTokens": 9,
                "temperature": 0.5,
                "topP": 0.9,
                "stopSequences": ["x"],
            },
            additionalModelRequestFields={"top_k": 7, "min_p": 0.1},
            additionalModelResponseFieldPaths=["/stop_sequence"],
            requestMetadata={"user_id": "u-1"},
            serviceTier={"type": "flex"},
        )
    message = answer["output"]["message"]
    assert message == {"role": "assistant", "content": [{"text": "Good morning."}]}
    assert answer["stopReason"] == "end_turn"
    assert answer["usage"] == {
        "inputTokens": 5,
        "outputTokens": 3,
        "totalTokens": 10,
        "cacheReadInputTokens": 2,
        "cacheWriteInputTokens": 0,
    }
    assert answer["metrics"]["latencyMs"] >= 0
    asked = target.requests[0]
    mark = {"type": "ephemeral"}
    assert asked.messages == (
        Message("system", (TextPart("Be brief.", mark),)),
        Message("user", "hello"),
    )
    draw = asked.sampling
    assert (draw.max_tokens, draw.temperature, draw.top_p, draw.stop, draw.top_k) == (
        9,
        0.5,
        0.9,
        ("x",),
        7,
    )
    assert (asked.user, asked.service_tier) == ("u-1", "flex")
    assert asked.extra.keys() == {"additionalModelRequestFields.min_p"}


async def test_a_stream_with_thoughts_and_calls() -> None:
    async with client(calls) as (api, target):
        told = await api.stream(toolConfig=TOOLS)
        whole = await api.converse(toolConfig=TOOLS)
    assert target.requests[0].tool_choice == "required"
    assert target.requests[0].tools[0].cache_control == {"type": "ephemeral"}
    assert told[0] == {"messageStart": {"role": "assistant"}}
    blocks: dict[int, list[Any]] = {}
    closed = []
    for one in told:
        (kind, inner), *_ = one.items()
        if kind == "contentBlockStop":
            closed.append(inner["contentBlockIndex"])
        elif kind in ("contentBlockStart", "contentBlockDelta"):
            assert inner["contentBlockIndex"] not in closed
            piece = inner.get("start") or inner["delta"]
            blocks.setdefault(inner["contentBlockIndex"], []).append(piece)
    assert sorted(closed) == sorted(blocks) == [0, 1, 2, 3, 4]
    assert blocks[0] == [
        {"reasoningContent": {"text": "They want "}},
        {"reasoningContent": {"text": "weather."}},
        {"reasoningContent": {"signature": "c2ln"}},
    ]
    assert blocks[1] == [{"reasoningContent": {"redactedContent": b"openai:gAAA"}}]
    assert blocks[2] == [{"text": "Let me see."}]
    assert blocks[3][0] == {"toolUse": {"toolUseId": "c1", "name": "weather"}}
    assert "".join(p["toolUse"]["input"] for p in blocks[3][1:]) == '{"city":"Oslo"}'
    (second,) = blocks[4]
    assert second["toolUse"]["toolUseId"].startswith("tooluse_")
    assert told[-2] == {"messageStop": {"stopReason": "tool_use"}}
    assert told[-1]["metadata"]["usage"] == {"inputTokens": 9, "outputTokens": 9, "totalTokens": 18}
    thought, hidden, text, one, two = whole["output"]["message"]["content"]
    assert thought["reasoningContent"]["reasoningText"] == {
        "text": "They want weather.",
        "signature": "c2ln",
    }
    assert hidden == {"reasoningContent": {"redactedContent": b"openai:gAAA"}}
    assert text == {"text": "Let me see."}
    assert one["toolUse"] == {"toolUseId": "c1", "name": "weather", "input": {"city": "Oslo"}}
    assert two["toolUse"]["input"] == {}
    assert whole["stopReason"] == "tool_use"


async def test_what_was_said_comes_back_as_it_was() -> None:
    """The answer above, and results, in the next turn."""
    async with client(calls) as (api, target):
        whole = await api.converse(toolConfig=TOOLS)
        results: Any = [
            {"toolResult": {"toolUseId": "c1", "content": [{"json": {"celsius": 3}}]}},
            {"cachePoint": {"type": "default", "ttl": "1h"}},
            {
                "toolResult": {
                    "toolUseId": "c2",
                    "content": [{"text": "no"}],
                    "status": "error",
                }
            },
            {"text": "And now?"},
        ]
        said = [*HELLO, whole["output"]["message"], {"role": "user", "content": results}]
        await api.converse(messages=said, toolConfig=TOOLS)
    _, spoken, one, two, more = target.requests[1].messages
    assert spoken.content == (
        ThinkingPart("They want weather.", "c2ln"),
        RedactedPart("openai:gAAA"),
        TextPart("Let me see."),
    )
    assert spoken.tool_calls[0] == ToolCall("c1", "weather", '{"city": "Oslo"}')
    mark = {"type": "ephemeral", "ttl": "1h"}
    assert one == Message("tool", '{"celsius": 3}', tool_call_id="c1", cache_control=mark)
    assert two == Message("tool", "no", tool_call_id="c2", is_error=True)
    assert more == Message("user", "And now?")


async def test_pictures_documents_and_sound() -> None:
    content: Any = [
        {"text": "Look."},
        {"image": {"format": "png", "source": {"bytes": PNG}}},
        {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/a.png"}}}},
        {"document": {
            "format": "pdf",
            "name": "paper",
            "source": {"bytes": b"%PDF"},
            "citations": {"enabled": True},
        }},
        {"document": {"format": "txt", "name": "note", "source": {"text": "hé"}}},
        {"audio": {"format": "wav", "source": {"bytes": b"RIFF"}}},
        {"guardContent": {"text": {"text": "guarded"}}},
        {"cachePoint": {"type": "default"}},
    ]  # fmt: skip
    async with client() as (api, target):
        await api.converse(messages=[{"role": "user", "content": content}])
    parts = target.requests[0].messages[0].content
    assert isinstance(parts, tuple)
    _, picture, there, paper, note, sound, guarded = parts
    assert isinstance(picture, ImagePart)
    assert isinstance(there, ImagePart)
    assert picture.image_url.url.startswith("data:image/png;base64,iVBORw0KGgow")
    assert there.image_url.url == "s3://b/a.png"
    assert isinstance(paper, FilePart)
    assert (paper.file.file_data, paper.file.filename, paper.citations) == (
        "data:application/pdf;base64,JVBERg==",
        "paper.pdf",
        True,
    )
    assert isinstance(note, FilePart)
    assert note.file.file_data == "data:text/plain;charset=utf-8,h%C3%A9"
    assert sound == AudioPart(InputAudio("UklGRg==", "wav"))
    assert guarded == TextPart("guarded", {"type": "ephemeral"})


async def test_a_schema_and_how_much_to_think() -> None:
    form = {
        "type": "json_schema",
        "structure": {"jsonSchema": {"schema": json.dumps(SCHEMA), "name": "place"}},
    }
    async with client() as (api, target):
        await api.converse(outputConfig={"textFormat": form, "effort": "low"})
        for told in (
            {"type": "enabled", "budget_tokens": 2048},
            {"type": "disabled"},
            {"type": "adaptive"},
        ):
            await api.converse(additionalModelRequestFields={"thinking": told})
    wanted = target.requests[0].response_format
    assert wanted is not None
    assert (wanted.type, wanted.name) == ("json_schema", "place")
    assert json.loads(bytes(wanted.schema or b"")) == SCHEMA
    assert [one.reasoning for one in target.requests] == [
        Reasoning("low"),
        Reasoning(None, 2048),
        Reasoning("none"),
        Reasoning(None),
    ]


@pytest.mark.parametrize(
    ("finish", "by", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
        ("content_filter", None, "content_filtered"),
        ("error", None, "malformed_model_output"),
    ],
)
async def test_reasons_to_stop(finish: Any, by: str | None, reason: str) -> None:
    async with client([Delta(text="x"), Delta(finish=finish, stopped_by=by)]) as (api, _):
        answer = await api.converse()
        told = await api.stream()
    assert answer["stopReason"] == told[-2]["messageStop"]["stopReason"] == reason
    for one in (answer, told[-2]["messageStop"]):
        assert one.get("additionalModelResponseFields", {}).get("stop_sequence") == by


async def test_names_of_models_may_have_any_characters() -> None:
    async with client() as (api, _):
        answer = await api.converse("a/b:c")
    assert answer["stopReason"] == "end_turn"


async def test_tokens_of_a_prompt() -> None:
    async with client() as (api, _):
        found = await api.count({"messages": HELLO, "system": [{"text": "Be brief."}]})
    assert found["inputTokens"] > 0


# ---------------------------------------------------------------- failures


def fails(exc: Exception) -> Any:
    def script(request: Request, call: Call) -> list[Any]:
        return [exc]

    return script


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (errors.BadRequest("no"), "ValidationException"),
        (errors.RateLimited("slow"), "ThrottlingException"),
        (errors.Overloaded("full"), "ServiceUnavailableException"),
        (errors.UpstreamTimeout("late"), "ModelTimeoutException"),
        (errors.StreamBroken("cut"), "ModelErrorException"),
        (errors.EngineError("oh"), "InternalServerException"),
        (errors.Forbidden("not you"), "AccessDeniedException"),
    ],
)
async def test_errors_have_the_names_of_awss(exc: errors.RunnerError, kind: str) -> None:
    async with client(fails(exc)) as (api, _):
        for ask in (api.converse, api.stream):
            with pytest.raises(ClientError) as caught:
                await ask()
            told = caught.value.response
            assert told["Error"]["Code"] == kind
            assert exc.message in told["Error"]["Message"]
            assert told["ResponseMetadata"]["HTTPStatusCode"] == exc.status
            assert type(caught.value).__name__ == kind, "the service knows it"


async def test_unknown_models_routes_and_wrong_bodies() -> None:
    async with client() as (api, _):
        with pytest.raises(ClientError) as caught:
            await api.converse("mm")
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(lambda: api.api.invoke_model(modelId="m", body=b"{}"))
        assert caught.value.response["Error"]["Code"] == "ResourceNotFoundException"
        assert "invoke" in caught.value.response["Error"]["Message"]
        with pytest.raises(ClientError) as caught:
            await api.converse(messages=[])
        assert caught.value.response["Error"]["Code"] == "ValidationException"
        assert "messages" in caught.value.response["Error"]["Message"]


async def test_a_stream_that_breaks_raises() -> None:
    script = [Delta(text="half"), errors.RateLimited("slow down")]
    async with client(script) as (api, _):
        with pytest.raises(EventStreamError) as caught:
            await api.stream()
    assert caught.value.response["Error"]["Code"] == "throttlingException"
    assert "slow down" in caught.value.response["Error"]["Message"]
    async with client([Delta(text="half")]) as (api, _):
        with pytest.raises(EventStreamError) as caught:
            await api.stream()
    assert caught.value.response["Error"]["Code"] == "modelStreamErrorException"


async def test_a_signature_alone_cannot_be_checked() -> None:
    for key in (None, "a-wrong-key"):
        async with client(key=key) as (api, _):
            with pytest.raises(ClientError) as caught:
                await api.converse()
        told = caught.value.response["Error"]
        assert told["Code"] == "AccessDeniedException"
        assert "signed with AWS credentials" in told["Message"]
        assert "AWS_SESSION_TOKEN" in told["Message"]


@pytest.mark.parametrize("key", [KEY, "a-wrong-key"])
async def test_a_key_of_bedrocks(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's clients send it over https only, which is put in front of this server."""
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", key)
    async with client() as (api, target):

        def unsealed(request: Any, **_: Any) -> None:
            assert request.headers["Authorization"] == f"Bearer {key}".encode()
            assert "X-Amz-Date" not in request.headers
            request.url = request.url.replace("https:", "http:")

        with Client(api.url.replace("http:", "https:"), None) as secure:
            secure.api.meta.events.register("before-send", unsealed)
            if key == KEY:
                assert (await secure.converse())["stopReason"] == "end_turn"
                assert target.requests
                return
            with pytest.raises(ClientError) as caught:
                await secure.converse()
            assert caught.value.response["Error"]["Code"] == "AccessDeniedException"


# ---------------------------------------------------------------- upstreams


@asynccontextmanager
async def before(answer: Any, host: str, base: str, model: str) -> AsyncIterator[Client]:
    async with Upstream(answer) as upstream, HttpClient() as http:
        remote = RemoteTarget(
            name=f"{host}/m",
            base_url=upstream.url + base,
            model=model,
            api_key=Secret("provider-key-7f3a9b2c"),
            client=http,
            host=find(host),
        )
        async with serve(FakeGateway({"m": remote}), Server(port=0, drain=0)) as url:
            with Client(url) as api:
                yield api


async def test_a_model_of_openais() -> None:
    asked: list[Any] = []

    async def answer(seen: Seen) -> None:
        asked.append(seen.json)
        if seen.json.get("stream"):
            await seen.head()
            for text in ("He", "llo"):
                await seen.chunk(event({"choices": [{"index": 0, "delta": {"content": text}}]}))
            end: Any = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
            await seen.chunk(event(end) + event(b"[DONE]"))
            await seen.end()
            return
        message = {"role": "assistant", "content": "Hello"}
        told: Any = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        await reply(200, json.dumps(told).encode())(seen)

    async with before(answer, "openai", "/v1", "gpt-x") as api:
        whole = await api.converse(inferenceConfig={"maxTokens": 5})
        told = await api.stream()
    assert whole["output"]["message"]["content"] == [{"text": "Hello"}]
    pieces = [
        one["contentBlockDelta"]["delta"]["text"] for one in told if "contentBlockDelta" in one
    ]
    assert "".join(pieces) == "Hello"
    assert told[-2]["messageStop"]["stopReason"] == "max_tokens"
    assert asked[0] == {
        "model": "gpt-x",
        "messages": [{"role": "user", "content": "hello"}],
        "max_completion_tokens": 5,
    }


async def test_a_model_at_bedrock_is_passed_on_byte_for_byte() -> None:
    upstream = Bedrock(whole={**WHOLE, "trace": {"promptRouter": {"invokedModelId": "x"}}})
    guard = {"guardrailIdentifier": "abc", "guardrailVersion": "1"}
    async with before(upstream, "bedrock", "", MODEL) as api:
        whole = await api.converse(guardrailConfig=guard, toolConfig=TOOLS)
        told = await api.stream(guardrailConfig=guard, toolConfig=TOOLS)
    assert whole["trace"]["promptRouter"]["invokedModelId"] == "x"
    assert [one["guardrailConfig"] for one in upstream.asked] == [guard, guard]
    assert len(told) == len(CALLS)
    assert told[2] == {
        "contentBlockDelta": {
            "contentBlockIndex": 0,
            "delta": {"reasoningContent": {"signature": "c2lnbmVk"}},
        }
    }


async def test_a_stream_cut_upstream_ends_with_an_exception() -> None:
    async def answer(seen: Seen) -> None:
        await seen.head(headers=b"transfer-encoding: chunked\r\n")
        await seen.chunk(CALLS[0] + delta(0, text="half"))
        seen.close()

    async with before(answer, "bedrock", "", MODEL) as api:
        with pytest.raises(EventStreamError) as caught:
            await api.stream()
    assert caught.value.response["Error"]["Code"] == "modelStreamErrorException"


async def test_a_model_on_this_machine() -> None:
    app = App(Config(engine=Engine(spare=False)))
    key = ensure_key(find_home(os.environ)).secret.reveal()
    await app.start()
    try:
        async with serve(app, Server(port=0)) as url:
            with Client(url, key) as api:
                asked: Any = {"inferenceConfig": {"maxTokens": 8, "temperature": 0}}
                whole = await api.converse("zoo:tiny-chat", **asked)
                told = await api.stream("zoo:tiny-chat", **asked)
                counted = await asyncio.to_thread(
                    lambda: api.api.count_tokens(
                        modelId="zoo:tiny-chat", input={"converse": {"messages": HELLO}}
                    )
                )
    finally:
        await app.close()
    pieces = [
        one["contentBlockDelta"]["delta"]["text"] for one in told if "contentBlockDelta" in one
    ]
    (block,) = whole["output"]["message"]["content"]
    assert "".join(pieces) == block["text"]
    assert (
        whole["usage"]["inputTokens"] + whole["usage"].get("cacheReadInputTokens", 0)
        == (counted["inputTokens"])
    )
    assert whole["stopReason"] == told[-2]["messageStop"]["stopReason"]
