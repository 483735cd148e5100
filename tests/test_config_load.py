"""Settings from every place, who wins, and what is said when something is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router import config_yaml
from llm_runner_router.config import Config, Node, Provider
from llm_runner_router.config_check import adapted
from llm_runner_router.config_load import check_secrets, find_file, load, secret, variables
from llm_runner_router.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes `llmrr.yaml` in the working folder, so that messages are the same everywhere."""
    monkeypatch.chdir(tmp_path)

    def to(text: str, name: str = "llmrr.yaml") -> Path:
        Path(name).write_text(text, "utf-8")
        return Path(name)

    return to


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"LLMRR_HOME": str(tmp_path / "home")}


# ---------------------------------------------------------------- where from, who wins


def test_no_file_is_the_defaults(env: dict[str, str], write: Any) -> None:
    assert load(None, env, {}) == Config()


def test_later_places_win(env: dict[str, str], write: Any) -> None:
    write("server: {host: 127.0.0.2, port: 1, max_requests: 7}\nengine: {threads: 1, slots: 2}\n")
    config = load(None, {**env, "LLMRR_PORT": "2", "LLMRR_ENGINE_THREADS": "2"}, {})
    assert (config.server.host, config.server.port, config.server.max_requests) == (
        "127.0.0.2",
        2,
        7,
    )
    assert (config.engine.threads, config.engine.slots) == (2, 2)
    config = load(None, {**env, "LLMRR_PORT": "2"}, {"server.port": 3, "server.host": None})
    assert (config.server.port, config.server.host) == (3, "127.0.0.2")


def test_the_long_variable_wins_over_the_short_one(env: dict[str, str], write: Any) -> None:
    assert load(None, {**env, "LLMRR_SERVER_PORT": "5", "LLMRR_PORT": "6"}, {}).server.port == 5


def test_the_nearest_file_is_read(env: dict[str, str], write: Any, tmp_path: Path) -> None:
    assert find_file(None, env) is None
    (tmp_path / "home").mkdir()
    at_home = tmp_path / "home" / "llmrr.yaml"
    at_home.write_text("deadline: 1")
    assert find_file(None, env) == at_home
    write("deadline: 2")
    assert find_file(None, env) == Path("llmrr.yaml")
    named = write("deadline: 3", "other.yaml")
    assert find_file(None, {**env, "LLMRR_CONFIG": "other.yaml"}) == named
    assert find_file(Path("llmrr.yaml"), {**env, "LLMRR_CONFIG": "other.yaml"}) == Path(
        "llmrr.yaml"
    )
    assert load(None, {**env, "LLMRR_CONFIG": "other.yaml"}, {}).deadline == 3


@pytest.mark.parametrize("name", sorted(variables()))
def test_every_setting_has_a_variable(name: str, env: dict[str, str], write: Any) -> None:
    at = variables()[name]
    value: Any = Config()
    for part in at:
        value = getattr(value, str(part))
    usual: tuple[str, Any] = ("2048", 2048)
    if isinstance(value, bool):
        usual = ("off", False)
    elif isinstance(value, int) and value >= 1 << 20:
        usual = ("2GiB", 2 << 30)
    text, expected = VALUES.get(name, usual)
    config: Any = load(None, {**env, name: text}, {})
    for part in at:
        config = getattr(config, str(part))
    assert config == expected


VALUES: dict[str, tuple[str, Any]] = {
    "LLMRR_HOST": ("::1", "::1"),
    "LLMRR_SERVER_HOST": ("::1", "::1"),
    "LLMRR_ENGINE_WAIT_POLICY": ("spin", "spin"),
    "LLMRR_ENGINE_KV_TYPE": ("q8_0", "q8_0"),
    "LLMRR_ENGINE_SPECULATE": ("ngram", "ngram"),
    "LLMRR_ENGINE_PIN": ("zoo:tiny-math, auto", ("zoo:tiny-math", "auto")),
    "LLMRR_ENGINE_SLOTS": ("8", 8),
    "LLMRR_ENGINE_THREADS": ("3", 3),
    "LLMRR_ENGINE_MEMORY": ("2GiB", 2 * 1024**3),
    "LLMRR_ENGINE_CONVERSIONS": ("8", 8),
    "LLMRR_BATCHES_ATTEMPTS": ("8", 8),
    "LLMRR_BATCHES_PARALLEL": ("8", 8),
    "LLMRR_DEADLINE": ("5m", 300.0),
}


