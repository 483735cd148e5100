"""Trains the task classifier and writes `strategies/tasks.json`.

    python scripts/train_tasks.py [--general FOLDER]

Texts of the tasks come from the zoo's generators, training phrasings only. Texts of `other` are
written below; `--general` adds prompts from a folder of `*.prompts.jsonl.gz` (fields `prompt` and
`bucket`; bucket 7 validates) and `question_pairs.jsonl.gz` (field `text_a`). Everything is seeded,
pure Python, and takes a few minutes.

Prints accuracy and confusions on the zoo's held-out phrasings and on general text.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import math
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from zlib import crc32

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "scripts")]

from general_prompts import general_prompts  # noqa: E402
from zoo.sample import Draw, Split  # noqa: E402
from zoo.tasks import TASKS  # noqa: E402

from llm_runner_router.strategies import tasks  # noqa: E402

TARGET = ROOT / "src/llm_runner_router/strategies/tasks.json"
BY_STRUCTURE = ("tool_call", "tool_result")  # decided by the request's shape, not by text
CLASSES = (*(name for name in TASKS if name not in BY_STRUCTURE), tasks.OTHER)
PER_TASK = 2500
HELD_PER_TASK = 400
MOST_ROWS = 11_000
RARE = 3
"""Features in fewer texts are left out: they are names and accidents."""
EPOCHS = 8
RATE = 0.35
SHRINK = 2e-6

Text = tuple[str, int]  # a text and its class
Item = tuple[list[int], list[int], int]  # gram rows, structure rows, class


# ---------------------------------------------------------------- texts


def of_tasks(split: Split, count: int, seed: int) -> list[tuple[str, str, int]]:
    """(text, phrasing, class) of every task."""
    found = []
    for index, name in enumerate(CLASSES[:-1]):
        draw = Draw(Random(f"{seed} {name} {split}"), split)
        for _ in range(count):
            sample = TASKS[name](draw)
            text = next(t.content for t in reversed(sample.turns) if t.role == "user")
            found.append((text, sample.pattern, index))
    return found


def of_folder(folder: Path, rng: Random) -> tuple[list[str], list[str]]:
    """(texts to train on, texts to validate on) from the routing data."""
    train: list[str] = []
    check: list[str] = []
    for path in sorted(folder.glob("*.prompts.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for side, here in ((train, [0, 1, 2, 3, 4, 5, 6]), (check, [7])):
            texts = [row["prompt"] for row in rows if row["bucket"] in here]
            side.extend(rng.sample(texts, min(len(texts), 900 if side is train else 150)))
    pairs = folder / "question_pairs.jsonl.gz"
    if pairs.exists():
        with gzip.open(pairs, "rt", encoding="utf-8") as file:
            questions = [json.loads(line)["text_a"] for line in file]
        rng.shuffle(questions)
        train += questions[:4000]
        check += questions[4000:5000]
    return train, check


# ---------------------------------------------------------------- training


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Features that are common enough, and a row number for each."""
    seen: Counter[str] = Counter()
    for text in texts:
        text = tasks.clip(text)
        words = tasks.tokens(text)
        seen.update({*tasks.grams(words), *tasks.structure(text, words)})
    kept = [feature for feature, count in seen.most_common() if count >= RARE]
    kept += [name for i in range(5) if (name := tasks.novelty(i, 4)) not in seen]
    return {feature: row for row, feature in enumerate(kept)}


def item(text: str, label: int, rows: dict[str, int]) -> Item:
    """A text as rows of the weights; the novelty counts words without a row."""
    text = tasks.clip(text)
    words = tasks.tokens(text)
    unknown = sum(word not in rows for word in words)
    shape = [*tasks.structure(text, words), tasks.novelty(unknown, len(words))]
    found = [rows[gram] for gram in tasks.grams(words) if gram in rows]
    return found, [rows[name] for name in shape if name in rows], label


