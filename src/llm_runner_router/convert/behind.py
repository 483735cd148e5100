"""What follows an encoder on its way to GGUF: pooling, and dense layers as tensors of a checkpoint.

Knows: which of sentence-transformers' modules llama.cpp computes; what stands in a dense layer's
folder. Does not know: families, GGUF files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from llm_runner_router.errors import Unsupported
from llm_runner_router.models import sentence
from llm_runner_router.models.checkpoint import Checkpoint, Weight
from llm_runner_router.models.info import ModelInfo
from llm_runner_router.models.sentence import Dense, Modules

from .family import Family

POOLINGS: Final = {"mean": 1, "cls": 2, "last": 3}
"""`pooling_type`, as llama.cpp numbers it."""
RANK: Final = 4
FIRST: Final = 2
"""The number of the first dense layer, as sentence-transformers counts modules."""
_ELSEWHERE: Final = "run the folder as it is, with the engine `transformers` or `onnx`"
_LINEAR: Final = "linear."


def pooling_of(family: Family, found: Modules) -> int:
    """The number of the pooling; 0 where nothing is pooled, as in a model that writes.

    Raises:
        Unsupported: llama.cpp pools in no such way, or computes nothing like a module; names it.
    """
    if family.ranks:
        return RANK
    if not family.pooling:
        return 0
    if found.others:
        raise Unsupported(
            f"`modules.json` wants `{found.others[0]}`, which llama.cpp does not compute",
            hint="run it with sentence-transformers behind a server, and name that as a provider",
        )
    encoder = "bert" in family.name or "embedding" in family.name
    how = found.pooling or (sentence.MEAN if encoder else "")
    if how and how not in POOLINGS:
        raise Unsupported(
            f"its vectors are pooled by `{how}`, which llama.cpp does not do", hint=_ELSEWHERE
        )
    _check_dense(family, found.dense)
    return POOLINGS.get(how, 0)


def _check_dense(family: Family, layers: Sequence[Dense]) -> None:
    """There are none, or two that lead back to the width, without a bias or a curve."""
    if not layers:
        return
    names = ", ".join(f"`{layer.folder.name}`" for layer in layers)
    why = ""
    if not family.dense:
        why = f"`{family.name}` has no place for them"
    elif len(layers) != 2:
        why = f"`{family.name}` has a place for two"
    elif any(layer.bias or layer.activation != "identity" for layer in layers):
        why = "it has a place for their weights only, not for a bias or an activation"
    elif layers[0].outputs != layers[1].inputs or layers[0].inputs != layers[1].outputs:
        why = "it has a place for those only that lead back to the width they began with"
    if why:
        raise Unsupported(
            f"dense layers follow the pooling ({names}): in llama.cpp, {why}", hint=_ELSEWHERE
        )


class WithDense:
    """A checkpoint with the weights of dense layers as `dense.2.weight`, `dense.3.weight`, …

    Its configuration has `dense_features`, a pair of sizes for each. Closing it closes all.

    Raises:
        ModelFileError: a layer's weights are missing or have another shape.
    """

    def __init__(self, inner: Checkpoint, layers: Sequence[Dense]) -> None:
        self._inner = inner
        self._stack = ExitStack()
        self._weights = dict(inner.weights)
        self._from: dict[str, tuple[Checkpoint, str]] = {}
        try:
            for number, layer in enumerate(layers, FIRST):
                self._add(number, layer)
        except BaseException:
            self._stack.close()
            raise
        features = [[layer.inputs, layer.outputs] for layer in layers]
        self._config = {**inner.config, "dense_features": features}

    def _add(self, number: int, layer: Dense) -> None:
        weights = self._stack.enter_context(sentence.opened(layer))
        for name, weight in weights.weights.items():
            ours = f"dense.{number}.{name.removeprefix(_LINEAR)}"
            self._weights[ours] = Weight(ours, weight.dtype, weight.shape, weight.bytes)
            self._from[ours] = weights, name

    @property
    def path(self) -> Path:
        """Where the encoder was opened from."""
        return self._inner.path

    @property
    def info(self) -> ModelInfo:
        """The facts of the encoder."""
        return self._inner.info

    @property
    def config(self) -> Mapping[str, Any]:
        """The encoder's, and `dense_features`."""
        return self._config

    @property
    def weights(self) -> Mapping[str, Weight]:
        """The encoder's, then those of the layers."""
        return self._weights

    def read(self, name: str) -> memoryview:
        """The numbers of a tensor.

        Raises:
            KeyError: there is no such tensor.
        """
        if name in self._from:
            opened, theirs = self._from[name]
            return opened.read(theirs)
        return self._inner.read(name)

    def close(self) -> None:
        """Unmap the files."""
        self._stack.close()
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
