"""What can be set is told completely, and the example and the schema agree with the loader."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from llm_runner_router import config_yaml
from llm_runner_router.config import Config
from llm_runner_router.config_load import load
from llm_runner_router.config_schema import example, schema, settings


def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_every_setting_is_documented() -> None:
    silent = [setting.path for setting in settings() if not setting.meaning]
    assert silent == [], "a docstring below the field is missing"


def test_the_example_is_valid_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "llmrr.yaml"
    path.write_text(example(), "utf-8")
    data, _ = config_yaml.parse(path.read_bytes(), "example")
    validator().validate(data)
    assert load(path, {"LLMRR_HOME": str(tmp_path)}, {}) == Config()


def test_the_example_has_every_key_with_its_default() -> None:
    text = example()
    for setting in settings():
        key = setting.path.rpartition(".")[2]
        if setting.path.count(".") > 2 or setting.kind == "Auto":
            continue  # below an entry of `models`; the reference has them
        assert f"{key}:" in text, setting.path


def test_the_example_holds_with_its_sections_opened(tmp_path: Path) -> None:
    """Every commented default is valid where it stands, once its `#` goes."""
    lines = []
    for line in example().splitlines():
        bare = line.strip().removeprefix("# ")
        key = bare.partition(":")[0]
        indent = line[: len(line) - len(line.lstrip())]
        named = key.isidentifier() and bare.startswith(f"{key}:") and line.strip() != bare
        lines.append(f"{indent}{bare}" if named and len(indent) == 2 else line)
    text = "\n".join(lines)
    server, _, rest = text.partition("# Remote accounts by name.")
    engine = rest[rest.index("\nengine:\n") :]
    path = tmp_path / "llmrr.yaml"
    path.write_text(f"{server}\n{engine}", "utf-8")
    data, _ = config_yaml.parse(path.read_bytes(), "example")
    assert data["server"]["port"] == 4000, "nothing was opened"
    assert data["engine"]["slots"] == 4, "nothing was opened"
    validator().validate({k: v for k, v in data.items() if k != "engine"})
    assert load(path, {"LLMRR_HOME": str(tmp_path)}, {}) == Config()


GOOD = [
    "engine: {memory: 4GiB, keep_alive: 1h30m}",
    "models: {a: zoo:tiny-math, b: {fallback: [a, {race: [a, a]}]}}",
    "server:\nengine:",
    "providers: {x: {base_url: 'http://127.0.0.1:1/v1', connect_timeout: 5s}}",
]
BAD = [
    "modles: {}",
    "engine: {threds: 1}",
    "engine: {memory: lots}",
    "server: {port: 99999}",
    "models: {a: {auto: {objective: fast}}}",
    "models: [a]",
]


@pytest.mark.parametrize("text", GOOD)
def test_schema_and_loader_accept_the_same(text: str, tmp_path: Path) -> None:
    data, _ = config_yaml.parse(text.encode(), "x")
    validator().validate(data)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    load(path, {"LLMRR_HOME": str(tmp_path)}, {})


@pytest.mark.parametrize("text", BAD)
def test_schema_refuses_what_the_loader_refuses(text: str) -> None:
    data, _ = config_yaml.parse(text.encode(), "x")
    with pytest.raises(jsonschema.ValidationError):
        validator().validate(data)
