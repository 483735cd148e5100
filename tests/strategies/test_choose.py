"""The choice as a pure function: constraints, objectives, ties, reasons."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.config import Objective
from llm_runner_router.errors import ContextTooLong, Unavailable, Unsupported
from llm_runner_router.strategies.choose import (
    Features,
    Option,
    choose,
    dollars,
    estimate_tokens,
    features,
    first_token,
    obstacle,
    quality,
    reach,
    seconds,
)
from llm_runner_router.strategies.stats import TargetStats
from llm_runner_router.testing import a_request
from llm_runner_router.types import (
    AudioPart,
    Capabilities,
    ImagePart,
    ImageURL,
    InputAudio,
    Message,
    ModelCard,
    Outlook,
    Price,
    Request,
    ResponseFormat,
    Sampling,
    TextPart,
    Tool,
)

ALL = Capabilities(tools=True, json=True, images=True, audio=True, logprobs=True)
TINY_TASKS = ("arithmetic", "comparison", "reverse", "spell", "fact", "greeting", "story")


def zoo(name: str, good: tuple[str, ...], score: float, parameters: int) -> ModelCard:
    return ModelCard(
        name=name,
        local=True,
        context=512,
        parameters=parameters,
        capabilities=Capabilities(json=True),
        scores={task: score if task in good else 0.02 for task in TINY_TASKS},
    )


MATH = zoo("tiny-math", ("arithmetic", "comparison"), 0.98, 1_000_000)
CHAT = zoo("tiny-chat", ("fact", "greeting", "story"), 0.99, 1_000_000)
GENERAL = zoo("tiny-general", TINY_TASKS, 0.94, 6_000_000)
SMALL = ModelCard("mini", price=Price(0.15, 0.6), context=128_000, capabilities=ALL)
LARGE = ModelCard("large", price=Price(2.5, 10), context=128_000, capabilities=ALL)


def option(card: ModelCard, **stats: float) -> Option:
    figures = msgspec.convert({"name": card.name, **stats}, TargetStats)
    return Option(card.name, card, figures)


def pick(wanted: Features, *cards: ModelCard, objective: Objective = "balanced") -> tuple[str, str]:
    decision = choose(wanted, [option(card) for card in cards], objective)
    return decision.chosen, decision.reason


# ---------------------------------------------------------------- what wins


def test_a_specialist_gets_its_task() -> None:
    wanted = Features("arithmetic", 0.99, prompt_tokens=10)
    for objective in ("balanced", "quality"):
        chosen, reason = pick(wanted, CHAT, MATH, GENERAL, objective=objective)
        assert chosen == "tiny-math"
        assert reason.startswith("arithmetic: tiny-math scores 0.97, the best of 3")


def test_a_difference_that_nobody_can_measure_does_not_decide() -> None:
    equal = zoo("tiny-general", TINY_TASKS, 1.0, 6_000_000)
    chat = zoo("tiny-chat", ("fact", "greeting", "story"), 1.0, 1_000_000)
    for confidence in (1.0, 0.999, 0.998):
        assert pick(Features("fact", confidence), chat, equal)[0] == "tiny-chat"


def test_the_unfamiliar_goes_to_the_best_generalist() -> None:
    for objective in ("balanced", "quality", "cost"):
        chosen, reason = pick(Features(), MATH, CHAT, GENERAL, objective=objective)
        assert chosen == "tiny-general"
        assert reason.startswith("unfamiliar request: tiny-general is expected to score 0.0")


def test_a_demonstration_model_gets_no_real_question() -> None:
    for objective in ("quality", "balanced", "cost"):
        chosen, _ = pick(Features(), GENERAL, SMALL, objective=objective)
        assert chosen == "mini"


def test_doubt_moves_the_choice_to_the_generalist() -> None:
    """A specialist's score counts only as far as the task is certain."""
    local = ModelCard("8b", local=True, parameters=8_000_000_000, speed=20)
    sure = Features("arithmetic", 0.99)
    unsure = Features("arithmetic", 0.3)
    assert pick(sure, MATH, local, objective="quality")[0] == "tiny-math"
    assert pick(unsure, MATH, local, objective="quality")[0] == "8b"


