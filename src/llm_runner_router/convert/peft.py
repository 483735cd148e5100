"""LoRA adapters in the layout of PEFT to GGUF, for a base model of a family that is converted.

Knows: PEFT's `adapter_config.json` and names of tensors, what llama.cpp does with an adapter. Does
not know: any family's rows (`architectures/`), the base's weights; of the base only its settings
are wanted. numpy is imported when a conversion runs.

An adapter adds `scale · B · A` to a weight; llama.cpp takes `alpha / rank` as the scale of all.
What a family does to the rows of a weight on its way to GGUF (`interleave` of queries and keys,
halves of a fused projection) happens to the rows of B; A is as it was. Where PEFT scales a weight
differently (`use_rslora`, `alpha_pattern`), B is multiplied by the quotient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadRequest, ModelFileError, Unsupported
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.plugins import load

from .base import Options, Tick, converts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .arrays import Array
    from .family import Config, Family

CONFIG: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])(\.default)?\.weight\Z")
_OTHERS: Final = (
    ("lora_magnitude_vector", "DoRA"),
    ("lora_embedding_", "an adapter of the embedding"),
    (".bias", "biases of its own"),
    ("base_layer", "weights of the base model"),
    (".lora_", "an unknown part of an adapter"),
)
"""What a tensor that is no A or B may be, by a part of its name."""
_REFUSED: Final = (
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("lora_bias", "biases of its own"),
    ("modules_to_save", "whole modules in place of the model's"),
    ("trainable_token_indices", "embeddings of single tokens"),
    ("layer_replication", "layers that are repeated"),
    ("target_parameters", "weights that are no layers, as of experts"),
    ("alora_invocation_tokens", "activation by tokens (aLoRA)"),
    ("arrow_config", "routing between adapters (Arrow)"),
    ("use_bdlora", "block-diagonal parts"),
)
"""Settings that change what an adapter is, and what they mean."""
_PLAIN_STARTS: Final = ("gaussian", "orthogonal", "eva")
"""Words of `init_lora_weights` that leave the base as it was; PiSSA and its kin change it."""
_NAME = re.compile(r"\^?[\w.]+\Z")
RUN_IT: Final = "merge it into the model with PEFT (`merge_and_unload`) and convert that"


class Adapter(Struct, frozen=True):
    """What `adapter_config.json` says of the scale."""

    alpha: float
    stable: bool = False
    """Divided by the root of the rank, not by the rank (`use_rslora`)."""
    alphas: dict[str, float] = {}
    """Other values of alpha, by the end of a module's name."""
    turned: bool = False
    """The base keeps its weights as (in, out) (`fan_in_fan_out`)."""

    def scale(self, module: str, rank: int) -> float:
        """What PEFT multiplies `B · A` of a module with."""
        alpha = self.alpha
        for end, other in self.alphas.items():
            name = end.removeprefix("^")
            if module == name or (not end.startswith("^") and module.endswith(f".{name}")):
                alpha = other
                break
        return alpha / (math.sqrt(rank) if self.stable else rank)


class _Pair(Struct, frozen=True):
    """The two factors for one weight of the GGUF file."""

    name: str
    a: str
    b: str
    width: int
    rows: Any
    """Which rows of B, in which order; None is all as they are."""
    height: int
    rank: int
    factor: float


class _Base(Struct, frozen=True):
    """The model that an adapter changes: its settings, and what becomes of its weights."""

    config: Any
    """A `family.Config`; named so because msgspec reads the types of fields when they are used."""
    family: Any
    rows: Any


def base_settings(path: Path) -> str:
    """The settings of the base model at `path` that a conversion needs, as JSON for `Options.base`.

    Args:
        path: a Hugging Face folder, a file in one, or a GGUF file.

    Raises:
        ModelFileError: it is no model, or does not say its class.
        Unsupported: a GGUF file of an architecture that is not converted.
    """
    from llm_runner_router.models.detect import check_whole, detect

    found = detect(path)
    if found.name == "gguf":
        settings = _of_gguf(path)
    else:
        from .vocabulary import read_json

        check_whole(path, found.describe(path))
        settings = read_json((path if path.is_dir() else path.parent) / "config.json")
        if not settings:
            raise ModelFileError(
                f"the base model `{path}` has no `config.json`", hint="name its whole folder"
            )
    return msgspec.json.encode(settings, order="sorted").decode()


