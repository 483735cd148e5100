"""Which tensors a GGUF file gets from a checkpoint of Hugging Face, decided from names and shapes.

Knows: how the names of one model vary between classes and versions; what must be complete. Does not
know: any family's rows (`architectures/`), the numbers, the file that is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.plugins import load, names

from .family import Config, Context, Family, Out, Rows, refuse, sensible

FAMILIES: Final = "convert.architectures"
_PREFIXES: Final = (
    (re.compile(r"^(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)"), "model."),
    (re.compile(r"^(model\.)?language_model\.lm_head"), "lm_head"),
    (re.compile(r"^(?=(layers|embed_tokens|norm|final_layernorm)\.)"), "model."),
    (re.compile(r"^(?=(h|wte|wpe|ln_f|word_embeddings)\.)"), "transformer."),
    (re.compile(r"^(bert|roberta)\."), ""),
)
_SENSES: Final = re.compile(
    r"^(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower"
    r"|embed_vision|embed_audio)\."
)
"""Parts of a model that see or hear; the model of text stands by itself."""
_LAYER = re.compile(r"\.(?:layers|layer|h)\.(\d+)\.")
_BLOCK = re.compile(r"^blk\.(\d+)\.")


class Plan(Struct, frozen=True):
    """The tensors to write, and what is left out."""

    family: Family
    config: Config
    outs: tuple[Out, ...]
    rows: int
    """Rows of the embedding: how many tokens the vocabulary must have."""
    notes: tuple[str, ...] = ()


@cache
def families() -> dict[str, Family]:
    """Every family by the names of its classes."""
    return {
        name: family
        for module in names(FAMILIES)
        for family in load(FAMILIES, module).FAMILIES
        for name in family.classes
    }


def fields(found: Plan) -> dict[str, object]:
    """The family's GGUF fields for this model, without the architecture in front.

    Raises:
        Unsupported, ModelFileError: as `plan`.
    """
    with sensible("config.json"):
        return found.family.fields(found.config)


def extra(found: Plan) -> list[tuple[str, list[float]]]:
    """Tensors that are computed from the settings: name and values.

    Raises:
        Unsupported, ModelFileError: as `plan`.
    """
    with sensible("config.json"):
        return list(found.family.extra(found.config))


def plan(raw: Mapping[str, object], weights: Mapping[str, Weight]) -> Plan:
    """What becomes of a checkpoint.

    Args:
        raw: the content of `config.json`.
        weights: its tensors.

    Raises:
        Unsupported: an architecture, setting or tensor that has no place in GGUF; names it.
        ModelFileError: a tensor or setting is missing or makes no sense; names it.
    """
    with sensible("config.json"):
        return _plan(Config(raw), weights)


def _plan(config: Config, weights: Mapping[str, Weight]) -> Plan:
    family = family_of(config)
    _check_plain(config)
    family.check(config)
    kind = config.rope["rope_type"].lower()
    # Only `phi3` has the two tensors of factors; without them llama.cpp would rotate plainly.
    if kind in ("su", "longrope") and family.name != "phi3":
        raise refuse("rope_scaling", kind, family.name)
    context, rows = Context(config, weights), Rows(family.rows)
    outs: dict[str, Out] = {}
    senses = 0
    for source in weights:
        if _SENSES.match(source):
            senses += 1
            continue
        name = usual_name(source)
        layer = layer_of(name)
        if layer is not None and layer >= config.layers:
            continue  # layers that only predict several tokens at once
        planned = rows.plan(context, name, source)
        if planned is None:
            raise Unsupported(
                f"`{config.architecture}` has the tensor `{source}` of shape"
                f" {weights[source].shape}, which llama.cpp's `{family.name}` has no place for",
                hint="run the folder as it is, with the engine `torch`",
            )
        outs.update((out.name, out) for out in planned)
    _tie(config, family, outs)
    _check_complete(config, outs)
    notes = (f"{senses} tensors for images or sound are left out",) if senses else ()
    rows_of_embedding = outs["token_embd.weight"].shape[0]
    return Plan(family, config, tuple(outs.values()), rows_of_embedding, notes)


def usual_name(source: str) -> str:
    """The name a tensor has in the class that generates text."""
    for pattern, usual in _PREFIXES:
        source, found = pattern.subn(usual, source, count=1)
        if found:
            break
    return source


def layer_of(name: str) -> int | None:
    """The layer in a tensor's usual name; None for one that belongs to none."""
    found = _LAYER.search(f".{name}")
    return None if found is None else int(found[1])


def family_of(config: Config) -> Family:
    """The family of a model, by the class that it names.

    Raises:
        ModelFileError: it names none.
        Unsupported: that class is not converted.
    """
    known = families()
    if config.architecture in known:
        return known[config.architecture]
    if not config.architecture:
        raise ModelFileError(
            "`config.json` does not say its class in `architectures`",
            hint='add it, for example `"architectures": ["LlamaForCausalLM"]`',
        )
    raise Unsupported(
        f"`architectures` in `config.json` is `{config.architecture}`, which is not converted",
        hint="run the folder as it is, with the engine `torch`;"
        f" converted are: {', '.join(sorted(known))}",
    )


def _check_plain(config: Config) -> None:
    """Weights must be numbers, not codes of a quantiser."""
    given = config.get("quantization_config", "quantization")
    if isinstance(given, Mapping):
        method = given.get("quant_method", "mlx" if "group_size" in given else "unknown")
        raise Unsupported(
            f"its weights are quantised already (`quantization_config`: `{method}`)",
            hint="convert the model that it was made from; such a folder runs as it is with the"
            " engine `torch`",
        )


def _tie(config: Config, family: Family, outs: dict[str, Out]) -> None:
    """The output is the embedding: left out where llama.cpp knows that, else written twice."""
    embedding = outs.get("token_embd.weight")
    if embedding is None:
        raise ModelFileError("the checkpoint has no embedding of tokens")
    if family.output and "output.weight" not in outs:
        outs["output.weight"] = Out("output.weight", embedding.shape, embedding.pieces)
    elif config.get("tie_word_embeddings") and not family.output:
        outs.pop("output.weight", None)


def _check_complete(config: Config, outs: Mapping[str, Out]) -> None:
    """Every block has the tensors that most blocks of its kind have: none was lost on the way."""
    blocks: dict[int, set[str]] = {}
    for name in outs:
        if found := _BLOCK.match(name):
            blocks.setdefault(int(found[1]), set()).add(name[found.end() :])
    missing = sorted(set(range(config.layers)) - set(blocks))
    if missing:
        raise ModelFileError(
            f"the checkpoint has no tensors of layer {missing[0]}, of {config.layers}",
            hint="download it again; it is incomplete",
        )
    everywhere = ("attn_output.weight", "ffn_norm.weight", "attn_norm.weight")
    for part in everywhere:
        having = {i for i, parts in blocks.items() if part in parts}
        if having and len(having) < config.layers:
            lost = min(set(blocks) - having)
            raise ModelFileError(
                f"layer {lost} of the checkpoint has nothing for `{part}`",
                hint="download it again; it is incomplete",
            )
