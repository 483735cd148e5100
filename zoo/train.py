"""Trains a zoo model from nothing: `python -m zoo.train --model tiny-math --minutes 30`.

Knows optimisers, the schedule and checkpoints (`zoo/checkpoints/`, resumed when present). Data is
made on the fly from a fixed seed; the schedule follows a budget of minutes or of steps.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from random import Random

import torch
from torch.nn import functional as F

from zoo import exam, tokenizer
from zoo.batches import Batch, Encoder, batches
from zoo.mix import conversations, diet, own_tasks
from zoo.model import SHAPES, Llama
from zoo.paths import CHECKPOINTS
from zoo.sample import Draw

WARMUP = 0.01
FLAT_UNTIL = 0.35  # share of the budget after which the rate falls linearly to zero


@dataclass
class Progress:
    """What has been spent so far; saved with the weights."""

    step: int = 0
    seconds: float = 0.0
    examples: int = 0
    tokens: int = 0

    def plus(self, other: Progress) -> Progress:
        """Both together."""
        return Progress(
            self.step + other.step,
            self.seconds + other.seconds,
            self.examples + other.examples,
            self.tokens + other.tokens,
        )


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=sorted(SHAPES))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, default=0, help="a budget of steps instead of minutes")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--muon-lr", type=float, default=0.005)
    parser.add_argument("--adam-lr", type=float, default=0.03)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--evaluate-every", type=float, default=180.0, help="seconds")
    parser.add_argument("--again", action="store_true", help="keep the weights, budget anew")
    parser.add_argument("--fresh", action="store_true", help="ignore a checkpoint")
    return parser.parse_args(words)


def optimizers(model: Llama, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for the rest; `top` is a group's full rate."""
    inside = [p for p in model.model.layers.parameters() if p.ndim == 2]
    norms = [p for p in model.parameters() if p.ndim == 1]
    embedding = model.model.embed_tokens.weight
    muon = [{"params": inside, "top": args.muon_lr}]
    adam = [
        {"params": [embedding], "top": args.adam_lr},
        {"params": norms, "top": args.adam_lr / 10},
    ]
    return [
        torch.optim.Muon(muon, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(done: float) -> float:
    """The learning rate's factor when `done` (0 to 1) of the budget is spent."""
    if done < WARMUP:
        return max(done / WARMUP, 0.02)
    return min(1.0, max(0.0, (1 - done) / (1 - FLAT_UNTIL)))


def train_step(
    model: Llama, batch: Batch, optims: list[torch.optim.Optimizer], args: argparse.Namespace
) -> float:
    """One step; returns the loss."""
    inputs, places, targets = (part.to(args.device) for part in batch)
    with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bf16):
        hidden = model.hidden(inputs).flatten(0, 1)[places]
        loss = F.cross_entropy(model.logits(hidden).float(), targets)
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optim in optims:
        optim.step()
        optim.zero_grad(set_to_none=True)
    return float(loss.detach())


class Run:
    """One training run: the model, its optimisers, and its file."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.file = CHECKPOINTS / f"{args.model}.pt"
        self.model = Llama(SHAPES[args.model]).to(args.device)
        self.optims = optimizers(self.model, args)
        self.progress = Progress()
        self.earlier = Progress()
        if self.file.exists() and not args.fresh:
            saved = torch.load(self.file, map_location=args.device)
            self.model.load_state_dict(saved["model"])
            for optim, state in zip(self.optims, saved["optims"], strict=True):
                optim.load_state_dict(state)
            before = Progress(**saved["progress"])
            self.earlier = Progress(**saved.get("earlier", {}))
            if args.again:
                self.earlier = self.earlier.plus(before)
            else:
                self.progress = before

    def save(self) -> None:
        """Write a checkpoint beside the old one, then replace it."""
        CHECKPOINTS.mkdir(exist_ok=True)
        part = self.file.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "optims": [optim.state_dict() for optim in self.optims],
            "progress": vars(self.progress),
            "earlier": vars(self.earlier),
        }
        torch.save(state, part)
        os.replace(part, self.file)

    def spent(self) -> float:
        """Share of the budget that is used up."""
        budget = self.args.steps or self.args.minutes * 60
        return (self.progress.step if self.args.steps else self.progress.seconds) / budget

    def advance(self, batch: Batch) -> float:
        """One step at the scheduled rate; its time counts towards the budget."""
        started = time.perf_counter()
        factor = rate(self.spent())
        for group in (group for optim in self.optims for group in optim.param_groups):
            group["lr"] = group["top"] * factor
        loss = train_step(self.model, batch, self.optims, self.args)
        self.progress.step += 1
        self.progress.examples += len(batch[0])
        self.progress.tokens += batch[0].numel()
        self.progress.seconds += time.perf_counter() - started
        return loss


def report(run: Run, loss: float) -> None:
    """One progress line."""
    at = run.progress
    speed = at.tokens / max(at.seconds, 1e-9)
    print(
        f"{run.args.model} {run.spent():6.1%} step {at.step} loss {loss:.3f} "
        f"{at.examples} rows {at.tokens / 1e6:.2f}M tokens {speed:.0f}/s",
        flush=True,
    )


def main() -> None:
    """Train until the budget is spent."""
    args = parse()
    torch.set_num_threads(args.threads)
    run = Run(args)
    words = tokenizer.load()
    rng = Random(f"{args.seed}/{args.model}/{run.progress.step}")
    talks = conversations(Draw(rng, "train", tokenizer.pieces(words)), diet(args.model))
    loss, shown, tested = 0.0, time.monotonic(), time.monotonic()
    for batch in batches(talks, Encoder(words), args.batch_tokens):
        one = run.advance(batch)
        loss = one if not loss else 0.9 * loss + 0.1 * one
        now = time.monotonic()
        over = run.spent() >= 1
        if over or now - shown > 20:
            report(run, loss)
            shown = now
        if over or now - tested > args.evaluate_every:
            run.save()
            scores = exam.torch_scores(run.model, own_tasks(args.model), 100 if over else 20)
            print("  " + exam.line(scores), flush=True)
            tested = time.monotonic()
        if over:
            return


if __name__ == "__main__":
    main()
