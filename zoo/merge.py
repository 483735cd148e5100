"""Starts the generalist from two specialists: `python -m zoo.merge`.

Two models of half the width stand side by side in one: every matrix is block-diagonal, embeddings
are joined, and further layers begin as the identity. Knows shapes and norms; training then lets the
halves speak to each other. It saves most of the time the same skills take from nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict
from random import Random

import torch
from torch import Tensor

from zoo import tokenizer
from zoo.batches import Encoder, batches
from zoo.mix import conversations, diet
from zoo.model import SHAPES, Llama
from zoo.paths import CHECKPOINTS
from zoo.sample import Draw
from zoo.train import Progress, optimizers, parse

PARENTS = ("tiny-math", "tiny-text")
CHILD = "tiny-general"
_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


def sizes(model: Llama, inputs: list[Tensor]) -> dict[str, float]:
    """Mean size of what enters each norm: the norms of the child see both halves at once."""
    seen: dict[str, list[float]] = {}
    hooks = []
    for name, part in model.named_modules():
        if name.split(".")[-1] in _NORMS:

            def note(_: object, args: tuple[Tensor, ...], at: str = name) -> None:
                seen.setdefault(at, []).append(float(args[0].pow(2).mean(-1).sqrt().mean()))

            hooks.append(part.register_forward_pre_hook(note))
    with torch.no_grad():
        for tokens in inputs:
            model.hidden(tokens)
    for hook in hooks:
        hook.remove()
    return {name: sum(values) / len(values) for name, values in seen.items()}


def side_by_side(left: Llama, right: Llama, child: Llama, inputs: list[Tensor]) -> None:
    """Fills `child` with both parents' weights."""
    ours = child.state_dict()
    halves = [(one.state_dict(), sizes(one, inputs)) for one in (left, right)]
    for name in halves[0][0]:
        a, b = (state[name] for state, _ in halves)
        if a.ndim == 1:
            scale = [size[name.removesuffix(".weight")] for _, size in halves]
            joint = ((scale[0] ** 2 + scale[1] ** 2) / 2) ** 0.5
            ours[name] = torch.cat((a * joint / scale[0], b * joint / scale[1]))
        elif "embed" in name:
            ours[name] = torch.cat((a, b), dim=1)
        else:
            ours[name] = torch.block_diag(a, b)
    child.load_state_dict(ours)


def main() -> None:
    """Write a checkpoint of the generalist that has not been trained yet."""
    args = parse(["--model", CHILD])
    torch.manual_seed(args.seed)
    words = tokenizer.load()
    draw = Draw(Random(args.seed), "train", tokenizer.pieces(words))
    talks = conversations(draw, diet(CHILD))
    inputs = [one[0] for one in itertools.islice(batches(talks, Encoder(words), 4096), 8)]
    parents = []
    for name in PARENTS:
        parents.append(Llama(SHAPES[name]))
        parents[-1].load_state_dict(torch.load(CHECKPOINTS / f"{name}.pt")["model"])
    child = Llama(SHAPES[CHILD])
    side_by_side(parents[0], parents[1], child, inputs)
    state = {
        "model": child.state_dict(),
        "optims": [one.state_dict() for one in optimizers(child, args)],
        "progress": asdict(Progress()),
    }
    torch.save(state, CHECKPOINTS / f"{CHILD}.pt")


if __name__ == "__main__":
    main()
