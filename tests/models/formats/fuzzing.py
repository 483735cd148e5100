"""Damages sound models in thousands of ways and reads them, in a process with limits.

    python -m tests.models.formats.fuzzing FORMAT FIRST COUNT

Damage `n` is the same on every run. The process may not take more than `ROOM` more memory, and an
audit hook notes every file written, process started and socket opened. Prints what happened.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.detect import detect
from llm_runner_router.testing import damaged

from .building import ZOO, safetensors

ROOM = 512 * 1024 * 1024
"""Bytes of address space that reading may take beyond what the process has at its start."""
SECONDS = 1.0
"""Processor time that one damaged model may take."""
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**53, 2**63, 2**64 + 1, 10**300, 1.5, 1e308, "", "a",
    "../x", "/etc/passwd", "a\0b", "é\udc80", "x" * 5000, [], {}, [[]], [2**62] * 4,
    {"a": {"a": 1}}, "model.safetensors",
)  # fmt: skip


def sound_gguf(folder: Path) -> Path:
    path = folder / "m.gguf"
    content = (ZOO.parents[1] / "src/llm_runner_router/zoo/tiny-math.gguf").read_bytes()
    path.write_bytes(content)
    return path


def sound_small_gguf(folder: Path) -> Path:
    from tests.models.test_gguf import build

    path = folder / "m.gguf"
    path.write_bytes(build())
    return path


def sound_safetensors(folder: Path) -> Path:
    path = folder / "m.safetensors"
    tensors = {f"layer.{i}.weight": ("F32", (2, 3)) for i in range(5)}
    path.write_bytes(safetensors(tensors, metadata={"format": "pt"}))
    return path


def sound_folder(folder: Path) -> Path:
    for name in ("config.json", "tokenizer_config.json", "README.md", "chat_template.jinja"):
        shutil.copy(ZOO / "tiny-math" / name, folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}}}')
    index = {}
    for i in (1, 2):
        name = f"model-0000{i}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors({f"t{i}": ("F16", (4, 4))}))
        index[f"t{i}"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def sound_pytorch(folder: Path) -> Path:
    from attacks.pickles import archive, tensor, text

    entries = text("a") + tensor() + text("b") + tensor(shape=(2, 2), strides=(1, 2)) + text("n")
    path = folder / "m.pt"
    path.write_bytes(archive(b"\x80\x02}(" + entries + b"]X\x01\x00\x00\x00xau."))
    return path


def sound_older_pytorch(folder: Path) -> Path:
    from attacks.pickles import MACHINE, MAGIC, VERSION, tensor, text

    head = MAGIC + VERSION + MACHINE + b"\x80\x02}(" + text("a") + tensor() + b"u."
    keys = b"\x80\x02]" + text("0") + b"a."
    path = folder / "m.pt"
    path.write_bytes(head + keys + struct.pack("<Q", 4) + bytes(16))
    return path


def sound_onnx(folder: Path) -> Path:
    import onnx

    from .test_onnx import a_model

    path = folder / "model.onnx"
    onnx.save_model(
        a_model(), str(path), save_as_external_data=True, location="d", size_threshold=20
    )
    (folder / "genai_config.json").write_text('{"model": {"decoder": {"filename": "model.onnx"}}}')
    return folder


def sound_tfjs(folder: Path) -> Path:
    from .test_older import tfjs_model

    return tfjs_model(folder)


def sound_mlx(folder: Path) -> Path:
    from .test_older import mlx_model

    return mlx_model(folder)


def sound_ggml(folder: Path) -> Path:
    from .test_older import ggml_model

    path = folder / "m.bin"
    path.write_bytes(ggml_model())
    return path


def sound_openvino(folder: Path) -> Path:
    from .test_older import openvino_model

    return openvino_model(folder)


def sound_packed_file(folder: Path) -> Path:
    from tests.models.test_gguf import build

    path = folder / "m.gguf.gz"
    path.write_bytes(gzip.compress(build(), mtime=0))
    return path


def sound_packed_zip(folder: Path) -> Path:
    from .packing import hub, zipped

    path = folder / "m.zip"
    path.write_bytes(zipped(hub()))
    return path


def sound_packed_tar(folder: Path) -> Path:
    from .packing import hub, tarred

    path = folder / "m.tar"
    path.write_bytes(tarred(hub()))
    return path


def sound_packed_stream(folder: Path) -> Path:
    from .packing import hub, tarred

    path = folder / "m.tar.gz"
    path.write_bytes(gzip.compress(tarred(hub()), mtime=0))
    return path


SOUND: dict[str, Callable[[Path], Path]] = {
    "gguf": sound_gguf,
    "gguf-small": sound_small_gguf,
    "safetensors": sound_safetensors,
    "folder": sound_folder,
    "pytorch": sound_pytorch,
    "pytorch-older": sound_older_pytorch,
    "onnx": sound_onnx,
    "tfjs": sound_tfjs,
    "mlx": sound_mlx,
    "ggml": sound_ggml,
    "openvino": sound_openvino,
    "packed-file": sound_packed_file,
    "packed-zip": sound_packed_zip,
    "packed-tar": sound_packed_tar,
    "packed-stream": sound_packed_stream,
}


# ---------------------------------------------------------------- damages that know the structure


def mutated(content: bytes, seed: int) -> bytes:
    """A damage: half of them know JSON, safetensors or zip and leave the rest sound."""
    rng = random.Random(seed)
    if rng.random() < 0.4:
        return damaged(content, seed)
    if content[:1] == b"{":
        return hostile_json(content, rng)
    if content[:4] == b"PK\x03\x04":
        return hostile_zip(content, rng)
    if content[:2] == b"\x1f\x8b":
        return gzip.compress(damaged(gzip.decompress(content), rng.randrange(1 << 30)), 1, mtime=0)
    if content[8:9] == b"{":
        length = int.from_bytes(content[:8], "little")
        header = hostile_json(content[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    return hostile_numbers(content, rng)


def hostile_json(content: bytes, rng: random.Random) -> bytes:
    """One value, or one key, replaced; or a key that stands twice."""
    try:
        tree = json.loads(content)
    except ValueError:
        return damaged(content, rng.randrange(1 << 30))
    place: Any = tree
    for _ in range(rng.randrange(1, 7)):
        keys = list(place) if isinstance(place, dict) else range(len(place))
        if not keys:
            break
        key = rng.choice(list(keys))
        if isinstance(place[key], dict | list) and rng.random() < 0.8:
            place = place[key]
            continue
        if isinstance(place, dict) and rng.random() < 0.15:
            place[rng.choice(("__metadata__", "", "../x", "dtype"))] = place.pop(key)
        else:
            place[key] = rng.choice(HOSTILE)
        break
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1 and text[:2] == '{"':
        end = text.index('"', 2) + 1
        text = "{" + text[1:end] + ": 1, " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def hostile_zip(content: bytes, rng: random.Random) -> bytes:
    """One entry damaged, doubled or renamed, in an archive that is sound itself."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(entries)) if rng.random() < 0.4 else 0
    name, inner = entries[at]
    act = rng.random()
    if act < 0.8:
        entries[at] = (name, damaged(inner, rng.randrange(1 << 30)))
    elif act < 0.9:
        entries.append((name + rng.choice(("", "x", "/../y")), inner))
    else:
        entries[at] = (rng.choice(("../x", "archive/data/0", "/x", "data.pkl")), inner)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two of one name are meant
        for name, inner in entries:
            archive.writestr(zipfile.ZipInfo(name), inner)
    return buffer.getvalue()


