"""LoRA adapters of PEFT to GGUF, against models with the same adapters in their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import numpy as files

from llm_runner_router.convert import cache, run
from llm_runner_router.convert.arrays import decode
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.convert.peft import base_settings, from_peft
from llm_runner_router.errors import BadRequest, ModelFileError, RunnerError, Unsupported
from llm_runner_router.models import detect
from llm_runner_router.models.formats import gguf

from . import adapters
from .asking import ask

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "zoo" / "models" / "tiny-general"
PROMPTS = [[1, 40, 41, 42, 300, 301], [1, 300, 301, 77]]


def silent(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total


def converted(folder: Path, base: Path, type: str = "f32") -> Path:
    target = folder.with_suffix(f".{type}.gguf")
    from_peft(folder, target, Options(type=type, base=base_settings(base)), silent)
    return target


def whole(folder: Path, type: str = "f32") -> Path:
    target = folder.with_suffix(f".{type}.gguf")
    from_safetensors(folder, target, Options(type=type), silent)
    return target


def numbers(path: Path) -> dict[str, NDArray[np.float32]]:
    with gguf.open_checkpoint(path) as opened:
        return {
            weight.name: decode(opened.read(weight.name), weight.dtype, weight.shape).copy()
            for weight in opened.weights.values()
        }


def changes(path: Path) -> dict[str, NDArray[np.float32]]:
    """What llama.cpp adds to each weight: `alpha / rank · B · A`."""
    parts = numbers(path)
    with gguf.open_checkpoint(path) as opened:
        alpha = opened.config["adapter.lora.alpha"]
    found = {}
    for name in [n for n in parts if n.endswith(".lora_a")]:
        down, up = parts[name], parts[f"{name.removesuffix('a')}b"]
        found[name.removesuffix(".lora_a")] = alpha / len(down) * (up @ down)
    return found


def same_weights(base: Path, adapter: Path, tmp_path: Path, *, of: Path | None = None) -> int:
    """The weights of a merged model are the base's and what the converted adapter adds."""
    before = numbers(whole(base) if of is None else of)
    after = numbers(whole(adapters.merge(base, tmp_path / "merged", (adapter, 1.0))))
    added = changes(converted(adapter, base if of is None else of))
    assert added
    for name, weight in after.items():
        expected = before[name] + added.get(name, 0)
        assert weight == pytest.approx(expected, abs=1e-5), name
    return len(added)


# ---------------------------------------------------------------- every family

