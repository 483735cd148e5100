"""Bedrock's Converse API as an upstream speaks it: frames, bodies, errors; keys and signatures."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from botocore.credentials import Credentials
from openai import AsyncOpenAI

from llm_runner_router.config import Secret, Server
from llm_runner_router.deltas import Answer, Collector
from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ConfigError,
    ContextTooLong,
    DeadlineExceeded,
    RateLimited,
    RunnerError,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.eventstream import FrameSplitter, write
from llm_runner_router.providers import sigv4
from llm_runner_router.providers.dialects.bedrock import BedrockEvents, parse_body
from llm_runner_router.providers.hosts import find
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.reader import StreamReader
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.types import (
    Delta,
    Message,
    Request,
    Sampling,
    TokenizeRequest,
    Usage,
)

from .asking import KEY as PROVIDER_KEY
from .asking import a_call, ask, broken, target_for
from .bedrock_upstream import (
    CALLS,
    END,
    MODEL,
    SIGNATURE,
    Bedrock,
    body,
    delta,
    error,
    exception,
    frame,
    signed,
)
from .upstream import Seen

HOST = find("bedrock")
ASK = Request("m", (Message("user", "hi"),), stream=True)
WHOLE = msgspec.structs.replace(ASK, stream=False)
COUNTED = Usage(15, 9, cached_tokens=7, cache_write_tokens=3)
KEYS = Credentials("AKIDEXAMPLE", "canary/secret+key", "canary/session+token=")


class Plain:
    """`target_for` puts a version into the URL, which Bedrock has not."""

    def __init__(self, upstream: Any) -> None:
        self.upstream = upstream

    async def __call__(self, seen: Seen) -> None:
        seen.target = seen.target.removeprefix("/v1")
        await self.upstream(seen)


def at(upstream: Any, **facts: Any) -> Any:
    """A target that asks `upstream`."""
    return target_for(Plain(upstream), host=HOST, model=MODEL, **facts)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("asked", [ASK, WHOLE])
async def test_an_answer_over_the_wire(asked: Request) -> None:
    upstream = Bedrock()
    async with at(upstream) as (target, server):
        answer = await ask(target, asked)
        assert server.seen[0].headers["authorization"] == f"Bearer {PROVIDER_KEY}"
    choice = answer.choices[0]
    assert (choice.text, choice.reasoning) == ("Let me see. 日本", "hm")
    assert choice.signature == SIGNATURE
    calls = [(call.id, call.name, json.loads(call.arguments or "{}")) for call in choice.tool_calls]
    assert calls == [("t1", "add", {"a": 1}), ("t2", "sub", {})]
    assert choice.finish == "tool_calls"
    assert answer.usage == COUNTED
    assert upstream.asked == [{"messages": [{"role": "user", "content": [{"text": "hi"}]}]}]


def read(data: bytes) -> tuple[Answer, RunnerError | None]:
    """What a reader makes of a stream that ends after `data`."""
    reader = StreamReader(BedrockEvents(), FrameSplitter(), 1, lambda payload: payload)
    collector = Collector()
    for one in reader.feed(data) + reader.end():
        collector.add(one)
    return collector.answer(), reader.failure


BYTES = b"".join(CALLS)


def test_a_stream_cut_at_any_byte_is_never_a_success() -> None:
    expected, failure = read(BYTES)
    assert failure is None
    stopped = len(BYTES) - len(END[-1])
    for length in range(len(BYTES)):
        answer, failure = read(BYTES[:length])
        if length == stopped:  # all is said but the account
            assert failure is None
            assert answer.choices == expected.choices
        else:
            assert isinstance(failure, StreamBroken), length


def test_a_stream_with_a_flipped_bit_is_never_a_success() -> None:
    for place in range(len(BYTES)):
        damaged = bytearray(BYTES)
        damaged[place] ^= 1 << place % 8
        _, failure = read(bytes(damaged))
        assert isinstance(failure, BadResponse | StreamBroken), place


def test_a_stream_cut_into_any_chunks_is_the_same() -> None:
    expected, _ = read(BYTES)
    for size in (1, 2, 3, 7, 64):
        reader = StreamReader(BedrockEvents(), FrameSplitter(), 1, lambda payload: payload)
        collector = Collector()
        for start in range(0, len(BYTES), size):
            for one in reader.feed(BYTES[start : start + size]):
                collector.add(one)
        assert reader.end() == []
        assert reader.failure is None
        assert collector.answer() == expected


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_tool_use", "error"),
        ("a_new_one", "stop"),
    ],
)
def test_reasons_to_stop(reason: str, finish: str) -> None:
    told = json.dumps(body({"text": "x"}, stop=reason)).encode()
    assert parse_body(told)[-1].finish == finish
    (one,) = BedrockEvents().feed(frame("messageStop", stopReason=reason))
    assert one.finish == finish


async def test_the_sequence_that_stopped_it() -> None:
    more = {"stop_sequence": "END"}
    upstream = Bedrock(
        delta(0, text="x"),
        frame("messageStop", stopReason="stop_sequence", additionalModelResponseFields=more),
        END[-1],
        whole=body({"text": "x"}, stop="stop_sequence", additionalModelResponseFields=more),
    )
    stops = Sampling(stop=("END", " "))
    async with at(upstream) as (target, _):
        for asked in (ASK, WHOLE):
            answer = await ask(target, msgspec.structs.replace(asked, sampling=stops))
            assert answer.choices[0].stopped_by == "END"
    assert upstream.asked[0]["additionalModelResponseFieldPaths"] == ["/stop_sequence"]
    assert upstream.asked[0]["inferenceConfig"] == {"stopSequences": ["END"]}


def test_what_the_service_does_itself_is_not_the_clients_to_do() -> None:
    events = BedrockEvents()
    use = {"toolUseId": "s1", "name": "search", "type": "server_tool_use"}
    frames = (
        frame("contentBlockStart", contentBlockIndex=0, start={"toolUse": use}),
        delta(0, toolUse={"input": "{}"}),
        frame("contentBlockStart", contentBlockIndex=1, start={"toolResult": {"toolUseId": "s1"}}),
        delta(1, toolResult=[{"text": "found"}]),
        frame("somethingNew", a=1),
    )
    for one in frames:
        (found,) = events.feed(one)
        assert found.wire is not None
        assert msgspec.structs.replace(found, wire=None) == Delta()
    told = body({"toolUse": {**use, "input": {}}}, {"text": "found"})
    assert parse_body(json.dumps(told).encode())[-1].finish == "stop"


def test_thoughts_that_nobody_can_read_and_sources() -> None:
    cited = {"content": [{"text": "so"}], "citations": [{"title": "t"}]}
    told = body({"reasoningContent": {"redactedContent": "aGlk"}}, {"citationsContent": cited})
    _, hidden, words, _ = parse_body(json.dumps(told).encode())
    assert hidden.redacted == "aGlk"
    assert (words.text, [bytes(c) for c in words.citations]) == ("so", [b'{"title": "t"}'])
    events = BedrockEvents()
    (hidden,) = events.feed(delta(0, reasoningContent={"redactedContent": "aGlk"}))
    (source,) = events.feed(delta(1, citation={"title": "t"}))
    assert (hidden.redacted, len(source.citations)) == ("aGlk", 1)


@pytest.mark.parametrize(
    "told", [b"", b"{", b"[]", b"{}", b'{"output":{}}', b'{"output":{"message":{}}}', b"[" * 100000]
)
def test_what_is_no_answer(told: bytes) -> None:
    with pytest.raises(BadResponse):
        parse_body(told)


def test_events_that_are_none() -> None:
    for told in (frame("messageStop"), frame("contentBlockStart", contentBlockIndex=-1, start={})):
        with pytest.raises(BadResponse):
            BedrockEvents().feed(told)
    with pytest.raises(BadResponse):
        BedrockEvents().feed(write({":event-type": "messageStart"}, b"{"))


async def test_tokens_of_a_prompt() -> None:
    upstream = Bedrock(whole={"inputTokens": 12})
    async with at(upstream) as (target, _):
        asked = TokenizeRequest("m", messages=ASK.messages)
        assert await target.count(asked, a_call()) == 12
    assert upstream.asked[0]["input"]["converse"]["messages"][0]["role"] == "user"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "status", "message", "expected"),
    [
        ("ThrottlingException", 429, "Too many requests", RateLimited),
        ("ServiceQuotaExceededException", 400, "Your quota is used", RateLimited),
        ("ValidationException", 400, "messages.0: bad", BadRequest),
        ("ValidationException", 400, "Input is too long for requested model.", ContextTooLong),
        ("ValidationException", 400, "The provided model identifier is invalid.", UpstreamRefused),
        ("AccessDeniedException", 403, "You don't have access", UpstreamRefused),
        ("UnrecognizedClientException", 403, "The security token is invalid", UpstreamRefused),
        ("ResourceNotFoundException", 404, "no such model", UpstreamRefused),
        ("ModelTimeoutException", 408, "too slow", UpstreamTimeout),
        ("ModelErrorException", 424, "it failed", UpstreamError),
        ("ModelNotReadyException", 429, "not ready", UpstreamError),
        ("InternalServerException", 500, "oh", UpstreamError),
        ("ServiceUnavailableException", 503, "busy", UpstreamError),
    ],
)
async def test_refusals(kind: str, status: int, message: str, expected: type[RunnerError]) -> None:
    async with at(error(kind, status, message, b"retry-after: 7\r\n")) as (target, _):
        for asked in (ASK, WHOLE):
            found = await broken(target, asked)
            assert type(found) is expected
            assert message in found.message
            if status in (408, 429) or status >= 500:
                assert found.retry_after == 7


async def test_a_model_that_wants_a_profile() -> None:
    words = "Invocation of model ID x with on-demand throughput isn’t supported. Retry"
    async with at(error("ValidationException", 400, words)) as (target, _):
        found = await broken(target)
    assert isinstance(found, UpstreamRefused)
    assert found.hint is not None
    assert "inference profile" in found.hint


async def test_words_of_awss_front() -> None:
    async def answer(seen: Seen) -> None:
        data = b'{"Message":"Bearer token is not valid"}'
        await seen.head(403, b"content-length: %d\r\n" % len(data))
        await seen.send(data)

    async with at(answer) as (target, _):
        found = await broken(target)
    assert "Bearer token is not valid" in found.message


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("throttlingException", RateLimited),
        ("modelStreamErrorException", UpstreamError),
        ("internalServerException", UpstreamError),
        ("serviceUnavailableException", UpstreamError),
        ("validationException", BadRequest),
    ],
)
async def test_exceptions_within_a_stream(kind: str, expected: type[RunnerError]) -> None:
    upstream = Bedrock(CALLS[0], delta(0, text="half"), exception(kind, "it ends here"))
    async with at(upstream) as (target, _):
        found = await broken(target)
    assert type(found) is expected
    assert "it ends here" in found.message


async def test_an_error_of_the_transport_within_a_stream() -> None:
    told = {":message-type": "error", ":error-code": "internal", ":error-message": "lost it"}
    async with at(Bedrock(CALLS[0], write(told, b""))) as (target, _):
        found = await broken(target)
    assert type(found) is UpstreamError
    assert "lost it" in found.message


# ---------------------------------------------------------------- who asks


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Credentials:
    """Credentials in the environment, where AWS's chain finds them first."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(KEYS.token))
    monkeypatch.setenv("AWS_REGION", "eu-west-3")
    return KEYS


