"""Running a model over a text in the engine: against transformers on the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_runner_router.convert import imatrix, kernels, native, perplexity
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.convert.quantize import quantize
from llm_runner_router.errors import EngineError, ModelFileError, RunnerError

from .building import DONOR, Shape, write

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "zoo/models/tiny-text"
TEXT = (ROOT / "STYLE.md").read_text()[:2400]
CONTEXT = 128
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip

pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("perplexity"),
    pytest.mark.timeout(240),  # torch alone may take half a minute to import
]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo model with its weights as they are in the folder."""
    path = tmp_path_factory.mktemp("exact") / "exact.gguf"
    from_safetensors(FOLDER, path, Options(type="f32"), lambda done, total, what: None)
    return path


@pytest.fixture(scope="module")
def theirs() -> tuple[float, dict[str, np.ndarray]]:
    """Perplexity, and mean squares of what each matrix is multiplied with, by torch."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    words: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # not typed there
        tokenizer_file=str(FOLDER / "tokenizer.json")
    )
    ids = words.encode(TEXT, add_special_tokens=False)
    sums: dict[str, np.ndarray] = {}
    rows = 0
    for layer, block in enumerate(model.model.layers):
        for ours, name in NAMES.items():

            def watch(_: Any, given: Any, key: str = f"blk.{layer}.{ours}.weight") -> None:
                values = given[0][0].double().numpy()
                sums[key] = sums.get(key, 0) + np.square(values).sum(axis=0)

            block.get_submodule(name).register_forward_pre_hook(watch)
    losses = []
    with torch.no_grad():
        for at in range(0, len(ids) - CONTEXT + 1, CONTEXT):
            own = torch.tensor([ids[at : at + CONTEXT]])
            chances = torch.log_softmax(model(own).logits[0].double(), -1)
            rows += CONTEXT
            half = range(CONTEXT // 2 - 1, CONTEXT - 1)
            losses += [-chances[i, own[0, i + 1]].item() for i in half]
    value = math.exp(sum(losses) / len(losses))
    return value, {key: total / rows for key, total in sums.items()}


def test_perplexity_is_that_of_transformers(exact: Path, theirs: Any) -> None:
    found = perplexity.measure(exact, TEXT, context=CONTEXT)
    # The engine keeps keys and values in F16.
    assert found.value == pytest.approx(theirs[0], rel=2e-3)
    assert found.tokens % (CONTEXT // 2) == 0
    assert 0 < found.error < found.value


def test_importance_is_the_mean_square_of_the_inputs(
    exact: Path, theirs: Any, tmp_path: Path
) -> None:
    made = imatrix.compute(exact, TEXT, tmp_path / "i.gguf", context=CONTEXT)
    assert len(made.entries) == 7 * 4
    for name, wanted in theirs[1].items():
        np.testing.assert_allclose(made.weights[name][0], wanted, rtol=2e-2, atol=1e-6)
    assert (made.chunk, made.chunks) == (CONTEXT, int(made.entries[name].counts[0]) // CONTEXT)


@pytest.mark.parametrize("mix", ["Q3_K_M", "IQ4_NL"])
def test_it_moves_the_error_to_where_it_does_not_matter(
    exact: Path, tmp_path: Path, mix: str
) -> None:
    made = imatrix.compute(exact, TEXT, tmp_path / "i.gguf", context=CONTEXT)
    even = {name: np.ones_like(w) for name, w in made.weights.items()}
    with_it = quantize(exact, tmp_path / "with.gguf", mix, imatrix=made.weights)
    quantize(exact, tmp_path / "without.gguf", mix, imatrix=even)
    plain = _weighted(exact, tmp_path / "without.gguf", made.weights)
    better = _weighted(exact, tmp_path / "with.gguf", made.weights)
    reported = {t.name: t.weighted for t in with_it.tensors if t.weighted is not None}
    assert reported == pytest.approx(better, rel=1e-3)
    changed = [name for name in plain if plain[name] > 0.01]  # not those that got 8 bits
    gain = [better[name] / plain[name] for name in changed]
    assert float(np.mean(gain)) < 0.99
    assert max(gain) < 1.01


def _weighted(source: Path, made: Path, weights: Any) -> dict[str, float]:
    from llm_runner_router.models.formats import gguf

    found = {}
    with gguf.open_checkpoint(source) as a, gguf.open_checkpoint(made) as b:
        for name, importance in weights.items():
            shape = a.weights[name].shape
            exactly = kernels.dequantize("F32", a.read(name), shape)
            nearly = kernels.dequantize(b.weights[name].dtype, b.read(name), shape)
            change = (np.square(nearly - exactly) * importance).sum()
            found[name] = float(np.sqrt(change / (np.square(exactly) * importance).sum()))
    return found


def test_experts_are_counted_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", Shape(experts=4))
    made = imatrix.compute(tmp_path / "a.gguf", TEXT, tmp_path / "i.gguf", context=64, chunks=2)
    up, down = (made.entries[f"blk.0.ffn_{n}_exps.weight"] for n in ("up", "down"))
    assert (up.squares.shape, down.squares.shape) == ((4, 256), (4, 512))
    assert up.counts.sum() == down.counts.sum() == 2 * 64 * 2  # chunks, tokens, experts used
    assert quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "Q2_K", imatrix=made.weights).bits < 5


def test_a_short_text_is_one_context(exact: Path) -> None:
    found = perplexity.measure(exact, "one two three four")
    assert found.tokens == found.context - 1
    with pytest.raises(EngineError, match="fewer than two tokens"):
        perplexity.measure(exact, "a")


def test_a_file_that_the_engine_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(DONOR.read_bytes()[:50_000])
    with pytest.raises(ModelFileError, match="does not load"):
        perplexity.measure(path, TEXT)


def test_a_process_that_takes_too_long_is_ended(exact: Path) -> None:
    with pytest.raises(EngineError, match="died"):
        perplexity.measure(exact, TEXT * 50, context=64, deadline=0.05)


def test_the_caller_can_stop_it(exact: Path) -> None:
    def tick(done: int, total: int, what: str) -> None:
        if done == 1:
            raise RunnerError("enough")

    with pytest.raises(RunnerError, match="enough"):
        perplexity.measure(exact, TEXT, context=CONTEXT, tick=tick)


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TRIED", "1.2.3")
    with pytest.raises(EngineError, match="is of version") as caught:
        native._load()
    assert "1.2.3" in str(caught.value.hint)
