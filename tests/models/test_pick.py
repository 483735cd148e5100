"""Which files of a repository are brought."""

from __future__ import annotations

import pytest

from llm_runner_router.errors import NotFound
from llm_runner_router.models.pick import Choice, Listed, choose, quant_of, split_names
from llm_runner_router.refs import parse

QUANTS = ("m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "README.md")


def pick(text: str, *paths: str) -> Choice:
    return choose([Listed(path, 1) for path in paths], parse(text))


def paths(choice: Choice) -> list[str]:
    return [file.path for file in choice.files]


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("m-Q4_K_M.gguf", "Q4_K_M"),
        ("m.q8_0.gguf", "Q8_0"),
        ("qwen3-4b-iq4_xs.gguf", "IQ4_XS"),
        ("m-f16.gguf", "F16"),
        ("m-fp16.gguf", "F16"),
        ("m-BF16-00001-of-00002.gguf", "BF16"),
        ("Q6_K/model.gguf", "Q6_K"),
        ("m-TQ2_0.gguf", "TQ2_0"),
        ("m-UD-Q4_K_XL.gguf", "Q4_K_XL"),
        ("gpt-oss-MXFP4.gguf", "MXFP4"),
        ("llama-3-8b.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_quantisations_are_read_from_names(name: str, quant: str) -> None:
    assert quant_of(name) == quant


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("hf:o/r", "m-Q4_K_M.gguf"),
        ("hf:o/r#q8_0", "m-Q8_0.gguf"),
        ("hf:o/r:Q2_K", "m-Q2_K.gguf"),
        ("hf:o/r#q4", "m-Q4_K_M.gguf"),
        ("hf:o/r:m-Q2_K.gguf", "m-Q2_K.gguf"),
    ],
)
def test_one_gguf_of_several(text: str, path: str) -> None:
    chosen = pick(text, *QUANTS)
    assert (paths(chosen), chosen.main) == ([path], path)


def test_the_choice_gives_its_reason() -> None:
    assert "the usual choice" in pick("hf:o/r", *QUANTS).notes[0]
    assert "there is no Q4_K_M" in pick("hf:o/r", "m-Q8_0.gguf", "m-F16.gguf").notes[0]
    assert pick("hf:o/r", "m-Q8_0.gguf", "m-F16.gguf").quant == "Q8_0"
    assert "projector" in pick("hf:o/r", *QUANTS).notes[1]


@pytest.mark.parametrize(
    ("text", "files", "words", "hint"),
    [
        ("hf:o/r#q3_k", QUANTS, "there is no Q3_K", "Q2_K, Q4_K_M, Q8_0"),
        ("hf:o/r:nope.gguf", QUANTS, "no file 'nope.gguf'", "Q4_K_M"),
        ("hf:o/r#q4_k_m", ("model.safetensors",), "no GGUF file", "llmrr quantize"),
        ("hf:o/r", ("README.md",), "no model files", "README.md"),
        ("hf:o/r", (), "no model files", "no files"),
        ("hf:o/r", ("m-00001-of-00002.gguf",), "1 of 2 parts are missing", "not complete"),
        ("hf:o/r", ("m-00002-of-00002.gguf",), "1 of 2 parts are missing", "not complete"),
    ],
)
def test_what_is_not_there_says_what_is(
    text: str, files: tuple[str, ...], words: str, hint: str
) -> None:
    with pytest.raises(NotFound, match=words) as caught:
        pick(text, *files)
    assert hint in (caught.value.hint or "")


def test_all_parts_of_a_split_model() -> None:
    parts = [f"Q4_K_M/m-Q4_K_M-0000{n}-of-00003.gguf" for n in (3, 1, 2)]
    chosen = pick("hf:o/r#q4_k_m", *parts, "m-Q8_0.gguf")
    assert paths(chosen) == sorted(parts)
    assert chosen.main == sorted(parts)[0]
    assert paths(pick(f"hf:o/r:{parts[0]}", *parts)) == sorted(parts)
    assert split_names("a-00001-of-00001.gguf") == ("a-00001-of-00001.gguf",)


def test_a_folder_of_safetensors_with_what_is_read_beside_it() -> None:
    files = (
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        *("model.safetensors.index.json", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"),
        *("consolidated.safetensors", "pytorch_model.bin", "README.md", "modeling_x.py"),
        *("onnx/model.onnx", "training_args.bin", "2_Dense/extra.bin"),
        *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"),
    )
    chosen = pick("hf:o/r", *files)
    assert set(paths(chosen)) == {*files[:9], *files[-3:]}
    assert chosen.main == ""
    assert "ONNX" in chosen.notes[0]


def test_code_is_never_brought() -> None:
    files = ("model.safetensors", "config.json", "modeling_x.py", "run.sh", "a/b.py")
    assert not [p for p in paths(pick("hf:o/r", *files)) if p.endswith((".py", ".sh"))]
    with pytest.raises(NotFound):
        pick("hf:o/r:modeling_x.py", *files)


def test_onnx_pytorch_and_tfjs() -> None:
    genai = ("cpu/x/genai_config.json", "cpu/x/model.onnx", "cpu/x/model.onnx.data", "cuda/a.onnx")
    assert set(paths(pick("hf:o/r", *genai))) == set(genai[:3])
    plain = ("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "config.json")
    assert set(paths(pick("hf:o/r", *plain))) == {*plain[:2], "config.json"}
    torch = ("pytorch_model.bin", "config.json", "vocab.txt", "optimizer.bin")
    assert set(paths(pick("hf:o/r", *torch))) == set(torch[:3])
    tfjs = ("model.json", "group1-shard1of2.bin", "group1-shard2of2.bin", "vocab.json")
    assert set(paths(pick("hf:o/r", *tfjs))) == set(tfjs)
