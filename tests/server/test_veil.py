"""No answer to a client names a folder of this machine, whatever goes wrong; the log tells all."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router import errors
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node, Server
from llm_runner_router.errors import RunnerError
from llm_runner_router.home import find
from llm_runner_router.models.resolve import ZOO
from llm_runner_router.policy.auth import ensure_key
from llm_runner_router.server import Service, serve
from llm_runner_router.surfaces.testing import KEY, FakeGateway
from llm_runner_router.surfaces.veil import veiled
from llm_runner_router.testing import FakeTarget, deltas_of

SECRET = "secret-place"
"""Part of every path here, and of no answer."""
ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "1 + 1 = ?"}], "max_tokens": 3},
    "completions": {"prompt": "1 + 1 =", "max_tokens": 3},
    "messages": {"messages": [{"role": "user", "content": "1 + 1 = ?"}], "max_tokens": 3},
    "messages/count_tokens": {"messages": [{"role": "user", "content": "1 + 1 = ?"}]},
    "responses": {"input": "1 + 1 = ?", "max_output_tokens": 16},
    "responses/input_tokens": {"input": "1 + 1 = ?"},
    "embeddings": {"input": "one"},
    "rerank": {"query": "one", "documents": ["two"]},
    "tokenize": {"prompt": "one"},
    "detokenize": {"tokens": [1]},
}
SLOW = ("odd", "twice", "onnx")
"""Models that an engine or a conversion must fail with first."""
STREAMED = ("chat/completions", "completions", "messages", "responses")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with models: one that runs, and some that cannot."""
    folder = tmp_path / SECRET
    folder.mkdir()
    whole = (ZOO / "tiny-math.gguf").read_bytes()
    (folder / "good.gguf").write_bytes(whole)
    (folder / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (folder / "junk.gguf").write_bytes(b"no model")
    (folder / "empty").mkdir()
    odd = whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")  # the engine misses it
    (folder / "odd.gguf").write_bytes(odd)
    return folder


async def ask(url: str, key: str, route: str, body: Any = None) -> bytes:
    """All of an answer, its head too."""
    data = b"" if body is None else json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    verb = "GET" if body is None else "POST"
    head = f"{verb} {route} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\n"
    writer.write(f"{head}connection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


async def ask_everything(
    url: str, key: str, model: str, routes: Iterable[str] = ASKED
) -> AsyncIterator[tuple[str, bytes]]:
    for route in routes:
        body = ASKED[route]
        for stream in (False, True) if route in STREAMED else (False,):
            sent = {"model": model, **body, **({"stream": True} if stream else {})}
            yield f"{route} stream={stream}", await ask(url, key, f"/v1/{route}", sent)
    yield "models", await ask(url, key, f"/v1/models/{model}")


# ---------------------------------------------------------------- real failures


@pytest.mark.engine
@pytest.mark.timeout(180)
async def test_no_answer_about_models_names_a_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(place / "home"))
    good = str(place / "good.gguf")
    models: dict[str, str | Node] = {
        "good": good,
        "late": str(place / "late.gguf"),
        "cut": str(place / "cut.gguf"),
        "junk": str(place / "junk.gguf"),
        "gone": str(place / "gone.gguf"),
        "empty": str(place / "empty"),
        "odd": str(place / "odd.gguf"),
        "unquantised": Node(target=good, quantization="q99"),
        "twice": Node(target=good, quantization="q4_0", engine="torch"),
        "onnx": Node(target=good, engine="onnx"),
        "either": Node(fallback=("gone", "cut")),
    }
    shutil.copy(good, place / "late.gguf")
    app = App(Config(zoo=False, engine=Engine(spare=False), models=models))
    key = ensure_key(find(os.environ)).secret.reveal()
    await app.start()
    failed = 0
    try:
        async with serve(app, Server(port=0)) as url:
            assert b"late" in await ask(url, key, "/v1/models")
            (place / "late.gguf").unlink()
            for model in models:
                routes = ("chat/completions", "tokenize") if model in SLOW else ASKED
                async for route, answer in ask_everything(url, key, model, routes):
                    assert answer.startswith(b"HTTP/1.1 "), (model, route)
                    assert SECRET.encode() not in answer, (model, route, answer)
                    assert str(Path.home()).encode() not in answer, (model, route, answer)
                    failed += not answer.startswith(b"HTTP/1.1 200")
            listed = await ask(url, key, "/v1/models")
            assert SECRET.encode() not in listed
    finally:
        await app.close()
    assert failed > 50, "these models were made to fail"
    assert str(place) in caplog.text, "the log names the file"


# ---------------------------------------------------------------- every class of error


def classes() -> Iterator[type[RunnerError]]:
    found = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    yield from (thing for thing in found if issubclass(thing, RunnerError))


class Failing(FakeGateway):
    """Whatever is asked fails with `error`."""

    error: Exception = RunnerError("nothing")

    def __getattribute__(self, name: str) -> Any:
        if name in ("target", "embedder", "reranker"):
            raise super().__getattribute__("error")
        if name in ("tokenize", "count", "detokenize"):
            raise super().__getattribute__("error")
        return super().__getattribute__(name)


def fail_at(place: Path, kind: type[RunnerError]) -> RunnerError:
    model = place / "a model" / "m.gguf"
    return kind(
        f"cannot read `{model}`: it is damaged ({place}/m.gguf: bad magic), see file:{place}/x",
        hint=f"`llmrr inspect {place} --why` tells more",
        target=f"file:{place}/m.gguf",
    )


@pytest.mark.parametrize("kind", list(classes()), ids=lambda kind: kind.__name__)
async def test_no_class_of_error_names_a_folder(
    kind: type[RunnerError], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / SECRET / "models"
    error = fail_at(place, kind)
    early = FakeTarget("m", [error])
    late = FakeTarget("l", [*deltas_of("some text"), error])
    broken = Failing()
    broken.error = error
    gateways: list[tuple[Service, str]] = [(FakeGateway({"m": early, "l": late}), "ml")]
    gateways.append((broken, "m"))
    for gateway, names in gateways:
        async with serve(gateway, Server(port=0)) as url:
            for name in names:
                async for route, answer in ask_everything(url, KEY, name):
                    assert SECRET.encode() not in answer, (name, route, answer)
                    if gateway is broken and route != "models":
                        assert b"`m.gguf`: it is damaged (m.gguf: bad magic)" in answer
    assert str(place) in caplog.text


async def test_what_nobody_expected_is_not_told_at_all(tmp_path: Path) -> None:
    broken = Failing()
    broken.error = OSError(2, "No such file", str(tmp_path / SECRET))
    async with serve(broken, Server(port=0)) as url:
        answer = await ask(url, KEY, "/v1/completions", {"model": "m", "prompt": "x"})
    assert answer.startswith(b"HTTP/1.1 500")
    assert SECRET.encode() not in answer


async def test_an_operator_is_told_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / SECRET / "models"

    class Loading(FakeGateway):
        async def load(self, name: str, *, pin: bool = False) -> Any:
            raise fail_at(place, errors.LoadFailed)

    async with serve(Loading(), Server(port=0)) as url:
        answer = await ask(url, KEY, "/llmrr/load", {"model": "m"})
    assert f"{place}/a model/m.gguf".encode() in answer


async def test_what_a_client_wrote_itself_comes_back_as_it_was() -> None:
    async with serve(FakeGateway({"m": FakeTarget("m")}), Server(port=0)) as url:
        answer = await ask(url, KEY, "/v1/no/such/route")
        assert b"there is no route `/no/such/route`" in answer
        wrong = {"model": "m", "messages": [{"role": "/usr/bin/env", "content": "x"}]}
        answer = await ask(url, KEY, "/v1/chat/completions", wrong)
        assert b"/usr/bin/env" in answer


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read `/home/ann/m.gguf`: gone", "cannot read `m.gguf`: gone"),
        ("cannot read `/home/ann smith/my m.gguf`", "cannot read `my m.gguf`"),
        ("`file:/home/ann/m.gguf` waits", "`m.gguf` waits"),
        ("file:/home/ann/m.gguf waits", "m.gguf waits"),
        ("in '/home/ann/x/', then", "in 'x', then"),
        ("open(/a/b): no; /c/d.txt, /e/f.", "open(b): no; d.txt, f."),
        ("error:/home/ann/x", "error:x"),
        ("path=/home/ann/x", "path=x"),
        ("`llmrr inspect /home/ann/m.gguf --why`", "`llmrr inspect m.gguf --why`"),
        ("`C:\\Users\\Ann\\m.gguf` is gone", "`m.gguf` is gone"),
        ("C:\\Users\\Ann\\m.gguf is gone", "m.gguf is gone"),
        ("`\\\\server\\share\\m.gguf`", "`m.gguf`"),
        ("the data folder `/data`", "the data folder `data`"),
        ("~/models/m.gguf and `~/m.gguf`", "m.gguf and `m.gguf`"),
        ("`openai/gpt-4o` at https://api.example.com/v1/models", None),
        ("POST /v1/chat/completions gave 404", None),
        ("3/4 of n/a, and/or, 10 km/h; s3://bucket/key", None),
        ("hf:org/name:file.gguf and `hf:org/name`", None),
        ("a </s> b <br/> c / d // e", None),
        ("see `llmrr ls --all`", None),
        ("", None),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, shown: str | None) -> None:
    error = RunnerError(text, hint=text)
    told = veiled(error)
    assert (told.message, told.hint) == ((text, text) if shown is None else (shown, shown))
    assert (told is error) is (shown is None)
    assert error.message == text


def test_an_error_stays_what_it_is() -> None:
    error = errors.RateLimited("at /a/b", param="p", code="c", retry_after=3.0, target="t")
    error.upstream_status = 429
    told = veiled(error)
    assert isinstance(told, errors.RateLimited)
    assert (told.param, told.code, told.retry_after, told.target) == ("p", "c", 3.0, "t")
    assert (told.upstream_status, str(told)) == (429, "at b")
