"""Settings and tokenizers from strangers: a clear refusal or a file, never anything else."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_runner_router.convert import sentencepiece, vocabulary
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.hf_gguf import from_safetensors
from llm_runner_router.convert.hf_tensors import extra, families, fields, plan
from llm_runner_router.errors import ModelFileError, RunnerError
from llm_runner_router.models.checkpoint import Weight

from .test_hf_tensors import CONFIG, checkpoint

SOURCE = Path(__file__).resolve().parents[2] / "zoo" / "models" / "tiny-chat"
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**12, -(10**12), 2**63, 1e300, float("inf"), float("nan"), 0.5]),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=2), st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "type", "full_attention"]),
                    st.one_of(st.none(), st.integers(-1, 3), st.text(max_size=3)), max_size=3),
)  # fmt: skip
KEYS = sorted({
    *CONFIG, "rope_scaling", "rope_parameters", "rope_theta", "head_dim", "num_local_experts",
    "num_experts_per_tok", "layer_types", "sliding_window", "text_config", "no_rope_layers",
    "quantization_config", "partial_rotary_factor", "query_pre_attn_scalar", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "scoring_func", "original_max_position"
    "_embeddings", "intermediate_size_mlp", "interleave_moe_layer_step", "attention_chunk_size",
})  # fmt: skip


@given(
    st.sampled_from(sorted(families())),
    st.dictionaries(st.sampled_from(KEYS), ODD, min_size=1, max_size=4),
)
@settings(max_examples=800)
def test_odd_settings_are_refused_or_used(kind: str, changes: dict[str, Any]) -> None:
    weights = {name: Weight(name, "F32", shape, 0) for name, shape in checkpoint().items()}
    with suppress(RunnerError):
        found = plan({**CONFIG, "architectures": [kind], **changes}, weights)
        fields(found)
        extra(found)


@pytest.fixture(scope="module")
def tokenizer() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SOURCE / "tokenizer.json").read_bytes())
    content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:60])
    content["model"]["merges"] = content["model"]["merges"][:5]
    return content


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_odd_tokenizers_are_refused_or_used(
    data: st.DataObject, tokenizer: dict[str, Any], tmp_path: Path
) -> None:
    content: Any = json.loads(json.dumps(tokenizer))
    holder, name = content, data.draw(st.sampled_from(sorted(content)))
    while isinstance(holder[name], dict) and holder[name] and data.draw(st.booleans()):
        holder, name = holder[name], data.draw(st.sampled_from(sorted(holder[name])))
    holder[name] = data.draw(ODD)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with suppress(RunnerError):
        found = vocabulary.read(tmp_path, 200, {"eos_token_id": data.draw(ODD)})
        assert len(found.tokens) == len(found.types) == len(set(found.tokens)) == 200
        list(found.fields())


@given(st.binary(max_size=200))
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_sentencepiece_model(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    with suppress(ModelFileError):
        assert sentencepiece.read(path).pieces


def test_a_folder_that_names_other_folders_reads_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SOURCE, folder)
    (tmp_path / "config.json").write_text('{"pooling_mode_cls_token": true}')
    config = json.loads((folder / "config.json").read_bytes())
    config["architectures"] = ["Qwen2ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "../"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(RunnerError, match=r"modules\.json"):
        from_safetensors(folder, tmp_path / "a.gguf", Options(), lambda done, total, what: None)
