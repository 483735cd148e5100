"""`langchain-openai` against a real server: chat, streams, tools, structured output, vectors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from pydantic import BaseModel, SecretStr

from llm_runner_router import errors
from llm_runner_router.config import Server
from llm_runner_router.server import serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.testing import FakeEmbedder, FakeTarget, deltas_of
from llm_runner_router.types import Call, Delta, Request, ToolCallDelta, Usage

os.environ["LANGSMITH_TRACING"] = "false"  # it would look for a server of its own

from langchain_core.messages import (
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_openai import (
    ChatOpenAI,
    OpenAIEmbeddings,
)


class Weather(BaseModel):
    """Tells the weather of a city."""

    city: str


def answers(request: Request, call: Call) -> list[Delta]:
    """What a model would: a call where there are tools, an object where a schema is asked for."""
    if request.messages[-1].role == "tool":
        return list(deltas_of(f"It is {request.messages[-1].text}.", usage=Usage(9, 4)))
    if request.tools:
        pieces = (
            ToolCallDelta(0, "c1", request.tools[0].name, '{"city":'),
            ToolCallDelta(0, arguments='"Oslo"}'),
        )
        calls = [Delta(tool_calls=(piece,)) for piece in pieces]
        return [Delta(role="assistant"), *calls, Delta(finish="tool_calls", usage=Usage(7, 5))]
    if request.response_format is not None:
        return list(deltas_of('{"city": "Rome"}', usage=Usage(5, 5)))
    return list(deltas_of("Good morning.", usage=Usage(7, 3)))


@asynccontextmanager
async def chat(script: Any = answers, **settings: Any) -> AsyncIterator[ChatOpenAI]:
    gateway = FakeGateway({"m": FakeTarget("m", script)}, {"e": FakeEmbedder("e")})
    # With a client of its own: the package keeps one for all event loops otherwise.
    async with (
        serve(gateway, Server(port=0, drain=0)) as url,
        openai.DefaultAsyncHttpxClient() as http,
    ):
        yield ChatOpenAI(
            model="m",
            base_url=f"{url}/v1",
            api_key=SecretStr(KEY),
            max_retries=0,
            http_async_client=http,
            **settings,
        )


@pytest.mark.parametrize("responses", [False, True])
async def test_chat_and_stream(responses: bool) -> None:
    asked = [SystemMessage("Be kind."), HumanMessage("hello")]
    async with chat(use_responses_api=responses, stream_usage=True) as model:
        whole = await model.ainvoke(asked)
        pieces = [piece async for piece in model.astream(asked)]
    assert whole.text == "Good morning."
    assert "".join(piece.text for piece in pieces) == "Good morning."
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3
    assert sum(p.usage_metadata["output_tokens"] for p in pieces if p.usage_metadata) == 3


@pytest.mark.parametrize("responses", [False, True])
async def test_tools_and_their_results(responses: bool) -> None:
    async with chat(use_responses_api=responses) as model:
        able = model.bind_tools([Weather])
        question = HumanMessage("How is Oslo?")
        call = await able.ainvoke([question])
        (wanted,) = call.tool_calls
        assert (wanted["name"], wanted["args"], wanted["id"]) == ("Weather", {"city": "Oslo"}, "c1")
        result = ToolMessage("raining", tool_call_id="c1")
        told = await able.ainvoke([question, call, result])
    assert told.text == "It is raining."


@pytest.mark.parametrize("responses", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output(responses: bool, method: Any) -> None:
    async with chat(use_responses_api=responses) as model:
        found = await model.with_structured_output(Weather, method=method).ainvoke("Where?")
    assert found == Weather(city="Rome" if method == "json_schema" else "Oslo")


async def test_vectors() -> None:
    gateway = FakeGateway(embedders={"e": FakeEmbedder("e")})
    async with (
        serve(gateway, Server(port=0, drain=0)) as url,
        openai.DefaultAsyncHttpxClient() as http,
    ):
        embed = OpenAIEmbeddings(
            model="e",
            base_url=f"{url}/v1",
            api_key=SecretStr(KEY),
            check_embedding_ctx_length=False,
            http_async_client=http,
        )
        found = await embed.aembed_documents(["a", "b"])
    assert len(found) == 2


async def test_failures_are_its_own() -> None:
    async with chat([errors.RateLimited("slow down", retry_after=3)]) as model:
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await model.ainvoke("hello")