def test_objectives_differ() -> None:
    wanted = Features(prompt_tokens=1000)
    assert pick(wanted, SMALL, LARGE, objective="quality")[0] == "large"
    chosen, reason = pick(wanted, SMALL, LARGE, objective="cost")
    assert chosen == "mini"
    assert "below the best of 2 (large), the cheapest" in reason
    slow = msgspec.structs.replace(LARGE, name="slow", speed=5.0)
    assert pick(wanted, slow, SMALL, objective="speed")[0] == "mini"


def test_a_long_prompt_makes_money_count() -> None:
    assert pick(Features(prompt_tokens=100), SMALL, LARGE)[0] == "large"
    assert pick(Features(prompt_tokens=50_000), SMALL, LARGE)[0] == "mini"


def test_measured_figures_outweigh_the_card() -> None:
    twin = msgspec.structs.replace(SMALL, name="twin")
    options = [option(SMALL, speed=10.0, first_token=3.0), option(twin, speed=100.0)]
    assert choose(Features(), options, "speed").chosen == "twin"
    assert choose(Features(), options, "balanced").chosen == "twin"


def test_a_busy_local_model_is_slower() -> None:
    busy = Option("a", MATH, TargetStats("a", in_flight=3))
    idle = Option("b", MATH, TargetStats("b"))
    wanted = Features("arithmetic", 0.99)
    assert seconds(busy, wanted) == pytest.approx(4 * seconds(idle, wanted))
    assert choose(wanted, [busy, idle], "balanced").chosen == "b"
    remote = Option("c", SMALL, TargetStats("c", in_flight=3))
    assert seconds(remote, wanted) == seconds(option(SMALL), wanted)


def two(first: Outlook | None, second: Outlook | None) -> list[Option]:
    """Two options that differ by what is known of the request there, and nothing else."""
    given = {"one": first, "two": second}
    return [
        Option(
            name,
            msgspec.structs.replace(MATH, name=name, context=0),
            TargetStats(name),
            outlook=look,
        )
        for name, look in given.items()
    ]


@pytest.mark.parametrize("objective", ["quality", "balanced", "cost", "speed"])
@pytest.mark.parametrize("reading", [None, 200.0])
def test_of_equal_models_the_one_that_has_the_prompt(
    objective: Objective, reading: float | None
) -> None:
    wanted = Features("arithmetic", 0.9, prompt_tokens=1400)
    has, lacks = Outlook(1406, 1280, reading), Outlook(1406, 0, reading)
    decision = choose(wanted, two(lacks, has), objective)
    assert decision.chosen == "two"
    assert decision.reason.endswith("; it has 1,280 of about 1,406 prompt tokens")
    best = decision.candidates[0]
    assert (best.prompt_tokens, best.cached_tokens) == (1406, 1280)
    assert choose(wanted, two(lacks, lacks), objective).chosen == "one"
    assert choose(wanted, two(has, lacks), objective).chosen == "one"
    barely = Outlook(1406, 1, reading)
    assert choose(wanted, two(lacks, barely), objective).chosen == "two", "the last of all ties"


def test_the_first_token_is_loading_and_reading_what_is_not_there() -> None:
    wanted = Features(prompt_tokens=900)
    (one, _) = two(Outlook(1000, 600, reading=200.0), None)
    assert first_token(one, wanted) == pytest.approx(2.0)
    (one, _) = two(Outlook(None, None, reading=200.0, loading=3.0), None)
    assert first_token(one, wanted) == pytest.approx(3.0 + 4.5)
    (one, other) = two(Outlook(1000, 750), None)
    usual = first_token(other, wanted)
    assert first_token(one, wanted) == pytest.approx(usual / 4), "not measured: the usual, in part"
    (one, _) = two(Outlook(), None)
    assert first_token(one, wanted) == pytest.approx(usual)


def test_a_loaded_model_is_faster_than_one_that_is_not() -> None:
    wanted = Features("arithmetic", 0.9)
    assert choose(wanted, two(Outlook(loading=1.0), Outlook()), "speed").chosen == "two"


def test_equals_keep_the_order_of_the_configuration() -> None:
    cards = [msgspec.structs.replace(SMALL, name=name) for name in ("b", "a", "c")]
    decision = choose(Features(), [option(card) for card in cards], "balanced")
    assert [c.name for c in decision.candidates] == ["b", "a", "c"]


