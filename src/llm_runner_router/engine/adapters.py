"""LoRA adapters made ready for llama.cpp: PEFT's are converted, each is checked with its model.

Knows: what llama.cpp wants of an adapter file (llama-adapter.cpp of b11549), the converter. Does
not know: requests (`lora.py`), the engine's parameters. The engine says no more than "Failed to
init server" of an adapter that is not the model's, so that is found out before it is started, from
the names and shapes of both files; no weights are read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from llm_runner_router.errors import LoadFailed, ModelFileError, RunnerError
from llm_runner_router.models.checkpoint import Weight
from llm_runner_router.models.detect import describe
from llm_runner_router.models.info import Adapter, LocalModel
from llm_runner_router.plugins import load

WAIT: Final = 600.0
"""Seconds that converting one adapter may take."""
AGAIN: Final = 60.0
"""Seconds after which what failed is tried again; at once if one of the files was changed."""
FILES: Final = 64
"""Files of a PEFT folder that are looked at; it has two, and a few about the training."""
WRONG: Final = "name the model that it was trained for, or another adapter"
MERGE: Final = "merge it into the model with PEFT (`merge_and_unload`) and convert that"

Stamp = tuple[tuple[str, int, int], ...]
"""Names, times of change and sizes of files."""


class _Kept(Struct, frozen=True):
    """What came of a model's adapters, for the files as they were."""

    stamp: Stamp
    model: LocalModel | None = None
    failed: RunnerError | None = None
    again: float = 0.0


class Adapters:
    """The adapters of models, each set made ready once; owned by one event loop.

    Args:
        clock: monotonic seconds.
        environ: where the data folder is read; converted adapters are kept there.
    """

    def __init__(
        self, *, clock: Callable[[], float], environ: Mapping[str, str] = os.environ
    ) -> None:
        self._clock = clock
        self._environ = environ
        self._kept: dict[str, _Kept] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def ready(self, model: LocalModel) -> LocalModel:
        """`model`, a GGUF file, with adapters that are GGUF files made for it.

        Raises:
            LoadFailed: an adapter is not for this model, or cannot be converted; names it.
            ModelFileError: a file is gone.
        """
        lock = self._locks.setdefault(model.name, asyncio.Lock())
        async with lock:
            stamp = _stamp(model)
            kept = self._kept.get(model.name)
            if kept is not None and kept.stamp == stamp:
                if kept.model is not None and _there(kept.model):
                    return msgspec.structs.replace(model, adapters=kept.model.adapters)
                if kept.failed is not None and self._clock() < kept.again:
                    # Without its traceback: each raise would add to it.
                    raise kept.failed.with_traceback(None)
            try:
                made = [await self._one(model, adapter) for adapter in model.adapters]
            except RunnerError as exc:
                again = self._clock() + AGAIN
                self._kept[model.name] = _Kept(stamp, failed=exc, again=again)
                raise
            ready = msgspec.structs.replace(model, adapters=tuple(made))
            self._kept[model.name] = _Kept(stamp, ready)
            return ready

    async def _one(self, model: LocalModel, adapter: Adapter) -> Adapter:
        try:
            path = await self._as_gguf(model, adapter.path)
            await asyncio.to_thread(check, model.path, path)
            return Adapter(adapter.name, path, path.stat().st_size)
        except RunnerError as exc:
            raise LoadFailed(
                f"the adapter `{adapter.name}` of `{model.name}`: {exc.message}", hint=exc.hint
            ) from exc

    async def _as_gguf(self, model: LocalModel, path: Path) -> Path:
        if await asyncio.to_thread(_is_gguf, path):
            return path
        from llm_runner_router.convert.base import Options
        from llm_runner_router.convert.job import converting
        from llm_runner_router.convert.peft import base_settings

        base = await asyncio.to_thread(base_settings, model.path)
        try:
            async with (
                asyncio.timeout(WAIT),
                converting(
                    path, "gguf-adapter", options=Options(base=base), environ=self._environ
                ) as job,
            ):
                return (await job.result()).path
        except TimeoutError:
            raise LoadFailed(
                f"converting it took more than {WAIT:.0f} s",
                hint=f"convert it beforehand: `llmrr convert {path} --base {model.path}`",
            ) from None


