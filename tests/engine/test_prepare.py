"""Models that are made ready: converted first, or answering while a better form is made."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import time
import zipfile
from pathlib import Path

import msgspec
import pytest
from tests.models.formats.test_older import gguf_of

from llm_runner_router import refs
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node
from llm_runner_router.deltas import collect
from llm_runner_router.engine import prepare
from llm_runner_router.engine.prepare import Preparer, find_way
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import (
    LoadFailed,
    ModelFileError,
    RunnerError,
    Unavailable,
    Unsupported,
)
from llm_runner_router.models.info import LocalModel
from llm_runner_router.models.resolve import resolve
from llm_runner_router.types import Message, Request, Sampling

FOLDER = Path(__file__).parents[2] / "zoo" / "models" / "tiny-math"
NO_TORCH = EngineSelector(installed=lambda name: name not in ("torch", "mistralrs", "onnxruntime"))
"""A machine with the core alone."""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "LLMRR_HOME": str(tmp_path / "home")}


def local(**changes: object) -> LocalModel:
    return msgspec.structs.replace(resolve(refs.parse(str(FOLDER))), **changes)


def preparer(engines: EngineSelector, environ: dict[str, str], **more: object) -> Preparer:
    return Preparer(engines, clock=time.monotonic, environ=environ, **more)  # type: ignore[arg-type]  # by name


def files(environ: dict[str, str], pattern: str) -> list[Path]:
    return list(Path(environ["LLMRR_HOME"]).rglob(pattern))


async def test_what_an_engine_runs_is_left_alone(environ: dict[str, str]) -> None:
    model = resolve(refs.parse("zoo:tiny-math"))
    ready = preparer(EngineSelector(), environ)
    assert await ready.ready(model) is model
    same = msgspec.structs.replace(model, quantization="Q8_0")
    assert await ready.ready(same) is same, "it has that already"


async def test_what_no_engine_runs_is_converted_once_for_all_who_wait(
    environ: dict[str, str],
) -> None:
    ready = preparer(NO_TORCH, environ)
    first, second = await asyncio.gather(ready.ready(local()), ready.ready(local()))
    assert first.info.format == "gguf"
    assert first.path == second.path
    assert first.name == local().name, "it is still the same model to everybody else"
    again = await preparer(NO_TORCH, environ).ready(local())
    assert again.path == first.path, "a result is found again after a restart"
    assert len(files(environ, "*.gguf")) == 1


async def test_a_better_form_is_made_beside(environ: dict[str, str]) -> None:
    better: asyncio.Queue[LocalModel] = asyncio.Queue()
    ready = preparer(EngineSelector(), environ, replaced=better.put_nowait)
    model = local(quantization="q8_0")
    assert await ready.ready(model) is model, "it answers as it is, at once"
    assert ready.making(model.name)
    made = await asyncio.wait_for(better.get(), 60)
    assert made.info.quantisation == "Q8_0"
    assert await ready.ready(model) is made
    assert not ready.making(model.name)


async def test_dynamic_is_decided_by_what_this_machine_has(environ: dict[str, str]) -> None:
    ready = preparer(NO_TORCH, environ)
    made = await ready.ready(local(quantization="dynamic"))
    assert made.info.format == "gguf"
    assert made.info.quantisation in ("F16", "Q8_0"), "a tiny model fits in its best form"


async def test_another_file_under_the_name_is_another_model(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.gguf"
    shutil.copy(resolve(refs.parse("zoo:tiny-math")).path, path)
    ready = preparer(EngineSelector(), environ)
    model = resolve(refs.parse(str(path)))
    wanted = msgspec.structs.replace(model, quantization="q4_0", engine="torch")
    with pytest.raises(LoadFailed) as first:
        await ready.ready(wanted)
    with pytest.raises(LoadFailed) as again:
        await ready.ready(wanted)
    assert again.value is first.value, "it is not tried again at once"
    shutil.copy(resolve(refs.parse("zoo:tiny-text")).path, path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(LoadFailed) as other:
        await ready.ready(wanted)
    assert other.value is not first.value
    path.unlink()
    with pytest.raises(ModelFileError, match="No such file"):
        await ready.ready(wanted)


async def test_a_file_of_a_folder_that_is_rewritten_in_place_is_another_model(
    environ: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    model = resolve(refs.parse(str(folder)))
    moment = [0.0]
    ready = Preparer(NO_TORCH, clock=lambda: moment[0], environ=environ)
    first = await ready.ready(model)
    entry = folder.stat()
    weights = folder / "model.safetensors"
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder.stat().st_mtime_ns, folder.stat().st_size) == (entry.st_mtime_ns, entry.st_size)
    assert await ready.ready(model) is first, "not every request looks at every file"
    moment[0] += 1.0
    second = await ready.ready(model)
    assert second.path != first.path
    assert len(ready._work) == 1


async def test_what_is_remembered_has_a_bound(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "MOST_IDLE", 3)
    model = resolve(refs.parse("zoo:tiny-math"))
    ready = preparer(EngineSelector(), environ)
    for number in range(10):
        wanted = {"name": f"m{number}", "quantization": "q4_0", "engine": "torch"}
        with pytest.raises(LoadFailed):
            await ready.ready(msgspec.structs.replace(model, **wanted))
    assert [key[0] for key in ready._work] == ["m7", "m8", "m9"]


async def test_one_is_converted_at_a_time_and_those_first_for_whom_somebody_waits(
    environ: dict[str, str], tmp_path: Path
) -> None:
    order: asyncio.Queue[str] = asyncio.Queue()
    quick = preparer(EngineSelector(), environ, replaced=lambda m: order.put_nowait(m.name))
    models = []
    for name in ("one", "two", "three"):
        shutil.copytree(FOLDER, tmp_path / name)
        (tmp_path / name / "note.json").write_text(f'"{name}"')
        models.append(resolve(refs.parse(str(tmp_path / name))))
    slow = [msgspec.structs.replace(m, quantization="q8_0") for m in models[:2]]
    for model in slow:  # an engine runs them as they are
        assert await quick.ready(model) is model
    quick._engines = NO_TORCH  # and now a model that none does
    waiting = asyncio.create_task(quick.ready(models[2]))
    most = 0
    while not waiting.done():
        states = [one.state for one in quick.conversions()]
        most = max(most, states.count("runs"))
        if len(states) == 3 and "runs" in states:
            assert states == ["runs", "waits", "waits"]
        await asyncio.sleep(0.01)
    assert most == 1
    assert [o.model for o in quick.conversions() if o.state == "waits"] in ([], [slow[1].name])
    assert (await asyncio.wait_for(order.get(), 60)) == slow[0].name
    assert order.empty(), "the one for which nobody waits came first"
    assert (await asyncio.wait_for(order.get(), 60)) == slow[1].name
    assert quick.conversions() == ()


async def test_ending_one_that_waits_gives_its_place_to_the_next() -> None:
    turns = prepare._Turns(1)
    entered: list[str] = []
    gate = asyncio.Event()

    async def work(name: str, background: bool) -> None:
        async with turns.turn(background=background):
            entered.append(name)
            await gate.wait()

    tasks = {n: asyncio.create_task(work(n, n > "b")) for n in ("a", "b", "c", "d")}
    await asyncio.sleep(0)
    assert entered == ["a"]
    tasks["b"].cancel()
    tasks["a"].cancel()
    await asyncio.wait([tasks["a"], tasks["b"]])
    await asyncio.sleep(0)
    assert entered == ["a", "c"]
    gate.set()
    await asyncio.wait_for(asyncio.gather(tasks["c"], tasks["d"]), 5)
    assert entered == ["a", "c", "d"]


async def test_a_result_that_was_deleted_is_made_again(environ: dict[str, str]) -> None:
    ready = preparer(NO_TORCH, environ)
    made = await ready.ready(local())
    made.path.unlink()
    assert (await ready.ready(local())).path.exists()


async def test_closing_ends_what_runs_and_leaves_nothing(environ: dict[str, str]) -> None:
    ready = preparer(NO_TORCH, environ)
    waiting = asyncio.create_task(ready.ready(local()))
    await asyncio.sleep(0)
    assert ready.making(local().name)
    await ready.close()
    with pytest.raises(Unavailable):  # nobody cancelled whoever waits
        await waiting
    with pytest.raises(Unavailable):
        await ready.ready(local())
    assert not ready.making(local().name)
    assert files(environ, "*.converting") == []


def test_a_way_says_its_steps_and_its_engine() -> None:
    way = find_way(local(quantization="q4_0"), EngineSelector())
    assert way.steps == ("safetensors to gguf", "quantise to Q4_0")
    assert way.engine == "llamacpp"


def test_types_that_go_away_on_the_way_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "bitnet.gguf"
    path.write_bytes(gguf_of("llama", (0, 32, 0), (36, 256, 128), data=128 + 96))
    model = resolve(refs.parse(str(path)))
    assert "I2_S" in model.info.types
    way = find_way(model, EngineSelector())
    assert (way.kind, way.engine) == ("gguf", "llamacpp")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"quantization": "q99"}, RunnerError, "q99"),
        ({"engine": "torch", "quantization": "q8_0"}, LoadFailed, "torch"),
    ],
)
def test_what_cannot_be_made_says_why(
    changes: dict[str, str], error: type[RunnerError], said: str
) -> None:
    with pytest.raises(error, match=said):
        find_way(local(**changes), EngineSelector())


def test_quantising_twice_is_refused() -> None:
    model = resolve(refs.parse("zoo:tiny-math"))
    small = msgspec.structs.replace(
        model,
        quantization="q8_0",
        info=msgspec.structs.replace(model.info, quantisation="Q4_K"),
    )
    with pytest.raises(Unsupported, match="lose twice"):
        find_way(small, EngineSelector())


# ---------------------------------------------------------------- packed


def zipped(path: Path) -> LocalModel:
    """The folder as an archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in FOLDER.iterdir():
            archive.write(file, f"tiny-math/{file.name}")
    return resolve(refs.parse(str(path)))


