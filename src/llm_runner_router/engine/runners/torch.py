"""The child side of the `torch` engine: a Hugging Face folder, computed by `transformers`.

Knows: torch and transformers. Does not know: HTTP, requests. Nothing is downloaded and no code of
the model's runs: `trust_remote_code` is off, and pickles are read with `weights_only`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import hub, serving
from .refusal import Refusal
from .sampling import Logits
from .session import Order, Pair, Session
from .vocabulary import HubVocabulary

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Values of `dtype`, and what safetensors calls them."""


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load the folder and serve it; does not return."""
    serving.serve(order, tell, load)


def load(order: Order) -> TorchModel:
    """The model of a folder.

    Raises:
        Refusal: it wants code of its own, or an option is not known.
    """
    import torch

    folder = hub.folder_of(order.model)
    hub.refuse_code(folder)
    config = hub.read_json(folder / "config.json")
    dtype = str(order.options.get("dtype", "float32"))
    if dtype not in TYPES:
        raise Refusal(f"`dtype` is one of {', '.join(TYPES)}, not {dtype!r}")
    device = str(order.options.get("device", "auto"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return TorchModel(folder, config, order, getattr(torch, dtype), device)


class TorchModel:
    """See `session.Loaded`."""

    def __init__(
        self, folder: Path, config: dict[str, Any], order: Order, dtype: Any, device: str
    ) -> None:
        self._folder = folder
        self._config = config
        self._device = device
        self._threads = Threads(order.threads, order.batch_threads)
        self._kind = _kind(config, order.purpose)
        self._model: Any = _load(folder, self._kind, dtype).to(device).eval()
        self.vocabulary = HubVocabulary(
            folder,
            ends=hub.ends(folder),
            size=int(config.get("vocab_size") or 0) or None,
        )
        self.template = hub.template(folder)
        self.variables = hub.variables(folder)
        self._behind = hub.behind(folder)

    def session(self) -> Session:
        """A new, empty sequence.

        Raises:
            Refusal: the model does not write.
        """
        if self._kind != "causal":
            raise Refusal("this model does not write text", type="unsupported_parameter")
        return TorchSession(self._model, self._device, self._threads)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """See `session.Loaded`; texts of different length are padded and masked."""
        import torch

        self._threads.use(many=True)
        tokens, mask = _padded(texts, self._device)
        with torch.inference_mode():
            found = self._model.base_model(input_ids=tokens, attention_mask=mask)
            vectors = pooled(found.last_hidden_state, mask, self._behind.pooling).float()
        return self._behind.vectors(vectors.cpu().numpy())

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """See `session.Loaded`: the logit of a sequence classifier's first class.

        Raises:
            Refusal: the model has no such head.
        """
        if self._kind != "rerank":
            raise Refusal("this model does not rerank", type="unsupported_parameter")
        import torch

        self._threads.use(many=True)
        tokens, mask = _padded([pair.tokens for pair in pairs], self._device)
        kinds, _ = _padded([pair.kinds for pair in pairs], self._device)
        more = {"token_type_ids": kinds} if self._config.get("type_vocab_size", 0) > 1 else {}
        with torch.inference_mode():
            logits = self._model(input_ids=tokens, attention_mask=mask, **more).logits
        return [float(row[0]) for row in logits.float().cpu()]


class Threads:
    """How many threads compute: a token's worth of work suits fewer than a prompt's."""

    def __init__(self, single: int, many: int) -> None:
        self._counts = {False: single, True: many}
        self._now = 0

    def use(self, *, many: bool) -> None:
        """Compute with so many threads from now on."""
        import torch

        if self._counts[many] != self._now:
            self._now = self._counts[many]
            torch.set_num_threads(self._now)


class TorchSession:
    """A sequence with transformers' own cache of keys and values."""

    def __init__(self, model: Any, device: str, threads: Threads) -> None:
        self._model = model
        self._threads = threads
        self._device = device
        self._cache: Any = self._new()
        # Renamed in transformers 5.2x; both names are there for a while.
        known = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in known else "past_key_values"
        self._more = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def _new(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def feed(self, tokens: Sequence[int]) -> Logits:
        """See `session.Session`."""
        import torch

        self._threads.use(many=len(tokens) > 1)
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self._device)
        with torch.inference_mode():
            found = self._model(
                input_ids=ids, use_cache=True, **{self._name: self._cache}, **self._more
            )
        return np.asarray(found.logits[0, -1].float().cpu().numpy(), np.float32)

    def rewind(self, length: int) -> int:
        """See `session.Session`; a cache that cannot be cut is begun anew."""
        try:
            now = int(self._cache.get_seq_length())
            self._cache.crop(length - now)  # a negative number is how many to take away
            kept = int(self._cache.get_seq_length())
        except (AttributeError, NotImplementedError, RuntimeError, ValueError, TypeError):
            kept = -1
        if kept != length:
            self._cache, length = self._new(), 0
        return length

    def close(self) -> None:
        """See `session.Session`."""
        self._cache = None