def test_sections_with_nothing_in_them_are_the_defaults(env: dict[str, str], write: Any) -> None:
    assert load(write("engine:\nserver:\nmodels:\naliases:\nzoo:\n"), env, {}) == Config()
    assert load(write(""), env, {}) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("engine: {memory: 4GiB}", 4 * 1024**3),
        ("engine: {memory: 500 MB}", 500_000_000),
        ("engine: {memory: 1.5g}", 1_500_000_000),
        ("engine: {memory: 1234}", 1234),
        ("engine: {memory: '1234'}", 1234),
    ],
)
def test_sizes(text: str, expected: int, env: dict[str, str], write: Any) -> None:
    assert load(write(text), env, {}).engine.memory == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("90", 90), ("2 d", 172800), ("0", 0)],
)
def test_durations(text: str, expected: float, env: dict[str, str], write: Any) -> None:
    assert load(write(f"engine: {{keep_alive: {text}}}"), env, {}).engine.keep_alive == expected


def test_entries_have_the_shape_of_the_tree(env: dict[str, str], write: Any) -> None:
    text = """
models:
  tiny: zoo:tiny-chat
  smart: {fallback: [tiny, {race: [zoo:tiny-math, auto:cost]}], aliases: [best]}
  split: {weighted: {tiny: 9, smart: 1}, sticky: session}
aliases: {gpt-4o: best}
"""
    models = load(write(text), env, {}).models
    assert models["smart"] == Node(
        fallback=("tiny", Node(race=("zoo:tiny-math", "auto:cost"))), aliases=("best",)
    )


def test_yaml_anchors_work(env: dict[str, str], write: Any) -> None:
    text = "models:\n  a: &x {target: zoo:tiny-math, speed: 5}\n  b: {<<: *x, context: 9}\n"
    models = load(write(text), env, {}).models
    assert models["b"] == Node(target="zoo:tiny-math", speed=5, context=9)


# ---------------------------------------------------------------- what is said when it is wrong

