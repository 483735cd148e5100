"""What is written as ONNX answers as the source does: both sides are run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llm_runner_router.convert import base, hf_onnx, onnx_encoder, onnx_shape, onnx_weights
from llm_runner_router.convert import run as job
from llm_runner_router.convert.base import Options
from llm_runner_router.errors import ModelFileError, Unsupported

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
og = pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")

from . import tiny_hf  # noqa: E402  # it needs what was just looked for
from .test_other_kinds import as_tfjs  # noqa: E402

ZOO = Path(__file__).parents[2] / "zoo" / "models"
PROMPT = [int(x) for x in np.random.default_rng(3).integers(3, 160, 20)]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    og.disable_telemetry_events()


def tick(done: int, total: int, what: str) -> None:
    assert 0 <= done <= total, what


def run(folder: Path, prompt: list[int], count: int) -> tuple[list[int], Any]:
    """Greedy tokens after `prompt`, and the logits of the first."""
    model = og.Model(str(folder))
    params = og.GeneratorParams(model)
    length = len(prompt) + count
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    first = generator.get_logits().reshape(-1)
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()[len(prompt) :], first


def distance(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("name", tiny_hf.DECODERS)
def test_a_decoder_in_f32_answers_token_for_token(name: str, tmp_path: Path) -> None:
    model = tiny_hf.decoder(name, tmp_path / "hf")
    hf_onnx.decoder(tmp_path / "hf", tmp_path / "onnx", Options("f32"), tick)
    answer, logits = run(tmp_path / "onnx", PROMPT, 24)
    assert distance(logits, tiny_hf.logits(model, PROMPT)) < 1e-4
    assert answer == tiny_hf.greedy(model, PROMPT, 24)


@pytest.mark.parametrize("name", ["tiny-chat", "tiny-math"])
@pytest.mark.parametrize("type", ["f32", "f16"])
def test_the_zoo_answers_token_for_token(name: str, type: str, tmp_path: Path) -> None:
    """Its checkpoints are F16, so an F16 file has the very same numbers."""
    model = tiny_hf.transformers.AutoModelForCausalLM.from_pretrained(
        ZOO / name, dtype=tiny_hf.torch.float32
    )
    hf_onnx.decoder(ZOO / name, tmp_path / "onnx", Options(type), tick)
    answer, logits = run(tmp_path / "onnx", PROMPT, 32)
    assert distance(logits, tiny_hf.logits(model, PROMPT)) < 1e-3
    assert answer == tiny_hf.greedy(model, PROMPT, 32)
    stored = (tmp_path / "onnx" / "model.onnx.data").stat().st_size
    source = (ZOO / name / "model.safetensors").stat().st_size
    assert stored < source * (2.3 if type == "f32" else 1.3), "tied weights are written once"


def test_a_bf16_checkpoint_keeps_its_numbers(tmp_path: Path) -> None:
    model = tiny_hf.decoder("qwen2", tmp_path / "hf", type="bfloat16")
    for type in ("bf16", "f32"):
        hf_onnx.decoder(tmp_path / "hf", tmp_path / type, Options(type), tick)
        answer, _ = run(tmp_path / type, PROMPT, 24)
        assert answer == tiny_hf.greedy(model, PROMPT, 24)


def rounded(values: Any, bits: int) -> Any:
    """What `values` are after being stored in blocks: by the definition, not by the packing."""
    groups = values.reshape(-1, onnx_weights.BLOCK)
    big = groups[np.arange(len(groups)), np.abs(groups).argmax(1)]
    scale = (np.abs(big) / 127 if bits == 8 else big / -8)[:, None]
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return (np.clip(np.rint(groups / scale), low, high) * scale).reshape(values.shape)


@pytest.mark.parametrize(("type", "bits"), [("q8_0", 8), ("q4_0", 4)])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_quantised_logits_are_those_of_rounded_weights(
    name: str, type: str, bits: int, tmp_path: Path
) -> None:
    """Exactly, if the engine does not round activations; it does, to 8 bits, which is below 4 % of
    the largest."""
    model = tiny_hf.decoder(name, tmp_path / "hf")
    hf_onnx.decoder(tmp_path / "hf", tmp_path / "onnx", Options(type), tick)
    _, fast = run(tmp_path / "onnx", PROMPT, 1)
    with_exact_activations(tmp_path / "onnx" / "model.onnx")
    _, logits = run(tmp_path / "onnx", PROMPT, 1)
    for label, parameter in model.named_parameters():
        if parameter.ndim == 2:
            ends = "embed" in label or "lm_head" in label
            coarse = rounded(parameter.detach().numpy(), 8 if ends else bits)
            parameter.data = tiny_hf.torch.from_numpy(coarse)
    expected = tiny_hf.logits(model, PROMPT)
    assert distance(logits, expected) < 1e-4
    assert distance(fast, expected) < 0.04 * np.abs(expected).max()


def with_exact_activations(path: Path) -> None:
    model = onnx.load(str(path), load_external_data=False)
    levels = [a for node in model.graph.node for a in node.attribute if a.name == "accuracy_level"]
    assert levels
    for level in levels:
        level.i = 0
    onnx.save(model, str(path))


@pytest.mark.parametrize("name", tiny_hf.ENCODERS)
@pytest.mark.parametrize("type", ["f32", "f16"])
def test_an_encoder_answers_alike_whatever_the_padding(
    name: str, type: str, tmp_path: Path
) -> None:
    model = tiny_hf.encoder(name, tmp_path / "hf")
    hf_onnx.encoder(tmp_path / "hf", tmp_path / "onnx", Options(type), tick)
    session = ort.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    ids = np.array([PROMPT, PROMPT[:12] + [0] * 8])
    mask = np.array([[1] * 20, [1] * 12 + [0] * 8])
    kinds = np.zeros_like(ids)
    kinds[:, 7:] = 0 if name.startswith("xlm") else 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    (found,) = session.run(None, inputs)
    with tiny_hf.torch.no_grad():
        tensors = {key: tiny_hf.torch.tensor(value) for key, value in inputs.items()}
        expected = model(**tensors)
    if "reranker" in name:
        assert distance(found, expected.logits.numpy()) < (1e-5 if type == "f32" else 2e-3)
        return
    a, b = found[mask == 1], expected.last_hidden_state.numpy()[mask == 1]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() >= 0.9999


def test_the_files_beside_the_weights_come_along(tmp_path: Path) -> None:
    source = tmp_path / "hf"
    shutil.copytree(ZOO / "tiny-chat", source)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    hf_onnx.decoder(source, tmp_path / "onnx", Options("q4_0"), tick)
    names = {str(p.relative_to(tmp_path / "onnx")) for p in (tmp_path / "onnx").rglob("*.*")}
    assert {"tokenizer.json", "chat_template.jinja", "1_Pooling/config.json"} <= names
    config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    generation = json.loads((source / "generation_config.json").read_text())
    assert config["model"]["eos_token_id"] == generation["eos_token_id"]
    tokenizer = og.Tokenizer(og.Model(str(tmp_path / "onnx")))
    assert tokenizer.decode(tokenizer.encode("What is 3 + 4?")) == "What is 3 + 4?"


def test_tensorflow_js_becomes_the_same_graph(tmp_path: Path) -> None:
    """Over safetensors; F32 shards hold the F16 numbers exactly."""
    source = as_tfjs(tmp_path / "tfjs")
    steps = [(step.have, step.want) for step in job.steps_for(source, "onnx-genai")]
    assert steps == [("tfjs", "safetensors"), ("safetensors", "onnx-genai")]
    job.convert(source, tmp_path / "onnx", "onnx-genai", options=Options("f32"))
    hf_onnx.decoder(ZOO / "tiny-chat", tmp_path / "plain", Options("f32"), tick)
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        ours, plain = (tmp_path / kind / name for kind in ("onnx", "plain"))
        assert ours.read_bytes() == plain.read_bytes(), name


def test_the_converters_are_found() -> None:
    pairs = {(one.facts.have, one.facts.want): one.run for one in base.found()}
    assert pairs["safetensors", "onnx-genai"] is hf_onnx.decoder
    assert pairs["safetensors", "onnx"] is hf_onnx.encoder


# ---------------------------------------------------------------- what is refused


def changed(tmp_path: Path, **fields: object) -> Path:
    shutil.copytree(ZOO / "tiny-chat", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", ["MambaForCausalLM"]),
        ("hidden_act", "xielu"),
        ("rope_scaling", {"rope_type": "longrope"}),
        ("num_hidden_layers", 10**9),
        ("hidden_size", "big"),
    ],
)
def test_what_is_not_converted_is_said_by_field(field: str, value: object, tmp_path: Path) -> None:
    config = json.loads((ZOO / "tiny-chat" / "config.json").read_text()) | {field: value}
    with pytest.raises(Unsupported) as caught:
        onnx_shape.read(config)
    assert caught.value.param == field
    assert caught.value.hint


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    source = changed(tmp_path, num_hidden_layers=5)
    with pytest.raises(ModelFileError, match=r"model\.layers\.4\.self_attn\.q_proj\.weight"):
        hf_onnx.decoder(source, tmp_path / "onnx", Options("f32"), tick)


@pytest.mark.parametrize(
    ("field", "value", "tensor"),
    [
        ("num_attention_heads", 8, "q_proj"),
        ("num_key_value_heads", 4, "k_proj"),
        ("intermediate_size", 400, "gate_proj"),
        ("hidden_size", 64, "embed_tokens"),
    ],
)
def test_a_tensor_of_another_shape(field: str, value: int, tensor: str, tmp_path: Path) -> None:
    source = changed(tmp_path, **{field: value})
    with pytest.raises(ModelFileError, match=rf"{tensor}.*config\.json"):
        hf_onnx.decoder(source, tmp_path / "onnx", Options("f32"), tick)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", 5),
        ("head_dim", "wide"),
        ("rope_theta", [1]),
        ("rope_scaling", "linear"),
        ("rms_norm_eps", {"a": 1}),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2}),
    ],
)
def test_a_field_of_a_wrong_kind(field: str, value: object) -> None:
    config = json.loads((ZOO / "tiny-chat" / "config.json").read_text()) | {field: value}
    with pytest.raises((ModelFileError, Unsupported)) as caught:
        onnx_shape.read(config)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_attention_heads", 7), ("layer_norm_eps", "small"), ("hidden_size", None)],
)
def test_an_encoders_field_of_a_wrong_kind(field: str, value: object) -> None:
    plain = {"architectures": ["BertModel"], "num_attention_heads": 4, "num_hidden_layers": 3}
    config: dict[str, object] = {**plain, "hidden_size": 64}
    assert onnx_encoder.read(config).width == 64
    with pytest.raises((ModelFileError, Unsupported), match=r"config\.json") as caught:
        onnx_encoder.read(config | {field: value})
    assert caught.value.hint


def test_a_context_without_end_is_cut() -> None:
    config = json.loads((ZOO / "tiny-chat" / "config.json").read_text())
    config["max_position_embeddings"] = 10_000_000
    assert onnx_shape.read(config).context == onnx_shape.MAX_CONTEXT


def test_an_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="q3_k"):
        hf_onnx.decoder(ZOO / "tiny-chat", tmp_path / "onnx", Options("q3_k"), tick)


def test_a_decoder_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="LlamaForCausalLM"):
        hf_onnx.encoder(ZOO / "tiny-chat", tmp_path / "onnx", Options(), tick)


def test_a_value_that_f16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="F16"):
        onnx_weights.half(np.array([[1e6]], np.float32), "x")


def test_bf16_is_rounded_to_nearest_even() -> None:
    values = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    expected = tiny_hf.torch.from_numpy(values).to(tiny_hf.torch.bfloat16)
    found = np.frombuffer(onnx_weights.brain(values), np.int16)
    assert (found == expected.view(tiny_hf.torch.int16).numpy().ravel()).all()


def test_the_conversion_can_be_stopped(tmp_path: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        raise base.Cancelled("enough", hint="-")

    with pytest.raises(base.Cancelled):
        hf_onnx.decoder(ZOO / "tiny-chat", tmp_path / "onnx", Options(), stop)


def test_shapes_of_newer_and_older_configurations_agree() -> None:
    old = json.loads((ZOO / "tiny-chat" / "config.json").read_text())
    new = {k: v for k, v in old.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": old["rope_theta"]}
    assert msgspec.json.encode(onnx_shape.read(old)) == msgspec.json.encode(onnx_shape.read(new))