# ---------------------------------------------------------------- the folder


def _kind(config: dict[str, Any], purpose: str) -> str:
    """`causal`, `encoder` or `rerank`, by the class that the configuration names."""
    names = " ".join(config.get("architectures") or ())
    if "ForSequenceClassification" in names:
        return "rerank"
    if "LMHeadModel" in names or "ForCausalLM" in names:
        return "causal" if purpose == "chat" else "encoder"
    return "encoder"


def _load(folder: Path, kind: str, dtype: Any) -> Any:
    import transformers

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    classes = {
        "causal": transformers.AutoModelForCausalLM,
        "encoder": transformers.AutoModel,
        "rerank": transformers.AutoModelForSequenceClassification,
    }
    found = classes[kind].from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        weights_only=True,
    )
    return _loose(found, folder, dtype)


def _loose(model: Any, folder: Path, dtype: Any) -> Any:
    """`model`, with copies of those tensors that alone would keep the file mapped.

    What has the wanted type already is not converted but a piece of the mapped file, all of whose
    pages stay in memory then: with 140 M weights of F16 made F32, 267 MiB for norms of 0.1 MiB.
    Where most of the file is used like that, it stays.
    """
    from safetensors import safe_open

    wanted = TYPES[str(dtype).removeprefix("torch.")]
    shapes: set[tuple[int, ...]] = set()
    same = whole = 0
    for path in folder.glob("*.safetensors"):
        whole += path.stat().st_size
        with safe_open(path, "pt") as opened:
            for name in opened.keys():  # it is no mapping
                piece = opened.get_slice(name)
                if piece.get_dtype() == wanted:
                    shapes.add(tuple(piece.get_shape()))
                    same += math.prod(piece.get_shape()) * int(dtype.itemsize)
    if 2 * same > whole:
        return model
    for tensor in (*model.parameters(), *model.buffers()):
        if tuple(tensor.shape) in shapes:
            tensor.data = tensor.data.clone()
    return model


def pooled(hidden: Any, mask: Any, how: str) -> Any:
    """One vector per text, shape (texts, width), of `hidden` (texts, tokens, width).

    Args:
        mask: 1 for tokens, 0 for padding at the end; shape (texts, tokens).
        how: `mean`, `cls`, `last` or `max`.
    """
    import torch

    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
    wide = mask[..., None].to(hidden.dtype)
    if how == "max":
        return hidden.masked_fill(wide == 0, float("-inf")).max(1).values
    return (hidden * wide).sum(1) / wide.sum(1)


def _padded(rows: Sequence[Sequence[int]], device: str) -> tuple[Any, Any]:
    import torch

    width = max(len(row) for row in rows)
    tokens = torch.zeros((len(rows), width), dtype=torch.long, device=device)
    mask = torch.zeros((len(rows), width), dtype=torch.long, device=device)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(list(row))
        mask[i, : len(row)] = 1
    return tokens, mask