def test_every_candidate_has_its_figures() -> None:
    decision = choose(
        Features("fact", 0.9, prompt_tokens=100), [option(SMALL), option(CHAT)], "balanced"
    )
    for candidate in decision.candidates:
        assert candidate.quality is not None
        assert candidate.cost is not None
        assert candidate.seconds is not None
    assert decision.candidates[0].name == decision.chosen
    assert (decision.strategy, decision.task, decision.confidence) == ("auto:balanced", "fact", 0.9)


# ---------------------------------------------------------------- hard constraints


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Features(tools=True), "it cannot do tools"),
        (Features(json=True), None),
        (Features(images=True), "it cannot do images"),
        (Features(audio=True), "it cannot do audio"),
        (Features(logprobs=True), "it cannot do log-probabilities"),
        (Features(prompt_tokens=500, max_tokens=10), None),
        (Features(prompt_tokens=500, max_tokens=13), "its context of 512 tokens is less than"),
        (Features(prompt_tokens=513), "its context of 512 tokens is less than about 513"),
    ],
)
def test_what_a_model_cannot_do(wanted: Features, words: str | None) -> None:
    why = obstacle(option(GENERAL), wanted)
    assert (why is None) if words is None else (why is not None and words in why)
    decision = choose(wanted, [option(GENERAL), option(LARGE)], "cost")
    rejected = {c.name: c.rejected for c in decision.candidates}
    assert rejected == {"large": None, "tiny-general": why}


def test_longest_answer() -> None:
    card = msgspec.structs.replace(LARGE, max_output=100)
    assert obstacle(option(card), Features(max_tokens=100)) is None
    assert "at most 100" in (obstacle(option(card), Features(max_tokens=101)) or "")


def test_an_unknown_context_limits_nothing() -> None:
    assert obstacle(option(ModelCard("m")), Features(prompt_tokens=10**9)) is None


def test_nobody_can() -> None:
    with pytest.raises(ContextTooLong, match="tiny-math: its context of 512"):
        choose(Features(prompt_tokens=600), [option(MATH), option(CHAT)], "balanced")
    with pytest.raises(Unsupported, match="tiny-math: it cannot do tools"):
        choose(Features(tools=True), [option(MATH)], "balanced")
    with pytest.raises(Unavailable, match="no model to choose from"):
        choose(Features(), [], "balanced")


def test_a_resting_target_is_left_out_unless_all_rest() -> None:
    ill = msgspec.structs.replace(option(LARGE), healthy=False)
    decision = choose(Features(), [ill, option(SMALL)], "quality")
    assert decision.chosen == "mini"
    assert decision.candidates[-1].rejected == "it rests after failures"
    also = msgspec.structs.replace(option(SMALL), healthy=False)
    decision = choose(Features(), [ill, also], "quality")
    assert decision.chosen == "large"
    assert decision.reason.endswith("all of them had failures, so the rest is ignored")


def test_an_ill_target_does_not_hide_that_nobody_can() -> None:
    ill = msgspec.structs.replace(option(MATH), healthy=False)
    with pytest.raises(Unsupported):
        choose(Features(tools=True), [ill], "balanced")


# ---------------------------------------------------------------- plain orders


def test_orders_see_only_who_can() -> None:
    seen: list[list[str]] = []

    def backwards(names: object) -> list[str]:
        seen.append(list(names))  # type: ignore[call-overload]  # a sequence of names
        return seen[-1][::-1]

    options = [option(MATH), option(SMALL), option(LARGE)]
    decision = choose(Features(tools=True), options, "round-robin", backwards)
    assert seen == [["mini", "large"]]
    assert decision.chosen == "large"
    assert decision.reason == "the next in turn among 2"


# ---------------------------------------------------------------- the parts


def test_what_a_request_needs() -> None:
    message = Message(
        "user",
        (
            TextPart("x" * 400),
            ImagePart(ImageURL("https://example.com/a.png")),
            AudioPart(InputAudio("AAAA", "wav")),
        ),
    )
    request = Request(
        model="m",
        messages=(message,),
        tools=(Tool("calculator", "works things out", msgspec.Raw(b'{"type": "object"}')),),
        response_format=ResponseFormat("json_schema"),
        sampling=Sampling(max_tokens=7, n=2, logprobs=True),
    )
    found = features(request, "story", 0.8)
    assert found == Features(
        task="story",
        confidence=0.8,
        prompt_tokens=114,
        max_tokens=7,
        n=2,
        tools=True,
        json=True,
        images=True,
        audio=True,
        logprobs=True,
    )
    assert found.output_tokens == 14
    plain = features(msgspec.structs.replace(request, tool_choice="none"), "story", 0.8)
    assert not plain.tools


