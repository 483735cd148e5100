"""One small model in every form that a model may come in: the rows of the tables of formats.

Knows: how each form is written (by the library that others write it with, where it is installed),
and whose answer is the right one. Does not know: what any engine makes of it (`trying.py`).
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.config import Adopt, Node
from llm_runner_router.convert import run
from llm_runner_router.convert.base import Options
from llm_runner_router.convert.gguf_write import GGUFWriter
from llm_runner_router.models.formats import gguf
from llm_runner_router.models.info import ModelInfo

from . import npz

ZOO: Final = npz.ZOO
KEY: Final = "OUTSIDE_KEY"
"""The variable with the key of the adopted server."""

ENCODER: Final = "BertModel"
RERANKER: Final = "BertForSequenceClassification"
Make = Callable[[Path], Path]


class Form(Struct, frozen=True):
    """A row: a model in one form."""

    make: Make
    """Writes it in an empty folder; the path to name."""
    like: str = "chat"
    """Whose answer is the right one: a key of `trying.RIGHT`; empty where nothing is compared."""
    node: Callable[[Path], Node] = lambda path: Node(target=str(path))
    """Its entry in the configuration, without an engine."""
    only: str = ""
    """The one engine that it is about."""


# ---------------------------------------------------------------- GGUF


def converted(want: str, quantize: str = "", type: str = "f16", source: Path = ZOO) -> Make:
    """The model at `source` as our converters write it."""

    def make(folder: Path) -> Path:
        target = folder / ("model.gguf" if want == "gguf" else "model")
        options = Options(quantize=quantize, type=type)
        return run.convert(source, target, want, options=options).path

    return make


def split_gguf(folder: Path, parts: int = 3) -> Path:
    """As `llama-gguf-split` does: every field in the first file, the tensors in all of them."""
    source = converted("gguf")(folder)
    with gguf.open_checkpoint(source) as model:
        names = list(model.weights)
        each = -(-len(names) // parts)
        for number in range(parts):
            path = folder / f"split-{number + 1:05d}-of-{parts:05d}.gguf"
            with GGUFWriter(path, "" if number == 0 else "llama") as out:
                if number == 0:
                    copy_fields(model.config, out)
                out.field("split.no", number, "U16")
                out.field("split.count", parts, "U16")
                out.field("split.tensors.count", len(names), "I32")
                some = names[number * each : (number + 1) * each]
                for name in some:
                    out.tensor(name, model.weights[name].dtype, model.weights[name].shape)
                out.begin()
                for name in some:
                    out.data(name, model.read(name))
                out.finish()
    source.unlink()
    return folder / f"split-00001-of-{parts:05d}.gguf"


def copy_fields(config: Any, out: GGUFWriter, skip: tuple[str, ...] = ()) -> None:
    """Every metadata entry as it stands."""
    for key in config:
        if key in skip:
            continue
        entry = config.raw(key)
        at = 8 + struct.unpack_from("<Q", entry)[0]
        out.raw_field(key, struct.unpack_from("<I", entry, at)[0], entry[at + 4 :])


def ternary(kind: str) -> Make:
    """Ternary weights as bitnet.cpp has them, or in a type of llama.cpp."""

    def make(folder: Path) -> Path:
        from tests.convert.test_bitnet import bitnet_files

        from llm_runner_router.convert import bitnet_gguf

        _, packed = bitnet_files(folder)
        if kind == "I2_S":
            return packed
        bitnet_gguf.repack(packed, folder / "ternary.gguf", kind, lambda *_: None)
        return folder / "ternary.gguf"

    return make


def before_gguf(form: str, kind: str) -> Make:
    """A file of 2023, with the same vocabulary in SentencePiece's way."""

    def make(folder: Path) -> Path:
        from .older import as_ggml

        source = converted("gguf", type="q8_0" if kind == "Q8_0" else "f16")(folder)
        return as_ggml(source, folder / "ggml-model.bin", form=form, kind=kind)

    return make


# ---------------------------------------------------------------- Hugging Face's folders


