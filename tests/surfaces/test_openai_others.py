"""Legacy completions, embeddings and the model list on the wire."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.errors import BadRequest, StreamBroken
from llm_runner_router.surfaces import openai_completions, openai_embeddings, openai_models
from llm_runner_router.surfaces.base import Reply
from llm_runner_router.testing import deltas_of
from llm_runner_router.types import Delta, Embeddings, ModelCard, Origin, Request, Usage, Wire

# ---------------------------------------------------------------- completions


def read(**fields: Any) -> tuple[Request, ...]:
    return openai_completions.decode_all(json.dumps({"model": "m", **fields}).encode())


def test_a_prompt_and_a_list_of_them() -> None:
    (one,) = read(prompt="a", suffix="z", echo=True, logprobs=2, max_tokens=0, best_of=1)
    assert (one.prompt, one.suffix, one.echo) == ("a", "z", True)
    assert (one.sampling.logprobs, one.sampling.top_logprobs) == (True, 2)
    assert one.sampling.max_tokens == 0
    assert set(one.extra) == {"best_of"}
    assert one.wire is not None
    several = read(prompt=["a", "b"], n=2)
    assert [request.prompt for request in several] == ["a", "b"]
    assert all(request.wire is None for request in several)
    assert openai_completions.decode(b'{"model":"m","prompt":["a"]}').prompt == "a"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "logprobs": 99}, "logprobs"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
    ],
)
def test_bad_prompts(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param


def test_one_prompt_means_one() -> None:
    with pytest.raises(BadRequest, match="one prompt"):
        openai_completions.decode(b'{"model":"m","prompt":["a","b"]}')


async def _stream(deltas: Sequence[Delta]) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta


async def text(deltas: Sequence[Delta], **fields: Any) -> list[bytes]:
    (request,) = read(prompt="p", **fields)
    reply = Reply("cmpl-1", 7)
    return [f async for f in openai_completions.encode(_stream(deltas), request, reply)]


async def test_the_golden_text_stream() -> None:
    got = await text(
        [Delta(role="assistant"), *deltas_of("a b", usage=Usage(1, 2))],
        stream=True,
        stream_options={"include_usage": True},
    )
    head = b'data: {"id":"cmpl-1","object":"text_completion","created":7,"model":"m","choices":['
    assert got == [
        head + b'{"index":0,"text":"a ","logprobs":null,"finish_reason":null}],"usage":null}\n\n',
        head + b'{"index":0,"text":"b","logprobs":null,"finish_reason":null}],"usage":null}\n\n',
        head + b'{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n',
        head
        + b'],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,'
        + b'"prompt_tokens_details":{"cached_tokens":0},'
        + b'"completion_tokens_details":{"reasoning_tokens":0}}}\n\ndata: [DONE]\n\n',
    ]


CHAT_LOGPROBS = (
    b'{"content":[{"token":"ab","logprob":-1.5,"top_logprobs":[{"token":"ab","logprob":-1.5}]}]}'
)
LEGACY_LOGPROBS = (
    b'{"tokens":["c"],"token_logprobs":[-2.0],"top_logprobs":[{"c":-2.0}],"text_offset":[0]}'
)


async def test_log_probabilities_become_the_legacy_lists() -> None:
    (body,) = await text(
        [
            Delta(text="ab", logprobs=Raw(CHAT_LOGPROBS)),
            Delta(text="c", logprobs=Raw(LEGACY_LOGPROBS), finish="stop"),
        ],
        logprobs=1,
    )
    assert json.loads(body)["choices"][0] == {
        "index": 0,
        "text": "abc",
        "logprobs": {
            "tokens": ["ab", "c"],
            "token_logprobs": [-1.5, -2.0],
            "top_logprobs": [{"ab": -1.5}, {"c": -2.0}],
            "text_offset": [0, 2],
        },
        "finish_reason": "stop",
    }


async def test_events_and_bodies_of_the_dialect_pass_untouched() -> None:
    data = b'{"choices":[{"text":"x","odd":1}]}'
    wire = Wire("openai_completions", "event", data)
    got = await text([Delta(text="x", finish="stop", wire=wire)], stream=True)
    assert got == [b"data: " + data + b"\n\n", b"data: [DONE]\n\n"]
    body = Wire("openai_completions", "body", data)
    assert await text([Delta(text="x", finish="stop", wire=body)]) == [data]


async def test_a_text_stream_without_finish_is_broken() -> None:
    with pytest.raises(StreamBroken):
        await text([Delta(text="x")], stream=True)


# ---------------------------------------------------------------- embeddings


def embed(**fields: Any) -> openai_embeddings.Asked:
    return openai_embeddings.decode(json.dumps({"model": "e", **fields}).encode())


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_every_form_of_input(given: Any, inputs: tuple[Any, ...]) -> None:
    assert embed(input=given, dimensions=2, user="u").request.inputs == inputs


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [[-1]]}, "input[0]"),
        ({"input": [2**40]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": 5}, "input"),
    ],
)
def test_bad_inputs(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        embed(**fields)
    assert caught.value.param == param


def test_vectors_as_numbers_and_as_base64() -> None:
    result = Embeddings(((0.5, -2.0), (1.0, 0.0)), Usage(4), Origin("t", "e1"))
    plain = json.loads(openai_embeddings.encode(result, embed(input=["a", "b"])))
    assert plain == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -2.0]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 0.0]},
        ],
        "model": "e1",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    asked = embed(input=["a", "b"], encoding_format="base64")
    packed = json.loads(openai_embeddings.encode(result, asked))["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -2.0)


# ---------------------------------------------------------------- models


def test_the_model_list() -> None:
    cards = [ModelCard("zoo:a", local=True, context=512, description="d"), ModelCard("o/b")]
    first = {
        "id": "zoo:a",
        "object": "model",
        "created": 9,
        "owned_by": "local",
        "description": "d",
        "context_length": 512,
    }
    second = {"id": "o/b", "object": "model", "created": 9, "owned_by": "remote"}
    listed = msgspec.json.decode(openai_models.encode_list(cards, 9))
    assert listed == {"object": "list", "data": [first, second]}
    assert msgspec.json.decode(openai_models.encode_one(cards[1], 9)) == second
