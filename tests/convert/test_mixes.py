"""The rules of the mixes.

The expected types were read off files that llama.cpp's own quantiser (b11549) wrote for models of
these shapes; one digit stands for one layer: 6 is Q6_K.
"""

from __future__ import annotations

import pytest

from llm_runner_router.convert import mixes
from llm_runner_router.convert.mixes import MIXES, Item, Shape

LLAMA, GROUPED = Shape("llama", 16, 8, 8), Shape("llama", 16, 8, 2)
EIGHT, FALCON = Shape("llama", 16, 8, 2, 8), Shape("falcon", 16, 8, 1)
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
MORE_6_4, MORE_6_5 = "6644644644644666", "6655655655655666"

TABLE: list[tuple[Shape, str, dict[str, str]]] = [
    (LLAMA, "Q8_0", {"output": "Q8_0"}),
    (LLAMA, "Q6_K", {"output": "Q6_K"}),
    (LLAMA, "Q5_K_M", {"output": "Q6_K", "attn_v": MORE_6_5, "ffn_down": MORE_6_5}),
    (LLAMA, "Q4_K_M", {"output": "Q6_K", "attn_v": MORE_6_4, "ffn_down": MORE_6_4}),
    (LLAMA, "Q4_K_S", {"output": "Q6_K", "attn_v": "5555" + "4" * 12, "ffn_down": "55" + "4" * 14}),
    (
        LLAMA,
        "Q3_K_M",
        {
            "output": "Q6_K",
            "attn_v": "55" + "4" * 14,
            "attn_output": "Q4_K",
            "ffn_down": "5" + "4" * 15,
        },
    ),
    (
        LLAMA,
        "Q2_K",
        {"output": "Q6_K", "attn_v": "Q3_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"},
    ),
    (
        GROUPED,
        "Q2_K",
        {"output": "Q6_K", "attn_v": "Q4_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"},
    ),
    (LLAMA, "Q4_0", {"output": "Q6_K"}),
    (LLAMA, "TQ2_0", {"output": "Q6_K", "token_embd": "Q4_K"}),
    (GROUPED, "IQ4_NL", {"output": "Q6_K", "attn_v": "Q5_K", "ffn_down": "55" + "N" * 14}),
    (
        EIGHT,
        "Q4_K_M",
        {
            "output": "Q6_K",
            "attn_k": "Q8_0",
            "attn_v": "Q8_0",
            "attn_output": "Q5_K",
            "ffn_down": MORE_6_4,
        },
    ),
    (
        FALCON,
        "Q4_K_M",
        {"output": "Q8_0", "attn_v": MORE_6_4, "ffn_down": "6544544544544555"},
    ),
    (
        FALCON,
        "Q3_K_M",
        {"output": "Q8_0", "attn_v": "55" + "4" * 14, "ffn_down": "5433433433433444"},
    ),
]


def items(shape: Shape, width: int = 256, *, tied: bool = False) -> list[Item]:
    names = ["token_embd.weight", *([] if tied else ["output.weight"])]
    names += [f"blk.{i}.{role}.weight" for i in range(shape.layers) for role in ROLES]
    return [Item(name, "F16", (width, width)) for name in names]


def digit(kind: str) -> str:
    return kind[4] if kind.startswith("IQ") else kind[1]


@pytest.mark.parametrize(("shape", "mix", "expected"), TABLE)
def test_types_are_those_of_llama_cpp(shape: Shape, mix: str, expected: dict[str, str]) -> None:
    found = mixes.plan(MIXES[mix], shape, items(shape))
    for role in ("token_embd", "output"):
        assert found[f"{role}.weight"] == expected.get(role, MIXES[mix].type)
    for role in ROLES:
        wanted = expected.get(role, MIXES[mix].type)
        kinds = [found[f"blk.{i}.{role}.weight"] for i in range(shape.layers)]
        if len(wanted) == shape.layers:
            assert "".join(map(digit, kinds)) == wanted, role
        else:
            assert set(kinds) == {wanted}, role


