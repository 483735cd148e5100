"""The tensor types of GGUF: how many weights a block holds and how many bytes it takes.

Numbers from ggml's `ggml_type_size` and `ggml_blck_size` as of llama.cpp b11549. Types of forks are
named so that a message can say what they are.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Kind(NamedTuple):
    """A tensor type: its name, weights per block, bytes per block."""

    name: str
    block: int
    size: int


KINDS: Final[dict[int, Kind]] = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    9: Kind("Q8_1", 32, 36),
    10: Kind("Q2_K", 256, 84),
    11: Kind("Q3_K", 256, 110),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    15: Kind("Q8_K", 256, 292),
    16: Kind("IQ2_XXS", 256, 66),
    17: Kind("IQ2_XS", 256, 74),
    18: Kind("IQ3_XXS", 256, 98),
    19: Kind("IQ1_S", 256, 50),
    20: Kind("IQ4_NL", 32, 18),
    21: Kind("IQ3_S", 256, 110),
    22: Kind("IQ2_S", 256, 82),
    23: Kind("IQ4_XS", 256, 136),
    24: Kind("I8", 1, 1),
    25: Kind("I16", 1, 2),
    26: Kind("I32", 1, 4),
    27: Kind("I64", 1, 8),
    28: Kind("F64", 1, 8),
    29: Kind("IQ1_M", 256, 56),
    30: Kind("BF16", 1, 2),
    34: Kind("TQ1_0", 256, 54),
    35: Kind("TQ2_0", 256, 66),
    39: Kind("MXFP4", 32, 17),
    40: Kind("NVFP4", 64, 36),
    41: Kind("Q1_0", 128, 18),
    42: Kind("Q2_0", 64, 18),
}

FORKS: Final[dict[int, str]] = {
    4: "Q4_2, removed from llama.cpp in 2023",
    5: "Q4_3, removed from llama.cpp in 2023",
    31: "Q4_0_4_4, removed from llama.cpp in 2024",
    32: "Q4_0_4_8, removed from llama.cpp in 2024",
    33: "Q4_0_8_8, removed from llama.cpp in 2024",
}
"""Types that other programs used; nothing runs them any more."""

BITNET: Final[dict[int, str]] = {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2"}
"""Types of bitnet.cpp, a fork, for weights of -1, 0 and 1. 39 is MXFP4 in llama.cpp: it is TL2 in
files whose architecture is `bitnet…`. Their sizes depend on the program that wrote them: I2_S takes
a quarter of a byte per weight and 32 bytes per tensor."""
