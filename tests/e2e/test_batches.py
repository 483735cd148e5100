"""Batches of a real `llmrr serve` with the demonstration models: answers, a kill, others beside."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from openai import OpenAI
from openai.types import Batch

from .served import Served, served

pytestmark = [pytest.mark.engine]

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
MODEL = "zoo:tiny-math"
DEADLINE = 120.0


@contextmanager
def client(server: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def body(i: int, **more: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": f"What is {i} + {i + 1}?"}]
    return {"model": MODEL, "messages": talk, "temperature": 0, **more}


def begin(api: OpenAI, bodies: Sequence[dict[str, Any]]) -> Batch:
    lines = [
        json.dumps({"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": one})
        for i, one in enumerate(bodies)
    ]
    file = api.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return api.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


def until(api: OpenAI, id: str, true: Callable[[Batch], bool]) -> Batch:
    until = time.monotonic() + DEADLINE
    while True:
        batch = api.batches.retrieve(id)
        if true(batch):
            return batch
        assert time.monotonic() < until, batch
        time.sleep(0.01)


def done(batch: Batch) -> int:
    return batch.request_counts.completed if batch.request_counts is not None else 0


def lines(api: OpenAI, id: str | None) -> list[dict[str, Any]]:
    assert id is not None
    return [json.loads(line) for line in api.files.content(id).text.splitlines()]


def test_a_batch_says_what_the_route_says(tmp_path: Path) -> None:
    with served(tmp_path / "home") as server, client(server) as api:
        bodies = [*(body(i) for i in range(6)), body(6, model="zoo:tiny-nobody")]
        batch = until(api, begin(api, bodies).id, lambda b: b.status == "completed")
        (wrong,) = lines(api, batch.error_file_id)
        assert (wrong["custom_id"], wrong["response"]["status_code"]) == ("r6", 404)
        found = {
            one["custom_id"]: one["response"]["body"] for one in lines(api, batch.output_file_id)
        }
        assert set(found) == {f"r{i}" for i in range(6)}
        for i in range(6):
            direct = api.chat.completions.create(**body(i))
            there = found[f"r{i}"]["choices"][0]
            assert there["message"]["content"] == direct.choices[0].message.content
            assert there["finish_reason"] == direct.choices[0].finish_reason


def test_a_killed_server_goes_on_and_answers_each_once(tmp_path: Path) -> None:
    home, count = tmp_path / "home", 80
    first = Served(home)
    try:
        with client(first) as api:
            id = begin(api, [body(i) for i in range(count)]).id
            until(api, id, lambda b: done(b) >= 5)
    finally:
        first.stop(signal.SIGKILL)
    (home / "server.json").unlink()
    journal = home / "batches" / id / "answers.jsonl"
    before = journal.read_bytes()
    assert 5 <= before.count(b"\n") < count, "it was killed in the middle"
    with served(home) as second, client(second) as api:
        batch = until(api, id, lambda b: b.status == "completed")
        found = lines(api, batch.output_file_id)
        assert done(batch) == count
        whole = before[: before.rfind(b"\n") + 1]
        assert api.files.content(batch.output_file_id or "").read().startswith(whole)
    assert Counter(one["custom_id"] for one in found) == {f"r{i}": 1 for i in range(count)}


def test_who_waits_for_an_answer_goes_first(tmp_path: Path) -> None:
    """With one slot, a newcomer waits for the request that runs, not for those that wait."""
    with served(tmp_path / "home", LLMRR_ENGINE_SLOTS="1") as server, client(server) as api:
        id = begin(api, [body(i) for i in range(300)]).id
        until(api, id, lambda b: done(b) >= 5)
        asked = []
        for i in range(5):
            raw = api.chat.completions.with_raw_response.create(**body(i + 500))
            asked.append(raw.headers["x-request-id"])
        beside = api.batches.retrieve(id)
        assert beside.status == "in_progress", "it ran all the while"
        headers = {"authorization": f"Bearer {server.key}"}
        answer = httpx2.get(f"{server.url}/llmrr/records?limit=1000", headers=headers)
        api.batches.cancel(id)
        ended = until(api, id, lambda b: b.status == "cancelled")
        assert done(beside) <= done(ended) < 300
    rows = {row["id"]: row for row in answer.json()}
    ends = [row["time"] for id, row in rows.items() if id not in asked]
    for one in asked:
        ended_at = rows[one]["time"]
        begun = ended_at - rows[one]["total_ms"] / 1000
        # The one that ran, and one that had given back its slot and was not written down yet. The
        # three that waited before it would be here too if it had waited behind them.
        assert sum(begun < end < ended_at for end in ends) <= 2