FAMILIES = ("llama", "mixtral", "smollm3", "llama4", "granite", "granitemoe", "qwen2", "qwen3",
            "qwen2moe", "qwen3moe", "gemma", "gemma2", "gemma3", "phi2", "phi3", "gpt2", "falcon",
            "falcon-groups", "stablelm", "olmo2", "deepseek2")  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_of_every_family_the_merged_weights_are_base_and_change(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra `torch` is not installed")
    from .models import make

    base = tmp_path / "base"
    make(name, base)
    turned = name == "gpt2"
    adapter = adapters.make(base, tmp_path / "lora", turned=turned)
    assert same_weights(base, adapter, tmp_path) >= 4
    from_gguf = tmp_path / "again.gguf"
    settings = base_settings(base.with_suffix(".f32.gguf"))
    from_peft(adapter, from_gguf, Options(type="f32", base=settings), silent)
    assert from_gguf.read_bytes() == adapter.with_suffix(".f32.gguf").read_bytes(), "from GGUF"


# ---------------------------------------------------------------- answers


@pytest.mark.engine
@pytest.mark.parametrize("type", ["f32", "f16"])
def test_base_and_adapter_answer_as_the_merged_model(type: str, tmp_path: Path) -> None:
    """With F32 throughout the log-probabilities differ by less than 1e-3, with an adapter in F16 by
    less than 2e-2; the same token is the best everywhere."""
    adapter = adapters.make(BASE, tmp_path / "lora")
    base = whole(Path(shutil.copytree(BASE, tmp_path / "base")))
    merged = whole(adapters.merge(BASE, tmp_path / "merged", (adapter, 1.0)))
    given = converted(adapter, BASE, type)
    found = ask(base, prompts=PROMPTS, steps=12, lora=str(given))
    expected = ask(merged, prompts=PROMPTS, steps=12)
    plain = ask(base, prompts=PROMPTS, steps=12)
    assert found["prompts"] != plain["prompts"], "the adapter does nothing"
    tolerance = {"f32": 1e-3, "f16": 2e-2}[type]
    for ours, theirs in zip(found["prompts"], expected["prompts"], strict=True):
        assert ours["ids"] == theirs["ids"]
        for here, there in zip(ours["logprobs"], theirs["logprobs"], strict=True):
            assert here == pytest.approx(there, abs=tolerance)


# ---------------------------------------------------------------- scales


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"ranks": {"q_proj": 2, "1.mlp.up_proj": 7}},
        {"alpha_pattern": {"layers.2.self_attn.v_proj": 3.0, "down_proj": 20}},
        {"use_rslora": True, "ranks": {"q_proj": 9}, "alpha_pattern": {"q_proj": 5}},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
    ],
)
def test_the_scale_of_each_weight_is_that_of_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    adapter = adapters.make(BASE, tmp_path / "lora", **settings)
    assert same_weights(BASE, adapter, tmp_path, of=whole(_copy(tmp_path))) == 5 * 7


def _copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def test_a_file_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
    adapter = adapters.make(BASE, tmp_path / "lora")
    expected = converted(adapter, BASE).read_bytes()
    parts = files.load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({k: torch.from_numpy(v) for k, v in parts.items()}, adapter / "adapter_model.bin")
    assert run.kind_of(adapter) == "peft"
    assert converted(adapter, BASE).read_bytes() == expected