class Model:
    """Weights while they are learned, one list per feature."""

    def __init__(self, rows: int) -> None:
        self.weights = [[0.0] * len(CLASSES) for _ in range(rows)]
        self.bias = [0.0] * len(CLASSES)

    def logits(self, one: Item) -> list[float]:
        """One number per class, as `tasks.Head` computes it."""
        grams, shape, _ = one
        total = list(self.bias)
        scale = 1 / math.sqrt(len(grams) or 1)
        for rows, factor in ((grams, scale), (shape, 1.0)):
            for row in rows:
                weights = self.weights[row]
                for k, weight in enumerate(weights):
                    total[k] += factor * weight
        return total

    def learn(self, one: Item, rate: float) -> float:
        """One step of stochastic gradient descent; returns the loss."""
        grams, shape, label = one
        chances = tasks.softmax(self.logits(one))
        loss = -math.log(max(chances[label], 1e-12))
        steps = [rate * ((k == label) - chance) for k, chance in enumerate(chances)]
        scale = 1 / math.sqrt(len(grams) or 1)
        for rows, factor in ((grams, scale), (shape, 0.3)):  # few shapes, seen by all: slower
            for row in rows:
                weights = self.weights[row]
                for k, step in enumerate(steps):
                    weights[k] += factor * step - SHRINK * weights[k]
        for k, step in enumerate(steps):
            self.bias[k] += 0.1 * step
        return loss


def train(texts: Sequence[Text], rng: Random) -> tuple[Model, dict[str, int]]:
    """A model and the row of every feature."""
    rows = vocabulary(text for text, _ in texts)
    print(f"{len(texts)} texts, {len(rows)} features", flush=True)
    items = [item(text, label, rows) for text, label in texts]
    model = Model(len(rows))
    for epoch in range(EPOCHS):
        rng.shuffle(items)
        rate = RATE * (1 - epoch / EPOCHS)
        loss = sum(model.learn(one, rate) for one in items) / len(items)
        print(f"  epoch {epoch + 1}: loss {loss:.4f}", flush=True)
    return model, rows


def packed(
    model: Model, rows: dict[str, int], temperature: float, threshold: float
) -> tasks.Weights:
    """The weights as they are shipped: the features that matter most, in signed bytes."""
    shape = [feature for feature in rows if feature.startswith("=") and len(feature) > 1]
    rest = sorted(
        (feature for feature in rows if feature not in set(shape)),
        key=lambda feature: max(map(abs, model.weights[rows[feature]])),
        reverse=True,
    )
    kept = [*shape, *rest][:MOST_ROWS]
    largest = max(abs(w) for feature in kept for w in model.weights[rows[feature]])
    scale = largest / 127
    record = struct.Struct(f"<I{len(CLASSES)}b")
    data: dict[int, bytes] = {}
    for feature in kept:
        key = tasks.hashed(feature)
        weights = [round(w / scale) for w in model.weights[rows[feature]]]
        data.setdefault(key, record.pack(key, *weights))
    return tasks.Weights(
        classes=CLASSES,
        bias=tuple(round(b, 4) for b in model.bias),
        scale=scale,
        temperature=temperature,
        threshold=threshold,
        rows=base64.b64encode(b"".join(data.values())).decode(),
    )


# ---------------------------------------------------------------- judging


def answers(head: tasks.Head, texts: Sequence[Text]) -> list[tuple[int, float, int]]:
    """(class given, its probability, right class) for every text."""
    found = []
    for text, label in texts:
        chances = list(head.probabilities(text).values())
        best = max(range(len(chances)), key=chances.__getitem__)
        given = best if chances[best] >= head.threshold else len(CLASSES) - 1
        found.append((given, chances[best], label))
    return found


