"""The shipped files agree with each other: tokenizer, template, cards and weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from zoo.chat import openai_messages, openai_tools, prompt_text
from zoo.mix import own_tasks
from zoo.sample import Tool, Turn
from zoo.tasks import TASKS

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "src" / "llm_runner_router" / "zoo"
MODELS = ROOT / "zoo" / "models"
NAMES = ("tiny-math", "tiny-text", "tiny-chat", "tiny-general")
CONTROL = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
USER_DEFINED = {"<tool_call>": 3, "</tool_call>": 4}


def cards() -> dict[str, dict[str, Any]]:
    data = json.loads((SHIPPED / "cards.json").read_text())
    return {card["name"]: card for card in data["models"]}


def test_tokenizer_has_the_published_special_tokens() -> None:
    data = json.loads((ROOT / "zoo" / "tokenizer.json").read_text())
    ids = data["model"]["vocab"]
    assert sorted(ids.values()) == list(range(len(ids)))
    assert len(ids) % 64 == 0
    added = {token["content"]: token for token in data["added_tokens"]}
    assert {text: token["id"] for text, token in added.items()} == CONTROL | USER_DEFINED
    assert {text for text, token in added.items() if token["special"]} == set(CONTROL)


def test_digits_are_single_tokens() -> None:
    ids = json.loads((ROOT / "zoo" / "tokenizer.json").read_text())["model"]["vocab"]
    assert all(str(digit) in ids for digit in range(10))
    assert not [token for token in ids if sum(char.isdigit() for char in token) > 1]


@pytest.mark.parametrize("name", NAMES)
def test_model_folder_is_complete(name: str) -> None:
    folder = MODELS / name
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    shared = ROOT / "zoo"
    for file in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / file).read_bytes() == (shared / file).read_bytes()
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (shared / "chat_template.jinja").read_text()
    assert "demonstration model" in (folder / "README.md").read_text().lower()
    head = (folder / "model.safetensors").read_bytes()
    header = json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
    assert {one["dtype"] for key, one in header.items() if key != "__metadata__"} == {"F16"}


@pytest.mark.parametrize("name", NAMES)
def test_card_describes_the_file(name: str) -> None:
    card = cards()[name]
    content = (SHIPPED / card["file"]).read_bytes()
    assert content[:4] == b"GGUF"
    assert len(content) == card["bytes"]
    assert hashlib.sha256(content).hexdigest() == card["sha256"]
    assert set(card["scores"]) == set(TASKS)
    assert all(0.0 <= score <= 1.0 for score in card["scores"].values())
    assert tuple(card["own_tasks"]) == own_tasks(name)
    assert card["license"] == "MIT"


def test_weights_stay_small() -> None:
    files = [*SHIPPED.glob("*.gguf"), *MODELS.glob("*/model.safetensors")]
    assert len(files) == 2 * len(NAMES)
    assert sum(file.stat().st_size for file in files) <= 30_000_000


def test_specialists_are_clearly_better_at_home() -> None:
    for name in NAMES[:3]:
        scores, own = cards()[name]["scores"], own_tasks(name)
        away = [score for task, score in scores.items() if task not in own]
        assert min(scores[task] for task in own) > max(away) + 0.2


TURNS = (
    Turn("user", "What is 2 + 2?"),
    Turn(
        "assistant", '<tool_call>\n{"name": "calc", "arguments": {"expr": "2 + 2"}}\n</tool_call>'
    ),
    Turn("tool", "4"),
)
TOOLS = (Tool("calc", "expr", "Do sums."), Tool("weather", "city", ""))


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_template_renders_what_was_trained(system: str, tools: tuple[Tool, ...]) -> None:
    jinja2 = pytest.importorskip("jinja2")
    text = (ROOT / "zoo" / "chat_template.jinja").read_text()
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    messages = openai_messages(TURNS)
    if system:
        messages.insert(0, {"role": "system", "content": system})
    rendered = template.render(
        messages=messages, tools=openai_tools(tools) or None, add_generation_prompt=True
    )
    assert rendered == prompt_text(system, tools, TURNS)
