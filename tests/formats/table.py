"""Which format runs on which engine, found by trying: the rows of docs/reference/formats.md.

Every form is made of the zoo's `tiny-chat` and asked the same question through an `App`, with the
engine named. `python -m tests.formats.table` writes the page; `test_table.py` holds it to be true.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from llm_runner_router import refs
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node
from llm_runner_router.convert import run
from llm_runner_router.convert.base import Options
from llm_runner_router.deltas import Collector
from llm_runner_router.engine.prepare import find_way
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import RunnerError
from llm_runner_router.models.detect import detect
from llm_runner_router.models.resolve import resolve
from llm_runner_router.types import EmbedRequest, Message, Request, Sampling

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "formats.md"
ZOO = ROOT / "zoo" / "models" / "tiny-chat"
QUESTION = "What is the capital of France?"
HIDDEN = ("adopted", "mock")
"""Engines that are no property of a format: other programs' servers, and the one for tests."""


class Cell(Struct, frozen=True):
    """What one engine did with one form."""

    loaded: bool = False
    answered: str = ""
    streamed: bool = False
    embedded: bool = False
    why: str = ""
    """Why not, where something was not done."""


# ---------------------------------------------------------------- the forms


def _converted(want: str, quantize: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        target = folder / ("model.gguf" if want == "gguf" else "model")
        options = Options(quantize=quantize)
        return run.convert(ZOO, target, want, options=options).path

    return make


def _tfjs(folder: Path) -> Path:
    from tests.convert.test_other_kinds import as_tfjs

    return as_tfjs(folder)


def _mlx(folder: Path) -> Path:
    from tests.convert.test_other_kinds import as_mlx

    as_mlx(folder, bits=8, group=32)
    return folder


def _torch(folder: Path) -> Path:
    """As `torch.save` writes it; the other direction of the trip is our own writer's."""
    import torch
    from safetensors.torch import load_file

    target = folder / "model"
    shutil.copytree(ZOO, target, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(ZOO / "model.safetensors"), target / "pytorch_model.bin")
    return target


FORMS: Mapping[str, Callable[[Path], Path]] = {
    "GGUF, F16": _converted("gguf"),
    "GGUF, Q8_0": _converted("gguf", quantize="Q8_0"),
    "GGUF, Q4_0": _converted("gguf", quantize="Q4_0"),
    "safetensors (Hugging Face)": lambda folder: ZOO,
    "PyTorch (`torch.save`)": _torch,
    "ONNX (onnxruntime-genai)": _converted("onnx-genai"),
    "MLX, 8 bits": _mlx,
    "TensorFlow.js": _tfjs,
}


# ---------------------------------------------------------------- trying


async def tried(path: Path, engine: str, environ: Mapping[str, str]) -> Cell:
    """What `engine` does with the model at `path`."""
    node = Node(target=str(path), engine=engine)
    config = Config(models={"m": node}, engine=Engine(slots=1, spare=False), zoo=False)
    app = App(config, environ=environ)
    await app.start()
    try:
        return await _asked(app)
    except RunnerError as exc:
        return Cell(why=exc.message)
    finally:
        await app.close()


async def _asked(app: App) -> Cell:
    sampling = Sampling(temperature=0.0, max_tokens=24)
    request = Request(
        model="m", messages=(Message("user", QUESTION),), sampling=sampling, stream=True
    )
    collector, pieces = Collector(), 0
    async with app.target("m").open(request, app.start_call()) as deltas:
        async for delta in deltas:
            collector.add(delta)
            pieces += bool(delta.text)
    text = collector.answer().choices[0].text
    embedded, why = False, ""
    try:
        vectors = await app.embedder("m").embed(EmbedRequest("m", (QUESTION,)), app.start_call())
        embedded = len(vectors.vectors[0]) > 0
    except RunnerError as exc:
        why = exc.message
    return Cell(True, text, pieces > 1, embedded, why)


async def row(path: Path, environ: Mapping[str, str]) -> dict[str, Cell]:
    """What every engine does with one form; where none runs it, what becomes of it."""
    model = resolve(refs.parse(str(path)))
    cells: dict[str, Cell] = {}
    for verdict in EngineSelector().rank(model.info):
        if verdict.engine in HIDDEN:
            continue
        if verdict.can:
            cells[verdict.engine] = await tried(path, verdict.engine, environ)
        else:
            cells[verdict.engine] = Cell(why=verdict.why)
    if not any(cell.loaded for cell in cells.values()):
        way = find_way(model, EngineSelector())
        node = Node(target=str(path))
        app = App(
            Config(models={"m": node}, engine=Engine(slots=1, spare=False), zoo=False),
            environ=environ,
        )
        await app.start()
        try:
            cells[f"{way.engine}, by way of {way.kind}"] = await _asked(app)
        finally:
            await app.close()
    return cells


# ---------------------------------------------------------------- the page


HEAD = """\
# Formats and engines

Generated by `python -m tests.formats.table`, held to be true by `make test-long`. Each row is the
demonstration model `tiny-chat` in that format, asked one question through the whole path with each
engine named. *Same answer* is the answer of the F16 GGUF in llama.cpp, token for token, without
sampling. Where an engine does not run a format, its reason stands there; a format that no engine
reads is converted when it is loaded.

"""


def page(rows: Mapping[str, Mapping[str, Cell]], detected: Mapping[str, str]) -> str:
    """The whole page."""
    reference = next(iter(rows.values()))["llamacpp"].answered
    engines = sorted({name for cells in rows.values() for name in cells if " " not in name})
    lines = [
        f"| Format | Detected as | {' | '.join(engines)} | Converted |",
        f"|---|---|{'---|' * len(engines)}---|",
    ]
    for form, cells in rows.items():
        words = [_words(cells[engine], reference) for engine in engines]
        ways = [f"{n}: {_words(c, reference)}" for n, c in cells.items() if " " in n]
        lines.append(f"| {form} | {detected[form]} | {' | '.join(words)} | {''.join(ways)} |")
    return HEAD + "\n".join(lines) + "\n"


def _words(cell: Cell, reference: str) -> str:
    """A cell: what was done, and why what was not done was not."""
    if not cell.loaded:
        return cell.why.replace("|", "\\|")
    done = ["same answer" if cell.answered == reference else "answers"]
    done += ["streams"] * cell.streamed + ["embeds"] * cell.embedded
    why = f" ({cell.why})" if cell.why else ""
    return ", ".join(done) + why.replace("|", "\\|")


async def made(folder: Path) -> str:
    """The page, from what happens here and now.

    Args:
        folder: an empty one, for the models and their data folder.
    """
    environ = {**os.environ, "LLMRR_HOME": str(folder / "home")}
    rows: dict[str, dict[str, Cell]] = {}
    detected: dict[str, str] = {}
    for number, form in enumerate(FORMS):
        place = folder / str(number)
        place.mkdir()
        path = await asyncio.to_thread(FORMS[form], place)
        detected[form] = detect(path).name
        rows[form] = await row(path, environ)
    return page(rows, detected)


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(asyncio.run(made(Path(folder))))
    sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
