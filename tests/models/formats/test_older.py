"""TensorFlow.js, the files from before GGUF, MLX, OpenVINO and BitNet's GGUF."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.detect import detect
from llm_runner_router.models.formats import ggml, gguf, mlx, openvino, tfjs
from llm_runner_router.testing import check_format

from .building import ZOO
from .building import safetensors as build

# ---------------------------------------------------------------- TensorFlow.js


def tfjs_model(folder: Path, *, change: dict[str, Any] | None = None, cut: int = 10) -> Path:
    """Three weights over two shards; `change` overrides fields of the second one."""
    plain = np.arange(6, dtype="<f4")
    packed = np.array([0, 128, 255], np.uint8)
    half = np.arange(4, dtype="<f2")
    data = plain.tobytes() + packed.tobytes() + half.tobytes()
    for number, part in enumerate((data[:cut], data[cut:]), 1):
        (folder / f"group1-shard{number}of2.bin").write_bytes(part)
    quantised = {"dtype": "uint8", "scale": 0.5, "min": -3.0, "original_dtype": "float32"}
    second: dict[str, Any] = {
        "name": "b", "shape": [3], "dtype": "float32", "quantization": quantised,
    }  # fmt: skip
    weights = [
        {"name": "a", "shape": [2, 3], "dtype": "float32"},
        second | (change or {}),
        {"name": "c", "shape": [4], "dtype": "float32", "quantization": {"dtype": "float16"}},
    ]
    model = {
        "format": "layers-model",
        "modelTopology": {"model_config": {"class_name": "Sequential"}},
        "weightsManifest": [
            {"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"], "weights": weights}
        ],
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def test_weights_over_shards_and_quantised_ones(tmp_path: Path) -> None:
    tfjs_model(tmp_path)
    assert detect(tmp_path).name == detect(tmp_path / "model.json").name == "tfjs"
    with tfjs.open_checkpoint(tmp_path) as opened:
        read = {name: opened.read(name).tobytes() for name in opened.weights}
        assert [w.dtype for w in opened.weights.values()] == ["F32", "F32", "F16"]
    assert np.frombuffer(read["a"], "<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert np.frombuffer(read["b"], "<f4").tolist() == [-3.0, 61.0, 124.5]
    assert np.frombuffer(read["c"], "<f2").tolist() == [0, 1, 2, 3]
    info = tfjs.describe(tmp_path)
    assert info.architecture == "Sequential"
    assert info.parameters == 13
    assert any("uint8, float16" in note for note in info.notes)


def test_whole_numbers_are_rounded(tmp_path: Path) -> None:
    tfjs_model(tmp_path, change={"dtype": "int32"})
    with tfjs.open_checkpoint(tmp_path) as opened:
        assert np.frombuffer(opened.read("b"), "<i4").tolist() == [-3, 61, 125]


WRONG_WEIGHTS: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"dtype": "float8"}, "unknown type"),
    "shape": ({"shape": [-3]}, "has the shape"),
    "giant": ({"shape": [2**40, 2**40]}, "reaches behind"),
    "short": ({"shape": [2]}, "shards hold"),
    "twice": ({"name": "a"}, "stands there twice"),
    "no name": ({"name": 7}, "no name"),
    "no scale": ({"quantization": {"dtype": "uint8"}}, "has the scale"),
    "infinite": ({"quantization": {"dtype": "uint8", "scale": 1e39}}, "has the scale"),
    "overflow": (
        {"dtype": "int32", "quantization": {"dtype": "uint8", "scale": 1e30}},
        "too large",
    ),
    "quantised how": ({"quantization": {"dtype": "int4"}}, "is quantised to 'int4'"),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_lie(tmp_path: Path, name: str) -> None:
    change, words = WRONG_WEIGHTS[name]
    with pytest.raises(ModelFileError, match=words):
        tfjs.describe(tfjs_model(tmp_path, change=change))


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["../x"], "leads out"),
        (["group1-shard1of2.bin"] * 2, "listed twice"),
        (["absent.bin"], "is missing"),
        ("x", "no list"),
        ([7], "no file name"),
    ],
)
def test_shards_that_lie(tmp_path: Path, paths: object, words: str) -> None:
    model = json.loads((tfjs_model(tmp_path) / "model.json").read_text())
    model["weightsManifest"][0]["paths"] = paths
    (tmp_path / "model.json").write_text(json.dumps(model))
    with pytest.raises(ModelFileError, match=words):
        tfjs.describe(tmp_path)


# ---------------------------------------------------------------- before GGUF


def ggml_model(magic: bytes = b"tjgg", version: int = 3, *, kind: int = 8, heads: int = 2) -> bytes:
    """A LLaMA of one layer, 64 wide, with three tokens."""
    out = bytearray(magic)
    if magic != b"lmgg":
        out += struct.pack("<I", version)
    out += struct.pack("<7I", 3, 64, 32, heads, 1, 32, 7)
    for token in (b"<s>", b"a", b"\xff"):
        out += struct.pack("<I", len(token)) + token
        if magic != b"lmgg":
            out += struct.pack("<f", -1.0)
    shapes = {"tok_embeddings.weight": (64, 3), "norm.weight": (64,), "output.weight": (64, 3),
              "layers.0.attention.wk.weight": (64, 32)}  # fmt: skip
    for name, shape in shapes.items():
        code = kind if len(shape) == 2 else 0
        out += struct.pack("<3I", len(shape), len(name), code)
        out += struct.pack(f"<{len(shape)}I", *shape) + name.encode()
        if magic == b"tjgg":
            out += bytes(-len(out) % 32)
        size = {0: 4, 1: 2, 8: 34 / 32, 2: 18 / 32, 9: 36 / 32}[code] * np.prod(shape)
        out += bytes(i % 251 for i in range(int(size)))
    return bytes(out)


@pytest.mark.parametrize(
    ("magic", "version", "kind"),
    [(b"tjgg", 3, 8), (b"tjgg", 3, 2), (b"tjgg", 1, 1), (b"fmgg", 1, 1), (b"lmgg", 0, 0)],
)
def test_llama_in_files_from_before_gguf(
    tmp_path: Path, magic: bytes, version: int, kind: int
) -> None:
    path = tmp_path / "llama-7b.bin"
    path.write_bytes(ggml_model(magic, version, kind=kind))
    found = detect(path)
    assert found.name == "ggml"
    info = found.describe(path)
    assert (info.architecture, info.layers, info.heads, info.kv_heads) == ("llama", 1, 2, 1)
    assert info.quantisation == {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0"}[kind]
    with ggml.open_checkpoint(path) as opened:
        assert opened.weights["tok_embeddings.weight"].shape == (3, 64)
        assert opened.read("norm.weight").tobytes() == bytes(i % 251 for i in range(256))
        assert opened.config["tokenizer.ggml.tokens"][:2] == ("<s>", "a")


OLD: dict[str, tuple[bytes, str]] = {
    "blocks of another version": (ggml_model(version=2, kind=8), "does not fit|cut short|damaged"),
    "a type it did not have": (ggml_model(kind=9), "has the type 9, which GGJT 3 did not have"),
    "unknown version": (ggml_model(version=9), "unknown version 9"),
    "adapter": (ggml_model(b"algg", 1), "a LoRA adapter"),
    "another architecture": (
        b"lmgg" + struct.pack("<7I", 51864, 1500, 384, 6, 4, 448, 384) + bytes(99),
        "model of another kind than LLaMA",
    ),
    "no layers": (b"lmgg" + bytes(60), "model of another kind"),
    "cut": (ggml_model()[:-9], "cut short inside"),
    "cut in the header": (ggml_model()[:50], "inside its header"),
}


@pytest.mark.parametrize("name", OLD)
def test_what_is_too_old_says_where_to_go(tmp_path: Path, name: str) -> None:
    content, words = OLD[name]
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=words) as caught:
        detect(path).describe(path)
    assert "GGUF" in (caught.value.hint or "")


# ---------------------------------------------------------------- MLX


def mlx_model(folder: Path, **block: Any) -> Path:
    config = json.loads((ZOO / "tiny-math" / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4} | block
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        "a.weight": ("U32", (16, 16)), "a.scales": ("F16", (16, 2)), "a.biases": ("F16", (16, 2)),
        "norm.weight": ("F16", (128,)),
    }  # fmt: skip
    (folder / "model.safetensors").write_bytes(build(tensors))
    return folder


def test_packed_weights_are_counted(tmp_path: Path) -> None:
    mlx_model(tmp_path)
    assert detect(tmp_path).name == "mlx"
    info = mlx.describe(tmp_path)
    assert info.parameters == 16 * 128 + 128
    assert (info.format, info.quantisation, info.architecture) == ("mlx", "MLX 4 bit", "llama")
    with mlx.open_checkpoint(tmp_path) as opened:
        assert opened.weights["a.weight"].dtype == "U32"
        assert opened.config["quantization"]["bits"] == 4


def test_a_layer_with_its_own_bits(tmp_path: Path) -> None:
    assert mlx.describe(mlx_model(tmp_path, a={"bits": 8})).parameters == 16 * 64 + 128


@pytest.mark.parametrize("block", [{"bits": 7}, {"group_size": "x"}, {"bits": [4]}])
def test_mlx_that_lies(tmp_path: Path, block: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="it is quantised to"):
        mlx.describe(mlx_model(tmp_path, **block))


# ---------------------------------------------------------------- OpenVINO, BitNet


def openvino_model(folder: Path) -> Path:
    text = '<?xml version="1.0"?>\n<net name="Model0" version="11">\n<layers/></net>'
    (folder / "openvino_model.xml").write_text(text)
    (folder / "openvino_model.bin").write_bytes(bytes(99))
    shutil.copy(ZOO / "tiny-math" / "config.json", folder)
    return folder


def test_openvino_is_recognised_and_explained(tmp_path: Path) -> None:
    openvino_model(tmp_path)
    found = detect(tmp_path / "openvino_model.xml")
    assert (found.name, detect(tmp_path).name) == ("openvino", "openvino")
    assert found.open_checkpoint is None
    info = found.describe(tmp_path)
    assert info.architecture == "llama"
    assert any("OpenVINO IR 11" in note for note in info.notes)
    (tmp_path / "openvino_model.bin").unlink()
    with pytest.raises(ModelFileError, match=r"weights `openvino_model\.bin` are missing"):
        openvino.describe(tmp_path)


def gguf_of(architecture: str, *tensors: tuple[int, int, int], data: int) -> bytes:
    """A GGUF of tensors given as type, weights, offset."""

    def string(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    out += string("general.architecture") + struct.pack("<I", 8) + string(architecture)
    for kind, count, offset in tensors:
        out += string(f"t{offset}") + struct.pack("<IQIQ", 1, count, kind, offset)
    return out + bytes(-len(out) % 32) + bytes(data)


def test_bitnet_is_described_and_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "bitnet.gguf"
    path.write_bytes(gguf_of("bitnet-b1.58", (36, 256, 0), (39, 256, 96), (0, 8, 192), data=224))
    info = gguf.describe(path)
    assert info.types == {"I2_S": 96, "TL2": 96, "F32": 32}
    assert info.parameters == 520
    assert any("TQ2_0" in note for note in info.notes)
    with gguf.open_checkpoint(path) as opened:
        assert opened.weights["t0"].dtype == "I2_S"
        assert opened.read("t0").nbytes == 256 // 4 + 32
    path.write_bytes(gguf_of("gpt-oss", (39, 256, 0), data=136 + 24))
    info = gguf.describe(path)
    assert (info.types, info.notes) == ({"MXFP4": 136}, ())


@pytest.mark.parametrize("name", ["tfjs", "ggml", "mlx", "openvino"])
def test_they_keep_the_contract(tmp_path: Path, name: str) -> None:
    sound, scratch = tmp_path / "sound", tmp_path / "scratch"
    sound.mkdir()
    scratch.mkdir()
    if name == "ggml":
        path = sound / "a.bin"
        path.write_bytes(ggml_model())
        check_format(ggml, path, scratch, damages=300)
        return
    make: Any = {"tfjs": tfjs_model, "mlx": mlx_model, "openvino": openvino_model}[name]
    module = {"tfjs": tfjs, "mlx": mlx, "openvino": openvino}[name]
    check_format(module, make(sound), scratch, damages=300)
