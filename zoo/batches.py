"""Conversations as token batches: which tokens are learned, and rows of similar length together.

Knows the tokenizer and the padding; one row is one conversation, so no row sees another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from torch import Tensor

from zoo.chat import GENERATION_PROMPT, system_text, turn_text
from zoo.mix import Conversation
from zoo.sample import Sample
from zoo.tokenizer import end_of_turn

POOL = 512  # conversations sorted by length at a time
LONGEST = 1000


class Encoder:
    """Token ids of a conversation, and a mark on those the model must say itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.single = {chr(code): self._ids(chr(code))[0] for code in range(32, 127)}
        self.end = end_of_turn(tokenizer)
        self.cache: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def answer(self, sample: Sample, by_letter: bool) -> list[int]:
        """The answer's tokens; with `by_letter`, its `letters` part has one token per letter."""
        if not (sample.letters and by_letter):
            return [*self._ids(sample.answer), self.end]
        head = sample.answer[: -len(sample.letters)]
        return [*self._ids(head), *(self.single[char] for char in sample.letters), self.end]

    def encode(self, talk: Conversation) -> tuple[list[int], list[bool]]:
        """An answer in the middle of a talk is encoded as a client would send it back.

        There the letter-by-letter form cannot be taught, so such an answer is not learned from.
        """
        ids: list[int] = []
        learned: list[bool] = []
        text = system_text(talk.system, talk.tools)
        for index, sample in enumerate(talk.samples):
            is_last = index == len(talk.samples) - 1
            text += "".join(map(turn_text, sample.turns)) + GENERATION_PROMPT
            prompt, said = self._ids(text), self.answer(sample, by_letter=is_last)
            ids += prompt + said
            learned += [False] * len(prompt) + [is_last or not sample.letters] * len(said)
            text = "\n"
        return ids, learned


Batch = tuple[Tensor, Tensor, Tensor]


def batches(talks: Iterator[Conversation], encoder: Encoder, tokens: int) -> Iterator[Batch]:
    """Inputs, flat positions of learned tokens, and those tokens; at most `tokens` cells each."""
    spare: list[list[tuple[list[int], list[bool]]]] = []
    while True:
        pool = [encoder.encode(talk) for talk in itertools.islice(talks, POOL)]
        pool = sorted((row for row in pool if len(row[0]) <= LONGEST), key=lambda row: len(row[0]))
        group: list[tuple[list[int], list[bool]]] = []
        for row in pool:
            if group and (len(group) + 1) * len(row[0]) > tokens:
                spare.append(group)
                group = []
            group.append(row)
        spare.append(group)
        # Interleave short and long groups so that no stretch of steps sees one length only.
        spare = spare[::2] + spare[1::2][::-1]
        yield from (_tensors(group) for group in spare)
        spare = []


def _tensors(rows: list[tuple[list[int], list[bool]]]) -> Batch:
    width = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[int] = []
    targets: list[int] = []
    for row, (ids, learned) in enumerate(rows):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        for at in range(1, len(ids)):
            if learned[at]:
                places.append(row * width + at - 1)
                targets.append(ids[at])
    return inputs, torch.tensor(places), torch.tensor(targets)