def copied(folder: Path, name: str = "model") -> Path:
    """The zoo's folder without its weights."""
    target = folder / name
    shutil.copytree(ZOO, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def sharded(folder: Path) -> Path:
    """As transformers saves a large model."""
    from transformers import AutoModelForCausalLM

    target = copied(folder)
    model = AutoModelForCausalLM.from_pretrained(ZOO, dtype="float16")
    model.save_pretrained(target, max_shard_size="1MB")
    shutil.copy(ZOO / "config.json", target)
    assert len(list(target.glob("*.safetensors"))) > 1
    assert (target / "model.safetensors.index.json").is_file()
    return target


def pickled(*, zipped: bool = True, shards: int = 1) -> Make:
    """As `torch.save` writes it, in today's way or in that of before PyTorch 1.6."""

    def make(folder: Path) -> Path:
        import torch
        from safetensors.torch import load_file

        target = copied(folder)
        weights = load_file(ZOO / "model.safetensors")
        if shards == 1:
            path = target / "pytorch_model.bin"
            torch.save(weights, path, _use_new_zipfile_serialization=zipped)
            return target
        index = {name: f"pytorch_model-{1 + i % shards:05d}-of-{shards:05d}.bin"
                 for i, name in enumerate(weights)}  # fmt: skip
        for file in set(index.values()):
            torch.save({n: w for n, w in weights.items() if index[n] == file}, target / file)
        content = {"metadata": {}, "weight_map": index}
        (target / "pytorch_model.bin.index.json").write_text(json.dumps(content))
        return target

    return make


def only_transformers(folder: Path) -> Path:
    """A decoder of a family that no converter and no other engine has code for."""
    import torch
    import transformers
    from tests.convert.models import write_tokenizer

    sizes: dict[str, Any] = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
             "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
             "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
             "initializer_range": 0.15}  # fmt: skip
    torch.manual_seed(0)
    target = folder / "model"
    transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes)).save_pretrained(target)
    write_tokenizer(target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_bytes())
    content["decoder"] |= {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    path.write_text(json.dumps(content))
    return target


# ---------------------------------------------------------------- MLX, TensorFlow.js, ONNX


def mlx(bits: int) -> Make:
    """Packed as MLX does."""

    def make(folder: Path) -> Path:
        from tests.convert.test_other_kinds import as_mlx

        as_mlx(folder, bits=bits, group=32)
        return folder

    return make


def mlx_meant(bits: int) -> Make:
    """The numbers that `mlx` packs, in safetensors."""

    def make(folder: Path) -> Path:
        from safetensors.numpy import save_file
        from tests.convert.test_other_kinds import as_mlx

        target = copied(folder)
        (folder / "packed").mkdir()
        meant = as_mlx(folder / "packed", bits=bits, group=32)
        plain = {name: array.astype("<f2") for name, array in meant.items()}
        save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
        return target

    return make


def tfjs(folder: Path) -> Path:
    """A graph model with weights in full."""
    from tests.convert.test_other_kinds import as_tfjs

    return as_tfjs(folder)


def tfjs_layers(folder: Path) -> Path:
    """A layers model whose weights the converter halved (`--quantize_float16`)."""
    from safetensors.numpy import load_file

    target = copied(folder)
    entries, data = [], b""
    for name, array in load_file(ZOO / "model.safetensors").items():
        entries.append({"name": name, "shape": list(array.shape), "dtype": "float32",
                        "quantization": {"dtype": "float16"}})  # fmt: skip
        data += array.astype("<f2").tobytes()
    (target / "group1-shard1of1.bin").write_bytes(data)
    manifest = [{"paths": ["group1-shard1of1.bin"], "weights": entries}]
    topology = {"model_config": {"class_name": "Functional", "config": {"layers": []}}}
    model = {"format": "layers-model", "modelTopology": topology, "weightsManifest": manifest}
    (target / "model.json").write_text(json.dumps(model))
    return target


def onnx_bare(folder: Path) -> Path:
    """A decoder's graph without what onnxruntime-genai wants beside it."""
    target = converted("onnx-genai")(folder)
    (target / "genai_config.json").unlink()
    return target


def openvino(folder: Path) -> Path:
    """A graph of OpenVINO."""
    from tests.models.formats.test_older import openvino_model

    return openvino_model(folder)


# ---------------------------------------------------------------- encoders


def encoder(kind: str) -> Make:
    """A small BERT of transformers whose vectors differ from text to text.

    Args:
        kind: `BertModel`, or `BertForSequenceClassification` for a reranker.
    """

    def make(folder: Path) -> Path:
        import torch
        import transformers

        target = folder / "hf"
        sizes: dict[str, Any] = {
            "vocab_size": len(WORDS), "hidden_size": 64, "intermediate_size": 96, "num_labels": 1,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
            "pad_token_id": 0, "initializer_range": 0.15,
        }  # fmt: skip
        torch.manual_seed(0)
        made = getattr(transformers, kind)(transformers.BertConfig(**sizes)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim == 1:
                    parameter += 0.2 * torch.randn_like(parameter)
        made.save_pretrained(target)
        _wordpiece(target)
        return target

    return make


WORDS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat",
                "rain", "##y")  # fmt: skip


def _wordpiece(folder: Path) -> None:
    """BERT's tokenizer with a few words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(list(WORDS[:5]))
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {f"{word.strip('[]').lower()}_token": word for word in WORDS[:5]}
    settings = {"tokenizer_class": "BertTokenizer", **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def encoder_as(name: str, want: str) -> Make:
    """The same, converted."""

    def make(folder: Path) -> Path:
        return converted(want, type="f32", source=encoder(name)(folder))(folder)

    return make


def ranking_gguf(folder: Path) -> Path:
    """A cross-encoder as llama.cpp has it: BERT's GGUF, its pooler and its head as `cls`."""
    import transformers
    from safetensors.numpy import load_file

    source = encoder(RERANKER)(folder)
    weights = load_file(source / "model.safetensors")
    bare = folder / "bare"
    shutil.copytree(source, bare)
    transformers.BertModel.from_pretrained(source).save_pretrained(bare)
    base = converted("gguf", type="f32", source=bare)(folder)
    heads = {
        "cls.weight": weights["bert.pooler.dense.weight"],
        "cls.bias": weights["bert.pooler.dense.bias"],
        "cls.output.weight": weights["classifier.weight"],
        "cls.output.bias": weights["classifier.bias"],
    }
    path = folder / "reranker.gguf"
    with gguf.open_checkpoint(base) as model, GGUFWriter(path, "") as out:
        # As llama.cpp's converter has it: each text ends with SEP, nothing more is between them.
        fields: dict[str, Any] = {
            "bert.pooling_type": 4,
            "tokenizer.ggml.eos_token_id": WORDS.index("[SEP]"),
            "tokenizer.ggml.add_eos_token": True,
            "tokenizer.ggml.add_sep_token": False,
        }
        copy_fields(model.config, out, skip=tuple(fields))
        for key, value in fields.items():
            out.field(key, value)
        for name, one in model.weights.items():
            out.tensor(name, one.dtype, one.shape)
        for name, array in heads.items():
            out.tensor(name, "F32", array.shape)
        out.begin()
        for name in model.weights:
            out.data(name, model.read(name))
        for name, array in heads.items():
            out.data(name, array)
        out.finish()
    return path


# ---------------------------------------------------------------- what is no file of a known kind


def squeezed(folder: Path) -> Path:
    """A GGUF file in gzip."""
    source = converted("gguf")(folder)
    path = folder / "model.gguf.gz"
    path.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
    source.unlink()
    return path


def archived(kind: str) -> Make:
    """Hugging Face's folder in an archive: a format of `shutil`."""

    def make(folder: Path) -> Path:
        return Path(shutil.make_archive(str(folder / "model"), kind, ZOO.parent, ZOO.name))

    return make


def adapter(folder: Path) -> Path:
    """A LoRA adapter in PEFT's folder."""
    from tests.convert import adapters

    return adapters.make(ZOO, folder / "adapter")


def unknown(folder: Path) -> Path:
    """Numbers without a header."""
    path = folder / "weights.bin"
    path.write_bytes(b"\x3f\x80\x11\x22" * 99)
    return path


def served(folder: Path) -> Path:
    """What the server has."""
    converted("gguf")(folder)
    return folder


def mocked(path: Path) -> Node:
    """An answer without a model."""
    return Node(target=str(path), options={"text": "la la"})


def adopted(path: Path) -> Node:
    """A server with the model, here a second one of this program, started when it is wanted."""
    config = path / "served.yaml"
    model = {"target": str(path / "model.gguf")}
    content = {"models": {"tiny": model}, "zoo": False, "engine": {"spare": False, "slots": 1}}
    config.write_text(json.dumps(content))
    command = (sys.executable, "-m", "llm_runner_router", "serve", "--config", str(config),
               "--port", "{port}", "--quiet")  # fmt: skip
    key = f"${{{KEY}}}"
    environ = {"LLMRR_HOME": str(path / "home"), "LLMRR_API_KEY": key}
    return Node(
        adopt=Adopt(command=command, health="/livez", model="tiny", api_key=key, env=environ)
    )


FORMS: dict[str, Form] = {
    "GGUF, one file, F16": Form(converted("gguf")),
    "GGUF, Q8_0": Form(converted("gguf", quantize="Q8_0")),
    "GGUF, Q4_0": Form(converted("gguf", quantize="Q4_0")),
    "GGUF, split (`-00001-of-00003`)": Form(split_gguf),
    "GGUF, ternary TQ1_0": Form(ternary("TQ1_0"), "ternary"),
    "GGUF, ternary TQ2_0": Form(ternary("TQ2_0"), "ternary"),
    "BitNet's GGUF, I2_S": Form(ternary("I2_S"), "ternary"),
    "GGUF, encoder (BERT)": Form(encoder_as(ENCODER, "gguf"), "vector"),
    "GGUF, reranker (pooling RANK)": Form(ranking_gguf, "score of one segment"),
    "GGML, F16": Form(before_gguf("ggml", "F16"), "before GGUF"),
    "GGMF, F16": Form(before_gguf("ggmf", "F16"), "before GGUF"),
    "GGJT 1, F16": Form(before_gguf("ggjt1", "F16"), "before GGUF"),
    "GGJT 2, F16": Form(before_gguf("ggjt2", "F16"), "before GGUF"),
    "GGJT 3, Q8_0": Form(before_gguf("ggjt3", "Q8_0"), "before GGUF, Q8_0"),
    "safetensors, Hugging Face's folder": Form(lambda folder: ZOO),
    "safetensors, the file in its folder": Form(lambda folder: ZOO / "model.safetensors"),
    "safetensors, sharded with an index": Form(sharded),
    "safetensors, encoder (BERT)": Form(encoder(ENCODER), "vector"),
    "safetensors, reranker (BERT)": Form(encoder(RERANKER), "score"),
    "safetensors, a family only transformers has (GPT-NeoX)": Form(only_transformers, "other"),
    "PyTorch, zip (`torch.save`)": Form(pickled()),
    "PyTorch, from before 1.6": Form(pickled(zipped=False)),
    "PyTorch, sharded with an index": Form(pickled(shards=2)),
    "MLX, 8 bits": Form(mlx(8)),
    "MLX, 4 bits": Form(mlx(4), "MLX, 4 bits"),
    "ONNX, decoder for onnxruntime-genai": Form(converted("onnx-genai")),
    "ONNX, decoder without `genai_config.json`": Form(onnx_bare),
    "ONNX, encoder (BERT)": Form(encoder_as(ENCODER, "onnx"), "vector"),
    "ONNX, reranker (BERT)": Form(encoder_as(RERANKER, "onnx"), "score"),
    "TensorFlow.js, graph model": Form(tfjs),
    "TensorFlow.js, layers model, float16": Form(tfjs_layers),
    "OpenVINO": Form(openvino, ""),
    "LoRA adapter (PEFT)": Form(adapter, ""),
    "a plug-in's format (`.npz`)": Form(npz.written),
    "a file that no format knows": Form(unknown, ""),
    "any model, with `engine: mock`": Form(converted("gguf"), "", mocked, "mock"),
    "a server that runs already (`adopt`)": Form(served, "chat", adopted, "adopted"),
    "packed, GGUF in gzip": Form(squeezed),
    "packed, a folder in zip": Form(archived("zip")),
    "packed, a folder in tar": Form(archived("tar")),
}


def info_of(form: Form, path: Path) -> ModelInfo:
    """The facts that engines judge it by.

    Raises:
        ModelFileError: no format knows it.
    """
    from llm_runner_router.engine import adopted as outside
    from llm_runner_router.models import detect
    from llm_runner_router.types import ModelCard

    if form.node is adopted:
        return outside.model("m", Adopt(command=("x",)), None, ModelCard("m")).info
    return detect.describe(path)
