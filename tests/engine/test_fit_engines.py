"""What engines other than llama.cpp count, beside measurements that were recorded.

Resident MiB of the process on Linux, 2 cores, onnxruntime 1.2x, mistralrs 0.9.5, torch for CPUs:
right after the load, then the most after four rounds of long prompts in all slots, and the top of
the load. The models are 140 M random weights (`bench/synthetic.py`) and `zoo:tiny-general`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_runner_router.engine import adopted, mistralrs, mock, onnx, onnx_genai, torch
from llm_runner_router.engine.base import Engine
from llm_runner_router.engine.fit import Memory, Wanted
from llm_runner_router.models.info import ModelInfo

MIB = 1 << 20
FOLDER = ModelInfo(
    format="safetensors",
    architecture="llama",
    parameters=140_019_456,
    quantisation="F16",
    types={"F16": 279_969_792, "F32": 138_240},
    bytes=280_130_272,
    context=4096,
    layers=22,
    width=768,
    heads=12,
    kv_heads=4,
    key_length=64,
    value_length=64,
    vocabulary=1024,
)
GRAPH = msgspec.structs.replace(
    FOLDER,
    format="onnx",
    parameters=144_656_134,
    quantisation="U8",
    types={"U8": 139_984_896, "F32": 18_684_928},
    bytes=158_753_551,
)
GRAPH_F16 = msgspec.structs.replace(
    FOLDER,
    format="onnx",
    parameters=140_281_604,
    types={"F16": 279_969_792, "F32": 1_186_816},
    bytes=281_227_220,
)
TINY = msgspec.structs.replace(
    GRAPH,
    parameters=4_360_966,
    types={"U8": 4_194_304, "F32": 666_624},
    bytes=4_880_990,
    context=1024,
    layers=5,
    width=256,
    heads=8,
)
GGUF = msgspec.structs.replace(
    FOLDER,
    format="gguf",
    quantisation="Q8_0",
    types={"Q8_0": 148_733_952, "F32": 138_240},
    bytes=148_913_184,
)

MANY_TOKENS = msgspec.structs.replace(
    FOLDER,
    parameters=34_866_432,
    types={"F16": 69_730_304, "F32": 5_120},
    bytes=69_737_600,
    context=1024,
    layers=2,
    width=256,
    heads=4,
    vocabulary=131_072,
    tied=True,
)
"""Two layers for a BPE tokenizer of 131,072 tokens and 262,000 merges."""
MANY_TOKENS_ONNX = msgspec.structs.replace(
    MANY_TOKENS,
    format="onnx",
    parameters=36_021_510,
    quantisation="U8",
    types={"U8": 34_865_152, "F32": 4_625_408},
    bytes=39_499_706,
)


def counted(engine: Engine, info: ModelInfo, slots: int, context: int, **options: Any) -> Memory:
    wanted = Wanted(slots=slots, context=context, budget=64 << 30, options=options)
    return engine.place(info, wanted).memory


@pytest.mark.parametrize(
    ("engine", "info", "slots", "context", "options", "loaded", "most", "peak"),
    [
        (torch, FOLDER, 1, 512, {"dtype": "bfloat16"}, 612.9, 664.8, 875.7),
        (mistralrs, FOLDER, 1, 512, {}, 625.6, 710.6, 873.5),
        (mistralrs, FOLDER, 1, 512, {"isq": "q4k"}, 266.4, 347.9, 740.3),
        (mistralrs, FOLDER, 1, 512, {"isq": "q8_0"}, 374.6, 459.5, 507.3),
        (mistralrs, FOLDER, 1, 512, {"isq": "q4_0"}, 167.3, None, 429.8),
        (mistralrs, GGUF, 1, 512, {}, 513.1, 592.9, 519.1),
        (onnx, GRAPH, 1, 512, {}, 259.0, 333.2, 259.3),
        (onnx, GRAPH, 2, 1024, {}, 258.8, 430.8, 259.1),
        (onnx_genai, GRAPH, 2, 1024, {}, 260.3, 429.9, 260.6),
        (onnx, GRAPH_F16, 1, 512, {}, 608.6, 680.6, 640.3),
        (onnx, TINY, 1, 512, {}, 79.1, 99.7, 79.3),
        (torch, FOLDER, 1, 512, {}, 880.8, 931.7, 1145.5),
        (torch, MANY_TOKENS, 1, 512, {}, 522.0, 568.5, 703.9),
        (mistralrs, MANY_TOKENS, 1, 512, {}, 378.8, 397.0, 480.4),
        (onnx, MANY_TOKENS_ONNX, 1, 512, {}, 194.4, 245.9, 377.2),
        (onnx_genai, MANY_TOKENS_ONNX, 1, 512, {}, 195.7, 244.6, 378.5),
    ],
)
def test_what_was_measured(
    engine: Engine,
    info: ModelInfo,
    slots: int,
    context: int,
    options: dict[str, Any],
    loaded: float,
    most: float | None,
    peak: float,
) -> None:
    memory = counted(engine, info, slots, context, **options)
    assert memory.loaded / MIB == pytest.approx(loaded, rel=0.1)
    assert memory.loading / MIB == pytest.approx(peak, rel=0.1)
    if most is not None:
        assert memory.most / MIB == pytest.approx(most, rel=0.1)


def test_torch_keeps_a_file_mapped_that_has_the_wanted_type() -> None:
    wide = msgspec.structs.replace(FOLDER, types={"F32": 560_000_000}, bytes=560_000_000)
    mapped = counted(torch, wide, 1, 512)
    assert mapped.mapped == 560_000_000
    assert mapped.peak < 2 * MIB, "its tokenizer is read"
    assert mapped.weights < MIB
    narrow = counted(torch, wide, 1, 512, dtype="bfloat16")
    assert (narrow.weights, narrow.mapped, narrow.peak) == (2 * wide.parameters, 0, wide.bytes)


def test_a_type_that_is_not_known_counts_like_the_widest() -> None:
    strange = counted(mistralrs, FOLDER, 1, 512, isq="afq8")
    assert strange.weights >= counted(mistralrs, FOLDER, 1, 512, isq="q8_0").weights


@pytest.mark.parametrize("engine", [torch, mistralrs, onnx, onnx_genai])
def test_more_of_everything_takes_more(engine: Engine) -> None:
    info = GRAPH if engine in (onnx, onnx_genai) else FOLDER
    base = counted(engine, info, 1, 512)
    assert counted(engine, info, 2, 512).serving > base.serving
    assert counted(engine, info, 1, 1024).serving > base.serving
    assert base.late, "the cache comes with the requests"
    assert base.loaded + base.cache + base.work == base.serving
    wanted = Wanted(slots=4, budget=1 << 30, context=None)
    found = engine.place(info, wanted)
    assert (found.context, found.slots) == (4096, 1) or found.bytes <= 1 << 30


def test_those_that_are_not_asked_how_they_grow() -> None:
    assert mock.place(FOLDER, Wanted(slots=1, budget=1)).memory.work == 0
    told = adopted.place(FOLDER, Wanted(slots=3, budget=1))
    assert (told.bytes, told.slots) == (FOLDER.bytes, 3)