async def test_without_a_key_requests_are_signed(keys: Credentials) -> None:
    upstream = Bedrock()

    async def answer(seen: Seen) -> None:
        signed(seen, keys, "eu-west-3")
        assert seen.headers["x-amz-security-token"] == keys.token
        await Plain(upstream)(seen)

    async with target_for(answer, host=HOST, model=MODEL, api_key=None) as (target, _):
        for asked in (ASK, WHOLE, ASK):
            assert (await ask(target, asked)).text == "Let me see. 日本"


async def test_a_key_needs_no_credentials(keys: Credentials) -> None:
    async with at(Bedrock()) as (target, server):
        await ask(target)
        assert "x-amz-date" not in server.seen[0].headers


async def test_a_refusal_that_repeats_credentials_is_told_without_them(keys: Credentials) -> None:
    words = f"The Canonical String should have been x-amz-security-token:{keys.token} {KEYS}"
    words += f" {keys.access_key} {keys.secret_key}"
    upstream = error("InvalidSignatureException", 403, words)
    async with at(upstream, api_key=None) as (target, _):
        found = await broken(target)
    assert isinstance(found, UpstreamRefused)
    assert "Canonical String" in str(found)
    for secret in (keys.access_key, keys.secret_key, str(keys.token)):
        assert secret not in str(found) + repr(found) + repr(target)


