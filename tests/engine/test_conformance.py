"""Every engine keeps to what its features say, through residency and a real process."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from llm_runner_router.config import Adopt, Secret
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.run import convert
from llm_runner_router.engine import adopted
from llm_runner_router.engine.base import Engine
from llm_runner_router.engine.select import load_engine
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.testing import FakeTarget, check_engine, deltas_of
from llm_runner_router.types import ModelCard

from .locally import HUB, Locally, model_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

LONG = "the sea is wide and deep, " * 30
OUTSIDER = (sys.executable, "-m", "tests.engine.outsider", "{port}", "n", "k")


def example(engine: str, scratch: Path) -> tuple[LocalModel, int]:
    """A model for an engine, and its context."""
    zoo = resolve(parse("zoo:tiny-general"))
    if engine in ("torch", "mistralrs"):
        return model_at(HUB / "tiny-general", engine=engine), 1024
    if engine in ("onnx", "onnx_genai"):
        convert(HUB / "tiny-general", scratch / "onnx", "onnx-genai", options=Options("q8_0"))
        return model_at(scratch / "onnx", engine=engine), 1024
    if engine == "mock":
        return msgspec.structs.replace(zoo, engine="mock", options={"text": LONG}), 1024
    if engine == "adopted":
        settings = Adopt(command=OUTSIDER, env={"OUTSIDER_SAYS": LONG})
        return adopted.model("theirs", settings, Secret("k"), ModelCard("theirs")), 4096
    return msgspec.structs.replace(zoo, engine=engine), 1024


NAMES = ["llamacpp", "torch", "mock", "adopted", "onnx_genai", "onnx", "mistralrs"]


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_keeps_its_word(name: str, tmp_path: Path) -> None:
    engine: Engine = load_engine(name)
    for needed in (*engine.NEEDS, *(("onnx",) if name.startswith("onnx") else ())):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    model, context = example(name, tmp_path)
    features = set(engine.FEATURES)
    if name == "onnx":
        features.discard("embed")  # a graph writes or embeds; `test_onnx_vectors.py` has the other
    local = Locally(slots=2)
    try:
        target = local.target(model)
        local.run(check_engine(target, features=features, context=context, embedder=target))
        assert {row.engine for row in local.residency.status()} == {name}
    finally:
        local.close()


async def test_the_check_finds_what_is_no_engine() -> None:
    fake = FakeTarget("fake", deltas_of("one two three"))
    with pytest.raises(AssertionError):
        await check_engine(fake, features=(), context=10)
