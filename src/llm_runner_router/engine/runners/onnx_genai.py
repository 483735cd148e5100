"""The child side of the `onnx_genai` engine: onnxruntime-genai gives logits.

Knows: onnxruntime-genai's models and generators. Does not know: HTTP, requests. The library's own
sampler, templates and tokenizer are not used: ours are the same on every engine. Its telemetry is
switched off before anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import hub, serving
from .refusal import Refusal
from .sampling import Logits
from .session import Order, Pair, Session
from .vocabulary import HubVocabulary


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load the folder and serve it; does not return."""
    serving.serve(order, tell, GenaiModel)


class GenaiModel:
    """See `session.Loaded`.

    Args:
        order: names the folder, or a file in it.

    Raises:
        Refusal: it has no `genai_config.json`, or one that is not for text.
    """

    def __init__(self, order: Order) -> None:
        onnxruntime_genai: Any = import_module("onnxruntime_genai")  # it has no types
        onnxruntime_genai.disable_telemetry_events()
        folder = hub.folder_of(order.model)
        described = hub.read_json(folder / "genai_config.json").get("model")
        if not isinstance(described, dict) or "decoder" not in described:
            raise Refusal(f"`{folder}` has no `genai_config.json` that describes a decoder")
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": settings(order)}}}))
        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(config)
        self._context = order.context
        self.vocabulary = HubVocabulary(
            folder,
            ends=_ends(described),
            size=int(described.get("vocab_size") or 0) or None,
        )
        self.template = hub.template(folder)
        self.variables = hub.variables(folder)

    def session(self) -> Session:
        """A new, empty sequence; room for the whole context is taken at once."""
        return GenaiSession(self._generator)

    def _generator(self) -> Any:
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(max_length=self._context, batch_size=1, do_sample=False)
        return self._library.Generator(self._model, params)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Not with this engine.

        Raises:
            Refusal: always.
        """
        raise Refusal(
            "onnxruntime-genai gives no embeddings; use an encoder, or this model as GGUF",
            type="unsupported_parameter",
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Not with this engine.

        Raises:
            Refusal: always.
        """
        raise Refusal("this model does not rerank", type="unsupported_parameter")


class GenaiSession:
    """See `session.Session`: a generator that is given tokens and asked for logits only."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._generator: Any = make()

    def feed(self, tokens: Sequence[int]) -> Logits:
        """See `session.Session`."""
        self._generator.append_tokens(np.asarray(tokens, np.int32))
        logits = self._generator.get_logits()
        # Graphs of other makers give the logits of every position.
        return np.asarray(logits.reshape(-1, logits.shape[-1])[-1], np.float32)

    def rewind(self, length: int) -> int:
        """See `session.Session`; where the library cannot go back, it begins anew."""
        try:
            self._generator.rewind_to(length)
        except RuntimeError:
            self._generator, length = self._make(), 0
        return length

    def close(self) -> None:
        """See `session.Session`."""
        self._generator = None


def settings(order: Order) -> dict[str, Any]:
    """Session options: as many threads as suit a token, and no busy waiting beside others.

    The library has one pool of threads for prompts and tokens alike.
    """
    return {
        "intra_op_num_threads": order.threads,
        "inter_op_num_threads": 1,
        "enable_cpu_mem_arena": bool(order.options.get("arena", True)),
        "session.intra_op.allow_spinning": "1" if order.options.get("spin") else "0",
    }


def _ends(described: dict[str, Any]) -> list[int]:
    found = described.get("eos_token_id")
    found = found if isinstance(found, list) else [] if found is None else [found]
    return [int(token) for token in found]
