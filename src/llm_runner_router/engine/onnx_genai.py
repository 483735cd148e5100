"""The `onnx_genai` engine: decoders with a `genai_config.json`, computed by onnxruntime-genai.

Knows: which models it reads and what they cost in memory. Does not know: the library, which
`runners/onnx_genai.py` imports in the child. It computes logits only; templates, sampling and
grammars are our endpoint's, so answers mean the same as on every other engine.

What it cannot do: embeddings; LoRA adapters (a graph must be made for them, ours are not); several
answers in one computation (they take turns).
"""

from __future__ import annotations

from llm_runner_router.models.info import ModelInfo

from . import onnx
from .adapting import adapt as adapt
from .base import RUNNERS, Feature, Verdict
from .devices import Machine
from .endpoint import FEATURES as LOGITS
from .onnx import order as order
from .onnx import place as place

NAME = "onnx_genai"
EXTRA: str | None = "onnx"
NEEDS: tuple[str, ...] = ("onnxruntime_genai",)
RUNNER = f"{RUNNERS}.onnx_genai"
FEATURES: frozenset[Feature] = LOGITS


def can_run(info: ModelInfo, machine: Machine) -> Verdict:
    """ONNX decoders with the library's own configuration beside them."""
    if info.format != onnx.FORMAT:
        return Verdict(NAME, 0.0, f"reads ONNX, not {info.format}")
    if info.task != "generate":
        return Verdict(NAME, 0.0, "writes text; this model does not")
    if not onnx.is_genai(info):
        return Verdict(NAME, 0.0, "needs `genai_config.json` beside the graph, which is not there")
    return Verdict(NAME, 0.9, "reads it as it is")
