"""`POST /v1/rerank` in bytes: what is read, what is refused and where, what is written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces import rerank
from llm_runner_router.types import Origin, Ranked, Ranking, RerankRequest, Usage


def asked(**changes: Any) -> bytes:
    fields = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}], **changes}
    return json.dumps({k: v for k, v in fields.items() if v != "gone"}).encode()


def test_a_request() -> None:
    assert rerank.decode(asked()) == rerank.Asked(RerankRequest("m", "q", ("a", "b")))
    found = rerank.decode(asked(top_n=1, return_documents=True, user="x"))
    assert found == rerank.Asked(RerankRequest("m", "q", ("a", "b"), 1), documents=True)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": ""}, "model"),
        ({"query": "gone"}, "query"),
        ({"query": ""}, "query"),
        ({"query": "x" * (rerank.MAX_QUERY + 1)}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": ["a"] * (rerank.MAX_DOCUMENTS + 1)}, "documents"),
        ({"documents": ["a", ""]}, "documents[1]"),
        ({"documents": ["a", {"text": ""}]}, "documents[1].text"),
        ({"documents": ["x" * (rerank.MAX_DOCUMENT + 1)]}, "documents[0]"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": "2"}, "top_n"),
    ],
)
def test_what_is_refused_says_where(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        rerank.decode(asked(**changes))
    assert caught.value.param == param


def test_an_answer() -> None:
    results = (Ranked(1, 2.5), Ranked(0, -1.0))
    result = Ranking(results, Usage(prompt_tokens=7), Origin("t", "wire"))
    said = json.loads(rerank.encode(result, rerank.decode(asked()), "id1"))
    assert said == {
        "id": "id1",
        "object": "list",
        "model": "wire",
        "results": [
            {"index": 1, "relevance_score": 2.5},
            {"index": 0, "relevance_score": -1.0},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    said = json.loads(rerank.encode(result, rerank.decode(asked(return_documents=True)), "id1"))
    assert [one["document"] for one in said["results"]] == [{"text": "b"}, {"text": "a"}]
