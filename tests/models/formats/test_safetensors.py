"""Safetensors: equal to the format's own library on sound files, strict on everything else."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import safetensors

from .building import ZOO, framed
from .building import safetensors as build

TWO = {"a.weight": ("F32", (2, 3)), "b": ("U8", (4,))}


def entry(dtype: str = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["tiny-math", "tiny-general"])
def test_the_weights_are_those_that_the_library_reads(name: str) -> None:
    folder = ZOO / name
    with (
        safe_open(folder / "model.safetensors", "numpy") as reference,
        safetensors.open_checkpoint(folder) as opened,
    ):
        assert sorted(opened.weights) == sorted(reference.keys())
        for key, weight in opened.weights.items():
            expected = reference.get_tensor(key)
            assert weight.shape == expected.shape
            assert opened.read(key).tobytes() == expected.tobytes()
            assert opened.read(key).readonly
        assert opened.config["model_type"] == "llama"


def test_the_facts_of_a_folder() -> None:
    info = safetensors.describe(ZOO / "tiny-math")
    config = json.loads((ZOO / "tiny-math" / "config.json").read_text())
    assert (info.format, info.architecture, info.task) == ("safetensors", "llama", "generate")
    assert info.layers == config["num_hidden_layers"]
    assert info.context == config["max_position_embeddings"]
    assert (info.heads, info.kv_heads) == (4, 2)
    assert info.key_length == info.value_length == config["head_dim"]
    assert info.vocabulary == config["vocab_size"]
    assert info.tied
    assert info.quantisation == "F16"
    assert info.chat_template is not None
    assert "im_start" in info.chat_template
    assert info.tokenizer == "bpe"
    assert info.license
    assert safetensors.describe(ZOO / "tiny-math" / "model.safetensors").layers == info.layers


def test_views_outlive_a_closed_checkpoint(tmp_path: Path) -> None:
    opened = safetensors.open_checkpoint(written(tmp_path, build(TWO)))
    array = np.frombuffer(opened.read("b"), np.uint8)
    opened.close()
    assert array.tolist() == [24, 25, 26, 27]


SOUND = json.dumps({"a": entry()})
DAMAGES = {
    "empty": (b"", "too few"),
    "short": (b"\x02\x00\x00", "too few"),
    "length": (struct.pack("<Q", 2**63) + b"{}" * 9, "claims 9223372036854775808 bytes"),
    "over 100 MB": (struct.pack("<Q", 2**27) + b"{}" * 9, "not 2 to 104857600"),
    "longer than the file": (struct.pack("<Q", 500) + b"{}" * 9, "more than the file can hold"),
    "not an object": (framed("[1, 2]"), "begins with"),
    "no JSON": (framed("{nothing}"), "not JSON"),
    "bad UTF-8": (framed(b'{"\xff": 1}'), "not UTF-8 at byte 2"),
    "key twice": (
        framed(f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry())}}}', b"1234"),
        "'a' stands there twice",
    ),
    "field twice": (framed('{"a": {"dtype": "U8", "dtype": "U8"}}'), "'dtype' stands there twice"),
    "NaN": (framed('{"a": NaN}'), "NaN is not"),
    "deep": (framed('{"a":' + "[" * 200_000), "nested too deeply"),
    "digits": (framed('{"a": 1' + "0" * 5000 + "}"), "not JSON"),
    "number for an entry": (framed('{"a": 1}'), "exactly"),
    "field missing": (framed('{"a": {"dtype": "U8", "shape": [4]}}', b"1234"), "exactly"),
    "field too many": (framed(json.dumps({"a": entry() | {"x": 1}}), b"1234"), "exactly"),
    "unknown type": (framed(json.dumps({"a": entry("Q4")}), b"1234"), "unknown type 'Q4'"),
    "type no text": (framed(json.dumps({"a": {**entry(), "dtype": [1]}}), b"1234"), "unknown type"),
    "negative": (framed(json.dumps({"a": entry(shape=[-4])}), b"1234"), "shape"),
    "fraction": (framed(json.dumps({"a": entry(shape=[4.0])}), b"1234"), "shape"),
    "boolean": (framed(json.dumps({"a": entry(shape=[True])}), b"1234"), "shape"),
    "giant": (framed(json.dumps({"a": entry(shape=[2**61, 2**61])}), b"1234"), "larger than"),
    "nine dimensions": (framed(json.dumps({"a": entry(shape=[1] * 9)}), b"1"), "shape"),
    "outside": (framed(json.dumps({"a": entry(offsets=[0, 5])}), b"1234"), "outside"),
    "backwards": (framed(json.dumps({"a": entry(offsets=[4, 0])}), b"1234"), "outside"),
    "three offsets": (framed(json.dumps({"a": entry(offsets=[0, 2, 4])}), b"1234"), "outside"),
    "size": (framed(json.dumps({"a": entry(shape=[3])}), b"1234"), "takes 3 bytes"),
    "overlap": (
        framed(json.dumps({"a": entry(), "b": entry(offsets=[2, 6])}), b"123456"),
        "overlap",
    ),
    "gap": (
        framed(json.dumps({"a": entry(), "b": entry(offsets=[6, 10])}), b"1234567890"),
        "2 bytes before 'b'",
    ),
    "hidden tail": (framed(SOUND, b"1234hidden"), "10 follow the header"),
    "cut": (framed(SOUND, b"123"), "outside"),
    "metadata": (framed('{"__metadata__": {"a": 1}}'), "__metadata__"),
    "many": (framed("{" + '"":1,' * 800_000 + "}"), "more than 131072 entries"),
    "lists": (framed('{"a":' + "[" + "[]," * 2_200_000 + "1]}"), "more than 131072 entries"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused(tmp_path: Path, name: str) -> None:
    content, words = DAMAGES[name]
    path = written(tmp_path, content)
    with pytest.raises(ModelFileError) as caught:
        safetensors.describe(path)
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_tensors_without_elements_are_sound(tmp_path: Path) -> None:
    path = written(tmp_path, build({"none": ("F32", (0, 5)), "one": ("U8", ())}))
    with safetensors.open_checkpoint(path) as opened:
        assert opened.read("none").nbytes == 0
        assert opened.read("one").nbytes == 1


# ---------------------------------------------------------------- several files


def split(folder: Path, names: tuple[str, str] = ("m-00001-of-00002", "m-00002-of-00002")) -> None:
    first, second = (f"{name}.safetensors" for name in names)
    (folder / first).write_bytes(build({"a": ("U8", (3,))}))
    (folder / second).write_bytes(build({"b": ("U8", (5,))}))
    index = {"metadata": {"total_size": 8}, "weight_map": {"a": first, "b": second}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_parts_are_one_model(tmp_path: Path) -> None:
    split(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"not listed, not read")
    with safetensors.open_checkpoint(tmp_path) as opened:
        assert list(opened.weights) == ["a", "b"]
        assert opened.read("b").nbytes == 5
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "other.safetensors").unlink()
    assert safetensors.describe(tmp_path).tensors == 2
    part = safetensors.describe(tmp_path / "m-00001-of-00002.safetensors")
    assert any("one of 2 parts" in note for note in part.notes)


NAMES = {
    "../m.safetensors": "leads out",
    "/etc/passwd": "no relative path",
    "a/../../m.safetensors": "leads out",
    "..\\m.safetensors": "no relative path",
    "C:m.safetensors": "no relative path",
    "./m.safetensors": "leads out",
    "a\x00b": "no relative path",
    "": "no file name",
    "absent.safetensors": "is missing",
    "folder": "not a regular file",
    "link.safetensors": "link that leads out",
    "loop.safetensors": "cannot be followed",
}


@pytest.mark.parametrize("name", NAMES)
def test_parts_stay_in_their_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "m.safetensors").write_bytes(build({"a": ("U8", (3,))}))
    (folder / "link.safetensors").symlink_to(tmp_path / "m.safetensors")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    index = {"weight_map": {"a": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=NAMES[name]):
        safetensors.describe(folder)


def test_the_hub_cache_links_to_its_blobs(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    folder = repo / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "cafe").write_bytes(build({"a": ("U8", (3,))}))
    (folder / "model.safetensors").symlink_to(Path("../../blobs/cafe"))
    assert safetensors.describe(folder).tensors == 1


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "no `weight_map`"),
        ({"weight_map": []}, "no `weight_map`"),
        ({"weight_map": {"a": 7}}, "is missing"),
        (
            {
                "weight_map": {
                    "a": "m-00001-of-00002.safetensors",
                    "c": "m-00002-of-00002.safetensors",
                }
            },
            "lacks the tensor 'c'",
        ),
    ],
)
def test_an_index_that_lies(tmp_path: Path, index: object, words: str) -> None:
    split(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match=words):
        safetensors.describe(tmp_path)


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002", "m-00002-of-00002"):
        (tmp_path / f"{name}.safetensors").write_bytes(build({"a": ("U8", (3,))}))
    with pytest.raises(ModelFileError, match=r"'a' is in `m-00001.* and in `m-00002"):
        safetensors.describe(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no model file .*absent"):
        safetensors.describe(tmp_path / "absent.safetensors")
    with pytest.raises(ModelFileError, match=r"no `\.safetensors` file"):
        safetensors.describe(tmp_path)
    path = written(tmp_path, build(TWO))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"`config\.json` is not JSON"):
        safetensors.describe(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path, build(TWO))
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFileError, match="not a regular file"):
        safetensors.describe(path)


def test_files_that_shrink_while_open(tmp_path: Path) -> None:
    path = written(tmp_path, build(TWO))
    with safetensors.open_checkpoint(path) as opened:
        path.write_bytes(build({"a": ("U8", (1,))}))
        with pytest.raises(ModelFileError, match="got shorter"):
            opened.read("b")
