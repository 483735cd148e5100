"""What files from before GGUF held: the blocks of each version, and models that are no LLaMA.

Knows: how wide each type's blocks were, and the name of the first tensor of the architectures that
programs of 2023 wrote under the same magic number. Does not know: how a file is read, what the
blocks mean (`convert/ggml_blocks.py`).

Until May 2023 the blocks of GGML's types changed twice, and only the number of the file's version
tells which are meant (https://github.com/ggml-org/llama.cpp/pull/1405 and /pull/1508):

    layout 1  GGML, GGMF, GGJT 1   scales of Q4_0, Q4_1, Q8_0 are F32; neighbours share a byte
    layout 2  GGJT 2               scales as before; weight i shares a byte with i + 16
    layout 3  GGJT 3               as in GGUF
"""

from __future__ import annotations

import mmap
from typing import Final

from .gguf_types import KINDS, Kind

_Q8_0: Final = Kind("Q8_0_V2", 32, 36)
LAYOUTS: Final[dict[int, dict[int, Kind]]] = {
    1: {
        0: KINDS[0],
        1: KINDS[1],
        2: Kind("Q4_0_V1", 32, 20),
        3: Kind("Q4_1_V1", 32, 24),
        4: Kind("Q4_2", 16, 10),
        5: Kind("Q4_3", 16, 12),
        6: Kind("Q5_0_V1", 32, 22),
        7: Kind("Q5_1_V1", 32, 24),
        8: _Q8_0,
    },
    2: {
        0: KINDS[0],
        1: KINDS[1],
        2: Kind("Q4_0_V2", 32, 20),
        3: Kind("Q4_1_V2", 32, 24),
        6: KINDS[6],
        7: KINDS[7],
        8: _Q8_0,
    },
    3: {code: KINDS[code] for code in (0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14)},
}
"""The types of each layout by their number in the file. `_V1` and `_V2` are names of this project
for blocks that GGUF does not have."""

SEARCHED: Final = 16 * 1024 * 1024
"""Bytes that are searched for a tensor's name; the largest vocabulary of that time has 4 million,
and the first tensor follows it."""
_FIRST: Final[tuple[tuple[bytes, str], ...]] = (
    (b"model/wte", "GPT-2 or StarCoder"),
    (b"gpt_neox.embed_in.weight", "GPT-NeoX (Pythia, StableLM, RedPajama, Dolly)"),
    (b"transformer.word_embeddings.weight", "Falcon"),
    (b"word_embeddings.weight", "BERT or BLOOM"),
    (b"attention.query_key_value.weight", "BLOOM"),
    (b"encoder.positional_embedding", "Whisper, which hears"),
    (b"blocks.0.ln0.weight", "RWKV"),
    (b"emb.weight", "RWKV"),
)
"""Names that ggml's examples and their kin gave the tensor they wrote first."""


def stranger(data: mmap.mmap) -> str:
    """What model a file under one of these magic numbers holds, if it is told to be no LLaMA.

    Empty where nothing tells it.
    """
    magic = data[:4]
    if magic == b"ccgg":
        return "Falcon"
    if magic == b"fmgg" and int.from_bytes(data[4:8], "little") in (100, 101):
        return "RWKV"
    end = min(len(data), SEARCHED)
    if data.find(b"tok_embeddings.weight", 0, end) >= 0:
        return ""
    if data.find(b"transformer.wte.weight", 0, end) >= 0:
        # Both begin with that tensor; GPT-J says the size of its vocabulary again before the words.
        return "GPT-J" if data[4:8] == data[32:36] else "MPT or Replit"
    return next((what for name, what in _FIRST if data.find(name, 0, end) >= 0), "")
