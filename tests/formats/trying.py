"""What every engine makes of a model in some form, found by trying.

Knows: how a model is asked through an `App`, and whose answer is the right one. Does not know: how
the forms are written (`forms.py`), the page (`table.py`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router import refs
from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node
from llm_runner_router.deltas import Collector
from llm_runner_router.engine.prepare import find_way
from llm_runner_router.engine.select import EngineSelector
from llm_runner_router.errors import RunnerError
from llm_runner_router.models.resolve import resolve
from llm_runner_router.types import EmbedRequest, Message, Request, RerankRequest, Sampling

from . import forms
from .forms import FORMS, Form

QUESTION = "What is the capital of France?"
BEGUN = "The capital of France is"
QUERY, TEXTS = "the cat", ("the cat sat on the mat", "rain", "a rainy cat")
"""Of the vocabulary that the encoders have."""
STEPS, FEW = 24, 12
"""Tokens of an answer; few where weights are random, whose tokens soon have equals."""
SAME, ALIKE = 1e-3, 0.3
"""How far apart log-probabilities may be: of the same answer, and where activations are rounded."""
NEAR, NEARLY = 0.9997, 0.98
"""The least cosine of vectors: of the same, and of weights with four bits."""
CLOSE = 0.01
"""How far apart scores may be: llama.cpp takes GELU from a table in half precision."""
TASKS: Mapping[str, str] = {"vector": "embed", "score": "rerank", "score of one segment": "rerank"}


class Said(Struct, frozen=True):
    """What came of it."""

    text: str | None = None
    logprobs: tuple[float, ...] = ()
    """Of the tokens of the text."""
    streamed: bool = False
    vector: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    """Of `TEXTS`, in their order."""
    lacks: Mapping[str, str] = {}
    """Why not, for what was not done: `load`, `generate`, `embed`, `rerank`."""

    @property
    def loaded(self) -> bool:
        """It did something."""
        return "load" not in self.lacks


def task_of(like: str) -> str:
    """What models of this group are for."""
    return TASKS.get(like, "generate")


def app_of(node: Node, environ: Mapping[str, str]) -> App:
    """A gateway with the model `m`."""
    engine = Engine(slots=1, spare=False)
    return App(Config(models={"m": node}, engine=engine, zoo=False), environ=environ)


async def tried(node: Node, like: str, environ: Mapping[str, str]) -> Said:
    """What a model does, asked for everything."""
    try:
        app = app_of(node, environ)
    except RunnerError as exc:
        return Said(lacks={"load": said(exc)})
    await app.start()
    try:
        return await _asked(app, like)
    finally:
        await app.close()


async def _asked(app: App, like: str) -> Said:
    lacks: dict[str, str] = {}
    found = Said()
    for task in ("generate", "embed", "rerank"):
        try:
            found = await DO[task](app, like, found)
        except RunnerError as exc:
            lacks[task] = said(exc)
    own = task_of(like)
    if own in lacks:
        return Said(lacks={"load": lacks[own]})
    return replace(found, lacks=lacks)


async def _generate(app: App, like: str, found: Said) -> Said:
    steps = FEW if like == "ternary" else STEPS
    sampling = Sampling(temperature=0.0, max_tokens=steps, logprobs=True)
    request = Request(model="m", prompt=BEGUN, sampling=sampling, stream=True)
    if like in ("chat", "") or like.startswith("MLX"):
        request = replace(request, prompt=None, messages=(Message("user", QUESTION),))
    collector, pieces = Collector(), 0
    async with app.target("m").open(request, app.start_call()) as deltas:
        async for delta in deltas:
            collector.add(delta)
            pieces += bool(delta.text)
    (choice,) = collector.answer().choices
    parts = [msgspec.json.decode(part) for part in choice.logprobs]
    logprobs = tuple(one["logprob"] for part in parts for one in part["content"])
    return replace(found, text=choice.text, logprobs=logprobs, streamed=pieces > 1)


async def _embed(app: App, like: str, found: Said) -> Said:
    text = TEXTS[0] if task_of(like) != "generate" else QUESTION
    vectors = await app.embedder("m").embed(EmbedRequest("m", (text,)), app.start_call())
    return replace(found, vector=tuple(vectors.vectors[0]))


async def _rerank(app: App, like: str, found: Said) -> Said:
    ranking = await app.reranker("m").rerank(RerankRequest("m", QUERY, TEXTS), app.start_call())
    scores = {one.index: one.score for one in ranking.results}
    return replace(found, scores=tuple(scores[i] for i in range(len(TEXTS))))


DO: Mapping[str, Callable[[App, str, Said], Awaitable[Said]]] = {
    "generate": _generate,
    "embed": _embed,
    "rerank": _rerank,
}


def said(exc: RunnerError) -> str:
    """An error in one line."""
    return exc.message


# ---------------------------------------------------------------- one row


class Row(Struct, frozen=True):
    """What is known of one form."""

    detected: str = ""
    """The format; empty with `unknown`."""
    unknown: str = ""
    cells: Mapping[str, Said | str] = {}
    """By engine: what it did, or why it was not tried."""
    way: str = ""
    """The engine and the kind that it becomes when it is loaded."""
    by_way: Said | None = None
    no_way: str = ""
    """Why it becomes nothing; empty where nothing has to be done."""


async def row(form: Form, path: Path, environ: Mapping[str, str]) -> Row:
    """What every engine does with one form; where none runs it, what becomes of it."""
    try:
        info = forms.info_of(form, path)
    except RunnerError as exc:
        return Row(unknown=_without(said(exc), path))
    cells: dict[str, Said | str] = {}
    for verdict in EngineSelector().rank(info):
        named = verdict.engine == form.only
        why = verdict.why
        if verdict.can and not named and (verdict.by_name or form.only):
            why = f"this row is about `engine: {form.only}`" if form.only else BY_NAME.format(why)
        elif verdict.can:
            node = form.node(path)
            if node.adopt is None:
                node = replace(node, engine=verdict.engine)
            cells[verdict.engine] = _clean(await tried(node, form.like, environ), path)
            continue
        cells[verdict.engine] = why.replace(f"not {info.format}", "not this format")
    found = Row(detected=info.format, cells=cells)
    if any(isinstance(cell, Said) and cell.loaded for cell in cells.values()):
        return found
    return await _converted(found, form, path, environ)


BY_NAME = "{}; it is taken by name only, which a row of its own shows"


async def _converted(found: Row, form: Form, path: Path, environ: Mapping[str, str]) -> Row:
    try:
        way = find_way(resolve(refs.parse(str(path))), EngineSelector())
    except RunnerError as exc:
        # What each engine says of it stands in their columns.
        why = _without(said(exc), path)
        return replace(found, no_way=why.partition("; and ")[2] or why)
    done = _clean(await tried(form.node(path), form.like, environ), path)
    return replace(found, way=f"{way.engine}, by way of {way.kind}", by_way=done)


def _clean(found: Said, path: Path) -> Said:
    return replace(found, lacks={k: _without(v, path) for k, v in found.lacks.items()})


def _without(text: str, path: Path) -> str:
    text = text.replace(str(path), "MODEL").replace(f"file:{path}", "MODEL")
    return text.replace("`file:MODEL`", "`MODEL`").replace("`m`", "`MODEL`")


# ---------------------------------------------------------------- whose answer is right


async def right(like: str, folder: Path, environ: Mapping[str, str]) -> Said | None:
    """The answer that all of a group should give; None where nothing is compared."""
    if not like:
        return None
    if task_of(like) != "generate":
        return _encoded(like, folder)
    if like == "other":
        return _continued(FORMS_BY_LIKE[like].make(folder))
    path, engine = RIGHT[like](folder)
    return await tried(Node(target=str(path), engine=engine), like, environ)


def _plain(folder: Path) -> tuple[Path, str]:
    return forms.converted("gguf")(folder), "llamacpp"


def _meant(folder: Path) -> tuple[Path, str]:
    return forms.mlx_meant(4)(folder), "torch"


def _exact(folder: Path) -> tuple[Path, str]:
    from tests.convert.test_bitnet import bitnet_files

    return bitnet_files(folder)[0], "llamacpp"


def _today(type: str) -> Callable[[Path], tuple[Path, str]]:
    def make(folder: Path) -> tuple[Path, str]:
        from .older import as_spm_gguf

        source = forms.converted("gguf", type=type)(folder)
        return as_spm_gguf(source, folder / "today.gguf"), "llamacpp"

    return make


RIGHT: Mapping[str, Callable[[Path], tuple[Path, str]]] = {
    "chat": _plain,
    "MLX, 4 bits": _meant,
    "ternary": _exact,
    "before GGUF": _today("f16"),
    "before GGUF, Q8_0": _today("q8_0"),
}
"""Per group a file and the engine whose answer counts; encoders and `other` ask transformers."""
FORMS_BY_LIKE = {form.like: form for form in FORMS.values()}


def _continued(folder: Path) -> Said:
    """What transformers writes."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, logprobs = list(tokenizer.encode(BEGUN).ids), []
    start = len(ids)
    with torch.no_grad():
        for _ in range(STEPS):
            found = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1)
            ids.append(int(found.argmax()))
            if ids[-1] == model.config.eos_token_id:
                break
            logprobs.append(float(found.max()))
    return Said(text=tokenizer.decode(ids[start:]), logprobs=tuple(logprobs))


def _encoded(like: str, folder: Path) -> Said:
    """What transformers gives for each text alone."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    kind = forms.ENCODER if like == "vector" else forms.RERANKER
    path = forms.encoder(kind)(folder)
    model = getattr(transformers, kind).from_pretrained(path, dtype=torch.float32).eval()
    tokenizer: Any = Tokenizer.from_file(str(path / "tokenizer.json"))

    def run(*texts: str) -> Any:
        cut = tokenizer.encode(*texts)
        kinds = [0] * len(cut.ids) if like == "score of one segment" else cut.type_ids
        given = {"input_ids": torch.tensor([cut.ids]), "token_type_ids": torch.tensor([kinds])}
        with torch.no_grad():
            return model(**given)

    if like == "vector":
        mean = run(TEXTS[0]).last_hidden_state[0].mean(0)
        return Said(vector=tuple((mean / mean.norm()).tolist()))
    return Said(scores=tuple(float(run(QUERY, text).logits[0, 0]) for text in TEXTS))


# ---------------------------------------------------------------- comparing


def cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Of two vectors; 0 where one is none."""
    if not a or len(a) != len(b):
        return 0.0
    lengths = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The largest difference; infinite where there are not as many."""
    if len(a) != len(b):
        return math.inf
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