# ---------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "`use_dora`: DoRA"),
    "bias": ({"bias": "lora_only"}, "`bias`: 'lora_only'"),
    "lora bias": ({"lora_bias": True}, "`lora_bias`"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
    "tokens": ({"trainable_token_indices": [3]}, "`trainable_token_indices`"),
    "layers": ({"layer_replication": [[0, 2]]}, "`layer_replication`"),
    "alora": ({"alora_invocation_tokens": [5]}, "`alora_invocation_tokens`"),
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4': it changes the base"),
    "pattern": ({"alpha_pattern": {"(a+)+$": 3}}, r"the pattern '\(a\+\)\+\$'"),
    "kind": ({"peft_type": "IA3"}, "`peft_type`: 'IA3'"),
    "alpha": ({"lora_alpha": 0}, "`lora_alpha`: 0, not a number above 0"),
    "no number": ({"lora_alpha": "8"}, "`lora_alpha`: '8'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_mean_another_kind_of_adapter(case: str, tmp_path: Path) -> None:
    settings, words = REFUSED[case]
    adapter = adapters.make(BASE, tmp_path / "lora", only=("q_proj",))
    said = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**said, **settings}))
    with pytest.raises(RunnerError, match=words) as caught:
        converted(adapter, BASE)
    assert isinstance(caught.value, Unsupported | ModelFileError)
    assert not list(tmp_path.glob("*.gguf"))


Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
TENSORS: dict[str, tuple[dict[str, tuple[int, ...] | None], str]] = {
    "dora": ({f"{Q}.lora_magnitude_vector.weight": (256,)}, "lora_magnitude_vector.*DoRA"),
    "embedding": (
        {"base_model.model.model.embed_tokens.lora_embedding_A": (4, 1024)},
        "an adapter of the embedding",
    ),
    "bias": ({f"{Q}.bias": (256,)}, "biases of its own"),
    "whole": ({"base_model.model.lm_head.weight": (4, 4)}, "whole weights"),
    "no b": ({B: None}, "no `lora_B` for"),
    "ranks": ({B: (256, 5)}, "a rank of 4 in A and of 5 in B"),
    "shape": ({A: (4, 16, 16)}, r"the shape \(4, 16, 16\)"),
    "twice": ({f"{Q}.lora_A.default.weight": (4, 256)}, "two tensors for"),
    "layer": (
        {A.replace(".0.", ".50."): (4, 256), B.replace(".0.", ".50."): (256, 4)},
        "the model has 5 layers",
    ),
    "heads": ({B: (100, 4)}, "not 8 even heads"),
    "place": ({A.replace("q_proj", "z_proj"): (4, 256), B.replace("q_proj", "z_proj"): (256, 4)},
              "which `llama` has no matrix for"),
    "norm": ({A.replace("self_attn.q_proj", "mlp.experts.3.w1"): (4, 256),
              B.replace("self_attn.q_proj", "mlp.experts.3.w1"): (256, 4)}, "an expert among"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    changed, words = TENSORS[case]
    adapter = adapters.make(BASE, tmp_path / "lora", only=("0.self_attn.q_proj",))
    parts: dict[str, Any] = files.load_file(adapter / "adapter_model.safetensors")
    for name, shape in changed.items():
        parts.pop(name, None)
        if shape is not None:
            parts[name] = np.zeros(shape, np.float32)
    files.save_file(parts, adapter / "adapter_model.safetensors")
    with pytest.raises(RunnerError, match=words) as caught:
        converted(adapter, BASE)
    assert isinstance(caught.value, Unsupported | ModelFileError)
    assert not list(tmp_path.glob("*.gguf"))


def test_numbers_that_are_none(tmp_path: Path) -> None:
    adapter = adapters.make(BASE, tmp_path / "lora", only=("0.self_attn.q_proj",))
    parts = files.load_file(adapter / "adapter_model.safetensors")
    parts[B][3, 1] = np.inf
    files.save_file(parts, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match=r"lora_B\.weight` holds a number that is not finite"):
        converted(adapter, BASE)
    assert not list(tmp_path.glob("*.gguf"))


def test_without_its_settings_or_a_base(tmp_path: Path) -> None:
    adapter = adapters.make(BASE, tmp_path / "lora", only=("0.self_attn.q_proj",))
    with pytest.raises(BadRequest, match="not said for which model"):
        from_peft(adapter, tmp_path / "a.gguf", Options(), silent)
    with pytest.raises(ModelFileError, match="a LoRA adapter"):
        base_settings(adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelFileError, match=r"no `adapter_config\.json`"):
        converted(adapter, BASE)


# ---------------------------------------------------------------- as a kind of model


def test_kinds_and_the_way_between_them(tmp_path: Path) -> None:
    adapter = adapters.make(BASE, tmp_path / "lora", only=("q_proj",))
    assert run.kind_of(adapter) == "peft"
    target = tmp_path / "out.gguf"
    options = Options(type="f32", base=base_settings(BASE))
    result = run.convert(adapter, target, "gguf-adapter", options=options)
    assert (result.have, result.want) == ("peft", "gguf-adapter")
    assert run.kind_of(target) == "gguf-adapter"
    assert detect.describe(target).part == "adapter"
    for want in ("gguf", "safetensors", "onnx-genai"):
        with pytest.raises(Unsupported, match="no conversion leads from `peft`"):
            run.steps_for(adapter, want)


def test_results_are_kept_by_what_the_base_says_not_by_its_path(tmp_path: Path) -> None:
    adapter = adapters.make(BASE, tmp_path / "lora", only=("q_proj",))
    other = Path(shutil.copytree(BASE, tmp_path / "other"))

    def key() -> str:
        return cache.key(adapter, "gguf-adapter", Options(base=base_settings(other)))

    before = key()
    assert before == cache.key(adapter, "gguf-adapter", Options(base=base_settings(BASE)))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    assert key() != before
