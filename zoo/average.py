"""Averages the weights of rounds: `python -m zoo.average --model tiny-general before.pt`.

Each round began where the one before ended, so all lie in one valley, and their mean is often
better than any of them (M. Wortsman et al.: Model soups, ICML 2022,
https://arxiv.org/abs/2203.05482). Knows: checkpoints of `train.py`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from zoo.model import SHAPES
from zoo.paths import CHECKPOINTS


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several models' weights, by name.

    Raises:
        ValueError: they are not of one shape.
    """
    shapes = [{name: weight.shape for name, weight in state.items()} for state in states]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the checkpoints are not of one shape")
    return {name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]}


def main() -> None:
    """Replace the checkpoint by the mean of it and earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=sorted(SHAPES))
    parser.add_argument("before", type=Path, nargs="+", help="copies of it before later rounds")
    args = parser.parse_args()
    file = CHECKPOINTS / f"{args.model}.pt"
    saved = torch.load(file)
    before = [torch.load(path)["model"] for path in args.before]
    saved["model"] = mean([*before, saved["model"]])
    part = file.with_suffix(".part")
    torch.save(saved, part)
    os.replace(part, file)


if __name__ == "__main__":
    main()
