"""A small model guesses for a larger one: same tokens, same answers, counted, only if it pays."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from llm_runner_router.app import App
from llm_runner_router.config import Config, Engine, Node
from llm_runner_router.engine import drafts, fit
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.speculate import ENOUGH, PLAIN, Pace, Timings, draft_pays, wanted
from llm_runner_router.engine.threads import TINY
from llm_runner_router.errors import LoadFailed, UnknownModel
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.models.resolve import ZOO, resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.refs import parse
from llm_runner_router.tokens.vocab import Vocab, read_vocab
from llm_runner_router.types import Request

from .endless import endless
from .locally import Engines, chat, engines, until


@pytest.fixture
def model() -> LocalModel:
    """The largest of the zoo, with the smallest as its draft."""
    draft = resolve(parse("zoo:tiny-math"))
    return msgspec.structs.replace(resolve(parse("zoo:tiny-general")), draft=draft)


def going_on(text: str, tokens: int = 60) -> Request:
    request = chat(text, max_tokens=tokens)
    return msgspec.structs.replace(request, extra={"ignore_eos": Raw(b"true")})


# ---------------------------------------------------------------- the same tokens


def test_the_first_difference_is_named(model: LocalModel) -> None:
    one = read_vocab(model.path)

    def changed(**changes: object) -> str:
        return drafts.difference(one, msgspec.structs.replace(one, **changes))

    assert changed() == ""
    assert changed(merges=()) == "", "how text becomes tokens is the larger one's affair"
    other = (*one.tokens[:300], "odd", *one.tokens[301:])
    assert changed(tokens=other).startswith(f"token 300 is {one.tokens[300]!r} there and 'odd' in")
    assert f"only one has is {len(one.tokens)}, 'more' in" in changed(tokens=(*one.tokens, "more"))
    assert f"{len(one.tokens) - 1} in the draft" in changed(tokens=one.tokens[:-1])
    assert "`odd` in the draft" in changed(model="odd")
    assert "`eos` is token" in changed(options={**one.options, "eos_token_id": 9})


def test_tokens_are_shown_short_and_in_one_line() -> None:
    one = Vocab(model="gpt2", tokens=("a" * 900,), types=(1,))
    other = Vocab(model="gpt2", tokens=("\n\udc80",), types=(1,))
    words = drafts.difference(one, other)
    assert len(words) < 200
    assert "\n" not in words


@pytest.mark.engine
async def test_a_draft_with_other_tokens_is_refused(model: LocalModel, tmp_path: Path) -> None:
    content = (ZOO / "tiny-math.gguf").read_bytes()
    token = read_vocab(ZOO / "tiny-math.gguf").tokens[300].encode()
    old = struct.pack("<Q", len(token)) + token
    new = struct.pack("<Q", len(token)) + b"\x7f" * len(token)
    path = tmp_path / "other.gguf"
    path.write_bytes(content.replace(old, new, 1))
    wrong = msgspec.structs.replace(model, draft=resolve(parse(f"file:{path}")))
    async with engines() as e:  # `auto`: it would not be loaded yet, and is refused all the same
        with pytest.raises(LoadFailed, match=r"cannot guess for `zoo:tiny-general`: token 300 is"):
            await e.answer(wrong, chat())


async def test_a_draft_of_another_format_is_refused(model: LocalModel) -> None:
    assert model.draft is not None
    info = msgspec.structs.replace(model.draft.info, format="safetensors")
    draft = msgspec.structs.replace(model.draft, info=info)
    with pytest.raises(LoadFailed, match="only GGUF can"):
        drafts.check(model, draft)


# ---------------------------------------------------------------- whether it pays

PACE = Pace(writing=100.0, written=PLAIN)


@pytest.mark.parametrize(
    ("pace", "now", "worth"),
    [
        (Pace(), False, False),
        (Pace(writing=100.0, written=PLAIN - 1), False, False),
        (PACE, False, True),
        (msgspec.structs.replace(PACE, drafting=10.0, drafted=ENOUGH - 1), True, True),
        (msgspec.structs.replace(PACE, drafting=99.0, drafted=ENOUGH), True, False),
        (msgspec.structs.replace(PACE, drafting=99.0, drafting_written=PLAIN), True, False),
        (msgspec.structs.replace(PACE, drafting=101.0, drafted=ENOUGH), True, True),
        (msgspec.structs.replace(PACE, drafting=101.0, drafted=ENOUGH), False, False),
        (msgspec.structs.replace(PACE, drafting=120.0, drafted=ENOUGH), False, True),
    ],
)
def test_the_speeds_with_and_without_decide(pace: Pace, now: bool, worth: bool) -> None:
    assert draft_pays(pace, now) == worth
    found = wanted("auto", pace, TINY + 1, draft=True, now="draft" if now else "")
    assert found == ("draft" if worth else "")
    assert wanted("auto", pace, TINY + 1) == ""
    assert wanted("auto", pace, TINY, draft=True) == ""
    assert wanted("off", pace, TINY + 1, draft=True) == ""
    assert wanted("draft", pace, 1, draft=True) == "draft"
    assert wanted("draft", pace, 1) == ""


def test_answers_with_a_draft_tell_its_speed_only() -> None:
    pace = Pace().after(Timings(100, 400.0, 50, 80.0), "")
    with_draft = Timings(100, 100.0, 50, 160.0, draft_n=60, draft_n_accepted=40)
    after = pace.after(with_draft, "draft")
    assert (after.reading, after.writing, after.written) == (400.0, 80.0, 50)
    assert (after.drafting, after.drafted, after.drafted_right) == (160.0, 60, 40)
    assert (after.guessed, after.right) == (0, 0)


def test_a_draft_that_dares_no_guess_is_judged_too() -> None:
    pace = PACE
    for _ in range(8):
        pace = pace.after(Timings(100, 100.0, PLAIN // 8, 70.0), "draft")
    assert (pace.drafted, pace.drafting_written) == (0, PLAIN)
    assert not draft_pays(pace, now=True)


# ---------------------------------------------------------------- for real


def test_its_memory_is_counted(model: LocalModel) -> None:
    assert model.draft is not None

    def place(draft: ModelInfo | None) -> fit.Placement:
        return fit.place(model.info, fit.Wanted(slots=2, budget=1 << 30, draft=draft))

    alone, both = place(None), place(model.draft.info)
    expected = fit.draft_bytes(model.draft.info, alone.context, 2)
    assert both.bytes - alone.bytes == expected > model.draft.info.bytes
    assert both.memory.serving == alone.memory.serving, "it is told apart: it comes and goes"


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_the_greedy_answer_is_the_same(model: LocalModel) -> None:
    texts = []
    for mode in ("off", "draft"):
        async with engines(speculate=mode) as e:
            questions = ("What is 3 + 4?", "What is 3 + 4? Explain.", "Tell me a story.")
            texts.append([(await e.answer(model, going_on(q))).text for q in questions])
            (row,) = e.residency.status()
            assert row.draft == ("zoo:tiny-math" if mode == "draft" else "")
            assert (row.guessed > 0) == row.guesses == (mode == "draft")
            assert row.memory is not None
            assert row.memory <= row.predicted + row.predicted_prompts
    assert texts[0] == texts[1]


@pytest.mark.engine
@pytest.mark.timeout(120)
async def test_it_comes_and_goes_as_it_pays_and_prompts_stay(
    model: LocalModel, tmp_path: Path
) -> None:
    small = endless(tmp_path, context=1024)
    info = msgspec.structs.replace(small.info, bytes=1 << 26)
    model = msgspec.structs.replace(small, info=info, draft=model.draft)
    request = going_on("One two three four five six seven. " * 9, tokens=20)
    chosen = Engine(spare=False)
    async with HttpClient() as client, Residency(chosen, prompts=tmp_path / "kept") as residency:
        e = Engines(residency, client)
        # A prompt that was read before is continued from its last tokens alone, by other kernels
        # than a whole one: nearly equal tokens may change places, with and without a draft.
        plain = [(await e.answer(model, request)).text for _ in range(2)]
        (before,) = e.residency.status()
        assert not before.guesses
        known = e.residency._known[f"chat {model.name}"]
        for pace, draft in (
            (PACE, "zoo:tiny-math"),
            (msgspec.structs.replace(PACE, drafting=50.0, drafted=ENOUGH), ""),
        ):
            known.pace = pace
            e.residency._review()
            await until(lambda draft=draft: [r.draft for r in e.residency.status()] == [draft])  # type: ignore[misc]  # a default binds the loop's value
            assert (await e.answer(model, request)).text in plain
        (row,) = e.residency.status()
        assert row.failures == 0
        assert row.tokens_restored > 0, "what was read is handed over with and without a draft"


async def test_the_configuration_names_it() -> None:
    node = Node(target="zoo:tiny-general", draft="zoo:tiny-math")
    app = App(Config(models={"big": node}))
    try:
        model = app._leaves.leaf(parse("zoo:tiny-general"), "big", node).model
        assert model is not None
        assert model.draft is not None
        assert (model.name, model.draft.name) == ("big", "zoo:tiny-math")
        wrong = Node(target="zoo:tiny-general", draft="zoo:nothing")
        with pytest.raises(UnknownModel, match="the `draft` of `big`: there is no built-in model"):
            app._leaves.leaf(parse("zoo:tiny-general"), "big", wrong)
    finally:
        await app.close()