async def test_a_packed_model_is_unpacked_once(environ: dict[str, str], tmp_path: Path) -> None:
    plain = resolve(refs.parse("zoo:tiny-math")).path
    path = tmp_path / "tiny.gguf.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    model = resolve(refs.parse(str(path)))
    assert model.info.format == "packed"
    first = await preparer(EngineSelector(), environ).ready(model)
    assert first.path.read_bytes() == plain.read_bytes()
    assert (first.name, first.info.format) == (model.name, "gguf")
    again = await preparer(EngineSelector(), environ).ready(model)
    assert again.path == first.path, "also after a restart"
    assert len(files(environ, "model.gguf")) == 1


def test_a_packed_folder_runs_as_the_folder_would(tmp_path: Path) -> None:
    model = zipped(tmp_path / "m.zip")
    way = find_way(model, NO_TORCH)
    assert way.steps == ("packed-safetensors to safetensors", "safetensors to gguf")
    everything = EngineSelector(installed=lambda name: True)
    assert find_way(model, everything).steps == ("packed-safetensors to safetensors",)
    mixed = msgspec.structs.replace(model, quantization="q8_0")
    assert find_way(mixed, everything).steps[-1] == "quantise to Q8_0"


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_a_packed_model_answers_as_the_file_inside(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf.gz"
    path.write_bytes(gzip.compress(resolve(refs.parse("zoo:tiny-math")).path.read_bytes()))
    nodes: dict[str, str | Node] = {
        "packed": Node(target=str(path)),
        "plain": Node(target="zoo:tiny-math"),
    }
    app = App(Config(models=nodes, engine=Engine(slots=1, spare=False)), environ=environ)
    answers = []
    await app.start()
    try:
        for name in nodes:
            request = Request(
                model=name,
                messages=(Message("user", "What is 12 + 30?"),),
                sampling=Sampling(temperature=0.0, max_tokens=32),
            )
            async with app.target(name).open(request, app.start_call()) as deltas:
                answers.append((await collect(deltas)).choices[0].text)
    finally:
        await app.close()
    assert answers[0] == answers[1] != ""


# ---------------------------------------------------------------- through the whole path


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_requests_move_over_to_the_faster_form_without_a_failed_one(
    environ: dict[str, str],
) -> None:
    node = Node(target=str(FOLDER), quantization="q8_0")
    config = Config(models={"m": node}, engine=Engine(slots=2, spare=False), zoo=False)
    app = App(config, environ=environ)
    request = Request(
        model="m",
        messages=(Message("user", "What is 12 + 30?"),),
        sampling=Sampling(temperature=0.0, max_tokens=32),
    )
    answers: list[str] = []
    engines: list[str] = []

    async def ask() -> None:
        async with app.target("m").open(request, app.start_call()) as deltas:
            answers.append((await collect(deltas)).choices[0].text)
        engines.extend(row.engine for row in app.ps() if row.name == "m")

    async with asyncio.timeout(90):
        await app.start()
        try:
            await app.load("m", pin=True)
            await ask()
            assert {"mistralrs", "torch"} & set(engines), "at once, as it is"
            while "llamacpp" not in engines:
                await asyncio.gather(ask(), ask())
            await ask()
            better = next(row for row in app.ps() if row.engine == "llamacpp")
            assert better.pinned, "what is kept loaded stays so in its better form"
        finally:
            await app.close()
    assert len(set(answers)) == 1, "the same greedy answer from both"
