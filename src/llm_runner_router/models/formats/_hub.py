"""Facts of a model from the files around its weights, as Hugging Face lays them out.

Knows: `config.json` of the common families, where chat templates, tokenizers and licences stand.
Does not know: weights and their formats. Key names are those of `transformers`; where families
call one thing by different names, the first that is there counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from llm_runner_router.models import sentence
from llm_runner_router.models.info import ModelInfo

from ._files import Bad, read_bytes, read_object

MAX_TOKENIZER: Final = 256 * 1024 * 1024
"""Bytes of a `tokenizer.json`; the largest published ones have 35 MB."""
MAX_README: Final = 64 * 1024
"""Bytes of a model card that are read; its facts stand at its beginning."""
_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"),
    "context": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
    "vocabulary": ("vocab_size", "padded_vocab_size"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "experts_used": ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
}
_OUTPUTS: Final = ("lm_head.weight", "embed_out.weight", "output.weight")
_ENCODERS: Final = (
    "bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "nomic_bert", "modernbert", "electra",
    "albert", "camembert", "deberta-v2", "new", "jina_bert", "xmod", "eurobert",
)  # fmt: skip
_MOST: Final = 1 << 40
"""No size of a model is larger; guards the arithmetic behind these facts."""


class _TokenizerModel(Struct, frozen=True):
    type: str = ""
    byte_fallback: bool = False
    vocab: msgspec.Raw = msgspec.Raw(b"")


class _TokenizerFile(Struct, frozen=True):
    """The few fields wanted of `tokenizer.json`; everything else is stepped over."""

    model: _TokenizerModel = _TokenizerModel()


def facts(folder: Path, names: Collection[str] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of `config.json`, and the fields of `ModelInfo` that the folder's files tell.

    Args:
        folder: where the files lie; each of them may be missing.
        names: the tensors' names, which say whether the output is tied to the embedding.

    Returns:
        The configuration (empty without a file) and the fields.

    Raises:
        Bad: one of the files is no JSON or too large; names it.
        OSError: one of the files cannot be read.
    """
    config = read_object(folder / "config.json")
    said = read_object(folder / "tokenizer_config.json")
    fields = config_facts(config, names)
    fields["name"] = folder.resolve().name
    fields["license"] = _license(folder, config)
    fields["chat_template"] = _template(folder, said)
    fields["tokenizer"] = _tokenizer(folder, said)
    if (folder / "modules.json").is_file() and fields["task"] == "generate":
        fields["task"] = "embed"  # sentence-transformers writes it, whatever the architecture
    if fields["task"] == "embed":
        behind = sentence.look(folder)
        fields["pooling"] = behind.pooling
        fields["notes"] += sentence.notes(behind)
    return config, fields


def adapter(folder: Path, names: Collection[str], files: Collection[str]) -> tuple[str, list[str]]:
    """`ModelInfo.part` and a note for weights that only change a model's.

    Args:
        folder: where the files lie.
        names: the tensors' names.
        files: names of the files they are in.

    Raises:
        Bad: `adapter_config.json` is no JSON or too large.
        OSError: it cannot be read.
    """
    lora = any(".lora_" in name for name in names)
    named = bool(files) and all(name.startswith("adapter_model") for name in files)
    said = read_object(folder / "adapter_config.json") if lora or named else {}
    if not lora and not said:
        return "", []
    base = said.get("base_model_name_or_path")
    made = f" for {base[:200]!r}" if isinstance(base, str) and base else ""
    kind = "LoRA" if lora else _word(said.get("peft_type")) or "PEFT"
    return "adapter", [f"it is a {kind} adapter{made}, not a model by itself"]


