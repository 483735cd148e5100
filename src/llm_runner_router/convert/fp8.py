"""Checkpoints in 8-bit floats with a scale per block of a matrix, seen as plain F32.

Knows: the scheme of DeepSeek V3 and Qwen's FP8 releases (`quant_method` `fp8`): `X.weight` in
E4M3, and `X.weight_scale_inv` with one factor for each block of `weight_block_size`. Does not know:
architectures. One matrix at a time is in memory as F32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo

from .arrays import decode

METHOD: Final = "fp8"
SCALE: Final = "_scale_inv"
BLOCK: Final = (128, 128)


def is_scaled(config: Mapping[str, Any]) -> bool:
    """Whether `config.json` tells of this scheme."""
    block = config.get("quantization_config")
    return isinstance(block, Mapping) and block.get("quant_method") == METHOD


class Plain:
    """A checkpoint whose scaled matrices read as F32. Closing it closes the one inside.

    Raises:
        ModelFileError: a scale does not fit its matrix; names it.
    """

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self._config = {k: v for k, v in inner.config.items() if k != "quantization_config"}
        block = inner.config["quantization_config"].get("weight_block_size") or BLOCK
        self._block = (int(block[0]), int(block[1]))
        self._weights: dict[str, Weight] = {}
        for weight in inner.weights.values():
            if weight.name.endswith((SCALE, ".input_scale", ".activation_scale")):
                continue
            if f"{weight.name}{SCALE}" in inner.weights:
                self._check(weight)
                count = weight.shape[0] * weight.shape[1]
                weight = Weight(weight.name, "F32", weight.shape, 4 * count)
            self._weights[weight.name] = weight

    def _check(self, weight: Weight) -> None:
        scale = self._inner.weights[f"{weight.name}{SCALE}"]
        blocks = tuple(-(-n // b) for n, b in zip(weight.shape, self._block, strict=False))
        if len(weight.shape) != 2 or scale.shape != blocks:
            raise ModelFileError(
                f"`{scale.name}` has the shape {scale.shape}, but `{weight.name}` of shape"
                f" {weight.shape} has {blocks} blocks",
                hint="download it again",
            )

    @property
    def path(self) -> Path:
        """Where it was opened from."""
        return self._inner.path

    @property
    def info(self) -> ModelInfo:
        """The facts of the checkpoint inside."""
        return self._inner.info

    @property
    def config(self) -> Mapping[str, Any]:
        """`config.json` without the block that tells of the scheme."""
        return self._config

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The matrices and vectors, without their scales."""
        return self._weights

    def read(self, name: str) -> memoryview:
        """The numbers of a tensor.

        Raises:
            KeyError: there is no such tensor.
        """
        inner = self._inner.weights[name]
        if self._weights[name].dtype == inner.dtype:
            return self._inner.read(name)
        scale = self._inner.weights[f"{name}{SCALE}"]
        numbers = decode(self._inner.read(name), inner.dtype, inner.shape)
        factors = decode(self._inner.read(scale.name), scale.dtype, scale.shape)
        rows, columns = inner.shape
        wide = factors.repeat(self._block[0], 0)[:rows].repeat(self._block[1], 1)[:, :columns]
        return np.ascontiguousarray(numbers * wide).data.cast("B")

    def close(self) -> None:
        """Unmap the files."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
