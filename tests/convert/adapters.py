"""Random LoRA adapters in PEFT's layout, and models with them put into the weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import numpy as files

SKIPPED = ("embed", "wte", "wpe", "norm", "ln_", "lm_head", "experts", "gate.", "router", "kv_b")
"""Parts of names of matrices that these adapters leave alone."""


def make(
    base: Path,
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    size: float = 0.3,
    ranks: dict[str, int] | None = None,
    turned: bool = False,
    only: tuple[str, ...] = (),
    **settings: Any,
) -> Path:
    """An adapter for every matrix inside the layers of the model at `base`.

    Args:
        size: spread of the change of a weight, about.
        ranks: other ranks, by the end of a module's name.
        turned: the base keeps its weights as (in, out).
        only: ends of the names of the modules that are changed; empty is all.
        settings: further entries of `adapter_config.json`.
    """
    random = np.random.default_rng(seed)
    parts: dict[str, Any] = {}
    for name, weight in files.load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.ndim != 2 or any(part in name for part in SKIPPED):
            continue
        if only and not module.endswith(only):
            continue
        height, width = weight.shape[::-1] if turned else weight.shape
        r = next((n for end, n in (ranks or {}).items() if module.endswith(end)), rank)
        down = random.normal(size=(r, width)) / math.sqrt(width)
        up = random.normal(size=(height, r)) * size
        stem = f"base_model.model.{module}"
        parts[f"{stem}.lora_A.weight"] = down.astype(np.float32)
        parts[f"{stem}.lora_B.weight"] = up.astype(np.float32)
    folder.mkdir(parents=True)
    files.save_file(parts, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8.0,
            "bias": "none", "fan_in_fan_out": turned, "rank_pattern": ranks or {},
            "base_model_name_or_path": "base", **settings}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def merge(base: Path, folder: Path, *adapters: tuple[Path, float]) -> Path:
    """The model at `base` in F32 with `weight · scale · B · A` of each adapter added, as PEFT does.

    Args:
        adapters: folder of an adapter, and its weight.
    """
    shutil.copytree(base, folder)
    weights = {
        name: value.astype(np.float32)
        for name, value in files.load_file(base / "model.safetensors").items()
    }
    for adapter, share in adapters:
        said = json.loads((adapter / "adapter_config.json").read_text())
        parts = files.load_file(adapter / "adapter_model.safetensors")
        for name in [n for n in parts if ".lora_A." in n]:
            module = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
            down, up = parts[name], parts[name.replace(".lora_A.", ".lora_B.")]
            patterns = said.get("alpha_pattern") or {}
            ends = [value for end, value in patterns.items() if f".{module}".endswith(f".{end}")]
            alpha = ends[0] if ends else said["lora_alpha"]
            root = math.sqrt(len(down)) if said.get("use_rslora") else len(down)
            change = share * alpha / root * (up @ down)
            weights[f"{module}.weight"] += change.T if said["fan_in_fan_out"] else change
    files.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
