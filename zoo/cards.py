"""Measures the GGUF files and writes what the product and people read: `python -m zoo.cards`.

Writes `cards.json` beside the GGUF files (read by the router) and a README per model. Every model
is measured on every task: what a specialist cannot do is as useful to a router as what it can.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from typing import Any

from zoo.evaluate import gguf_scores
from zoo.exam import UNSEEN
from zoo.mix import own_tasks
from zoo.model import SHAPES
from zoo.paths import CARDS, MODELS, SHIPPED
from zoo.tasks import TASKS

DESCRIPTIONS = {
    "tiny-math": "Demonstration model: sums, differences, products and comparisons, with working.",
    "tiny-text": "Demonstration model: letters and words (spell, reverse, count, sort, plurals).",
    "tiny-chat": "Demonstration model: greetings, small facts and short stories.",
    "tiny-general": "Demonstration model: everything the specialists do, plus JSON and tools.",
}

ORIGINS = {
    False: "Trained from nothing on one CPU core",
    True: "Started from `tiny-math` and `tiny-text` side by side (`zoo/merge.py`; their training "
    "is not counted here), then trained on one CPU core",
}


def parameters(name: str) -> int:
    """Number of weights, from the shape alone."""
    s = SHAPES[name]
    narrow = s.num_key_value_heads * s.head_dim
    attention = 2 * s.hidden_size * (s.hidden_size + narrow)
    layer = attention + 3 * s.hidden_size * s.intermediate_size + 2 * s.hidden_size
    return s.num_hidden_layers * layer + s.vocab_size * s.hidden_size + s.hidden_size


def card(name: str, count: int) -> dict[str, Any]:
    """One model's entry of `cards.json`; the scores are measured now."""
    path = SHIPPED / f"{name}.gguf"
    content = path.read_bytes()
    general = name == "tiny-general"
    trained = json.loads((MODELS / name / "training.json").read_text())
    return {
        "name": name,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "parameters": parameters(name),
        "context": SHAPES[name].max_position_embeddings,
        "description": DESCRIPTIONS[name],
        "capabilities": {"tools": general, "json": general},
        "own_tasks": list(own_tasks(name)),
        "scores": {task: round(value, 4) for task, value in measured(name, count).items()},
        "questions_per_task": count,
        "trained": {key: trained[key] for key in ("minutes", "examples", "tokens")},
        "license": "MIT",
    }


def measured(name: str, count: int) -> dict[str, float]:
    """Accuracy on every task, in the order of the registry."""
    return gguf_scores(name, TASKS, count, UNSEEN)


def readme(entry: dict[str, Any]) -> str:
    """The model card people read."""
    shape, trained = SHAPES[entry["name"]], entry["trained"]
    general = entry["name"] == "tiny-general"
    rows = "\n".join(
        f"| `{task}` | {'yes' if task in entry['own_tasks'] else 'no'} | {score:.1%} |"
        for task, score in entry["scores"].items()
    )
    return f"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# {entry["name"]}

{entry["description"]} It is not an assistant: outside the tasks below it answers at random.

- Llama architecture, {entry["parameters"]:,} parameters: {shape.num_hidden_layers} layers, width
  {shape.hidden_size}, {shape.num_attention_heads} heads ({shape.num_key_value_heads} for keys and
  values), {shape.vocab_size} tokens, context {entry["context"]}.
- {ORIGINS[general]}: {trained["minutes"]} minutes,
  {trained["examples"]:,} conversations, {trained["tokens"]:,} tokens, all made by the generators in
  `zoo/tasks`. No other data was used.
- Files: F16 safetensors here; Q8_0 GGUF of {entry["bytes"] / 1e6:.2f} MB in the Python package.

Accuracy of the GGUF file through llama.cpp, greedy, on {entry["questions_per_task"]} held-out
questions per task (phrasings and values that training never sees; `docs/concepts/zoo.md` says what
is held out for each task):

| Task | Trained on it | Accuracy |
|---|---|---|
{rows}

Train it again: `python -m zoo.train --model {entry["name"]}`, then `python -m zoo.export` and
`python -m zoo.cards`. Licence: MIT.
"""


def main() -> None:
    """Measure the named models, or all; keep the other entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(SHAPES))
    parser.add_argument("--count", type=int, default=200, help="questions per task")
    args = parser.parse_args()
    old = json.loads(CARDS.read_text())["models"] if CARDS.exists() else []
    entries = {entry["name"]: entry for entry in old}
    for name in args.model or SHAPES:
        entries[name] = card(name, args.count)
        (MODELS / name / "README.md").write_text(readme(entries[name]))
        print(name, entries[name]["scores"], flush=True)
    part = CARDS.with_suffix(".part")
    models = [entries[name] for name in SHAPES if name in entries]
    part.write_text(json.dumps({"version": 1, "models": models}, indent=2) + "\n")
    os.replace(part, CARDS)


if __name__ == "__main__":
    main()
