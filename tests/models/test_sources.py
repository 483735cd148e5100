"""Every source against the conformance check, and S3 against a server that speaks it."""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llm_runner_router import plugins
from llm_runner_router.errors import ConfigError, NotFound, Unsupported
from llm_runner_router.models.sources import KINDS, source_for
from llm_runner_router.refs import parse
from llm_runner_router.testing import Fault, check_source

from .rigging import Rig

DATA = Random(5).randbytes(200_000)


def path(rig: Rig) -> tuple[str, str]:
    folder = Path(rig.environ["HOME"]) / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(DATA)
    (folder / "config.json").write_bytes(b"{}")
    return f"file:{folder}", f"file:{folder}/none.gguf"


def url(rig: Rig) -> tuple[str, str]:
    at = rig.hub.put("m.gguf", DATA)
    return f"{at}#sha256={hashlib.sha256(DATA).hexdigest()}", f"{rig.hub.url}/files/none.gguf"


def huggingface(rig: Rig) -> tuple[str, str]:
    rig.hub.repo("org/name", {"model.safetensors": DATA, "config.json": b"{}"})
    return "hf:org/name", "hf:org/none"


def ollama(rig: Rig) -> tuple[str, str]:
    rig.hub.image("library/m", {"model": DATA, "template": b"{{ . }}"}, tag="v1")
    return "ollama:m:v1", "ollama:m:v2"


def s3(rig: Rig) -> tuple[str, str]:
    bucket(rig)
    return "s3://bucket/models/", "s3://bucket/none.gguf"


def bucket(rig: Rig) -> None:
    rig.hub.put("bucket/models/model.safetensors", DATA)
    rig.hub.put("bucket/models/config.json", b"{}")
    rig.hub.put("bucket/m.gguf", DATA)
    rig.environ |= {
        "AWS_ENDPOINT_URL": f"{rig.hub.url}/s3",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_REGION": "us-east-1",
    }


@pytest.mark.parametrize("make", [path, url, huggingface, ollama, s3], ids=lambda f: f.__name__)
async def test_it_keeps_the_contract(rig: Rig, make: Callable[[Rig], tuple[str, str]]) -> None:
    there, missing = make(rig)
    source = source_for(parse(there), rig.environ)
    await check_source(source, parse(there), parse(missing))


def test_every_source_is_reached_and_checked() -> None:
    assert sorted(KINDS.values()) == plugins.names("models.sources")


def test_what_cannot_be_brought(rig: Rig) -> None:
    for text in ("openai/gpt", "name"):
        with pytest.raises(Unsupported, match="nothing that can be downloaded"):
            source_for(parse(text), rig.environ)
    with pytest.raises(Unsupported, match="part of the package"):
        source_for(parse("zoo:tiny-math"), rig.environ)


async def test_an_object_and_a_folder_of_s3(rig: Rig) -> None:
    bucket(rig)
    assert rig.content(await rig.pull("s3://bucket/m.gguf")) == DATA
    stored = await rig.pull("s3://bucket/models/")
    assert {file.path for file in stored.files} == {"model.safetensors", "config.json"}
    with pytest.raises(NotFound):
        await rig.pull("s3://bucket/none.gguf")
    rig.hub.fault("m.gguf", Fault("503", times=2))
    rig.puller().store.remove("s3://bucket/m.gguf")
    assert rig.content(await rig.pull("s3://bucket/m.gguf")) == DATA
    assert len(rig.pauses.seconds) == 2


def test_s3_without_its_extra_says_what_to_install(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match="needs the package `obstore`") as caught:
        source_for(parse("s3://bucket/m.gguf"), rig.environ)
    assert "[s3]" in (caught.value.hint or "")
