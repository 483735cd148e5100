"""The template firewall: good templates pass, bad ones are told and replaced by what the engine
really loads and renders the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.tokens.check import (
    check_model,
    check_template,
    families,
    template_of,
)
from llm_runner_router.tokens.gguf import GgufTokenizer
from llm_runner_router.tokens.load import load
from llm_runner_router.tokens.templates import Renderer
from llm_runner_router.tokens.vocab import CONTROL, vocab_of

from . import making
from .engine import ask
from .test_templates import BOMBS, TALKS

ZOO = Path(__file__).parents[2] / "src" / "llm_runner_router" / "zoo"
LETTERS = making.byte_pairs(size=300)
NAMES = [family.name for family in families()]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(seconds=0.5) as one:
        yield one


def fields(*marks: str) -> dict[str, Any]:
    """A vocabulary with these control tokens beside `<s>` and `</s>`."""
    known = LETTERS["tokenizer.ggml.tokens"]
    extra = ["<s>", "</s>", *(mark for mark in marks if mark not in ("<s>", "</s>"))]
    types = [*LETTERS["tokenizer.ggml.token_type"], *[CONTROL] * len(extra)]
    return LETTERS | {
        "tokenizer.ggml.tokens": [*known, *extra],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": len(known),
        "tokenizer.ggml.eos_token_id": len(known) + 1,
        "tokenizer.ggml.pre": "qwen2",
    }


def vocabulary(*marks: str) -> GgufTokenizer:
    return GgufTokenizer(vocab_of(fields(*marks), "a test"))


CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


# ---------------------------------------------------------------- good ones


@pytest.mark.parametrize("name", NAMES)
def test_every_family_passes_its_own_check_and_is_recognised(renderer: Renderer, name: str) -> None:
    (family,) = [family for family in families() if family.name == name]
    marks = [*family.markers, "<|system|>"] if name == "phi3" else family.markers
    report = check_template(family.template, vocabulary(*marks), renderer=renderer)
    assert report.problems == ()
    assert report.ok
    assert report.family == name
    assert report.repaired is None


def test_the_zoo_passes(renderer: Renderer) -> None:
    for path in sorted(ZOO.glob("*.gguf")):
        report = check_model(path, load(path), renderer=renderer)
        assert report.ok, (path.name, report.problems)
        assert report.family == "chatml"


@pytest.mark.engine
@pytest.mark.timeout(60)
def test_the_engine_renders_the_families_as_we_do(renderer: Renderer, tmp_path: Path) -> None:
    talks = {
        name: talk for name, (talk, tools) in TALKS.items()
        if not tools and name != "developer"
    }  # fmt: skip
    calls = [["/apply-template", {"messages": talk}] for talk in talks.values()]
    jobs = []
    for name in [*NAMES, "plain"]:
        marks = next((f.markers for f in families() if f.name == name), ())
        path = making.write_model(
            tmp_path / f"{name}.gguf", fields(*marks), template=template_of(name)
        )
        jobs.append({"path": str(path), "calls": calls})
    for name, answers in zip([*NAMES, "plain"], ask(jobs, tmp_path), strict=True):
        for talk, answer in zip(talks.values(), answers, strict=True):
            own = renderer.render(template_of(name), talk, bos="<s>", eos="</s>")
            assert answer["prompt"] == own, (name, talk)


# ---------------------------------------------------------------- bad ones


BAD = {
    "no template": (None, "no chat template"),
    "syntax": ("{% for m in messages %}{{ m.content }}", "fails on one question"),
    "a missing name": ("{{ functions.first }}", "fails on one question"),
    "raises": ("{{ raise_exception('never') }}", "refuses one question: never"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "one question"),
    "for web pages": (
        "{% for m in messages %}<|im_start|>{{ m.content | e }}{% endfor %}",
        "changes or loses 'Grüße",
    ),
    "only the last": (
        "<|im_start|>{{ messages[-1].content }}",
        "changes or loses 'What is seven?'",
    ),
    "backwards": (
        "{% for m in messages | reverse %}<|im_start|>{{ m.content }}{% endfor %}",
        "reorders",
    ),
    "no system": (
        "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.content }}{% endif %}"
        "{% endfor %}",
        "with a system message, it changes or loses",
    ),
    "no invitation": (
        template_of("chatml").replace("add_generation_prompt", "false"),
        "it does not ask for an answer, as chatml does",
    ),
    "another's marks": (template_of("llama3"), "`<|eot_id|>` is no token of this vocabulary"),
    "a bomb": (BOMBS["nested loops"], "fails on one question"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_and_repaired(renderer: Renderer, name: str) -> None:
    template, says = BAD[name]
    report = check_template(template, vocabulary(*CHATML), renderer=renderer)
    assert not report.ok
    assert any(says in problem for problem in report.problems), report.problems
    assert report.repaired == template_of("chatml")
    assert "chatml" in report.why
    assert check_template(report.repaired, vocabulary(*CHATML), renderer=renderer).ok


def test_the_repair_follows_the_vocabulary(renderer: Renderer) -> None:
    found = check_template("{% if %}", vocabulary(*LLAMA3, *CHATML), renderer=renderer)
    assert found.repaired == template_of("llama3"), "the most telling family wins"
    nothing = check_template("{% if %}", vocabulary(), renderer=renderer)
    assert nothing.repaired == template_of("plain")
    marked = check_template(template_of("chatml"), vocabulary(), renderer=renderer)
    assert not marked.ok
    assert marked.repaired is None, "marks that are no tokens are no worse than plain text"
    assert marked.why


def test_what_a_template_cannot_do_is_only_noted(renderer: Renderer) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    report = check_template(template, vocabulary(*CHATML), renderer=renderer)
    assert report.ok
    assert any("refuses a system message: no system" in note for note in report.notes)
    assert any("tools" in note for note in report.notes)


@pytest.mark.engine
@pytest.mark.timeout(60)
def test_a_model_that_the_engine_refuses_loads_with_the_repair(
    renderer: Renderer, tmp_path: Path
) -> None:
    broken = "{% for m in messages %}{{ m.content }}"
    path = making.write_model(tmp_path / "a.gguf", fields(*CHATML), template=broken)
    with pytest.raises(AssertionError, match="Failed to init server"):
        ask([{"path": str(path), "calls": []}], tmp_path)
    report = check_model(path, load(path), renderer=renderer)
    assert report.repaired is not None
    talk = [{"role": "user", "content": "hi"}]
    job = {
        "path": str(path),
        "params": {"chat_template": report.repaired},
        "calls": [["/apply-template", {"messages": talk}]],
    }
    ((answer,),) = ask([job], tmp_path)
    assert answer["prompt"] == renderer.render(report.repaired, talk)