def _is_gguf(path: Path) -> bool:
    return path.is_file() and describe(path).format == "gguf"


def _there(model: LocalModel) -> bool:
    return all(adapter.path.exists() for adapter in model.adapters)


def _stamp(model: LocalModel) -> Stamp:
    """What says whether the files of a model and of its adapters are those of before.

    Raises:
        ModelFileError: one is gone.
    """
    files = [model.path]
    try:
        for adapter in model.adapters:
            if adapter.path.is_dir():
                files += sorted(adapter.path.iterdir())[:FILES]
            else:
                files.append(adapter.path)
        return tuple((str(f), (at := f.stat()).st_mtime_ns, at.st_size) for f in files)
    except OSError as exc:
        raise ModelFileError(
            f"cannot read `{exc.filename}`: {exc.strerror}", hint="see `adapters:` of the model"
        ) from exc


# ---------------------------------------------------------------- whether it is the model's


def check(model: Path, adapter: Path) -> None:
    """See that the GGUF adapter at `adapter` changes weights that the GGUF file `model` has.

    Raises:
        LoadFailed: it does not, or does what the engine leaves out; names the tensor.
        ModelFileError: one of the files is not sound.
    """
    open_checkpoint = load("models.formats", "gguf").open_checkpoint
    with open_checkpoint(adapter) as opened:
        info, fields = opened.info, opened.config
        weights: Mapping[str, Weight] = dict(opened.weights)
    if info.part != "adapter":
        raise LoadFailed("it is no LoRA adapter but a model", hint=WRONG)
    if fields.get("adapter.type") != "lora":
        raise LoadFailed(f"it is a {str(fields.get('adapter.type'))[:50]!r}, not a LoRA adapter")
    if any(name.startswith("adapter.alora.") for name in fields):
        raise LoadFailed(
            "it is an activated adapter (aLoRA), which works from certain words of the prompt on;"
            " those are not served",
            hint=MERGE,
        )
    with open_checkpoint(model) as opened:
        architecture = opened.info.architecture
        base: Mapping[str, Weight] = dict(opened.weights)
    if info.architecture != architecture:
        raise LoadFailed(
            f"it is for `{info.architecture}`, and the model is `{architecture}`", hint=WRONG
        )
    for name in weights:
        _check_pair(name, weights, base)


def _check_pair(name: str, weights: Mapping[str, Weight], base: Mapping[str, Weight]) -> None:
    """See that the tensor `name` of an adapter belongs to one of the model.

    An adapter's A is (rank, width) and B (height, rank) for a matrix of (height, width); for the
    embedding of tokens, (tokens, rank) and (width, rank) for (tokens, width).
    """
    stem, _, end = name.rpartition(".")
    if end not in ("lora_a", "lora_b"):
        raise LoadFailed(
            f"its tensor `{name[:100]}` is no part of a pair, and would be left out", hint=MERGE
        )
    a, b = weights.get(f"{stem}.lora_a"), weights.get(f"{stem}.lora_b")
    if a is None or b is None:
        raise LoadFailed(f"its tensor `{name[:100]}` is half of a pair", hint="download it again")
    whole = base.get(stem)
    if whole is None:
        raise LoadFailed(f"it changes `{stem[:100]}`, which the model does not have", hint=WRONG)
    found = {"it": len(whole.shape), "a": len(a.shape), "b": len(b.shape)}
    if min(found.values()) < 2 or len(set(found.values())) > 1:
        raise LoadFailed(f"it changes `{stem}` as no matrix can be changed", hint=WRONG)
    height, width = whole.shape[-2:]
    if stem == "token_embd.weight":
        fits = a.shape[-2] == height and b.shape[-2] == width and a.shape[-1] == b.shape[-1]
    else:
        fits = a.shape[-1] == width and b.shape[-2] == height and a.shape[-2] == b.shape[-1]
    if not fits or a.shape[:-2] != whole.shape[:-2] or b.shape[:-2] != whole.shape[:-2]:
        raise LoadFailed(
            f"it changes `{stem}` with {a.shape} and {b.shape}, and in the model that is"
            f" {whole.shape}",
            hint=WRONG,
        )
