"""From configuration to trees: which name means what, and what an unusable one says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.app import App
from llm_runner_router.app_tree import AGAIN, AUTOS, LISTED
from llm_runner_router.config import Adopt, Auto, Config, Node, Provider
from llm_runner_router.errors import ConfigError, RunnerError, UnknownModel, Unsupported
from llm_runner_router.models.blobs import Store
from llm_runner_router.models.discard import prune, remove
from llm_runner_router.models.hubcache import HubCache
from llm_runner_router.models.manifest import Stored
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse
from llm_runner_router.strategies.fallback import Fallback
from llm_runner_router.strategies.race import Race
from llm_runner_router.strategies.sticky import Sticky
from llm_runner_router.strategies.weighted import Weighted
from llm_runner_router.types import Message, Price, Request

UP = {"up": Provider(base_url="http://127.0.0.1:9/v1")}


def app(
    models: Mapping[str, str | Node] = {}, environ: Mapping[str, str] = {}, **settings: Any
) -> App:
    return App(Config(models=dict(models), providers=UP, **settings), environ=environ)


def question(model: str) -> Request:
    return Request(model=model, messages=(Message("user", "What is 12 + 30?"),))


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMRR_HOME", str(tmp_path))


def test_without_configuration_the_zoo_and_auto_are_served() -> None:
    names = [card.name for card in app().cards()]
    assert set(LISTED) <= set(names)
    assert [n for n in names if n.startswith("zoo:")] == [n for n in names if n not in LISTED], (
        "nothing else"
    )
    assert len(names) > len(LISTED)


def put(store: Store, model: str) -> None:
    """Make the name `it` mean the weights of one of the demonstration models."""
    file = store.adopt(resolve(parse(model)).path)
    store.put(Stored("it", "file", (file,), main=file.path))


@pytest.mark.parametrize("name", ["m", "same", "either", "auto"])
def test_a_name_whose_file_is_gone_means_what_is_there_now(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    put(store, "zoo:tiny-math")
    models: dict[str, str | Node] = {
        "m": "it",
        "same": "m",
        "either": Node(fallback=("m", "up/x")),
    }
    made = app(models, {"LLMRR_HOME": str(tmp_path)})
    before, leaf = made.target(name), made._tree.find("m").target
    assert made.target(name) is before
    put(store, "zoo:tiny-text")
    assert made.target(name) is before, "it can still answer"
    prune(store, HubCache(tmp_path / "hub"))
    after = made.target(name)
    assert after is not before
    assert made.target(name) is after
    assert made._tree.find("m").target is not leaf
    assert made.local("m").path.name == "tiny-text.gguf"


def test_a_strategy_goes_on_with_those_whose_files_are_there(tmp_path: Path) -> None:
    store, now = Store(tmp_path / "models"), 100.0
    put(store, "zoo:tiny-math")
    config = Config(models={"m": "it", "f": Node(fallback=("m", "up/x"))}, providers=UP)
    made = App(config, environ={"LLMRR_HOME": str(tmp_path)}, clock=lambda: now)
    before = made.target("f")
    remove("it", store, HubCache(tmp_path / "hub"))
    assert made.target("f") is before
    with pytest.raises(UnknownModel):
        made.target("m")
    put(store, "zoo:tiny-text")
    assert made.target("f") is before, "it was looked for a moment ago"
    now += AGAIN
    assert made.target("f") is not before


def test_a_server_that_is_adopted_has_no_file_to_lose() -> None:
    """Made anew for each request, it would be another model each time, and be started again."""
    adopt = Adopt(url="http://127.0.0.1:9/v1", api_key="${KEY}")
    made = app({"m": Node(adopt=adopt)}, {"KEY": "secret"})
    assert made.target("m") is made.target("m")
    assert made.local("m") is made.local("m")
    assert made.embedder("m") is not None


def test_every_spelling_of_auto_chooses() -> None:
    made = app()
    for name in AUTOS:
        decision = made.explain(question(name))
        assert decision is not None
        assert decision.chosen.startswith("zoo:")
    assert made.explain(question("zoo:tiny-math")) is None, "one model is no choice"


def test_auto_takes_the_configured_models_and_not_the_demonstration() -> None:
    decision = app({"a": "up/x", "b": "up/y"}).explain(question("auto"))
    assert decision is not None
    assert {c.name for c in decision.candidates} == {"a", "b"}
    named = app({"mix": Node(auto=Auto(models=("zoo:tiny-math", "up/x")))})
    decision = named.explain(question("mix"))
    assert decision is not None
    assert {c.name for c in decision.candidates} == {"zoo:tiny-math", "up/x"}


def test_trees_have_the_shape_of_the_configuration() -> None:
    made = app(
        {
            "a": "up/x",
            "b": Node(target="up/y", aliases=("bee",), price=Price(1, 2), context=100),
            "f": Node(fallback=("a", Node(race=("b", "zoo:tiny-chat")))),
            "w": Node(weighted={"a": 1, "b": 3}),
            "s": Node(weighted={"a": 1, "b": 3}, sticky="session"),
        },
        aliases={"short": "f"},
    )
    fallback = made._tree.find("short").target
    assert isinstance(fallback, Fallback)
    assert [t.name for t in fallback.targets] == ["a", "f[1]"]
    assert isinstance(fallback.targets[1], Race)
    assert isinstance(made._tree.find("w").target, Weighted)
    assert isinstance(made._tree.find("s").target, Sticky)
    card = made._tree.find("bee").card
    assert (card.price, card.context) == (Price(1, 2), 100)
    assert made._tree.find("bee").target is made._tree.find("b").target
    assert made._tree.find("f").card.strategy == "fallback"


def test_a_provider_needs_an_account() -> None:
    with pytest.raises(UnknownModel, match="OPENAI_API_KEY"):
        app().target("openai/gpt-4o-mini")
    with_key = app(environ={"OPENAI_API_KEY": "sk-test-0123456789abcdef"})
    assert with_key.target("openai/gpt-4o-mini").name == "openai/gpt-4o-mini"
    with pytest.raises(UnknownModel, match=r"providers: \{ollama: \{\}\}"):
        app().target("ollama/qwen3")
    with pytest.raises(UnknownModel, match="no provider `nobody`"):
        app().target("nobody/x")


def test_a_path_that_reads_as_a_providers_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownModel, match="no provider `models`") as caught:
        App(Config(), local_files=True).target("models/tiny")
    assert "`./models/tiny`" in (caught.value.hint or "")
    with pytest.raises(UnknownModel) as caught:  # a client of a server must not learn what is here
        App(Config()).target("models/tiny")
    assert "./models/tiny" not in (caught.value.hint or "")
    with pytest.raises(Unsupported) as unsupported:
        resolve(parse("models/tiny"))
    assert "`./models/tiny`" in (unsupported.value.hint or "")


def test_names_from_clients_are_remembered_in_a_bounded_number() -> None:
    made = app()
    for i in range(600):
        made.target(f"up/m{i}")
    assert len(made._tree._passing) == 512


def test_a_server_opens_no_file_by_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a.gguf")
    with pytest.raises(UnknownModel, match="files are not served by name"):
        app().target(path)
    with pytest.raises(RunnerError, match=r"a\.gguf"):
        App(Config(), local_files=True).target(path)


@pytest.mark.parametrize(
    ("models", "name", "kind", "words"),
    [
        ({"a": Node(fallback=("b",)), "b": Node(fallback=("a",))}, "a", ConfigError, "a → b → a"),
        ({"a": Node()}, "a", ConfigError, "has no target"),
        ({"a": Node(fallback=("zoo:tiny-maths",))}, "a", UnknownModel, "zoo:tiny-math"),
        ({}, "tiny-maths", UnknownModel, "did you mean"),
        ({}, "", UnknownModel, "not a model reference"),
        ({}, "hf:org/repo", UnknownModel, "is not on this machine"),
    ],
)
def test_what_cannot_be_built_says_why(
    models: dict[str, str | Node], name: str, kind: type[RunnerError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        app(models).target(name)


def test_strategies_do_not_embed_and_remote_models_are_not_loaded() -> None:
    with pytest.raises(Unsupported, match="`auto` cannot embed"):
        app().embedder("auto")
    with pytest.raises(Unsupported, match="it is a remote model"):
        app().local("up/x")


def test_a_broken_entry_does_not_hide_the_others() -> None:
    made = app({"bad": "file:/nowhere/a.gguf", "good": "up/x"})
    assert "good" in [card.name for card in made.cards()]
    assert "a.gguf" in made.status().broken["bad"]
