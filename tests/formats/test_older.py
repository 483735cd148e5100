"""Llamas in files from before GGUF: converted, they are the model they were made from."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import numpy as np
import pytest
from tests.convert.asking import ask

from llm_runner_router import LLMRouter
from llm_runner_router.config import Config, Engine
from llm_runner_router.convert import arrays, run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.ggml_gguf import from_ggml
from llm_runner_router.errors import BadRequest, ModelFileError, Unsupported
from llm_runner_router.models.detect import describe, detect
from llm_runner_router.models.formats import ggml, gguf
from llm_runner_router.models.resolve import ZOO

from .older import as_ggml, as_spm_gguf, coded, order

DONOR = ZOO / "tiny-chat.gguf"
FOLDER = Path(__file__).parents[2] / "zoo" / "models" / "tiny-chat"
EXACT = Options(eps=1e-5)
"""What the zoo was trained with; the old files do not say it."""
TEXT = "The capital of France is"


def converted(path: Path, options: Options = EXACT) -> Path:
    target = path.with_suffix(".gguf")
    return run.convert(path, target, "gguf", options=options).path


# ---------------------------------------------------------------- the same answers


@pytest.mark.engine
@pytest.mark.parametrize(
    ("form", "kind"),
    [("ggjt3", "Q8_0"), ("ggjt3", "F16"), ("ggjt1", "F16"), ("ggmf", "F16"), ("ggml", "F32")],
)
def test_a_converted_file_says_what_its_source_says(tmp_path: Path, form: str, kind: str) -> None:
    """Every log-probability of every step, under the numbers that the tokens have in each file.

    The source has weights of the same type; Q8_0 blocks survive the trip through floats as they
    are. So not a bit may differ.
    """
    source = run.convert(FOLDER, tmp_path / "a.gguf", "gguf", options=Options(type=kind)).path
    path = as_ggml(source, tmp_path / "llama.bin", form=form, kind=kind)
    assert describe(path).quantisation == kind
    ids = order(DONOR)
    place = {old: new for new, old in enumerate(ids)}
    prompt = [1, *range(300, 330), 700, 41]
    mine = ask(converted(path), prompts=[[place[i] for i in prompt]], steps=4)["prompts"][0]
    reference = ask(source, prompts=[prompt], steps=4)["prompts"][0]
    for ours, theirs in zip(mine["logprobs"], reference["logprobs"], strict=True):
        assert len(ours) == len(theirs) == len(ids)
        assert {str(ids[int(i)]): value for i, value in ours.items()} == theirs
    assert [ids[i] for i in mine["ids"]] == reference["ids"]


@pytest.mark.engine
async def test_it_is_converted_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text in and text out, against a file of today that holds the same model and vocabulary."""
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path / "home"))
    old = as_ggml(DONOR, tmp_path / "llama.ggmlv3.q8_0.bin", kind="Q8_0")
    new = as_spm_gguf(DONOR, tmp_path / "new.gguf")
    config = Config(engine=Engine(slots=1, spare=False))
    said = []
    for path in (new, old):
        async with await LLMRouter.load(str(path), config=config) as model:
            reply = await model.complete(TEXT, temperature=0, max_tokens=24)
            said.append((str(reply), reply.usage))
    assert said[0] == said[1]
    assert said[0][0]
    kept = list((tmp_path / "home" / "converted").rglob("model.gguf"))
    assert len(kept) == 1, "the result is kept for the next time"
    assert ask(kept[0], texts=[TEXT]) == ask(new, texts=[TEXT])


# ---------------------------------------------------------------- older blocks