def test_with_one_matrix_at_both_ends_the_output_counts() -> None:
    found = mixes.plan(MIXES["Q4_K_M"], LLAMA, items(LLAMA, tied=True))
    assert found["token_embd.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("mix", "width", "matrix", "output"),
    [
        ("Q4_K_M", 128, "Q5_0", "Q8_0"),
        ("Q5_K_M", 128, "Q5_1", "Q8_0"),
        ("Q6_K", 128, "Q8_0", "Q8_0"),
        ("Q3_K_M", 128, "Q4_0", "Q8_0"),
        ("Q2_K", 128, "Q4_0", "Q8_0"),
        ("IQ4_XS", 128, "IQ4_NL", "Q8_0"),
        ("IQ4_NL", 128, "IQ4_NL", "Q8_0"),
        ("TQ2_0", 128, "Q4_0", "Q8_0"),
        ("Q4_0", 128, "Q4_0", "Q8_0"),
        ("Q4_K_M", 48, "F16", "F16"),
        ("Q8_0", 48, "F16", "F16"),
    ],
)
def test_rows_that_do_not_fit_get_the_nearest_type(
    mix: str, width: int, matrix: str, output: str
) -> None:
    found = mixes.plan(MIXES[mix], LLAMA, items(LLAMA, width))
    assert found["blk.5.ffn_up.weight"] == matrix
    assert found["output.weight"] == output


def test_the_seventy_billion_class_keeps_its_values() -> None:
    big = Shape("llama", 80, 64, 8)
    found = mixes.plan(MIXES["Q4_K_M"], big, items(big))
    assert {found[f"blk.{i}.attn_v.weight"] for i in range(80)} == {"Q6_K", "Q5_K"}
    alone = Shape("llama", 80, 64, 64)
    found = mixes.plan(MIXES["Q4_K_M"], alone, items(alone))
    assert {found[f"blk.{i}.attn_v.weight"] for i in range(80)} == {"Q6_K", "Q4_K"}


def test_an_importance_matrix_changes_the_first_layers() -> None:
    def first(mix: str, *, important: bool) -> str:
        found = mixes.plan(MIXES[mix], LLAMA, items(LLAMA), important=important)
        return found["blk.0.ffn_down.weight"]

    assert (first("Q4_0", important=False), first("Q4_0", important=True)) == ("Q4_0", "Q4_1")
    assert (first("IQ4_NL", important=False), first("IQ4_NL", important=True)) == ("Q5_K", "IQ4_NL")


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_norm.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ssm_conv1d.weight",
        "position_embd.weight",
        "token_types.weight",
        "blk.0.attn_q.bias",
    ],
)
def test_small_matrices_stay_as_they_are(name: str) -> None:
    found = mixes.plan(MIXES["Q4_K_M"], LLAMA, [Item(name, "F32", (256, 256))])
    assert found == {name: "F32"}
    one_row = Item("blk.0.ffn_up.weight", "F32", (1, 256))
    assert mixes.plan(MIXES["Q4_K_M"], LLAMA, [one_row])[one_row.name] == "F32"


def test_the_order_is_by_layer_as_a_number() -> None:
    found = list(mixes.plan(MIXES["Q4_K_M"], LLAMA, items(LLAMA)[::-1]))
    assert found[:2] == ["output.weight", "token_embd.weight"]
    assert found.index("blk.2.attn_v.weight") < found.index("blk.10.attn_v.weight")


def test_size_counts_blocks() -> None:
    some = [Item("blk.0.ffn_up.weight", "F16", (3, 2, 256)), Item("a", "F32", (10,))]
    assert mixes.size(some, {"blk.0.ffn_up.weight": "Q4_K", "a": "F32"}) == 6 * 144 + 40


def test_names_in_any_case_and_short() -> None:
    assert mixes.named("q4_k").name == "Q4_K_M"
    assert mixes.named("iq4_nl").file_type == 25
    with pytest.raises(KeyError):
        mixes.named("Q9")
