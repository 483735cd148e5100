"""The model of random weights is a sound file; children of a benchmark are gone afterwards."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import psutil
import pytest
from bench import machine, proc, synthetic

import llm_runner_router
from llm_runner_router.models.formats import gguf

DONOR = Path(llm_runner_router.__file__).parent / "zoo" / "tiny-general.gguf"
SHAPE = synthetic.Shape(width=64, layers=2, hidden=128, heads=4, kv_heads=2, context=256)


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0"])
def test_the_file_is_what_it_says(tmp_path: Path, quant: synthetic.Quant) -> None:
    made = synthetic.write(tmp_path / "made.gguf", DONOR, quant, SHAPE)
    info, donor = gguf.describe(made.path), gguf.describe(DONOR)
    assert (info.architecture, info.quantisation) == ("llama", quant)
    assert (info.layers, info.width, info.context) == (2, 64, 256)
    assert info.vocabulary == donor.vocabulary
    assert info.chat_template == donor.chat_template
    norms = 5 * 64  # two per layer and the last; they are not quantised
    assert info.parameters == made.parameters + norms
    embedding = donor.vocabulary * 64 * {"Q8_0": 34, "Q4_0": 18}[quant] // 32
    assert made.touched == sum(info.types.values()) - embedding


@pytest.mark.parametrize("quant", ["F16", "Q4_K_M"])
def test_halves_and_mixes_are_sound_too(tmp_path: Path, quant: synthetic.Quant) -> None:
    shape = synthetic.Shape(width=256, layers=2, hidden=256, heads=4, kv_heads=4, context=256)
    info = gguf.describe(synthetic.write(tmp_path / "made.gguf", DONOR, quant, shape).path)
    assert info.quantisation == {"F16": "F16", "Q4_K_M": "Q4_K"}[quant]
    assert ("Q6_K" in info.types) == (quant == "Q4_K_M")
    assert info.types[info.quantisation] > sum(info.types.values()) // 2


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    files = [
        synthetic.write(tmp_path / f"{i}.gguf", DONOR, "Q4_0", SHAPE, seed=seed).path.read_bytes()
        for i, seed in enumerate((1, 1, 2))
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_a_donor_must_be_a_gguf_file(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"PK\x03\x04" + b"\0" * 60)
    with pytest.raises(proc.BenchError, match="no GGUF file"):
        synthetic.write(tmp_path / "made.gguf", wrong, "Q8_0", SHAPE)


def test_a_child_is_gone_after_the_block() -> None:
    with proc.Child([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        assert psutil.pid_exists(child.pid)
    assert not psutil.pid_exists(child.pid)


def test_what_a_failed_child_said_is_told() -> None:
    code = "import sys; sys.exit('the disk is on fire')"
    with (
        proc.Child([sys.executable, "-c", code], name="oven") as child,
        pytest.raises(proc.BenchError, match="oven ended: the disk is on fire"),
    ):
        child.read(20)


def test_busy_loops_use_the_cores_and_end() -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    with machine.busy(2):
        loops = [child for child in me.children() if child.pid not in before]
        assert len(loops) == 2
    assert not any(loop.is_running() for loop in loops)


def test_bandwidth_is_a_rate() -> None:
    assert machine.read_bandwidth(1, passes=1) > 0


def test_cpu_time_grows_with_work() -> None:
    me = psutil.Process().pid
    before = proc.cpu_seconds(me)
    sum(range(3_000_000))
    assert proc.cpu_seconds(me) > before


def test_a_cycle_goes_round_and_a_wrong_draft_leaves_it(tmp_path: Path) -> None:
    """The rows of the output are the embeddings of the tokens before: what the model writes."""
    shape = synthetic.Shape(width=64, layers=1, hidden=64, heads=4, kv_heads=4, context=64)
    after: list[dict[int, int]] = []
    for every in (0, 5):
        path = tmp_path / f"{every}.gguf"
        cycle = synthetic.Cycle(length=20, every=every)
        synthetic.write(path, DONOR, "Q8_0", shape, cycle=cycle)
        with gguf.open_checkpoint(path) as opened:
            rows = {
                name: struct.unpack("<65536e", opened.read(f"{name}.weight"))
                for name in ("token_embd", "output")
            }
            assert not any(opened.read("blk.0.ffn_down.weight"))
            assert not any(opened.read("blk.0.attn_output.weight"))
        found = {
            name: {row: values[row * 64 : row * 64 + 64] for row in range(1024)}
            for name, values in rows.items()
        }
        begins = {values: row for row, values in found["token_embd"].items()}
        after.append({begins[v]: row for row, v in found["output"].items() if any(v)})
    right, wrong = after
    assert len(right) == 20
    walked = [next(iter(right))]
    while len(walked) < 20:
        walked.append(right[walked[-1]])
    assert len(set(walked)) == 20
    assert wrong.items() < right.items()
    assert len(wrong) == 16