OLD_BLOCKS = [
    *(("ggjt1", kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    *(("ggjt2", kind) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
    ("ggmf", "Q4_0"),
    ("ggml", "Q4_1"),
]


@pytest.mark.parametrize(("form", "kind"), OLD_BLOCKS)
def test_older_blocks_keep_their_numbers(tmp_path: Path, form: str, kind: str) -> None:
    """Against the definition of each type, a weight at a time, with scales of half precision."""
    path = as_ggml(DONOR, tmp_path / "llama.bin", form=form, kind=kind)
    name = "blk.1.attn_v.weight"
    with gguf.open_checkpoint(DONOR) as donor:
        source = arrays.decode(donor.read(name), "Q8_0", donor.weights[name].shape)
    expected = []
    for block in source.reshape(-1, 32):
        codes, scales = coded(block, kind)
        half = [float(np.float16(np.float32(scale))) for scale in scales]
        middle = 0 if kind == "Q8_0" else 1 << (int(kind[1]) - 1)
        least, middle = (half[1], 0) if len(half) == 2 else (0.0, middle)
        expected += [np.float32(half[0]) * (c - middle) + np.float32(least) for c in codes]
    with gguf.open_checkpoint(converted(path)) as made:
        assert made.weights[name].dtype == kind
        found = arrays.decode(made.read(name), kind, made.weights[name].shape)
        assert np.allclose(found.reshape(-1), expected, rtol=1e-6, atol=1e-7)
        assert made.info.architecture == "llama"
        assert made.info.kv_heads == 2, "told by the shape of the keys"


def test_a_type_that_came_and_went_is_named(tmp_path: Path) -> None:
    path = as_ggml(DONOR, tmp_path / "llama.bin", form="ggjt1", kind="F16")
    content = path.read_bytes()
    name = b"layers.2.feed_forward.w2.weight"
    at = content.index(name)
    # 16 weights in 10 bytes: the tensor gets shorter, and what follows moves up.
    start = -(-(at + len(name)) // 32) * 32
    rest = content[start + 2 * 128 * 384 :]
    moved = start + 128 * 384 // 16 * 10
    rest = rest if moved % 32 == start % 32 else rest[: len(rest)]
    head = content[: at - 20] + struct.pack("<3I", 2, len(name), 4) + content[at - 8 : start]
    path.write_bytes(head + bytes(moved - start) + rest)
    assert "Q4_2" in describe(path).types
    with pytest.raises(ModelFileError, match=r"layers\.2\.feed_forward\.w2\.weight.*type Q4_2"):
        converted(path)
    assert not path.with_suffix(".gguf").exists()


def test_scales_that_are_none(tmp_path: Path) -> None:
    path = as_ggml(DONOR, tmp_path / "llama.bin", form="ggml", kind="Q4_0")
    content = bytearray(path.read_bytes())
    name = b"layers.3.attention.wo.weight"
    at = content.index(name) + len(name)
    content[at : at + 4] = struct.pack("<f", float("inf"))
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"wo\.weight.*cannot be rewritten.*March 2023"):
        converted(path)


# ---------------------------------------------------------------- what the files do not say


def test_what_is_not_said_can_be(tmp_path: Path) -> None:
    path = as_ggml(DONOR, tmp_path / "llama.bin")
    options = Options(eps=1e-6, context=4096)
    with gguf.open_checkpoint(converted(path, options)) as made:
        assert made.config["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
        assert made.info.context == 4096
    path.with_suffix(".gguf").unlink()
    with gguf.open_checkpoint(converted(path, Options())) as made:
        assert made.config["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(5e-6)
        assert made.info.context == ggml.CONTEXT
    for wrong in (Options(eps=2.0), Options(context=-1)):
        with pytest.raises(BadRequest):
            from_ggml(path, tmp_path / "never.gguf", wrong, lambda *_: None)


def test_the_vocabulary_becomes_sentencepiece(tmp_path: Path) -> None:
    path = as_ggml(DONOR, tmp_path / "llama.bin", form="ggml")
    reference = as_spm_gguf(DONOR, tmp_path / "new.gguf")
    with gguf.open_checkpoint(converted(path)) as made, gguf.open_checkpoint(reference) as wanted:
        for key in ("tokens", "token_type", "scores", "bos_token_id", "eos_token_id", "model"):
            # The oldest files have no scores: they are those of the order of the tokens.
            assert made.config[f"tokenizer.ggml.{key}"] == wanted.config[f"tokenizer.ggml.{key}"]


def test_quantised_weights_are_not_quantised_again(tmp_path: Path) -> None:
    from llm_runner_router import refs
    from llm_runner_router.engine.prepare import find_way
    from llm_runner_router.engine.select import EngineSelector
    from llm_runner_router.models.resolve import resolve

    path = as_ggml(DONOR, tmp_path / "llama.bin", form="ggjt2", kind="Q4_0")
    model = resolve(refs.parse(str(path)))
    way = find_way(model, EngineSelector())
    assert (way.kind, way.steps, way.engine) == ("gguf", ("ggml to gguf",), "llamacpp")
    for wanted in ("q4_k_m", "q8_0"):
        with pytest.raises(Unsupported, match="lose twice"):
            find_way(msgspec.structs.replace(model, quantization=wanted), EngineSelector())
    dynamic = msgspec.structs.replace(model, quantization="dynamic")
    assert find_way(dynamic, EngineSelector()).mix == ""


# ---------------------------------------------------------------- other models of that time


def other(name: bytes, *header: int, magic: bytes = b"lmgg") -> bytes:
    """A file with that header, some words, and a tensor of that name."""
    words = b"".join(struct.pack("<I", 2) + b"ab" for _ in range(40))
    tensor = struct.pack("<5I", 2, len(name), 1, 8, 8) + name + bytes(128)
    return magic + struct.pack(f"<{len(header)}I", *header) + words + tensor


OTHERS = {
    "GPT-2 or StarCoder": other(b"model/wte", 40, 1024, 768, 12, 12, 1, 40),
    "GPT-J": other(b"transformer.wte.weight", 40, 2048, 4096, 16, 28, 64, 1, 40),
    "GPT-NeoX": other(b"gpt_neox.embed_in.weight", 40, 2048, 512, 8, 6, 16, 1, 1),
    "MPT": other(b"transformer.wte.weight", 4096, 2048, 32, 32, 40, 8, 0, 1),
    "BLOOM": other(b"layers.0.attention.query_key_value.weight", 40, 1024, 1, 16, 24, 1),
    "Whisper": other(b"encoder.positional_embedding", 51864, 1500, 384, 6, 4, 448, 384),
    "RWKV": other(b"emb.weight", 101, 40, 768, 12, 0, magic=b"fmgg"),
    "Falcon": other(b"transformer.word_embeddings.weight", 10, 40, 64, 4, 4, magic=b"ccgg"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ggml-model.bin"
    path.write_bytes(OTHERS[name])
    found = detect(path)
    assert found.name == "ggml"
    with pytest.raises(ModelFileError, match=f"another kind than LLaMA: {name}") as caught:
        found.describe(path)
    assert "GGUF" in (caught.value.hint or "")


def test_one_of_several_parts(tmp_path: Path) -> None:
    path = as_ggml(DONOR, tmp_path / "ggml-model-f16.bin", form="ggmf")
    content = path.read_bytes()
    # The width in the header is that of the whole model, twice what a part's embedding has.
    path.write_bytes(content[:12] + struct.pack("<I", 256) + content[16:])
    with pytest.raises(ModelFileError, match="one of several parts"):
        describe(path)
