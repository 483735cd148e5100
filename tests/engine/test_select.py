"""Which engine is chosen, and what is said where none can be."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, get_args

import msgspec
import pytest

from llm_runner_router import EngineSelector
from llm_runner_router.engine import fit, llamacpp, mistralrs, mock, torch
from llm_runner_router.engine.adapting import adapt
from llm_runner_router.engine.base import Adapted, Engine, Feature, Purpose, Verdict
from llm_runner_router.engine.devices import Machine
from llm_runner_router.engine.select import engine_names, load_engine
from llm_runner_router.engine.threads import CpuPlan
from llm_runner_router.errors import ConfigError, LoadFailed
from llm_runner_router.models.info import LocalModel, ModelInfo
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.types import Request

MACHINE = Machine(physical=2, allowed=2, quota=None, memory=1 << 34, available=1 << 34)
GGUF = ModelInfo(format="gguf", architecture="llama")
HF = ModelInfo(format="hf", architecture="llama")


class Made:
    """An engine that says what it is told."""

    EXTRA: str | None = "some"
    RUNNER = "nothing"
    FEATURES: frozenset[Feature] = frozenset()

    def __init__(
        self, name: str, score: float, *, needs: tuple[str, ...] = (), by_name: bool = False
    ) -> None:
        self.NAME = name
        self.NEEDS = needs
        self._verdict = Verdict(name, score, f"says {score:g}", by_name=by_name)

    def can_run(self, info: ModelInfo, machine: Machine) -> Verdict:
        return self._verdict

    def place(self, info: ModelInfo, wanted: fit.Wanted) -> fit.Placement:
        raise NotImplementedError

    def order(
        self,
        model: LocalModel,
        plan: CpuPlan,
        placement: fit.Placement,
        api_key: str,
        purpose: Purpose,
    ) -> dict[str, Any]:
        raise NotImplementedError

    def adapt(self, request: Request, model: LocalModel) -> Adapted:
        return adapt(request, model)


def selector(*engines: Engine, installed: tuple[str, ...] = ()) -> EngineSelector:
    return EngineSelector(
        lambda: MACHINE,
        engines={engine.NAME: engine for engine in engines},
        installed=lambda name: name in installed,
    )


@pytest.fixture
def model() -> LocalModel:
    return resolve(parse("zoo:tiny-math"))


def test_engines_are_pairs_of_files() -> None:
    names = engine_names()
    assert "llamacpp" in names
    assert not {"base", "child", "worker", "http", "scheduler"} & set(names)


def test_a_module_keeps_the_contract() -> None:
    engines: dict[str, Engine] = {"llamacpp": llamacpp, "mock": mock, "torch": torch}
    assert set(engines) <= set(engine_names())
    for name in engine_names():
        found = load_engine(name)
        assert found.NAME == name
        assert found is engines.get(name, found)
        assert found.FEATURES <= set(get_args(Feature))
        assert find_spec(found.RUNNER), "its child's side"


def test_gguf_goes_to_the_engine_that_is_made_for_it(model: LocalModel) -> None:
    assert EngineSelector().get_best(model).NAME == "llamacpp"
    assert EngineSelector().get_best(model.info, MACHINE).NAME == "llamacpp"


@pytest.mark.parametrize("engine", [llamacpp, mistralrs])
@pytest.mark.parametrize("type", ["I2_S", "I8_S", "TL1", "TL2"])
def test_bitnets_own_types_are_refused(engine: Engine, type: str) -> None:
    verdict = engine.can_run(msgspec.structs.replace(GGUF, types={type: 9}), MACHINE)
    assert not verdict.can
    assert type in verdict.why


def test_the_best_comes_first_and_what_cannot_comes_last() -> None:
    chosen = selector(
        Made("none", 0.0),
        Made("good", 0.5),
        Made("absent", 0.9, needs=("absent_package",)),
        Made("hidden", 1.0, by_name=True),
        Made("best", 0.8, needs=("here",)),
        installed=("here",),
    )
    ranked = chosen.rank(HF)
    assert [v.engine for v in ranked] == ["best", "good", "hidden", "absent", "none"]
    assert [v.can for v in ranked] == [True, True, True, False, False]
    assert ranked[3].missing == ("absent_package",)
    assert ranked[3].hint == "pip install 'llm-runner-router[some]'"
    assert chosen.get_best(HF).NAME == "best"


def test_where_none_can_each_says_why() -> None:
    chosen = selector(Made("none", 0.0), Made("absent", 0.9, needs=("absent_package",)))
    with pytest.raises(LoadFailed) as caught:
        chosen.get_best(HF)
    assert "absent_package is not installed" in caught.value.message
    assert "none says 0" in caught.value.message
    assert caught.value.hint == "pip install 'llm-runner-router[some]'"


def test_a_model_may_name_its_engine(model: LocalModel) -> None:
    chosen = selector(Made("good", 0.5), Made("hidden", 0.1, by_name=True), Made("none", 0.0))
    assert chosen.get_best(model).NAME == "good"

    def named(name: str) -> LocalModel:
        return msgspec.structs.replace(model, engine=name)

    assert chosen.get_best(named("hidden")).NAME == "hidden"
    with pytest.raises(LoadFailed, match="none"):
        chosen.get_best(named("none"))
    with pytest.raises(ConfigError) as caught:
        chosen.get_best(named("nonesuch"))
    assert caught.value.hint is not None
    assert "good" in caught.value.hint


def test_no_such_engine() -> None:
    with pytest.raises(ConfigError, match="nonesuch"):
        load_engine("nonesuch")
    with pytest.raises(ConfigError, match="scheduler"):
        load_engine("scheduler")


def test_vectors_come_from_an_engine_that_gives_them() -> None:
    writes, gives = Made("writes", 0.9), Made("gives", 0.4)
    gives.FEATURES = frozenset(("embed",))
    chooser = selector(writes, gives)
    assert chooser.get_best(HF).NAME == "writes"
    assert chooser.get_best(HF, purpose="embed").NAME == "gives"
    with pytest.raises(LoadFailed, match="writes gives no embeddings"):
        selector(writes).get_best(HF, purpose="embed")
    named = msgspec.structs.replace(resolve(parse("zoo:tiny-math")), engine="writes")
    with pytest.raises(LoadFailed, match="gives no embeddings"):
        chooser.get_best(named, purpose="embed")
