"""`llmrr inspect`: facts for people and as JSON, for files, folders and names."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from llm_runner_router.cli.inspect import needs
from llm_runner_router.engine import llamacpp
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.resolve import ZOO

from .conftest import Run

HF = Path(__file__).parents[2] / "zoo" / "models"


def test_a_file_a_folder_and_a_name_are_told(llmrr: Run) -> None:
    for model, format in (
        (str(ZOO / "tiny-math.gguf"), "gguf"),
        (str(HF / "tiny-math"), "safetensors"),
        ("zoo:tiny-math", "gguf"),
    ):
        done = llmrr("inspect", model)
        assert done.code == 0, done.err
        about = done.out.partition("\n\n")[0].splitlines()
        lines = dict(line.split(maxsplit=1) for line in about)
        assert lines["format"] == format
        assert lines["architecture"] == "llama"
        assert "embedding" in done.out
        assert "<|im_start|>user\n  What is seven?<|im_end|>" in done.out
        assert ("llamacpp" in done.out) == (format == "gguf")


def test_as_json(llmrr: Run) -> None:
    done = llmrr("inspect", "--json", str(ZOO / "tiny-math.gguf"))
    facts = json.loads(done.out)
    info = facts["inspection"]["info"]
    assert info["format"] == "gguf"
    assert facts["inspection"]["classes"]["norm"] == {"F32": info["types"]["F32"]}
    assert [need["context"] for need in facts["memory"]] == [info["context"]]
    best = facts["engines"][0]
    assert best["engine"] == "llamacpp"
    assert best["score"] > 0
    assert facts["prompt"].startswith("<|im_start|>system")


def test_why(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(ZOO / "tiny-math.gguf", path)
    done = llmrr("inspect", "--why", str(path))
    assert "it is a file that begins with b'GGUF" in done.out
    assert "`gguf` knows it" in done.out
    engines = done.out.partition("\nengines\n")[2].partition("\n\n")[0]
    assert "no: " in engines


def test_engines_are_ranked_and_say_what_they_go_without(llmrr: Run) -> None:
    done = llmrr("inspect", "--why", str(HF / "tiny-math"))
    engines = done.out.partition("\nengines\n")[2].partition("\n\n")[0]
    lines = dict(line.split(maxsplit=1) for line in engines.splitlines())
    names = list(lines)
    assert names.index("mistralrs") < names.index("torch") < names.index("llamacpp")
    assert "without seeds, embeddings" in lines["mistralrs"]
    assert "without" not in lines["llamacpp"], "it is not the one to ask"


def test_what_is_none_is_explained(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    done = llmrr("inspect", str(path))
    assert done.code != 0
    assert "a pointer of Git LFS" in done.err
    assert "git lfs pull" in done.err


def test_a_template_that_fails_is_told(llmrr: Run, tmp_path: Path) -> None:
    shutil.copytree(HF / "tiny-math", tmp_path / "m")
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (tmp_path / "m" / "chat_template.jinja").write_text(evil)
    done = llmrr("inspect", str(tmp_path / "m"))
    assert done.code == 0
    assert "it cannot be rendered" in done.out


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_memory_grows_with_the_context(free: int) -> None:
    import msgspec

    info = msgspec.structs.replace(gguf.describe(ZOO / "tiny-math.gguf"), context=40_000)
    found = needs(info, llamacpp, free)
    assert [need.context for need in found] == [2048, 8192, 32768, 40_000]
    assert [need.bytes for need in found] == sorted({need.bytes for need in found})
    assert all(need.fits == (free > 0) for need in found)


def test_a_packed_file_is_told_with_what_becomes_of_it(llmrr: Run, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf.gz"
    path.write_bytes(gzip.compress((ZOO / "tiny-math.gguf").read_bytes()))
    done = llmrr("inspect", str(path))
    assert done.code == 0, done.err
    assert "compressed with gzip, with a GGUF file inside" in done.out
    assert "when it is loaded: packed-gguf to gguf, for llamacpp" in done.out
    assert not list(tmp_path.glob("*.gguf")), "nothing was unpacked"
