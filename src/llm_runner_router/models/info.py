"""What a model file says about itself, and a model that is ready to be loaded.

Knows: the shape of these facts. Does not know: how a file is read (`formats/`), how names are found
(`resolve.py`), what a model needs in memory (`engine/fit.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.types import ModelCard

PARTS: Final[dict[str, tuple[str, str]]] = {
    "adapter": (
        "a LoRA adapter, which changes a model and is none by itself",
        "name its model, and the adapter under `adapters:` of that: docs/how-to/use-lora.md",
    ),
    "mmproj": (
        "a projector for images or sound (`mmproj`), not the model that it belongs to",
        "name the model's own file",
    ),
    "imatrix": (
        "an importance matrix, which `llmrr quantize --imatrix` reads, not a model",
        "name the model's own file",
    ),
}
"""What a file may be that goes with a model: what to call it, and what to do with it."""


ENCODERS: Final = ("bert", "embedding", "t5encoder")
"""What the names of architectures have in them that read a text whole and keep nothing of it."""


class ModelInfo(Struct, frozen=True):
    """Facts from a file's header. Zero or empty where the file does not say."""

    format: str
    """Which format the file has: the name of its module in `formats/`."""
    architecture: str
    name: str = ""
    license: str = ""
    parameters: int = 0
    """Number of weights, counted from the tensors."""
    quantisation: str = ""
    """The type most weights have, for example `Q8_0`."""
    types: dict[str, int] = {}
    """Bytes of weights per type."""
    bytes: int = 0
    """Size of the file, or of all its parts."""
    tensors: int = 0
    context: int = 0
    """Tokens of context it was trained for."""
    layers: int = 0
    width: int = 0
    """Length of an embedding."""
    heads: int = 0
    kv_heads: int = 0
    """Heads of keys and values; the largest of all layers where they differ."""
    key_length: int = 0
    value_length: int = 0
    vocabulary: int = 0
    chat_template: str | None = None
    task: Literal["generate", "embed", "rerank"] = "generate"
    """What the model is for."""
    pooling: str = ""
    """How the vectors of tokens become one: `mean`, `cls`, `last` or another of `sentence.py`;
    `rank` for a score. Empty where the file does not say."""
    tokenizer: str = ""
    """Kind of tokenizer: `bpe`, `spm`, `unigram`, `wordpiece`, `tiktoken`; with its pre-tokenizer's
    name after a colon where the file says it."""
    experts: int = 0
    """Experts per layer of a mixture; zero for a dense model."""
    experts_used: int = 0
    window: int = 0
    """Tokens of a sliding window of attention; zero for none."""
    tied: bool = False
    """The output shares its weights with the embedding."""
    part: str = ""
    """What the file is where it is no model by itself: one of `PARTS`."""
    notes: tuple[str, ...] = ()
    """What is unusual and an engine or a converter should know, in words."""

    @property
    def encoder(self) -> bool:
        """It reads a text whole, without keys and values that stay."""
        return any(word in self.architecture for word in ENCODERS)


class Adapter(Struct, frozen=True):
    """A LoRA adapter of a model, under the name that requests ask for it by."""

    name: str
    path: Path
    """A GGUF file; or a folder of PEFT's, or a file in one, which is not converted yet."""
    bytes: int = 0
    """Size of its weights."""


class LocalModel(Struct, frozen=True):
    """A model file that can be loaded, under its canonical name."""

    name: str
    """The canonical reference, for example `zoo:tiny-math` or `file:/models/a.gguf`."""
    path: Path
    """The file, or the folder of a model of several files."""
    info: ModelInfo
    card: ModelCard
    engine: str | None = None
    """The engine that must run it; None is the best that can."""
    options: dict[str, Any] = {}
    """What the configuration says to that engine."""
    quantization: str | None = None
    """The mix that is wanted of its weights, for example `q4_k_m`, or `dynamic`; None is what the
    file has."""
    draft: LocalModel | None = None
    """A small model with the same tokens that may guess ahead for it."""
    template: str | None = None
    """A chat template in place of the file's own; `info.chat_template` is the same text then. Every
    engine that renders templates must take it. None is the file's own."""

    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that are loaded with it; each request says which are applied, and how much."""

    @property
    def title(self) -> str:
        """The name that an engine puts into its answers: without the folder, which concerns nobody
        who asks."""
        kind, _, place = self.name.partition(":")
        return Path(place).name if kind == "file" else self.name


def templated(model: LocalModel, template: str) -> LocalModel:
    """`model` with another chat template than its file has."""
    info = replace(model.info, chat_template=template)
    return replace(model, template=template, info=info)
