"""The child side of the `onnx` engine: plain graphs, computed by onnxruntime.

Knows: onnxruntime, and what a graph is for by the names of its inputs and outputs. Does not know:
HTTP, requests.

    input_ids [, attention_mask, token_type_ids, position_ids]
        → last_hidden_state | token_embeddings [batch, length, width]      pooled here
        → sentence_embedding [batch, width]                                taken as it is
        → logits [batch, labels]                                           a reranker
    the same with past_key_values.N.key|value
        → logits [batch, length, vocabulary], present.N.key|value          a decoder
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import hub, serving
from .refusal import Refusal
from .sampling import Logits
from .session import Order, Pair, Session
from .vocabulary import HubVocabulary

NAMES = ("model.onnx", "onnx/model.onnx", "decoder_model_merged.onnx",
         "onnx/decoder_model_merged.onnx")  # fmt: skip
"""Where a graph is looked for in a folder, before any other single `.onnx` file."""
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
PAST, PRESENT = "past_key_values.", "present."
KNOWN = frozenset(
    ("input_ids", "attention_mask", "token_type_ids", "position_ids", "use_cache_branch",
     "num_logits_to_keep")
)  # fmt: skip
"""Inputs that are filled in here, beside the past."""
VECTORS = ("sentence_embedding", "last_hidden_state", "token_embeddings")


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load the graph and serve it; does not return."""
    serving.serve(order, tell, OnnxModel)


