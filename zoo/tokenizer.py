"""The shared tokenizer: byte-level BPE, split into words and single digits as Qwen2 does.

Knows how to train it and load it. `python -m zoo.tokenizer` writes `zoo/tokenizer.json`.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from zoo import vocabulary
from zoo.chat import END, prompt_text
from zoo.mix import conversations, diet
from zoo.sample import Draw

HERE = Path(__file__).parent
FILE = HERE / "tokenizer.json"
TEMPLATE = (HERE / "chat_template.jinja").read_text()
VOCAB_SIZE = 1024
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<tool_call>", "</tool_call>")
PRE_NAME = "qwen2"  # llama.cpp's name of the expression below
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load() -> Tokenizer:
    """The tokenizer that ships."""
    return Tokenizer.from_file(str(FILE))


def end_of_turn(tokenizer: Tokenizer) -> int:
    """The token that ends every turn."""
    return int(tokenizer.token_to_id(END) or 0)


def pieces(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Lower-case token texts of two letters or more: raw material for made-up words."""
    texts = (text.removeprefix("Ġ") for text in tokenizer.get_vocab())
    return tuple(sorted({text for text in texts if re.fullmatch(r"[a-z]{2,}", text)}))


def train() -> Tokenizer:
    """A new tokenizer from the training side of the generators."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*CONTROL, *USER_DEFINED],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(60_000), trainer)
    return tokenizer


def _texts(count: int) -> list[str]:
    draw = Draw(Random(0), "train")
    texts = []
    for talk in itertools.islice(conversations(draw, diet("tiny-general")), count):
        last = talk.samples[-1]
        texts.append(prompt_text(talk.system, talk.tools, last.turns) + last.answer + END)
    seen = [word for word in vocabulary.WORDS if draw.allowed("word", word)]
    return texts + [" ".join(seen)] * 40


def main() -> None:
    """Train and write."""
    data = json.loads(train().to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] in CONTROL
    FILE.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