WRONG = {
    "modles: {}": "llmrr.yaml:1: modles: unknown key `modles`; did you mean `models`?",
    "engine:\n  threds: 3": (
        "llmrr.yaml:2: engine.threds: unknown key `threds`; did you mean `threads`?"
    ),
    "zzz: 1": "llmrr.yaml:1: zzz: unknown key `zzz`",
    "models: [a]": "llmrr.yaml:1: models: expected a mapping (`name: value`), got a list",
    "server: 7": "llmrr.yaml:1: server: expected settings (`key: value`), got 7",
    "models: {a: 7}": "llmrr.yaml:1: models.a: expected `str`, got 7",
    "models:\n  a:\n    target: zoo:tiny-math\n    context: x": (
        "llmrr.yaml:4: models.a.context: expected `int`, got 'x'"
    ),
    "models: {a b: {fallback: zoo:tiny-math}}": (
        "llmrr.yaml:1: models['a b'].fallback: expected a list, got 'zoo:tiny-math'"
    ),
    "models: {a: {auto: {objective: speeed}}}": (
        "llmrr.yaml:1: models.a.auto.objective: 'speeed' is not one of `balanced`, `quality`, "
        "`cost`, `speed`, `random`, `round-robin`, `least-loaded`; did you mean `speed`?"
    ),
    "server: {port: 99999}": "llmrr.yaml:1: server.port: expected `int` <= 65535, got 99999",
    "server: {port: true}": "llmrr.yaml:1: server.port: expected `int`, got True",
    "engine: {memory: lots}": (
        "llmrr.yaml:1: engine.memory: expected bytes as a number or text such as `512MiB`, "
        "`4GiB`, got 'lots'"
    ),
    "deadline: soon": (
        "llmrr.yaml:1: deadline: expected seconds as a number or text such as `90s`, `5m`, `1h`, "
        "got 'soon'"
    ),
    "deadline: -1": "llmrr.yaml:1: deadline: expected `float` >= 0.0, got -1",
    "deadline: .inf": "llmrr.yaml:1: deadline: expected a finite number, got inf",
    "models:\n  a: zoo:tiny-math\n  a: zoo:tiny-chat": (
        "llmrr.yaml:3: `a` stands here a second time (first in line 2)"
    ),
    "1: 2": "llmrr.yaml:1: keys must be text, and `1` is not",
    "[a, b]": "llmrr.yaml:1: the file must be a mapping (`key: value`)",
    "a: [": "llmrr.yaml:1: not YAML: expected the node content, but found '<stream end>'",
    "a:\n\t- b": (
        "llmrr.yaml:2: not YAML: found character '\\t' that cannot start any token "
        "(YAML wants spaces, not tabs)"
    ),
    "models: &x {a: *x}": "llmrr.yaml:1: an alias that contains itself",
    "models: {a: {}}": (
        "llmrr.yaml:1: models.a: exactly one of `target`, `adopt`, `fallback`, `race`, "
        "`weighted`, `auto` is needed, got none of them"
    ),
    "models: {a: {fallback: [{target: zoo:tiny-math, race: [zoo:tiny-math]}]}}": (
        "llmrr.yaml:1: models.a.fallback[0]: exactly one of `target`, `adopt`, `fallback`, "
        "`race`, `weighted`, `auto` is needed, got `target` and `race`"
    ),
    "models: {a: {target: zoo:tiny-math, sticky: key}}": (
        "llmrr.yaml:1: models.a.sticky: `sticky` works with `weighted` only"
    ),
    "models: {a: {race: [zoo:tiny-math], engine: torch}}": (
        "llmrr.yaml:1: models.a.engine: `engine` works with `target` only"
    ),
    "models: {a: {target: zoo:tiny-math, options: {dtype: float16}}}": (
        "llmrr.yaml:1: models.a.options: `options` are for an `engine`, which is not named"
    ),
    "models: {a: {race: [zoo:tiny-math], adapters: {sea: ./s}}}": (
        "llmrr.yaml:1: models.a.adapters: `adapters` work with `target` only"
    ),
    "models: {a: {target: zoo:tiny-math, engine: torch, adapters: {sea: ./s}}}": (
        "llmrr.yaml:1: models.a.adapters: `adapters` work on `llamacpp`, not on `torch`"
    ),
    "models: {a: zoo:tiny-math, b: {target: a, adapters: {sea: ./s}}}": (
        "llmrr.yaml:1: models.b.adapters: `a` is an entry of its own; give the adapters to that"
    ),
    "models: {a: {target: openai/gpt-4o-mini, adapters: {sea: ./s}}}": (
        "llmrr.yaml:1: models.a.adapters: `adapters` are for models that run here"
    ),
    "models: {a: {target: zoo:tiny-math, adapters: {sea: sea}}}": (
        "llmrr.yaml:1: models.a.adapters.sea: 'sea' is no file, folder or reference"
    ),
    "models: {a: {target: zoo:tiny-math, adapters: {sea: ''}}}": (
        "llmrr.yaml:1: models.a.adapters.sea: not a model reference: ''"
    ),
    "models: {a: {target: zoo:tiny-math, adapters: {' ': ./s}}}": (
        "llmrr.yaml:1: models.a.adapters[' ']: a name needs 1 to 200 printable characters"
    ),
    "models: {a+sea: zoo:tiny-chat, a: {target: zoo:tiny-math, adapters: {sea: ./s}}}": (
        "llmrr.yaml:1: models.a.adapters.sea: `a+sea` is taken by another model"
    ),
    "models: {a: {target: zoo:tiny-math, adapters: {sea: ./s}}, b: {race: [a+see]}}": (
        "llmrr.yaml:1: models.b.race[0]: no model is called `a+see`; did you mean `a+sea`?"
    ),
    "models: {a: {adopt: {command: [vllm, serve]}}}": (
        "llmrr.yaml:1: models.a.adopt: give a `url`, or a `command` with `{port}` in it"
    ),
    "models: {a: {adopt: {url: 127.0.0.1:80}}}": (
        "llmrr.yaml:1: models.a.adopt.url: '127.0.0.1:80' is not a URL"
    ),
    "models: {a: {adopt: {url: 'http://h/v1', api_key: secret}}}": (
        "llmrr.yaml:1: models.a.adopt.api_key: keys do not belong in a file; name a variable"
    ),
    "models: {a: {adopt: {url: 'http://h/v1', env: {A: b}}}}": (
        "llmrr.yaml:1: models.a.adopt.env: `env` is for a `command`"
    ),
    "models: {a: {race: [zoo:tiny-math], speed: 3}}": (
        "llmrr.yaml:1: models.a.speed: `speed` works with `target` only"
    ),
    "models: {a: {weighted: {zoo:tiny-math: 0}}}": (
        "llmrr.yaml:1: models.a.weighted: one weight must be above 0"
    ),
    "models: {a: {target: zoo:tiny-math, scores: {math: 2}}}": (
        "llmrr.yaml:1: models.a.scores.math: a score is 0 to 1, got 2.0"
    ),
    "models:\n  tiny: zoo:tiny-chat\n  b: {race: [tiny, tny]}": (
        "llmrr.yaml:3: models.b.race[1]: no model is called `tny`; did you mean `tiny`?"
    ),
    "models: {a: zoo:tiny-mth}": (
        "llmrr.yaml:1: models.a: no built-in model is called `zoo:tiny-mth`; did you mean "
        "`zoo:tiny-math`?"
    ),
    "models: {a: auto:qualty}": (
        "llmrr.yaml:1: models.a: no model is called `auto:qualty`; did you mean `auto:quality`?"
    ),
    "models: {a: 'zoo:'}": "llmrr.yaml:1: models.a: the reference 'zoo:' names nothing",
    "models:\n  a: b\n  b: {fallback: [a]}": (
        "llmrr.yaml:2: models.a: goes round in a circle: a → b → a"
    ),
    "models: {a: a}": "llmrr.yaml:1: models.a: goes round in a circle: a → a",
    "models: {a: zoo:tiny-math}\naliases: {a: zoo:tiny-chat}": (
        "llmrr.yaml:2: aliases.a: a model has this name already"
    ),
    "aliases: {a: nobody}": "llmrr.yaml:1: aliases.a: no model is called `nobody`",
    "models: {a: {target: zoo:tiny-math, aliases: [b]}, b: zoo:tiny-math}": (
        "llmrr.yaml:1: models.a.aliases[0]: `b` is taken by another model"
    ),
    "models: {a: {fallback: [{target: zoo:tiny-math, aliases: [b]}]}}": (
        "llmrr.yaml:1: models.a.fallback[0].aliases: only a top-level entry can have aliases"
    ),
    "engine: {pin: [nobody]}": "llmrr.yaml:1: engine.pin[0]: no model is called `nobody`",
    "providers: {zzz: {}}": ("llmrr.yaml:1: providers.zzz: unknown provider"),
    "providers: {opnai: {}}": (
        "llmrr.yaml:1: providers.opnai: unknown provider; did you mean `openai`?"
    ),
    "providers: {mine: {host: opnai}}": (
        "llmrr.yaml:1: providers.mine.host: no host is called `opnai`; did you mean `openai`?"
    ),
    "providers: {azure: {}}": ("llmrr.yaml:1: providers.azure: this host has no common address"),
    "models: {a: opnai/gpt-4o-mini}": (
        "llmrr.yaml:1: models.a: no provider is called `opnai` (in `opnai/gpt-4o-mini`); "
        "did you mean `openai`?"
    ),
    "models: {a: azure/gpt-4o-mini}": ("llmrr.yaml:1: models.a: `azure` has no common address"),
    "providers: {a/b: {base_url: 'http://x/v1'}}": (
        "llmrr.yaml:1: providers['a/b']: a provider's name may not contain `/` or `:`"
    ),
    "providers: {mine: {base_url: 'x:80'}}": (
        "llmrr.yaml:1: providers.mine.base_url: 'x:80' is not a URL"
    ),
    "providers: {mine: {base_url: 'http://x/v1', api_key: sk-secret-123}}": (
        "llmrr.yaml:1: providers.mine.api_key: keys do not belong in a file; name a variable"
    ),
}