def find_graph(order: Order) -> Path:
    """The file of the graph: the option `file`, else the one there is.

    Raises:
        Refusal: there is none, or it cannot be told which of several.
    """
    path = Path(order.model)
    if path.is_file() and path.suffix == ".onnx":
        return path
    folder = hub.folder_of(order.model)
    if wanted := order.options.get("file"):
        found = folder / str(wanted)
        if not found.is_file() or not found.resolve().is_relative_to(folder.resolve()):
            raise Refusal(f"the option `file` names {wanted!r}, which is not in `{folder}`")
        return found
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.onnx")) or sorted(folder.glob("onnx/*.onnx"))
    if len(others) != 1:
        raise Refusal(
            f"`{folder}` has {len(others)} graphs"
            + (f" ({', '.join(o.name for o in others)})" if others else "")
            + "; name one with the option `file`"
        )
    return others[0]


class OnnxModel:
    """See `session.Loaded`.

    Args:
        order: names the folder or the graph.

    Raises:
        Refusal: no graph, or one whose inputs are not known.
    """

    def __init__(self, order: Order) -> None:
        onnxruntime: Any = import_module("onnxruntime")  # it has no types
        path = find_graph(order)
        folder = path.parent if (path.parent / "tokenizer.json").is_file() else path.parent.parent
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = order.threads
        options.inter_op_num_threads = 1
        spin = "1" if order.options.get("spin") else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spin)
        options.enable_cpu_mem_arena = bool(order.options.get("arena", True))
        options.log_severity_level = 3
        self._runtime: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {one.name: one for one in self._runtime.get_inputs()}
        self._outputs = {one.name: one for one in self._runtime.get_outputs()}
        self._check(path)
        config = hub.read_json(folder / "config.json")
        self.vocabulary = HubVocabulary(
            folder,
            ends=hub.ends(folder),
            size=int(config.get("vocab_size") or 0) or None,
        )
        self.template = hub.template(folder)
        self.variables = hub.variables(folder)
        self._behind = hub.behind(folder)
        # XLM-RoBERTa has one kind of text only, whatever its tokenizer says of pairs.
        self._kinds = int(config.get("type_vocab_size") or 2)

    @property
    def _writes(self) -> bool:
        return any(name.startswith(PAST) for name in self._inputs)

    def _check(self, path: Path) -> None:
        unknown = [n for n in self._inputs if n not in KNOWN and not n.startswith(PAST)]
        if unknown or "input_ids" not in self._inputs:
            said = f"takes {', '.join(unknown)}" if unknown else "does not take `input_ids`"
            raise Refusal(f"the graph `{path}` {said}: it is not known how to run it")
        for one in (*self._inputs.values(), *self._outputs.values()):
            if one.type not in TYPES:
                raise Refusal(f"the graph `{path}` has `{one.name}` of type {one.type}")

    # ------------------------------------------------------------ writing

    def session(self) -> Session:
        """A new, empty sequence.

        Raises:
            Refusal: the model does not write.
        """
        if not self._writes or "logits" not in self._outputs:
            raise Refusal("this model does not write text", type="unsupported_parameter")
        return OnnxSession(self._runtime, self._inputs, list(self._outputs))

    # ------------------------------------------------------------ vectors

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """See `session.Loaded`; texts of different length are padded and masked.

        Raises:
            Refusal: the graph gives no vectors.
        """
        output = next((name for name in VECTORS if name in self._outputs), None)
        if output is None or self._writes:
            raise Refusal("this model gives no embeddings", type="unsupported_parameter")
        tokens, mask = padded(texts)
        found = self._run(output, tokens, mask, np.zeros_like(tokens))
        if output != "sentence_embedding":
            found = hub.pooled(found, mask, self._behind.pooling)
            return self._behind.vectors(found)
        return hub.Behind().vectors(found)  # the graph did the rest

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """See `session.Loaded`: the logit of the classifier's first class.

        Raises:
            Refusal: the graph has no classifier.
        """
        if self._writes or "logits" not in self._outputs:
            raise Refusal("this model does not rerank", type="unsupported_parameter")
        tokens, mask = padded([pair.tokens for pair in pairs])
        kinds, _ = padded([pair.kinds for pair in pairs])
        return [float(row[0]) for row in self._run("logits", tokens, mask, kinds)]

    def _run(
        self, output: str, tokens: NDArray[Any], mask: NDArray[Any], kinds: NDArray[Any]
    ) -> NDArray[np.float32]:
        given = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": np.minimum(kinds, self._kinds - 1),
            "position_ids": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
        }
        inputs = {name: given[name].astype(TYPES[self._inputs[name].type]) for name in self._inputs}
        (found,) = self._runtime.run([output], inputs)
        return np.asarray(found, np.float32)


class OnnxSession:
    """See `session.Session`: a decoder's keys and values, given and taken with every token."""

    def __init__(self, runtime: Any, inputs: dict[str, Any], outputs: Sequence[str]) -> None:
        self._runtime = runtime
        self._inputs = inputs
        self._presents = [name for name in outputs if name.startswith(PRESENT)]
        self._past: dict[str, Any] = {}
        self._length = 0

    def feed(self, tokens: Sequence[int]) -> Logits:
        """See `session.Session`."""
        logits, *presents = self._runtime.run(
            ["logits", *self._presents], {**self._given(tokens), **(self._past or self._empty())}
        )
        names = [PAST + name.removeprefix(PRESENT) for name in self._presents]
        self._past = dict(zip(names, presents, strict=True))
        self._length += len(tokens)
        return np.asarray(logits.reshape(-1, logits.shape[-1])[-1], np.float32)

    def _given(self, tokens: Sequence[int]) -> dict[str, Any]:
        total = self._length + len(tokens)
        given: dict[str, Any] = {
            "input_ids": np.array([list(tokens)]),
            "attention_mask": np.ones((1, total)),
            "token_type_ids": np.zeros((1, len(tokens))),
            "position_ids": np.arange(self._length, total)[None],
            "use_cache_branch": np.array([self._length > 0]),
            "num_logits_to_keep": np.array(1),
        }
        return {
            name: value.astype(TYPES[self._inputs[name].type])
            for name, value in given.items()
            if name in self._inputs
        }

    def _empty(self) -> dict[str, Any]:
        """A past of no tokens: `[1, heads, 0, length]`, the fixed sizes as the graph has them."""
        found: dict[str, Any] = {}
        for name, one in self._inputs.items():
            if name.startswith(PAST):
                shape = [size if isinstance(size, int) else 0 for size in one.shape]
                found[name] = np.zeros([1, *shape[1:]], TYPES[one.type])
        return found

    def rewind(self, length: int) -> int:
        """See `session.Session`: the past is cut off."""
        if length < self._length:
            self._past = {name: value[:, :, :length] for name, value in self._past.items()}
            self._length = length
        if not length:
            self._past = {}
        return self._length

    def close(self) -> None:
        """See `session.Session`."""
        self._past = {}


def padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of tokens as a table, filled up at the end, and where there are tokens."""
    width = max(len(row) for row in rows)
    tokens = np.zeros((len(rows), width), np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return tokens, mask