async def test_nobody_to_ask_as(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    async with at(Bedrock(), api_key=None) as (target, server):
        assert isinstance(await broken(target), ConfigError)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found = await broken(target)
        assert isinstance(found, UpstreamRefused)
        assert "no AWS credentials" in found.message
        assert not server.seen


async def test_credentials_that_take_too_long(
    keys: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sigv4, "SECONDS", 0.0)
    signer = sigv4.SigV4("https://bedrock-runtime.us-east-1.amazonaws.com")
    with pytest.raises(UpstreamTimeout):
        await signer.sign("https://x/", b"", None)
    with pytest.raises(DeadlineExceeded):
        await signer.sign("https://x/", b"", 0.0)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigv4, "find_spec", lambda name: None)
    url = "https://bedrock-runtime.us-east-1.amazonaws.com"
    facts: Any = {"name": "b/m", "base_url": url, "model": "m", "host": HOST}
    with pytest.raises(ConfigError) as caught:
        RemoteTarget(client=HttpClient(), **facts)
    assert caught.value.hint is not None
    assert "pip install 'llm-runner-router[bedrock]'" in caught.value.hint
    RemoteTarget(client=HttpClient(), api_key=Secret("a-key"), **facts)


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://bedrock-runtime.us-east-1.amazonaws.com", "us-east-1"),
        ("https://bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://bedrock-runtime.cn-north-1.amazonaws.com.cn/", "cn-north-1"),
        ("https://vpce-0a-1b.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
        ("http://127.0.0.1:8080/bedrock-runtime.us-east-1.", "eu-west-3"),
    ],
)
def test_regions(url: str, region: str, keys: Credentials) -> None:
    assert sigv4.region_of(url) == region


