"""GGUF back to a Hugging Face folder: the same numbers, answers and tokens."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_runner_router.convert import arrays, pretokenizers, run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.gguf_config import BACK
from llm_runner_router.convert.gguf_hf import to_safetensors
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.errors import Unsupported
from llm_runner_router.models.formats import safetensors

from .models import make
from .test_vocabulary import TEXTS
from .test_vocabulary import test_a_vocabulary_of_sentencepiece_as_json_cuts_alike as spm_folder

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "src" / "llm_runner_router" / "zoo" / "tiny-chat.gguf"
QUICK = ("llama3", "mixtral", "qwen2moe", "gemma2")
OTHERS = ("llama-linear", "llama-tied-bias", "qwen2-yarn", "qwen3", "qwen3moe", "granite",
          "smollm3", "olmo2", "gemma")  # fmt: skip

pytestmark = pytest.mark.xdist_group("transformers")


def silent(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total


def numbers(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    with safetensors.open_checkpoint(folder) as found:
        return {
            name: arrays.decode(found.read(name), w.dtype, w.shape).copy()
            for name, w in found.weights.items()
        }


@pytest.mark.parametrize("name", QUICK)
def test_there_and_back_is_the_same_model(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_there_and_back_is_every_other_model_too(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def check(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = make(name, tmp_path / "hf")
    from_safetensors(tmp_path / "hf", tmp_path / "a.gguf", Options(type="f32"), silent)
    to_safetensors(tmp_path / "a.gguf", tmp_path / "back", Options(), silent)
    old, new = numbers(tmp_path / "hf"), numbers(tmp_path / "back")
    gemma = name.startswith("gemma")
    for tensor, array in new.items():
        if tensor in old and not gemma:
            assert np.array_equal(array, old[tensor]), tensor
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    again.config._attn_implementation = "eager"
    ids = torch.tensor([[0, 17, 45, 90, 33, *range(60, 90)]])
    with torch.no_grad():
        difference = (again(ids).logits - model(ids).logits).abs().max()
    assert float(difference) < (1e-3 if gemma else 1e-4)


def test_the_zoo_comes_back_within_its_blocks(tmp_path: Path) -> None:
    run.convert(SHIPPED, tmp_path / "back", "safetensors", options=Options(type="f32"))
    old, new = numbers(ROOT / "zoo" / "models" / "tiny-chat"), numbers(tmp_path / "back")
    assert set(old) == set(new)
    for name, array in old.items():
        # Half a step, which is a block's largest weight / 127, and that scale's own rounding.
        assert np.abs(array - new[name]).max() <= np.abs(array).max() * (1 / 254 + 1 / 2048)


def test_the_zoos_tokenizer_comes_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run.convert(SHIPPED, tmp_path / "back", "safetensors")
    old = AutoTokenizer.from_pretrained(ROOT / "zoo" / "models" / "tiny-chat")
    new = AutoTokenizer.from_pretrained(tmp_path / "back")
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>", "<tool_call>{}</tool_call>"]:
        ids = old(text).input_ids
        assert new(text).input_ids == ids
        assert new.decode(ids) == old.decode(ids)
    said = [{"role": "user", "content": "hello"}]
    assert new.apply_chat_template(said, tokenize=False) == old.apply_chat_template(
        said, tokenize=False
    )


def test_a_token_that_is_no_text_is_named(tmp_path: Path) -> None:
    content = SHIPPED.read_bytes()
    at = content.index(b"tokenizer.ggml.tokens")
    word = struct.pack("<Q", 5) + "Ġthe".encode()
    assert content.find(word, at) > at
    tail = content[at:].replace(word, word[:-3] + b"t\xe2e", 1)
    (tmp_path / "bad.gguf").write_bytes(content[:at] + tail)
    with pytest.raises(Unsupported, match=r"`tokenizer\.json` cannot hold 'Ġt.udce2e'"):
        to_safetensors(tmp_path / "bad.gguf", tmp_path / "back", Options(), silent)
    assert not (tmp_path / "back").exists()


def test_letters_that_are_bytes_alone_are_told(tmp_path: Path) -> None:
    """llama.cpp joins them, merges between tokens cannot: the texts would be cut otherwise."""
    from tests.formats.older import as_spm_gguf

    source = as_spm_gguf(SHIPPED, tmp_path / "spm.gguf")
    with pytest.raises(Unsupported, match=r"no token for .*, of which others are made"):
        to_safetensors(source, tmp_path / "back", Options(), silent)


def test_merges_come_back_from_scores(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    from llm_runner_router.convert import gguf_tokenizer, vocabulary

    spm_folder(tmp_path)
    old = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    found = vocabulary.read(tmp_path, old.get_vocab_size(), {})
    fields = {key: value for key, value, _ in found.fields()}
    import msgspec

    content = gguf_tokenizer.files(fields)["tokenizer.json"]
    new = Tokenizer.from_str(msgspec.json.encode(content).decode())
    for text in TEXTS:
        if text:
            assert new.encode(text).ids == old.encode(text).ids, text


@pytest.mark.parametrize("name", ["llama3", "starcoder", "qwen2", "deepseek-r1-qwen", "dbrx"])
def test_other_names_of_a_pre_tokenizer_are_known(name: str) -> None:
    shape = pretokenizers.shape_of(name)
    assert shape is not None
    steps = {"pre_tokenizer": pretokenizers.steps_of(shape)}
    again = pretokenizers.name_of({**steps, "model": {"ignore_merges": shape.whole}})
    assert pretokenizers.shape_of(again) == shape


def test_what_is_not_converted_back_is_told(tmp_path: Path) -> None:
    make("gpt2", tmp_path / "hf")
    from_safetensors(tmp_path / "hf", tmp_path / "a.gguf", Options(type="f32"), silent)
    with pytest.raises(Unsupported, match="`gpt2`") as refused:
        to_safetensors(tmp_path / "a.gguf", tmp_path / "back", Options(), silent)
    assert all(name in (refused.value.hint or "") for name in BACK)
    with pytest.raises(Unsupported, match="`q8_0`"):
        to_safetensors(SHIPPED, tmp_path / "back", Options(type="q8_0"), silent)