def _of_gguf(path: Path) -> dict[str, Any]:
    """The little of `config.json` that rows depend on, from a GGUF file."""
    from llm_runner_router.models.detect import check_whole

    from .hf_tensors import families

    opened: Checkpoint = load("models.formats", "gguf").open_checkpoint(path)
    with opened as checkpoint:
        info, fields = checkpoint.info, checkpoint.config
        check_whole(path, info)
        known = [c for c, family in families().items() if family.name == info.architecture]
        if not known:
            raise Unsupported(
                f"adapters for `{info.architecture}`, which `{path}` is, are not converted",
                hint="take an adapter that is GGUF already",
            )
        heads = fields.get(f"{info.architecture}.attention.head_count_kv", info.heads)
        if not isinstance(heads, int):
            raise Unsupported(f"the heads of `{path}` differ from layer to layer")
        return {
            "architectures": [known[0]],
            "hidden_size": info.width,
            "num_hidden_layers": info.layers,
            "num_attention_heads": info.heads,
            "num_key_value_heads": heads,
            "head_dim": info.key_length,
            # Falcon's own words for the same.
            "num_kv_heads": heads,
            "new_decoder_architecture": info.architecture == "falcon" and heads > 1,
            "multi_query": heads == 1,
        }


@converts("peft", "gguf-adapter", grow=2.1, speed=100e6)
def from_peft(source: Path, target: Path, options: Options, tick: Tick) -> None:
    """A folder with a LoRA adapter of PEFT as the GGUF adapter `target`.

    Raises:
        BadRequest: `options.base` does not say for which model.
        Unsupported: the adapter does more than add `B · A` to matrices that llama.cpp multiplies
            with; names the setting or the tensor.
        ModelFileError: a file or a tensor is missing or makes no sense; names it.
        Cancelled: `tick` raised it.
    """
    from . import hf_tensors
    from .family import Config, sensible
    from .vocabulary import read_json

    folder = source if source.is_dir() else source.parent
    if not options.base:
        raise BadRequest(
            f"`{folder.name}` is a LoRA adapter, and it is not said for which model",
            param="base",
            hint="name the model: `--base ./model`",
        )
    adapter = read(read_json(folder / CONFIG), folder)
    with sensible("config.json of the base model"):
        config = Config(msgspec.json.decode(options.base, type=dict[str, Any]))
        family = hf_tensors.family_of(config)
    with load("models.formats", _format(source)).open_checkpoint(source) as checkpoint:
        with sensible(f"{folder.name}/{CONFIG}"):
            pairs = _planned(adapter, config, family, checkpoint.weights)
        _write(
            target, adapter, family.name, folder.resolve().name, pairs, checkpoint, options, tick
        )


def read(said: Mapping[str, Any], folder: Path) -> Adapter:
    """The settings of `adapter_config.json`, checked. Pure.

    Raises:
        Unsupported: an adapter of another kind; names the setting.
        ModelFileError: a setting is missing or makes no sense.
    """
    where = f"`{CONFIG}` of `{folder}`"
    if not said:
        raise ModelFileError(f"`{folder}` has no `{CONFIG}`", hint="name the adapter's folder")
    if said.get("peft_type") != "LORA":
        raise Unsupported(f"{where} says `peft_type`: {said.get('peft_type')!r}, not LORA")
    for field, meaning in _REFUSED:
        if said.get(field):
            raise _cannot(f"{where} says `{field}`: {meaning}")
    if said.get("bias") not in (None, "none"):
        raise _cannot(f"{where} says `bias`: {said['bias']!r}: biases of its own")
    start = said.get("init_lora_weights", True)
    if isinstance(start, str) and start not in _PLAIN_STARTS:
        raise _cannot(f"{where} says `init_lora_weights`: {start!r}: it changes the base, too")
    alphas = said.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise ModelFileError(f"{where} has an `alpha_pattern` that is no object")
    for name in alphas:
        if not _NAME.match(name):
            raise _cannot(
                f"{where} has the pattern {name[:80]!r} in `alpha_pattern`: no plain name"
            )
    return Adapter(
        alpha=_positive(said.get("lora_alpha"), "lora_alpha", where),
        stable=bool(said.get("use_rslora")),
        alphas={k: _positive(v, f"alpha_pattern.{k}", where) for k, v in alphas.items()},
        turned=bool(said.get("fan_in_fan_out")),
    )


