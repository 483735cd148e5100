"""Averages the weights of two rounds: `python -m zoo.average --model tiny-general before.pt`.

The second round began where the first ended, so both lie in one valley, and their mean is often
better than either (M. Wortsman et al.: Model soups, ICML 2022,
https://arxiv.org/abs/2203.05482). Knows: checkpoints of `train.py`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor

from zoo.model import SHAPES
from zoo.paths import CHECKPOINTS


def mean(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of two models' weights, by name.

    Raises:
        ValueError: they are not of one shape.
    """
    if {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in second.items()}:
        raise ValueError("the checkpoints are not of one shape")
    return {name: (weight + second[name]) / 2 for name, weight in first.items()}


def main() -> None:
    """Replace the checkpoint by the mean of it and an earlier one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=sorted(SHAPES))
    parser.add_argument("before", type=Path, help="a copy of the checkpoint before the last round")
    args = parser.parse_args()
    file = CHECKPOINTS / f"{args.model}.pt"
    saved = torch.load(file)
    saved["model"] = mean(torch.load(args.before)["model"], saved["model"])
    part = file.with_suffix(".part")
    torch.save(saved, part)
    os.replace(part, file)


if __name__ == "__main__":
    main()
