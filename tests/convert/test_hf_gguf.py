"""Every family: the converted file answers as transformers does with the original.

Weights and caches are F32 on both sides; what remains is the order of sums, and ggml's table of
GELU in half precision. Measured over all families, log-probabilities differ by at most 1e-5 with
SiLU and 3e-3 with GELU; `TOLERANCE` leaves room for other processors.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.errors import Unsupported

from .asking import ask
from .models import ENCODERS, MODELS, make

TOLERANCE = 1e-2
STEPS = 6
PROMPTS = [[0, 17, 45, 90, 33], [0, *range(40, 80), 7, 7, 200], [100, 101]]
QUICK = ("llama3", "mixtral", "qwen3moe", "gemma3", "phi3-long", "falcon-groups", "deepseek2")
"""A run through all transforms; the others are run by `make test-long`."""

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("transformers")]


def converted(name: str, folder: Path) -> tuple[Any, Path]:
    """The model and its GGUF file."""
    model = make(name, folder)
    gguf = folder / "model.gguf"
    from_safetensors(folder, gguf, Options(type="f32"), lambda done, total, what: None)
    return model, gguf


def reference(model: Any, prompt: list[int], steps: int) -> tuple[list[int], list[list[float]]]:
    """Greedy ids and log-probabilities of every token, without a cache."""
    import torch

    ids, seen = list(prompt), []
    with torch.no_grad():
        for _ in range(steps):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
            seen.append(torch.log_softmax(logits, -1).tolist())
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :], seen


def check(name: str, folder: Path) -> None:
    model, gguf = converted(name, folder)
    answers = ask(gguf, prompts=PROMPTS, steps=STEPS)["prompts"]
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids, logprobs = reference(model, prompt, STEPS)
        for step, (theirs, ours) in enumerate(zip(answer["logprobs"], logprobs, strict=True)):
            worst = max(abs(value - ours[int(number)]) for number, value in theirs.items())
            assert worst < TOLERANCE, f"{name}: step {step} differs by {worst:.4f}"
            assert len(theirs) == len(ours)
        assert answer["ids"] == ids


@pytest.mark.parametrize("name", QUICK)
def test_a_converted_model_answers_as_the_original(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(MODELS) - set(QUICK) - set(ENCODERS)))
def test_every_other_family_answers_as_the_original(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_converted_encoder_embeds_as_the_original(name: str, tmp_path: Path) -> None:
    import torch

    model, gguf = converted(name, tmp_path)
    answers = ask(gguf, prompts=PROMPTS, embed=True)["prompts"]
    for prompt, vector in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([prompt])).last_hidden_state[0].mean(0)
        mean = (mean / mean.norm()).tolist()
        norm = math.sqrt(sum(x * x for x in vector))
        cosine = sum(a * b for a, b in zip(mean, vector, strict=True)) / norm
        assert cosine >= 0.9999, name


def test_a_type_for_quantising(tmp_path: Path) -> None:
    source = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"
    with pytest.raises(Unsupported) as caught:
        from_safetensors(source, tmp_path / "a.gguf", Options("q4_0"), lambda *_: None)
    assert caught.value.hint == "convert to f16, then `llmrr quantize`"
    assert not (tmp_path / "a.gguf").exists()
