"""Errors of hosts become the right errors of ours: class, words, retry time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    ContentFiltered,
    ContextTooLong,
    RateLimited,
    RunnerError,
    TooLarge,
    Unsupported,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from llm_runner_router.providers.dialects.openai_errors import MAX_MESSAGE, parse_error

NOW = 1_700_000_000.0


def parsed(status: int, body: Any, **headers: str) -> RunnerError:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_error(status, found.get, data, now=NOW)


def openai(message: str, code: Any = None, type: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": type, "param": "messages", "code": code}}


CASES: list[tuple[int, Any, type[RunnerError], str]] = [
    # OpenAI
    (400, openai("too long", "context_length_exceeded"), ContextTooLong, "too long"),
    (400, openai("bad value", "invalid_value"), BadRequest, "bad value"),
    (400, openai("no such field", "unsupported_parameter"), Unsupported, "no such field"),
    (400, openai("policy", "content_policy_violation"), ContentFiltered, "policy"),
    (401, openai("Incorrect API key", "invalid_api_key"), UpstreamRefused, "Incorrect API key"),
    (403, openai("not your country"), UpstreamRefused, "not your country"),
    (404, openai("no such model", "model_not_found"), UpstreamRefused, "no such model"),
    (429, openai("slow down", "rate_limit_exceeded"), RateLimited, "slow down"),
    (429, openai("pay", "insufficient_quota", "insufficient_quota"), UpstreamRefused, "pay"),
    (500, openai("oops", None, "server_error"), UpstreamError, "oops"),
    (503, openai("busy", None, "overloaded_error"), UpstreamError, "busy"),
    # Azure
    (
        400,
        {
            "error": {
                "code": "content_filter",
                "message": "filtered",
                "innererror": {"code": "ResponsibleAIPolicyViolation"},
            }
        },
        ContentFiltered,
        "filtered",
    ),
    (404, {"error": {"code": "DeploymentNotFound", "message": "none"}}, UpstreamRefused, "none"),
    (401, {"statusCode": 401, "message": "Access denied"}, UpstreamRefused, "Access denied"),
    # llama-server
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size, try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9000,
                "n_ctx": 4096,
            }
        },
        ContextTooLong,
        "context size",
    ),
    (
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        UpstreamError,
        "Loading model",
    ),
    # vLLM, old and new
    (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        ContextTooLong,
        "4096",
    ),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "not an int"}]}, BadRequest, "body.n: not an"),
    # Mistral
    (
        422,
        {"object": "error", "message": {"detail": [{"loc": ["body"], "msg": "extra"}]}},
        BadRequest,
        "extra",
    ),
    (401, {"detail": "Unauthorized"}, UpstreamRefused, "Unauthorized"),
    # Google, xAI, Groq, OpenRouter, Ollama
    (
        400,
        [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
        UpstreamRefused,
        "API key not valid",
    ),
    (400, {"code": "x", "error": "Incorrect API key provided"}, UpstreamRefused, "Incorrect API"),
    (413, openai("Request too large", "rate_limit_exceeded"), RateLimited, "too large"),
    (413, b"payload", TooLarge, "payload"),
    (402, {"error": {"message": "credits", "code": 402}}, UpstreamRefused, "credits"),
    (404, {"error": "model 'x' not found"}, UpstreamRefused, "model 'x' not found"),
    # no JSON at all
    (502, b"<html><head><title>502 Bad Gateway</title></head></html>", UpstreamError, "502 Bad"),
    (503, b"no healthy upstream", UpstreamError, "no healthy upstream"),
    (500, b"", UpstreamError, "500"),
    (500, b"\xff\xfe\x00", UpstreamError, "500|�"),
    (504, b"", UpstreamTimeout, "504"),
    (408, b"", UpstreamTimeout, "408"),
    (302, b"moved", UpstreamRefused, "redirected"),
    (204, b"", BadResponse, "204"),
    (418, b"teapot", UpstreamRefused, "teapot"),
]


@pytest.mark.parametrize(("status", "body", "kind", "words"), CASES)
def test_errors(status: int, body: Any, kind: type[RunnerError], words: str) -> None:
    error = parsed(status, body)
    assert type(error) is kind
    with pytest.raises(RunnerError, match=words):
        raise error
    if isinstance(error, UpstreamError):
        assert error.upstream_status == status
    if isinstance(error, UpstreamRefused):
        assert error.hint
        assert not error.retryable


def test_a_bad_request_keeps_its_param_and_code() -> None:
    error = parsed(400, openai("bad", "invalid_value"))
    assert (error.param, error.code) == ("messages", "invalid_value")
    assert parsed(400, openai("long", "context_length_exceeded")).param == "messages"


def test_long_messages_are_cut_and_control_characters_removed() -> None:
    error = parsed(400, openai("a\x1b[31m\n\r\0" + "b" * 100_000))
    assert len(error.message) == MAX_MESSAGE
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": "0.5"}, 0.5),
        ({"retry_after": "Tue, 14 Nov 2023 22:13:30 GMT"}, 10.0),
        ({"retry_after": "Tue, 14 Nov 2023 22:00:00 GMT"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "-3"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after_ms": "1500", "retry_after": "2"}, 1.5),
        ({"x_ratelimit_reset_requests": "6m0s"}, 360.0),
        ({"x_ratelimit_reset_tokens": "120ms"}, 0.12),
        ({"x_ratelimit_reset_tokens": "1h2m3.5s"}, 3723.5),
        ({"x_ratelimit_reset_tokens": "7.66s", "x_ratelimit_reset_requests": "2m"}, 7.66),
        (
            {
                "x_ratelimit_reset_tokens": "1s",
                "x_ratelimit_reset_requests": "2m",
                "x_ratelimit_remaining_requests": "0",
            },
            120.0,
        ),
        ({"x_ratelimit_reset": "1700000030000"}, 30.0),
        ({"x_ratelimit_reset": "1700000030"}, 30.0),
        ({"x_ratelimit_reset": "30"}, 30.0),
        ({"x_ratelimit_reset": ""}, None),
    ],
)
def test_when_to_come_back(headers: dict[str, str], seconds: float | None) -> None:
    error = parsed(429, openai("slow down"), **headers)
    assert error.retry_after == (None if seconds is None else pytest.approx(seconds))


def test_a_time_is_told_only_where_trying_again_makes_sense() -> None:
    assert parsed(400, openai("bad"), retry_after="2").retry_after is None
    assert parsed(503, openai("busy"), retry_after="2").retry_after == 2.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "detail", "msg", "loc", "status"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from([204, 302, 400, 401, 404, 413, 422, 429, 500, 503]), json_values)
def test_any_json_gives_an_error_with_words(status: int, value: Any) -> None:
    error = parsed(status, value)
    assert isinstance(error, RunnerError)
    assert error.message


@given(st.sampled_from([400, 429, 500]), st.binary(max_size=80))
def test_any_bytes_give_an_error_with_words(status: int, body: bytes) -> None:
    assert parsed(status, body).message