def _positive(value: Any, field: str, where: str) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value < 1e9:
        raise ModelFileError(f"{where} says `{field}`: {value!r}, not a number above 0")
    return float(value)


def _cannot(problem: str) -> Unsupported:
    return Unsupported(f"{problem}; llama.cpp has no such adapters", hint=RUN_IT)


def _format(source: Path) -> str:
    """The format of the adapter's weights; safetensors where there are both."""
    from llm_runner_router.models.detect import detect

    return detect(source).name


# ---------------------------------------------------------------- which tensors


def _planned(
    adapter: Adapter, config: Config, family: Family, weights: Mapping[str, Weight]
) -> list[_Pair]:
    from .family import Rows
    from .hf_tensors import layer_of, usual_name

    base = _Base(config, family, Rows(family.rows))
    pairs: list[_Pair] = []
    for module, (a, b) in sorted(_modules(weights.values()).items()):
        for one, which in ((a, "A"), (b, "B")):
            if len(one.shape) != 2 or 0 in one.shape:
                raise ModelFileError(f"`{one.name}` has the shape {one.shape}: {which} is a matrix")
        if a.shape[0] != b.shape[1]:
            raise ModelFileError(
                f"`{module}` has a rank of {a.shape[0]} in A and of {b.shape[1]} in B"
            )
        layer = layer_of(usual_name(f"{module}.weight"))
        if layer is not None and layer >= config.layers:
            raise ModelFileError(
                f"the adapter changes `{module}`, and the model has {config.layers} layers",
                hint="name the model that it was made for",
            )
        pairs += _of_module(adapter, base, module, a, b)
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise ModelFileError(f"the adapter has two parts for `{pair.name}`")
        seen.add(pair.name)
    if not pairs:
        raise ModelFileError(f"the adapter has no `lora_A` and `lora_B`: {sorted(weights)[:3]}")
    return pairs


def _modules(weights: Iterable[Weight]) -> dict[str, tuple[Weight, Weight]]:
    """A and B of every module that is changed.

    Raises:
        Unsupported: a tensor is something else; names it.
        ModelFileError: one of a pair is missing.
    """
    found: dict[str, dict[str, Weight]] = {}
    for weight in weights:
        pair = _PAIR.match(weight.name)
        if pair is None:
            kind = next((what for part, what in _OTHERS if part in weight.name), "whole weights")
            raise _cannot(f"the adapter has the tensor `{weight.name}`: {kind}")
        module = pair["module"].removeprefix(_PREFIX)
        if pair["which"] in found.setdefault(module, {}):
            raise ModelFileError(f"the adapter has two tensors for `{weight.name}`")
        found[module][pair["which"]] = weight
    for module, both in found.items():
        if len(both) != 2:
            missing = "B" if "A" in both else "A"
            raise ModelFileError(
                f"the adapter has no `lora_{missing}` for `{module}`", hint="download it again"
            )
    return {module: (both["A"], both["B"]) for module, both in found.items()}


