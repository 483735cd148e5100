"""Measures accuracy per task on held-out questions: `python -m zoo.evaluate`.

The torch weights and the GGUF files (through `zoo.engine`) get the same questions: the two must
agree, or the export is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
from safetensors.torch import load_file

from zoo.engine import Engine
from zoo.exam import WATCHED, scores, torch_scores
from zoo.model import SHAPES, Llama
from zoo.paths import MODELS, SHIPPED
from zoo.tasks import TASKS


def gguf_scores(
    name: str, tasks: Iterable[str], count: int, seed: int = WATCHED
) -> dict[str, float]:
    """Accuracy per task of the shipped GGUF file, through the engine's chat call."""
    engine = Engine(SHIPPED / f"{name}.gguf")
    return scores(lambda samples: [engine.answer(one) for one in samples], tasks, count, seed)


def shipped_model(name: str) -> Llama:
    """The model with the F16 weights that ship, computed in F32."""
    model = Llama(SHAPES[name])
    weights = load_file(MODELS / name / "model.safetensors")
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model


def main() -> None:
    """Print both scores of every model and task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", choices=sorted(SHAPES))
    parser.add_argument("--task", action="append", choices=sorted(TASKS))
    parser.add_argument("--count", type=int, default=200, help="questions per task")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.model or SHAPES:
        tasks = args.task or tuple(TASKS)
        by_torch = torch_scores(shipped_model(name), tasks, args.count)
        by_engine = gguf_scores(name, tasks, args.count)
        print(f"{name:<16}{'torch':>8}{'gguf':>8}")
        for task in tasks:
            print(f"  {task:<14}{by_torch[task]:>8.1%}{by_engine[task]:>8.1%}", flush=True)


if __name__ == "__main__":
    main()