def hostile_numbers(content: bytes, rng: random.Random) -> bytes:
    """Small numbers of four or eight bytes in the head made giant, zero or off by one."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        width = rng.choice((4, 8))
        at = rng.randrange(max(1, min(len(data), 4096) - width))
        value = int.from_bytes(data[at : at + width], "little")
        new = rng.choice((0, 1, value + 1, value - 1, value * 2, 1 << 31, 1 << 62, (1 << 64) - 1))
        data[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


# ---------------------------------------------------------------- reading them


def read_all(path: Path) -> bool:
    """Whether the model is taken for sound; then all of it is read."""
    try:
        found = detect(path)
        info = found.describe(path)
        if found.open_checkpoint is None:
            return True
        with found.open_checkpoint(path) as opened:
            assert opened.info == info
            for name, weight in opened.weights.items():
                assert opened.read(name).nbytes == weight.bytes, name
    except ModelFileError as exc:
        if str(path) not in exc.message or not exc.hint:
            raise AssertionError(f"it does not name the file, or no next step: {exc}") from exc
        return False
    return True


def run(name: str, first: int, count: int, folder: Path) -> dict[str, Any]:
    """Read `count` damaged models; stop at the first that is neither read nor refused well."""
    path = SOUND[name](folder)
    assert read_all(path), "the model is not even sound"
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    contents = {file: file.read_bytes() for file in files}
    limit_memory()
    watched = watch()
    accepted, slowest = 0, 0.0
    for seed in range(first, first + count):
        file = files[seed % len(files)]
        file.write_bytes(mutated(contents[file], seed))
        watched.clear()
        begin = time.process_time()
        try:
            accepted += read_all(path)
        except BaseException as exc:
            exc.add_note(f"{name}, damage {seed} of {file.name}")
            raise
        took = time.process_time() - begin
        slowest = max(slowest, took)
        assert took < SECONDS, f"damage {seed} of {file.name} took {took:.1f} s"
        assert watched == [], f"damage {seed} of {file.name}: {watched}"
        file.write_bytes(contents[file])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"read": count, "accepted": accepted, "slowest": round(slowest, 3), "peak_mib": peak}


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def watch() -> list[str]:
    """What reading did that it should not: filled by an audit hook."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            seen.append(f"opened {arguments[0]} for writing")
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.system", "subprocess.Popen"):
            seen.append(event)
        elif event in ("socket.connect", "pickle.find_class"):
            seen.append(event)

    sys.dont_write_bytecode = True
    sys.addaudithook(hook)
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(scratch))))  # noqa: T201
