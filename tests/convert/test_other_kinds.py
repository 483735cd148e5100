"""TensorFlow.js and MLX: by way of safetensors to GGUF."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.convert import arrays, companions, run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.mlx import unpack
from llm_runner_router.convert.safetensors_write import SafetensorsWriter
from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.formats import gguf, safetensors

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"


def as_tfjs(folder: Path, shard: int = 500_000) -> Path:
    """The zoo's model as a graph model with F32 weights in shards."""
    companions.copy(SOURCE, folder)
    entries, data = [], b""
    with safetensors.open_checkpoint(SOURCE) as checkpoint:
        for weight in checkpoint.weights.values():
            array = arrays.decode(checkpoint.read(weight.name), weight.dtype, weight.shape)
            entries.append({"name": weight.name, "shape": list(weight.shape), "dtype": "float32"})
            data += array.tobytes()
    names = []
    for number, start in enumerate(range(0, len(data), shard)):
        names.append(f"group1-shard{number + 1}.bin")
        (folder / names[-1]).write_bytes(data[start : start + shard])
    manifest = [{"paths": names, "weights": entries}]
    model = {"format": "graph-model", "modelTopology": {}, "weightsManifest": manifest}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def test_tensorflow_js_becomes_the_same_gguf(tmp_path: Path) -> None:
    source = as_tfjs(tmp_path / "tiny-chat")
    seen: list[run.Progress] = []
    steps = [(step.have, step.want) for step in run.steps_for(source, "gguf")]
    assert steps == [("tfjs", "safetensors"), ("safetensors", "gguf")]
    run.convert(source, tmp_path / "a.gguf", "gguf", report=seen.append)
    run.convert(SOURCE, tmp_path / "b.gguf", "gguf")
    assert {(p.step, p.steps) for p in seen} == {(1, 2), (2, 2)}
    with (
        gguf.open_checkpoint(tmp_path / "a.gguf") as ours,
        gguf.open_checkpoint(tmp_path / "b.gguf") as plain,
    ):
        for name in plain.weights:
            assert bytes(ours.read(name)) == bytes(plain.read(name)), name
        for key in plain.config:
            assert key == "general.name" or ours.config[key] == plain.config[key], key
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "tiny-chat"]


# ---------------------------------------------------------------- MLX


def packed(numbers: np.ndarray, bits: int) -> bytes:
    """Whole numbers as a stream of bits in 32-bit words."""
    stream = ((numbers.reshape(-1, 1) >> np.arange(bits)) & 1).astype(np.uint8)
    return np.packbits(stream.reshape(-1), bitorder="little").tobytes()


@given(st.sampled_from((2, 3, 4, 5, 6, 8)), st.integers(0, 2**32 - 1))
def test_unpacking_is_the_inverse_of_packing(bits: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << bits, 64)
    assert np.array_equal(unpack(memoryview(packed(numbers, bits)), bits), numbers)


def test_four_bits_lie_eight_to_a_word_low_bits_first() -> None:
    word = sum(value << 4 * place for place, value in enumerate((3, 0, 15, 7, 1, 2, 9, 12)))
    found = unpack(memoryview(word.to_bytes(4, "little")), 4)
    assert found.tolist() == [3, 0, 15, 7, 1, 2, 9, 12]


def as_mlx(folder: Path, bits: int, group: int) -> dict[str, np.ndarray]:
    """The zoo's model with its projections packed; the numbers that they stand for."""
    companions.copy(SOURCE, folder)
    tensors: list[tuple[str, str, tuple[int, ...], bytes]] = []
    meant = {}
    with safetensors.open_checkpoint(SOURCE) as checkpoint:
        for weight in checkpoint.weights.values():
            array = arrays.decode(checkpoint.read(weight.name), weight.dtype, weight.shape)
            if "proj" not in weight.name:
                tensors.append((weight.name, "F16", weight.shape, array.astype("<f2").tobytes()))
                meant[weight.name] = array
                continue
            rows = array.shape[0]
            split = array.reshape(rows, -1, group)
            low = split.min(-1, keepdims=True).astype("<f2")
            scale = ((split.max(-1, keepdims=True) - low) / ((1 << bits) - 1)).astype("<f2")
            wide = scale.astype(np.float32), low.astype(np.float32)
            whole = np.clip(np.rint((split - wide[1]) / wide[0]), 0, (1 << bits) - 1).astype(int)
            stem, groups = weight.name.removesuffix(".weight"), (rows, split.shape[1])
            words = (rows, array.shape[1] * bits // 32)
            tensors.append((weight.name, "U32", words, packed(whole, bits)))
            tensors.append((f"{stem}.scales", "F16", groups, scale.tobytes()))
            tensors.append((f"{stem}.biases", "F16", groups, low.tobytes()))
            exact = whole * wide[0] + wide[1]
            meant[weight.name] = exact.reshape(array.shape).astype("<f2").astype(np.float32)
    write_raw(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization"] = {"bits": bits, "group_size": group}
    (folder / "config.json").write_text(json.dumps(config))
    return meant


def write_raw(path: Path, tensors: list[tuple[str, str, tuple[int, ...], bytes]]) -> None:
    """As `SafetensorsWriter`, also for U32."""
    header, end = {}, 0
    for name, dtype, shape, data in tensors:
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        end += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for *_, data in tensors)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 32), (8, 64)])
def test_mlx_becomes_plain_numbers(bits: int, group: int, tmp_path: Path) -> None:
    meant = as_mlx(tmp_path / "mlx", bits, group)
    assert run.kind_of(tmp_path / "mlx") == "mlx"
    run.convert(tmp_path / "mlx", tmp_path / "plain", "safetensors")
    assert run.kind_of(tmp_path / "plain") == "safetensors"
    with safetensors.open_checkpoint(tmp_path / "plain") as found:
        assert "quantization" not in found.config
        assert set(found.weights) == set(meant)
        for name, weight in found.weights.items():
            array = arrays.decode(found.read(name), weight.dtype, weight.shape)
            assert np.array_equal(array, meant[name]), name
    run.convert(tmp_path / "mlx", tmp_path / "a.gguf", "gguf", options=Options(type="q8_0"))


# ---------------------------------------------------------------- the writer


def test_a_file_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, [("a", "F32", (2,))]) as writer:
        writer.data(bytes(4))
        with pytest.raises(ValueError, match="4 bytes are missing"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []
    with SafetensorsWriter(path, [("a", "F32", (2,))]) as writer:
        with pytest.raises(ValueError, match="more data"):
            writer.data(bytes(12))
    with pytest.raises(ValueError, match="`Q8_0`"):
        SafetensorsWriter(path, [("a", "Q8_0", (2,))])


def test_only_files_that_belong_to_a_model_go_along(tmp_path: Path) -> None:
    source = tmp_path / "from"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "1_Pooling/config.json", "modeling_own.py", "model.bin"):
        (source / name).write_text("{}")
    companions.copy(source, tmp_path / "to")
    found = sorted(p.relative_to(tmp_path / "to").as_posix() for p in (tmp_path / "to").rglob("*"))
    assert found == ["1_Pooling", "1_Pooling/config.json", "config.json"]


def test_an_absurdly_large_companion_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companions, "MAX_BYTES", 10)
    (tmp_path / "config.json").write_text("{" + " " * 20 + "}")
    with pytest.raises(ModelFileError, match=r"config\.json"):
        companions.copy(tmp_path, tmp_path / "to")
