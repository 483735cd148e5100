"""Adapters made ready for a model: converted, and refused where they are not the model's."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from safetensors import numpy as files
from tests.convert import adapters

from llm_runner_router.convert.base import Options
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.engine.adapters import AGAIN, Adapters, check
from llm_runner_router.engine.prepare import Preparer
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import LoadFailed, ModelFileError
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.info import Adapter, LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse

from .locally import HUB, Locally, chat, model_at, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("lora")]

SOURCE = HUB / "tiny-general"
GENERAL = resolve(parse("zoo:tiny-general"))

ATTENTION = "blk.0.attn_q.weight"


def gguf_adapter(
    path: Path,
    tensors: dict[str, tuple[int, ...]],
    *,
    architecture: str = GENERAL.info.architecture,
    **fields: Any,
) -> Path:
    """A file with tensors of zeros; `fields` have `__` for dots."""
    said = {"general__type": "adapter", "adapter__type": "lora", **fields}
    with GGUFWriter(path, architecture) as out:
        for key, value in said.items():
            out.field(key.replace("__", "."), value)
        out.field("adapter.lora.alpha", 8.0, "F32")
        for name, shape in tensors.items():
            out.tensor(name, "F32", shape)
        out.begin()
        for name, shape in tensors.items():
            out.data(name, bytes(4 * math.prod(shape)))
        return out.finish()


def pair(name: str, a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_a": a, f"{name}.lora_b": b}


def shape_of(name: str) -> tuple[int, ...]:
    with gguf.open_checkpoint(GENERAL.path) as opened:
        return opened.weights[name].shape


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LLMRR_HOME": str(tmp_path / "home")}


def with_adapters(**paths: Path) -> LocalModel:
    each = tuple(Adapter(name, path) for name, path in paths.items())
    return msgspec.structs.replace(GENERAL, name="m", engine="llamacpp", adapters=each)


# ---------------------------------------------------------------- whose they are


def test_one_for_the_model_is_taken(tmp_path: Path) -> None:
    height, width = shape_of(ATTENTION)
    tokens, inner = shape_of("token_embd.weight")
    tensors = pair(ATTENTION, (4, width), (height, 4))
    tensors |= pair("token_embd.weight", (tokens, 2), (inner, 2))
    check(GENERAL.path, gguf_adapter(tmp_path / "a.gguf", tensors))


@pytest.mark.parametrize(
    ("tensors", "fields", "said"),
    [
        ({}, {"architecture": "gemma"}, "it is for `gemma`, and the model is `llama`"),
        ({}, {"adapter__type": "control_vector"}, "'control_vector', not a LoRA"),
        ({}, {"general__type": "model"}, "no LoRA adapter but a model"),
        ({}, {"adapter__alora__invocation_tokens": [1, 2]}, "activated adapter"),
        (pair("blk.99.attn_q.weight", (4, 8), (8, 4)), {}, "`blk.99.attn_q.weight`, which the"),
        (pair(ATTENTION, (4, 7), (8, 4)), {}, r"\(4, 7\) and \(8, 4\), and in the model"),
        ({f"{ATTENTION}.lora_a": (4, 8)}, {}, "half of a pair"),
        ({"blk.0.attn_norm.weight": (8,)}, {}, "no part of a pair"),
        (pair("blk.0.attn_norm.weight", (4, 8), (8, 4)), {}, "as no matrix can be"),
        (pair(ATTENTION, (1, 4, 8), (1, 8, 4)), {}, "as no matrix can be"),
    ],
)
def test_one_that_is_not_is_refused_by_what_is_wrong(
    tensors: dict[str, tuple[int, ...]], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(LoadFailed, match=said):
        check(GENERAL.path, gguf_adapter(tmp_path / "a.gguf", tensors, **fields))


def test_ranks_of_a_pair_must_be_equal(tmp_path: Path) -> None:
    height, width = shape_of(ATTENTION)
    path = gguf_adapter(tmp_path / "a.gguf", pair(ATTENTION, (4, width), (height, 8)))
    with pytest.raises(LoadFailed, match="in the model that is"):
        check(GENERAL.path, path)


# ---------------------------------------------------------------- making them ready


async def test_pefts_are_converted_once_and_anew_when_they_change(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    folder = adapters.make(SOURCE, tmp_path / "sea", seed=1)
    model = with_adapters(sea=folder)
    made = Adapters(clock=time.monotonic, environ=environ)
    ready = await made.ready(model)
    (first,) = ready.adapters
    assert first.name == "sea"
    assert first.bytes == first.path.stat().st_size > 1000
    check(GENERAL.path, first.path)
    assert (ready.path, ready.name) == (model.path, model.name)
    before = first.path.stat().st_mtime_ns
    assert await made.ready(model) == ready
    again = await asyncio.gather(
        *(Adapters(clock=time.monotonic, environ=environ).ready(model) for _ in range(2))
    )
    assert again == [ready, ready]
    assert first.path.stat().st_mtime_ns == before, "it was there already"
    shutil.rmtree(folder)
    adapters.make(SOURCE, folder, seed=2)
    (other,) = (await made.ready(model)).adapters
    assert other.path.read_bytes() != first.path.read_bytes()
    other.path.unlink()
    assert (await made.ready(model)).adapters == (other,)
    assert other.path.is_file(), "what somebody deleted is made again"


async def test_what_is_wrong_is_told_with_its_name_and_looked_at_again_when_it_changes(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    now = [0.0]
    made = Adapters(clock=lambda: now[0], environ=environ)
    folder = adapters.make(SOURCE, tmp_path / "sea", use_dora=True)
    model = with_adapters(sea=folder)
    with pytest.raises(LoadFailed, match=r"the adapter `sea` of `m`: .*use_dora") as caught:
        await made.ready(model)
    assert "merge" in (caught.value.hint or "")
    with pytest.raises(LoadFailed) as again:
        await made.ready(model)
    assert again.value is caught.value, "nothing was tried again"
    now[0] = AGAIN + 1
    with pytest.raises(LoadFailed) as later:
        await made.ready(model)
    assert later.value is not caught.value
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    assert (await made.ready(model)).adapters[0].path.is_file()
    shutil.rmtree(folder)
    with pytest.raises(ModelFileError, match="cannot read"):
        await made.ready(model)


async def test_the_wrong_base_is_told_before_an_engine_is_started(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """A model of other sizes; `ready` comes before there is any process."""
    base = tmp_path / "other"
    shutil.copytree(SOURCE, base)
    shrunk(base)
    folder = adapters.make(base, tmp_path / "sea")
    made = Preparer(EngineSelector(), clock=time.monotonic, environ=environ)
    try:
        with pytest.raises(LoadFailed, match="the adapter `sea` of `m`") as caught:
            await made.ready(with_adapters(sea=folder))
        assert "trained for" in (caught.value.hint or "") or "made for" in (caught.value.hint or "")
    finally:
        await made.close()


def shrunk(base: Path) -> None:
    """The matrices of the layers of `base` with half their inputs."""
    weights = files.load_file(base / "model.safetensors")
    cut = {n: w[:, : w.shape[1] // 2].copy() if w.ndim == 2 else w for n, w in weights.items()}
    files.save_file(cut, base / "model.safetensors", metadata={"format": "pt"})


async def test_a_better_form_of_the_model_has_its_adapters_too(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """It answers with them as it is, and as what it becomes meanwhile; no form goes without."""
    whole = tmp_path / "whole.gguf"
    from_safetensors(SOURCE, whole, Options(type="f16"), lambda *_: None)
    peft = adapters.make(SOURCE, tmp_path / "sea", seed=1)
    each = (Adapter("sea", peft),)
    model = model_at(whole, name="m", engine="llamacpp", quantization="q8_0", adapters=each)
    told: list[LocalModel] = []
    made = Preparer(EngineSelector(), clock=time.monotonic, environ=environ, replaced=told.append)
    try:
        before = await made.ready(model)
        assert before.path == whole
        await until(lambda: not made.making("m"))
        after = await made.ready(model)
        assert after.path != whole
        assert after.info.quantisation == "Q8_0"
        for form in (before, after):
            (adapter,) = form.adapters
            check(form.path, adapter.path)
        assert all(one.adapters[0].path.suffix == ".gguf" for one in told)
    finally:
        await made.close()


# ---------------------------------------------------------------- the whole way


@pytest.mark.engine
def test_a_folder_with_a_folder_beside_it_answers_as_the_merged_one(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """A Hugging Face folder and an adapter of PEFT's: both are converted, nothing else is said."""
    peft = adapters.make(SOURCE, tmp_path / "sea", seed=3, size=0.2)
    merged = adapters.merge(SOURCE, tmp_path / "merged", (peft, 1.0))
    each = (Adapter("sea", peft),)
    model = model_at(SOURCE, name="m", engine="llamacpp", adapters=each)
    whole = model_at(merged, name="merged", engine="llamacpp")
    made = Preparer(EngineSelector(), clock=time.monotonic, environ=environ)
    local = Locally()
    try:
        model, whole = (local.run(made.ready(one)) for one in (model, whole))
        assert [one.path.suffix for one in model.adapters] == [".gguf"]
        request = chat("Tell me about the sea.")
        with_it = msgspec.structs.replace(request, extra={"lora": Raw(b'[{"name":"sea"}]')})
        plain = local.ask(model, request).text
        assert local.ask(model, with_it).text == local.ask(whole, request).text != plain
        (row,) = [row for row in local.residency.status() if row.name == "m"]
        assert row.adapters == ("sea",)
        assert local.ask(model, request).text == plain
    finally:
        local.run(made.close())
        local.close()