def config_facts(config: dict[str, Any], names: Collection[str] = ()) -> dict[str, Any]:
    """The fields of `ModelInfo` that a `config.json` tells. Sizes it does not say are zero."""
    inner = config.get("text_config", config.get("llm_config"))
    text = {**config, **inner} if isinstance(inner, dict) else config
    found: dict[str, Any] = {field: _first(text, *keys) for field, keys in _KEYS.items()}
    kind = _word(config.get("model_type")) or _architecture(config)
    heads, width = found["heads"], found["width"]
    head = _first(text, "head_dim", "kv_channels") or (width // heads if heads else 0)
    if text.get("multi_query") is True and not _first(text, "num_kv_heads", "n_head_kv"):
        found["kv_heads"] = 1
    latent = _first(text, "qk_nope_head_dim") + _first(text, "qk_rope_head_dim")
    if kind in ("roberta", "xlm-roberta", "camembert") and found["context"] > 2:
        found["context"] -= 2  # positions begin behind the padding token's
    task, notes = _task(config, kind)
    if isinstance(inner, dict) and ("vision_config" in config or "audio_config" in config):
        notes.append("it also has parts for images or sound, which are not used")
    if config.get("quantization_config"):
        notes.append(_quantised(config["quantization_config"]))
    if config.get("auto_map"):
        notes.append("it names program code of its own (`auto_map`), which is never run")
    return found | {
        "architecture": kind,
        "kv_heads": found["kv_heads"] or heads,
        "key_length": latent or head,
        "value_length": _first(text, "v_head_dim") or head,
        "window": _window(text),
        "tied": task == "generate" and _tied(text, names),
        "task": task,
        "notes": tuple(notes),
    }


def _first(config: dict[str, Any], *keys: str) -> int:
    """The first of `keys` that holds a sensible size; zero for none."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list):  # sizes may differ per layer
            value = max((n for n in value if type(n) is int), default=0)
        if type(value) is int and 0 < value < _MOST:
            return value
    return 0


def _word(value: object) -> str:
    return value[:100] if isinstance(value, str) else ""


def _architecture(config: dict[str, Any]) -> str:
    found = config.get("architectures")
    return _word(found[0]) if isinstance(found, list) and found else ""


def _task(
    config: dict[str, Any], kind: str
) -> tuple[Literal["generate", "embed", "rerank"], list[str]]:
    """What the model is for, by the name of its architecture."""
    name = _architecture(config)
    if name.endswith("ForSequenceClassification"):
        labels = config.get("id2label")
        count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 1)
        if count == 1:
            return "rerank", []
        return "embed", [f"it sorts texts into {count} classes, which no engine here does"]
    if name.endswith(("ForMaskedLM", "EncoderModel")) or kind in _ENCODERS:
        return "embed", []
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        return "embed", []
    if config.get("is_encoder_decoder") is True:
        return "generate", ["it is an encoder and a decoder, not a decoder alone"]
    return "generate", []


def _quantised(block: object) -> str:
    method = _word(block.get("quant_method")) if isinstance(block, dict) else ""
    return f"its weights are quantised already ({method or 'the method is not said'})"


def _window(text: dict[str, Any]) -> int:
    kinds = text.get("layer_types")
    if text.get("use_sliding_window") is False:
        return 0
    if isinstance(kinds, list) and "sliding_attention" not in kinds:
        return 0
    return _first(text, "sliding_window")


def _tied(text: dict[str, Any], names: Collection[str]) -> bool:
    """By the weights where they are known: a default of `config.json` differs per family."""
    if text.get("tie_word_embeddings") is True:
        return True
    return bool(names) and not any(name.endswith(_OUTPUTS) for name in names)


# ---------------------------------------------------------------- the files beside it


def _template(folder: Path, said: dict[str, Any]) -> str | None:
    """The chat template: its own file first, as `transformers` does."""
    try:
        return read_bytes(folder / "chat_template.jinja", 1 << 20).decode("utf-8", "replace")
    except FileNotFoundError:
        pass
    own = read_object(folder / "chat_template.json").get("chat_template")
    value = own if own is not None else said.get("chat_template")
    if isinstance(value, list):  # several, by name
        named = {str(t.get("name")): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default", next(iter(named.values()), None))
    return value if isinstance(value, str) and value else None


def _tokenizer(folder: Path, said: dict[str, Any]) -> str:
    """The kind of tokenizer, by the files that are there."""
    try:
        content = read_bytes(folder / "tokenizer.json", MAX_TOKENIZER)
    except FileNotFoundError:
        return _tokenizer_without(folder, said)
    try:
        model = msgspec.json.decode(content, type=_TokenizerFile).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Bad(f"`tokenizer.json` cannot be read: {str(exc)[:200]}") from None
    kind = {"BPE": "bpe", "Unigram": "unigram", "WordPiece": "wordpiece"}.get(model.type)
    if kind is None and not model.type:  # old files leave the type out; a list is Unigram's
        kind = "unigram" if bytes(model.vocab)[:1] == b"[" else "bpe"
    return "spm" if kind == "bpe" and model.byte_fallback else kind or model.type.lower()[:40]


def _tokenizer_without(folder: Path, said: dict[str, Any]) -> str:
    if (folder / "tokenizer.model").is_file():
        with (folder / "tokenizer.model").open("rb") as file:
            return "spm" if file.read(1) == b"\n" else "tiktoken"
    kinds = (
        ("tekken.json", "tiktoken"), ("merges.txt", "bpe"), ("vocab.txt", "wordpiece"),
        ("spiece.model", "unigram"), ("sentencepiece.bpe.model", "unigram"),
    )  # fmt: skip
    for name, kind in kinds:
        if (folder / name).is_file():
            return kind
    return "tiktoken" if any(folder.glob("*.tiktoken")) else ""


def _license(folder: Path, config: dict[str, Any]) -> str:
    """From the facts at the head of the model card, between two lines of `---`."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(MAX_README).decode("utf-8", "replace")
    except (FileNotFoundError, IsADirectoryError):
        return _word(config.get("license"))
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = re.search(r"^license:[ \t]*[\"']?([\w.+-]{1,60})", head, re.MULTILINE)
    named = re.search(r"^license_name:[ \t]*[\"']?([\w.+-]{1,60})", head, re.MULTILINE)
    if found and found.group(1) == "other" and named:
        return named.group(1)
    return found.group(1) if found else _word(config.get("license"))


def checked_info(**fields: Any) -> ModelInfo:
    """A `ModelInfo` of these fields; an architecture that is not said is called `unknown`."""
    return ModelInfo(**{**fields, "architecture": fields.get("architecture") or "unknown"})
