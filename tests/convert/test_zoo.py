"""The zoo's models: converted anew they are the files that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.convert.base import Cancelled, Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.models.formats import gguf, safetensors

from .asking import ask

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "src" / "llm_runner_router" / "zoo"
NAMES = ("tiny-chat", "tiny-math", "tiny-text")


def silent(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total


@pytest.mark.parametrize("name", NAMES)
def test_q8_0_is_byte_for_byte_what_ships(name: str, tmp_path: Path) -> None:
    ours = tmp_path / "ours.gguf"
    from_safetensors(ROOT / "zoo" / "models" / name, ours, Options(type="q8_0"), silent)
    with (
        gguf.open_checkpoint(ours) as new,
        gguf.open_checkpoint(SHIPPED / f"{name}.gguf") as old,
    ):
        assert set(new.weights) == set(old.weights)
        for tensor in old.weights:
            assert bytes(new.read(tensor)) == bytes(old.read(tensor)), tensor
        for key in old.config:
            if key not in ("general.description", "general.name"):
                assert new.config[key] == old.config[key], key


@pytest.mark.engine
def test_q8_0_answers_what_ships_answers(tmp_path: Path) -> None:
    ours = tmp_path / "ours.gguf"
    from_safetensors(ROOT / "zoo" / "models" / "tiny-math", ours, Options(type="q8_0"), silent)
    shipped = tmp_path / "shipped.gguf"
    shipped.symlink_to(SHIPPED / "tiny-math.gguf")
    order = {"prompts": [[1, 40, 41, 42], [1, 300, 301]], "steps": 12, "texts": ["12 + 30 = "]}
    assert ask(ours, **order) == ask(shipped, **order)


def test_f16_keeps_every_bit_of_the_checkpoint(tmp_path: Path) -> None:
    source, ours = ROOT / "zoo" / "models" / "tiny-chat", tmp_path / "ours.gguf"
    from_safetensors(source, ours, Options(type="f16"), silent)
    with gguf.open_checkpoint(ours) as new, safetensors.open_checkpoint(source) as old:
        assert bytes(new.read("blk.2.ffn_up.weight")) == bytes(
            old.read("model.layers.2.mlp.up_proj.weight")
        )
        assert {w.dtype for w in new.weights.values()} == {"F16", "F32"}


def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done > total / 2:
            raise Cancelled("no longer wanted")

    source = ROOT / "zoo" / "models" / "tiny-chat"
    with pytest.raises(Cancelled):
        from_safetensors(source, tmp_path / "ours.gguf", Options(), stop)
    assert list(tmp_path.iterdir()) == []