@pytest.mark.parametrize("text", WRONG, ids=lambda t: re.sub(r"\W+", "-", t)[:50])
def test_messages(text: str, env: dict[str, str], write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(text), env, {})
    assert caught.value.message == WRONG[text]
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LLMRR_PORT", "abc", "LLMRR_PORT: server.port: expected `int`, got 'abc'"),
        ("LLMRR_ZOO", "maybe", "LLMRR_ZOO: zoo: expected `bool`, got 'maybe'"),
        ("LLMRR_ENGINE_PIN", "x", "LLMRR_ENGINE_PIN: engine.pin: no model is called `x`"),
        (
            "LLMRR_ENGINE_THREDS",
            "3",
            "unknown variable `LLMRR_ENGINE_THREDS`; did you mean `LLMRR_ENGINE_THREADS`?",
        ),
        (
            "LLMRR_CONFIG",
            "nix.yaml",
            "the configuration file `nix.yaml` does not exist (from LLMRR_CONFIG)",
        ),
    ],
)
def test_messages_about_variables(
    name: str, value: str, message: str, env: dict[str, str], write: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {**env, name: value}, {})
    assert caught.value.message == message


def test_a_wrong_flag_is_named(env: dict[str, str], write: Any) -> None:
    with pytest.raises(ConfigError, match=r"^--port: server\.port: expected `int` <= 65535"):
        load(None, env, {"server.port": 70000})


