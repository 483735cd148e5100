"""The planner: cheapest chains, honest refusals, for any set of converters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.convert.plan import Converter, _cost, _step, disk, plan
from llm_runner_router.errors import Unsupported

KINDS = ("gguf", "safetensors", "pytorch", "tfjs", "onnx", "ggml")
CONVERTERS = st.builds(
    Converter,
    have=st.sampled_from(KINDS),
    want=st.sampled_from(KINDS),
    grow=st.floats(0.1, 4),
    speed=st.floats(1e6, 1e9),
    exact=st.booleans(),
)


def every_way(
    have: str, want: str, size: int, registry: list[Converter], seen: tuple[str, ...] = ()
) -> list[float]:
    """The cost of every chain that visits no kind twice, by plain search."""
    if have == want:
        return [0.0]
    costs = []
    for one in registry:
        if one.have == have and one.want not in (*seen, have):
            step = _step(one, size)
            rest = every_way(one.want, want, step.bytes, registry, (*seen, have))
            costs += [_cost(step) + cost for cost in rest]
    return costs


@given(st.lists(CONVERTERS, max_size=12), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_a_plan_is_a_chain_and_exists_whenever_one_exists(
    registry: list[Converter], have: str, want: str
) -> None:
    ways = every_way(have, want, 10**9, registry)
    if not ways:
        with pytest.raises(Unsupported) as refused:
            plan(have, want, size=10**9, registry=registry)
        assert refused.value.hint
        return
    steps = plan(have, want, size=10**9, registry=registry)
    if have != want:
        assert steps[0].have == have
        assert steps[-1].want == want
    assert all(a.want == b.have for a, b in pairwise(steps))
    assert all(step.converter in registry for step in steps)
    kinds = [step.have for step in steps]
    assert len(set(kinds)) == len(kinds)
    assert disk(steps) == sum(step.bytes for step in steps)


@given(st.lists(CONVERTERS, max_size=10), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_no_chain_is_cheaper_when_nothing_grows(
    registry: list[Converter], have: str, want: str
) -> None:
    flat = [Converter(c.have, c.want, 1.0, c.speed, c.exact) for c in registry]
    ways = every_way(have, want, 10**9, flat)
    if ways:
        steps = plan(have, want, size=10**9, registry=flat)
        assert sum(map(_cost, steps)) == pytest.approx(min(ways))


def test_an_exact_way_of_two_steps_beats_a_lossy_one_of_one() -> None:
    lossy = Converter("tfjs", "gguf", exact=False)
    first, second = Converter("tfjs", "safetensors"), Converter("safetensors", "gguf")
    steps = plan("tfjs", "gguf", size=10**9, registry=[lossy, second, first])
    assert [step.converter for step in steps] == [first, second]
    assert plan("tfjs", "gguf", registry=[lossy])[0].converter == lossy


def test_the_estimate_follows_the_bytes() -> None:
    steps = plan(
        "a",
        "c",
        size=1000,
        registry=[Converter("a", "b", grow=2, speed=10), Converter("b", "c", speed=100)],
    )
    assert [(s.bytes, s.seconds) for s in steps] == [(2000, 100.0), (2000, 20.0)]


@pytest.mark.parametrize(
    ("have", "want", "message", "hint"),
    [
        ("gguf", "onnx", "nothing here writes `onnx`", "--help"),
        ("mine", "gguf", "made from `safetensors`", "nothing here reads `mine`"),
        ("gguf", "pytorch", "made from `safetensors`", "can become `mlx`"),
        ("gguf", "pdf", "no kind of model called `pdf`", "known: "),
    ],
)
def test_a_refusal_says_how_far_one_gets(have: str, want: str, message: str, hint: str) -> None:
    registry = [
        Converter("safetensors", "gguf"),
        Converter("safetensors", "pytorch"),
        Converter("gguf", "mlx"),
    ]
    with pytest.raises(Unsupported) as refused:
        plan(have, want, registry=registry)
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


def test_unpacking_is_no_way_to_make_a_kind() -> None:
    registry = [Converter("packed-mlx", "mlx"), Converter("mlx", "gguf")]
    registry.append(Converter("packed-gguf", "gguf"))
    with pytest.raises(Unsupported, match="nothing here writes `mlx`"):
        plan("gguf", "mlx", registry=registry)
    with pytest.raises(Unsupported, match=r"which is made from `mlx` \("):
        plan("onnx", "gguf", registry=registry)
    assert [step.want for step in plan("packed-mlx", "gguf", registry=registry)] == ["mlx", "gguf"]