def test_the_estimate_of_tokens_is_on_the_low_side() -> None:
    assert estimate_tokens(a_request("word " * 100)) == 128  # 100 words and signs of the template
    assert estimate_tokens(a_request("你好" * 50)) == 73
    assert estimate_tokens(Request(model="m", prompt="x" * 40, suffix="y" * 40)) == 20


def test_reach_grows_with_size_and_price() -> None:
    sizes = [reach(ModelCard("m", parameters=int(10**e))) for e in (5, 6, 6.5, 8, 9.9, 11, 13)]
    assert sizes == sorted(sizes)
    prices = [reach(ModelCard("m", price=Price(1, p))) for p in (0.01, 0.6, 2, 10, 75, 600)]
    assert prices == sorted(prices)
    assert 0 < min(sizes + prices) <= max(sizes + prices) < 1


def test_what_is_not_priced() -> None:
    wanted = Features(prompt_tokens=1_000_000)
    assert dollars(MATH, wanted) == 0
    assert dollars(ModelCard("remote"), wanted) > 0.5
    assert dollars(ModelCard("free", price=Price()), wanted) == 0


def test_a_specialist_is_no_generalist() -> None:
    """Two good scores say less about other work than fifteen fair ones."""
    narrow = ModelCard("narrow", parameters=10**9, scores={"arithmetic": 1.0, "comparison": 1.0})
    broad = ModelCard("broad", parameters=10**9, scores={f"t{i}": 0.9 for i in range(15)})
    assert quality(broad, "other", 0.0) > quality(narrow, "other", 0.0)
    assert quality(broad, "reverse", 0.9) > quality(narrow, "reverse", 0.9)


def test_a_score_for_other_is_taken_as_it_is() -> None:
    card = ModelCard("m", parameters=10**6, scores={"other": 0.77, "fact": 0.1})
    assert quality(card, "other", 0.0) == 0.77


CARDS = st.builds(
    ModelCard,
    name=st.uuids().map(str),
    local=st.booleans(),
    context=st.sampled_from([0, 100, 10_000]),
    parameters=st.sampled_from([0, 10**6, 10**9, 10**11]),
    price=st.none() | st.builds(Price, st.floats(0, 100), st.floats(0, 100)),
    capabilities=st.builds(Capabilities, st.booleans(), st.booleans(), st.booleans()),
    scores=st.dictionaries(st.sampled_from([*TINY_TASKS, "other"]), st.floats(0, 1), max_size=5),
    speed=st.none() | st.floats(0.1, 1000),
)
WANTED = st.builds(
    Features,
    task=st.sampled_from([*TINY_TASKS, "other"]),
    confidence=st.floats(0, 1),
    prompt_tokens=st.integers(0, 20_000),
    max_tokens=st.none() | st.integers(1, 1000),
    tools=st.booleans(),
    json=st.booleans(),
    images=st.booleans(),
)


@given(
    wanted=WANTED,
    cards=st.lists(CARDS, min_size=1, max_size=6, unique_by=lambda card: card.name),
    objective=st.sampled_from(["quality", "balanced", "cost", "speed"]),
    seed=st.integers(0, 1000),
)
def test_what_always_holds(
    wanted: Features, cards: list[ModelCard], objective: Objective, seed: int
) -> None:
    options = [option(card) for card in cards]
    try:
        decision = choose(wanted, options, objective)
    except (ContextTooLong, Unsupported):
        assert all(obstacle(o, wanted) for o in options)
        return
    assert sorted(c.name for c in decision.candidates) == sorted(card.name for card in cards)
    able = [c for c in decision.candidates if c.rejected is None]
    assert decision.chosen == able[0].name == decision.candidates[0].name
    assert [c.score for c in able] == sorted((c.score for c in able), reverse=True)
    assert all(0 <= (c.quality or 0) <= 1 for c in able)
    assert all((c.cost or 0) >= 0 for c in able)
    assert choose(wanted, options, objective) == decision, "the same question, another answer"
    mixed = Random(seed).sample(options, len(options))
    again = choose(wanted, mixed, objective)
    scores = {c.name: c.score for c in able}
    assert scores[again.chosen] == scores[decision.chosen], "the order decided more than a tie"