def _of_module(adapter: Adapter, base: _Base, module: str, a: Weight, b: Weight) -> list[_Pair]:
    """The weights of the GGUF file that a module becomes.

    Raises:
        Unsupported: llama.cpp has no place for it, or its rows cannot be followed there.
    """
    from . import hf_tensors
    from .family import Context

    rank, (height, width) = a.shape[0], (b.shape[0], a.shape[1])
    source = f"{module}.weight"
    shape = (width, height) if adapter.turned else (height, width)
    context = Context(base.config, {source: Weight(source, "F32", shape, 4 * height * width)})
    name = hf_tensors.usual_name(source)
    nowhere = _cannot(
        f"the adapter changes `{module}`, which `{base.family.name}` has no matrix for"
    )
    if ".experts." in f".{module}":
        raise _cannot(f"the adapter changes `{module}`, an expert among others")
    outs = base.rows.plan(context, name, source)
    if not outs:
        raise nowhere
    # What the engine multiplies by alpha / rank shall be multiplied by the scale of PEFT.
    factor = adapter.scale(module, rank) * rank / adapter.alpha
    pairs = []
    for out in outs:
        if len(out.shape) != 2 or out.shape[1] != width or len(out.pieces) != 1:
            raise nowhere
        rows = _rows(out.pieces[0].make, height, out.shape[0], turned=adapter.turned)
        if rows is None:
            raise nowhere
        pairs.append(_Pair(out.name, a.name, b.name, width, rows, out.shape[0], rank, factor))
    return pairs


def _rows(make: Any, height: int, wanted: int, *, turned: bool) -> NDArray[np.int64] | None:
    """Which rows a transform takes, told by what it does to a column of their numbers.

    None if it does something else with them.
    """
    import numpy as np

    numbers = np.arange(height, dtype=np.float32).reshape((1, -1) if turned else (-1, 1))
    if make is None:
        return None if turned or wanted != height else numbers[:, 0].astype(np.int64)
    try:
        moved = np.asarray(make(numbers))
    except (ValueError, IndexError, TypeError):
        return None
    if moved.shape != (wanted, 1):
        return None
    rows = moved[:, 0].astype(np.int64)
    right = np.array_equal(rows, moved[:, 0]) and rows.min() >= 0 and rows.max() < height
    return rows if right else None


# ---------------------------------------------------------------- the file


def _write(
    target: Path,
    adapter: Adapter,
    architecture: str,
    name: str,
    pairs: list[_Pair],
    checkpoint: Checkpoint,
    options: Options,
    tick: Tick,
) -> None:
    import numpy as np

    from . import arrays
    from .gguf_write import GGUFWriter
    from .hf_gguf import FILE_TYPES

    wanted = options.type.upper()
    if wanted not in FILE_TYPES:
        raise Unsupported(f"an adapter is not written as {wanted}", param="type", hint="`f16`")

    def read(name: str) -> Array:
        weight = checkpoint.weights[name]
        found = arrays.decode(checkpoint.read(name), weight.dtype, weight.shape)
        if not np.isfinite(found).all():
            raise ModelFileError(f"the adapter's tensor `{name}` holds a number that is not finite")
        return found

    def type_of(row: int) -> str:
        return wanted if arrays.fits(wanted, row) else "F16"

    with GGUFWriter(target, architecture) as writer:
        writer.field("general.type", "adapter")
        writer.field("general.name", name)
        writer.field("general.file_type", FILE_TYPES[wanted], "U32")
        writer.field("adapter.type", "lora")
        writer.field("adapter.lora.alpha", adapter.alpha, "F32")
        for pair in pairs:
            writer.tensor(f"{pair.name}.lora_a", type_of(pair.width), (pair.rank, pair.width))
            writer.tensor(f"{pair.name}.lora_b", type_of(pair.rank), (pair.height, pair.rank))
        writer.begin()
        for done, pair in enumerate(pairs):
            tick(done, len(pairs), pair.name)
            up = read(pair.b)[pair.rows] * np.float32(pair.factor)
            for end, array in (("a", read(pair.a)), ("b", up)):
                dtype = type_of(array.shape[-1])
                writer.data(f"{pair.name}.lora_{end}", arrays.encode(array, dtype))
        tick(len(pairs), len(pairs), "")
        writer.finish()
