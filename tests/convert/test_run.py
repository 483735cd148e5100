"""Running plans: whole results or none, in their own process or here."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_runner_router.convert import base, cache, identity, run
from llm_runner_router.convert.base import Cancelled, Options
from llm_runner_router.convert.job import converting
from llm_runner_router.errors import BadRequest, EngineError, ModelFileError, Unsupported

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_converted_and_progress_told(tmp_path: Path) -> None:
    seen: list[run.Progress] = []
    target = tmp_path / "new" / "tiny.gguf"
    result = run.convert(SOURCE, target, "gguf", report=seen.append)
    assert result == run.Result(target, "safetensors", "gguf", target.stat().st_size)
    assert run.kind_of(target) == "gguf"
    assert left(target.parent) == ["tiny.gguf"]
    assert seen[-1].done == seen[-1].total > 0
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert {(p.step, p.steps, p.have, p.want) for p in seen} == {(1, 1, "safetensors", "gguf")}


def test_the_estimate_holds(tmp_path: Path) -> None:
    (step,) = run.steps_for(SOURCE, "gguf")
    result = run.convert(SOURCE, tmp_path / "a.gguf", "gguf")
    assert result.bytes <= step.bytes


def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    calls = iter([False] * 10 + [True] * 1000)
    with pytest.raises(Cancelled):
        run.convert(SOURCE, tmp_path / "a.gguf", "gguf", cancelled=lambda: next(calls))
    assert left(tmp_path) == []


def test_what_stands_there_is_kept_unless_told(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_text("precious")
    with pytest.raises(BadRequest, match="exists"):
        run.convert(SOURCE, target, "gguf")
    with pytest.raises(Cancelled):
        run.convert(SOURCE, target, "gguf", overwrite=True, cancelled=lambda: True)
    assert target.read_text() == "precious"
    run.convert(SOURCE, target, "gguf", overwrite=True)
    assert run.kind_of(target) == "gguf"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").mkdir()
    with pytest.raises(BadRequest, match="is a folder"):
        run.convert(SOURCE, tmp_path / "a.gguf", "gguf", overwrite=True)


def test_the_source_is_never_the_target(tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(SOURCE, copy)
    with pytest.raises(BadRequest, match="source itself"):
        run.convert(copy, copy, "gguf", overwrite=True)
    assert (copy / "model.safetensors").is_file()


def test_what_is_there_already_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="`safetensors` already"):
        run.convert(SOURCE, tmp_path / "a", "safetensors")


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(EngineError, match="MiB free"):
        run.convert(SOURCE, tmp_path / "a.gguf", "gguf")
    assert left(tmp_path) == []


STUCK = """
import sys, time
from pathlib import Path
from llm_runner_router.convert import run
def report(progress):
    print("working", flush=True)
    time.sleep(60)
run.convert(Path(sys.argv[1]), Path(sys.argv[2]), "gguf", report=report)
"""


@pytest.mark.parametrize("name", ["a.gguf", "a[1].gguf"])
def test_the_next_conversion_removes_what_a_killed_one_left(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", STUCK, str(SOURCE), str(tmp_path / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ}) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"working\n"
        draft, lock = (path for path in left(tmp_path))
        assert lock == f"{draft}.lock"
        (tmp_path / f".{name}.{os.getpid()}.converting").mkdir()  # of a process id used again
        run.convert(SOURCE, tmp_path / name, "gguf")
        assert left(tmp_path) == sorted([draft, lock, name]), "the one that runs is left alone"
        other.kill()
    run.convert(SOURCE, tmp_path / name, "gguf", overwrite=True)
    assert left(tmp_path) == [name]


# ---------------------------------------------------------------- converters


def test_every_converter_is_found_and_has_a_docstring() -> None:
    pairs = {(one.facts.have, one.facts.want) for one in base.found()}
    assert {("safetensors", "gguf"), ("pytorch", "gguf")} <= pairs
    assert all(getattr(one.run, "__doc__", "") for one in base.found())


def test_finding_converters_imports_no_heavy_library() -> None:
    code = (
        "import sys; from llm_runner_router.convert import base; base.found()\n"
        "print([m for m in ('numpy', 'torch', 'onnx', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True, timeout=30)  # fmt: skip
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- kept results


def test_the_same_content_has_the_same_key(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SOURCE, copy)
    one = cache.key(SOURCE, "gguf", Options())
    assert cache.key(copy, "gguf", Options()) == one
    assert cache.key(copy, "gguf", Options(type="f32")) != one
    assert cache.key(copy, "onnx", Options()) != one
    (copy / "README.md").write_text("other words")
    assert cache.key(copy, "gguf", Options()) == one
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert cache.key(copy, "gguf", Options()) != one


def test_a_blob_of_the_hub_is_told_by_its_name(tmp_path: Path) -> None:
    blobs, shot = tmp_path / "blobs", tmp_path / "snapshots"
    blobs.mkdir()
    shot.mkdir()
    name = "ab" * 32
    (blobs / name).write_bytes(b"content that is never read")
    (shot / "model.safetensors").symlink_to(blobs / name)
    before = identity.digest(shot)
    (blobs / name).write_bytes(b"")
    assert identity.digest(shot) == before


# ---------------------------------------------------------------- another process


async def test_another_process_converts_and_tells(tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    async with converting(SOURCE, "gguf", target=target, options=Options(type="q8_0")) as job:
        seen = [progress async for progress in job.progress()]
        result = await job.result()
    assert seen[-1].done == seen[-1].total
    assert result == run.Result(target, "safetensors", "gguf", target.stat().st_size)
    assert left(tmp_path) == ["a.gguf"]


async def test_without_a_target_the_result_is_kept(tmp_path: Path) -> None:
    async with converting(SOURCE, "gguf", background=True) as job:
        first = await job.result()
    written = first.path.stat().st_mtime_ns
    async with converting(SOURCE, "gguf") as job:
        assert await job.result() == first
    assert first.path.stat().st_mtime_ns == written
    assert str(first.path).startswith(os.environ["LLMRR_HOME"])


async def test_two_that_convert_the_same_at_once_both_get_it(tmp_path: Path) -> None:
    async def one() -> Path:
        async with converting(SOURCE, "gguf") as job:
            return (await job.result()).path

    first, second = await asyncio.gather(one(), one())
    assert first == second
    assert left(first.parent) == ["about.json", first.name], "no draft is left"
    assert left(first.parents[1]) == [".locks", first.parent.name]


async def test_an_error_comes_back_as_what_it_was(tmp_path: Path) -> None:
    async with converting(SOURCE, "pdf", target=tmp_path / "a") as job:
        with pytest.raises(Unsupported) as refused:
            await job.result()
    assert refused.value.hint
    assert refused.value.param == "to"
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b'\x10\0\0\0\0\0\0\0{"a": 1}')
    async with converting(tmp_path, "gguf", target=tmp_path / "b.gguf") as job:
        with pytest.raises(ModelFileError):
            await job.result()


async def test_leaving_early_ends_the_process_and_leaves_nothing(tmp_path: Path) -> None:
    async with converting(SOURCE, "gguf", target=tmp_path / "a.gguf") as job:
        pid = job.pid
        async for _ in job.progress():
            break
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [name for name in left(tmp_path) if name != "a.gguf"] == []


async def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    async with converting(SOURCE, "gguf", target=tmp_path / "a.gguf") as job:
        os.kill(job.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="ended with -9"):
            await asyncio.wait_for(job.result(), 20)
