"""Tokens by model name: what is served, what is refused, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from llm_runner_router.app import App
from llm_runner_router.config import Config, Node, Provider, Server
from llm_runner_router.errors import BadRequest, UnknownModel, Unsupported
from llm_runner_router.surfaces.http import HttpApp
from llm_runner_router.tokens import desk
from llm_runner_router.types import Message, TokenizeRequest

UP = {"up": Provider(base_url="http://127.0.0.1:9/v1")}


def made() -> App:
    models: dict[str, str | Node] = {"far": "up/x", "near": "zoo:tiny-math"}
    return App(Config(models=models, providers=UP), environ={})


async def test_a_text_there_and_back() -> None:
    app = made()
    found = await app.tokenize(TokenizeRequest("near", text="What is 12 + 30? 🎉"))
    assert (found.model, found.context) == ("zoo:tiny-math", 1024)
    assert b"".join(found.pieces).decode() == "What is 12 + 30? 🎉"
    assert await app.detokenize("near", found.ids) == "What is 12 + 30? 🎉"
    assert (await app.tokenize(TokenizeRequest("near", text=""))).ids == ()


async def test_a_conversation_and_the_end_of_its_process() -> None:
    app = made()
    async with asyncio.timeout(30):
        await app.start()
        request = TokenizeRequest("near", messages=(Message("user", "hi"),))
        found, again = await asyncio.gather(app.tokenize(request), app.tokenize(request))
        assert found == again
        text = b"".join(found.pieces).decode()
        assert text.endswith("<|im_start|>assistant\n")
        assert "hi<|im_end|>" in text
        renderer = app.tokens._renderer
        assert renderer is not None
        assert renderer._process is not None
        pid = renderer._process.pid
        await app.close()
    assert not psutil.pid_exists(pid)


async def test_what_is_not_local_is_refused() -> None:
    app = made()
    for name in ("far", "auto"):
        with pytest.raises(Unsupported, match="does not run here"):
            await app.tokenize(TokenizeRequest(name, text="a"))
        with pytest.raises(Unsupported):
            await app.detokenize(name, [1])
    with pytest.raises(UnknownModel):
        await app.tokenize(TokenizeRequest("nobody", text="a"))
    with pytest.raises(BadRequest, match="is no token"):
        await app.detokenize("near", [-1])


async def test_a_text_that_is_too_long_is_refused_before_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(desk, "MAX_TEXT", 10)
    monkeypatch.setattr(desk, "MAX_IDS", 10)
    with pytest.raises(BadRequest, match="more than 10 characters"):
        await made().tokenize(TokenizeRequest("near", text="x" * 11))
    with pytest.raises(BadRequest, match="more than 10 ids"):
        await made().detokenize("near", [1] * 11)


async def test_a_model_without_a_template_takes_no_conversation(tmp_path: Path) -> None:
    from .tokens import making

    path = making.write_model(tmp_path / "a.gguf", making.word_pieces())
    app = App(Config(), environ={}, local_files=True)
    with pytest.raises(BadRequest, match="no chat template"):
        await app.tokenize(TokenizeRequest(str(path), messages=(Message("user", "hi"),)))
    found = await app.tokenize(TokenizeRequest(str(path), text="the fox", around=True))
    assert (found.pieces[0], found.pieces[-1]) == (b"[CLS]", b"[SEP]")


async def asked(app: App, path: str, body: object) -> tuple[int, dict[str, object]]:
    """One request to the HTTP application, as an ASGI server makes it."""
    from llm_runner_router.policy.auth import ensure_key

    key = ensure_key(app.home, {}).secret.reveal()
    data = msgspec.json.encode(body)
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    came = [{"type": "http.request", "body": data, "more_body": False}]
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        if came:
            return came.pop()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    await HttpApp(app, Server())(scope, receive, send)
    status = sent[0]["status"]
    assert isinstance(status, int)
    body_ = b"".join(m["body"] for m in sent[1:] if isinstance(m["body"], bytes))
    return status, msgspec.json.decode(body_)


async def test_over_http() -> None:
    app = made()
    status, found = await asked(app, "/v1/tokenize", {"model": "near", "input": "hello"})
    assert (status, found["count"], found["max_model_len"]) == (200, len(found["tokens"]), 1024)  # type: ignore[arg-type]  # a list
    status, back = await asked(app, "/detokenize", {"model": "near", "tokens": found["tokens"]})
    assert (status, back["text"]) == (200, "hello")
    status, told = await asked(app, "/v1/tokenize", {"model": "far", "input": "hello"})
    assert status == 400
    assert "does not run here" in str(told["error"])


def test_a_server_does_not_import_tokenizers_until_asked() -> None:
    import subprocess

    code = (
        "import sys; from llm_runner_router.app import App; from llm_runner_router.config import"
        " Config; App(Config(), environ={}); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    modules = done.stdout.split()
    assert "llm_runner_router.tokens.desk" in modules
    heavy = ("tokenizers", "jinja2", "numpy", "llm_runner_router.tokens.load")
    assert not [m for m in modules if m.startswith(heavy)]