def calibrate(weights: tasks.Weights, texts: Sequence[Text]) -> float:
    """The temperature with the least loss."""
    best = (math.inf, 1.0)
    for step in range(4, 41):
        temperature = step / 10
        head = tasks.Head(msgspec.structs.replace(weights, temperature=temperature))
        loss = -sum(
            math.log(max(head.probabilities(text)[CLASSES[label]], 1e-9)) for text, label in texts
        )
        best = min(best, (loss, temperature))
    return best[1]


def share(found: Sequence[tuple[int, float, int]]) -> float:
    """Share of right answers, 0…1."""
    return sum(given == label for given, _, label in found) / max(len(found), 1)


def error_of_confidence(found: Sequence[tuple[int, float, int]]) -> float:
    """Expected calibration error over ten bins."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(10)]
    for given, chance, label in found:
        bins[min(int(chance * 10), 9)].append((chance, given == label))
    return sum(abs(sum(c for c, _ in b) - sum(right for _, right in b)) for b in bins) / max(
        len(found), 1
    )


def report(title: str, found: Sequence[tuple[int, float, int]]) -> None:
    """Print accuracy per class, and with what each is confused."""
    print(f"{title}: {share(found):.2%} of {len(found)}, ECE {error_of_confidence(found):.3f}")
    for index, name in enumerate(CLASSES):
        here = [one for one in found if one[2] == index]
        if not here:
            continue
        wrong = Counter(CLASSES[given] for given, _, _ in here if given != index)
        said = ", ".join(f"{task} {count}" for task, count in wrong.most_common(4))
        print(f"  {name:14} {share(here):8.2%} of {len(here):5}  {said}")


def main() -> None:
    """Train twice (first to calibrate), judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--general", type=Path, help="folder of general prompts")
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    began, rng, other = time.monotonic(), Random(5), len(CLASSES) - 1

    made = of_tasks("train", PER_TASK, 1)
    written = general_prompts()
    general, check_general = of_folder(options.general, rng) if options.general else ([], [])
    check_written = [text for text in written if crc32(text.encode()) % 8 == 0]
    learn_written = [text for text in written if crc32(text.encode()) % 8]
    often = 4 if general else 12  # what is written by hand is close to the tasks on purpose

    def is_check(pattern: str) -> bool:
        return crc32(pattern.encode()) % 8 == 0

    print("1. without some phrasings, to set temperature")
    learn = [(text, label) for text, pattern, label in made if not is_check(pattern)]
    learn += [(text, other) for text in (*general, *learn_written * often)]
    model, rows = train(learn, rng)
    check = [(text, label) for text, pattern, label in made if is_check(pattern)]
    check = rng.sample(check, min(len(check), 2500))
    check += [(text, other) for text in (*check_general, *check_written)]
    weights = packed(model, rows, 1.0, 0.5)
    temperature = calibrate(weights, check)
    print(f"   temperature {temperature}")
    report(
        "   validation",
        answers(tasks.Head(msgspec.structs.replace(weights, temperature=temperature)), check),
    )

    print("2. with all of them")
    learn = [(text, label) for text, _, label in made]
    learn += [(text, other) for text in (*general, *learn_written * often)]
    model, rows = train(learn, rng)
    weights = packed(model, rows, temperature, 0.5)
    head = tasks.Head(weights)
    held = [(text, label) for text, _, label in of_tasks("held", HELD_PER_TASK, 2)]
    on_held = answers(head, held)
    on_general = answers(head, [(text, other) for text in (*check_general, *check_written)])
    report("held-out phrasings", on_held)
    report("general text", on_general)
    note = (
        f"scripts/train_tasks.py: {share(on_held):.2%} right on {len(on_held)} held-out phrasings "
        f"of the zoo's tasks, {share(on_general):.2%} of {len(on_general)} general prompts"
    )
    data = msgspec.json.encode(msgspec.structs.replace(weights, made=note))
    draft = options.out.with_suffix(".tmp")
    draft.write_bytes(data + b"\n")
    draft.replace(options.out)
    print(f"{options.out.name}: {len(data) / 1024:.0f} KiB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