def test_what_cannot_be_read(env: dict[str, str], write: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`gone\.yaml` does not exist"):
        load(Path("gone.yaml"), env, {})
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read `folder\.yaml`: Is a directory"):
        load(Path("folder.yaml"), env, {})
    Path("latin.yaml").write_bytes(b"models: {a: \xff}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text \(byte 12\)"):
        load(Path("latin.yaml"), env, {})


def test_growing_aliases_are_refused(env: dict[str, str], write: Any) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 50,000 values"):
        load(write("\n".join(rows)), env, {})


def test_too_large_or_too_deep_is_refused(env: dict[str, str], write: Any) -> None:
    with pytest.raises(ConfigError, match="a configuration may have 1,048,576"):
        load(write("# " + "x" * config_yaml.MAX_BYTES), env, {})
    with pytest.raises(ConfigError, match="nested too deeply"):
        load(write("a: " + "[" * 5000), env, {})


def test_a_reference_may_be_its_own_name(env: dict[str, str], write: Any) -> None:
    text = "models: {'zoo:tiny-math': {target: zoo:tiny-math, speed: 1}}"
    assert "zoo:tiny-math" in load(write(text), env, {}).models


# ---------------------------------------------------------------- secrets


def test_secrets_come_late_and_do_not_show() -> None:
    found = secret("${MY_KEY}", {"MY_KEY": "sk-secret-123"}, "x")
    assert found.reveal() == "sk-secret-123"
    assert "sk-" not in f"{found} {found!r}"
    assert secret("os.environ/MY_KEY", {"MY_KEY": "a"}, "x").reveal() == "a"
    assert secret("Basic ${A}:${B}", {"A": "1", "B": "2"}, "x").reveal() == "Basic 1:2"
    assert secret("plain", {}, "x").reveal() == "plain"


def test_a_missing_secret_is_named() -> None:
    providers = {
        "mine": Provider(
            base_url="http://127.0.0.1:1/v1",
            api_key="${MY_KEY}",
            headers={"x-team": "${TEAM}"},
        )
    }
    config = Config(providers=providers)
    check_secrets(config, {"MY_KEY": "a", "TEAM": "b"})
    with pytest.raises(ConfigError) as caught:
        check_secrets(config, {"TEAM": "b"})
    assert caught.value.message == (
        "providers.mine.api_key wants the variable `MY_KEY`, which is not set"
    )
    with pytest.raises(ConfigError, match=r"providers\.mine\.headers\.x-team wants .*`TEAM`"):
        check_secrets(config, {"MY_KEY": "a"})


def test_options_of_an_engine_may_name_things(env: dict[str, str], write: Any) -> None:
    write(
        "models: {a: {target: ./m, engine: mistralrs, options: {isq: q4k, adapters: {sea: ./s}}}}"
    )
    node = load(None, env, {}).models["a"]
    assert isinstance(node, Node)
    assert node.options == {"isq": "q4k", "adapters": {"sea": "./s"}}


def test_adapters_are_names_too(env: dict[str, str], write: Any) -> None:
    write(
        "models:\n"
        "  a: {target: zoo:tiny-math, adapters: {sea: ./s, lake: 'hf:org/lake'}, aliases: [c]}\n"
        "  b: {fallback: [a+sea, d+lake, c+sea, a]}\n"
        "aliases: {d: a, e: a+lake}\n"
        "engine: {pin: [a+sea]}\n"
    )
    config = load(None, env, {})
    sea, lake = ("a", "sea"), ("a", "lake")
    assert adapted(config) == {
        "a+sea": sea, "a+lake": lake, "c+sea": sea, "c+lake": lake, "d+sea": sea, "d+lake": lake,
    }  # fmt: skip