# ---------------------------------------------------------------- clients of another format


async def test_a_client_of_openais_asks_a_model_at_bedrock() -> None:
    tool: Any = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    said: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a":1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "2"},
    ]
    upstream = Bedrock()
    async with at(upstream) as (target, _):
        gateway = FakeGateway({"m": target})
        async with serve(gateway, Server(port=0, drain=0)) as url:
            api = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
            async with api:
                found = await api.chat.completions.create(
                    model="m", messages=said, tools=[tool], tool_choice="required", temperature=1.5
                )
                stream = await api.chat.completions.create(
                    model="m", messages=said, tools=[tool], stream=True
                )
                text = "".join(
                    [
                        chunk.choices[0].delta.content or ""
                        async for chunk in stream
                        if chunk.choices
                    ]
                )
    choice = found.choices[0]
    assert choice.message.content == text == "Let me see. 日本"
    assert [call.id for call in choice.message.tool_calls or ()] == ["t1", "t2"]
    assert choice.finish_reason == "tool_calls"
    assert found.usage is not None
    assert found.usage.prompt_tokens == 15
    use = {"toolUseId": "t1", "name": "add", "input": {"a": 1}}
    result = {"toolUseId": "t1", "content": [{"text": "2"}]}
    assert upstream.asked[0] == {
        "system": [{"text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"text": "1+1?"}]},
            {"role": "assistant", "content": [{"toolUse": use}]},
            {"role": "user", "content": [{"toolResult": result}]},
        ],
        "toolConfig": {
            "tools": [
                {
                    "toolSpec": {
                        "name": "add",
                        "description": "Adds.",
                        "inputSchema": {"json": {"type": "object", "properties": {}}},
                    }
                }
            ],
            "toolChoice": {"any": {}},
        },
        "inferenceConfig": {"temperature": 1.0},
    }
