"""The graph of an encoder of BERT's family, in ONNX's own operators only.

Knows: BERT, RoBERTa and XLM-RoBERTa, with their heads for scoring a pair of texts. Does not know:
files, how weights are stored, pooling (a matter of whoever runs the graph).

    input_ids, attention_mask, token_type_ids [batch, length]
        → last_hidden_state [batch, length, width]
        → logits [batch, labels] instead, where there is a classifier
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import Unsupported

from .onnx_graph import Graph
from .onnx_shape import WRONG, count_of, wrong_kind
from .onnx_weights import whole

BERT: Final = ("BertModel", "BertForSequenceClassification", "BertForMaskedLM")
ROBERTA: Final = (
    "RobertaModel",
    "RobertaForSequenceClassification",
    "RobertaForMaskedLM",
    "XLMRobertaModel",
    "XLMRobertaForSequenceClassification",
    "XLMRobertaForMaskedLM",
)
ENCODERS: Final = BERT + ROBERTA


class EncoderShape(Struct, frozen=True):
    """The numbers of an encoder."""

    architecture: str
    width: int
    heads: int
    layers: int
    eps: float
    activation: str
    """`tanh` or `none`: how the GELU is computed; `relu`."""
    first_position: int
    """RoBERTa counts positions from the padding token's number on."""
    padding: int


def read(config: Mapping[str, Any]) -> EncoderShape:
    """The shape that a `config.json` describes.

    Raises:
        Unsupported: an architecture or a feature that is not converted; names the field.
        ModelFileError: a field is of a wrong kind.
    """
    try:
        return _read(config)
    except WRONG as exc:
        raise wrong_kind(exc) from exc


def _read(config: Mapping[str, Any]) -> EncoderShape:
    architecture = str((config.get("architectures") or ["?"])[0])
    if architecture not in ENCODERS:
        raise Unsupported(
            f"`architectures` of config.json is `{architecture}`, no encoder that is converted",
            param="architectures",
            hint=f"these are: {', '.join(ENCODERS)}; decoders become `onnx-genai`",
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise Unsupported(
            f"`position_embedding_type` is `{config['position_embedding_type']}`, not `absolute`",
            param="position_embedding_type",
            hint="GGUF may take it: `llmrr convert --to gguf`",
        )
    activations = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "relu": "relu"}
    activation = str(config.get("hidden_act") or "gelu")
    if activation not in activations:
        raise Unsupported(
            f"`hidden_act` of config.json is `{activation}`, which is not converted to ONNX",
            param="hidden_act",
            hint=f"these are: {', '.join(activations)}",
        )
    width, heads = count_of(config, "hidden_size"), count_of(config, "num_attention_heads")
    if width % heads:
        raise ValueError(f"`hidden_size` is {width}, which {heads} heads do not divide")
    padding = int(config.get("pad_token_id") or 0)
    return EncoderShape(
        architecture=architecture,
        width=width,
        heads=heads,
        layers=count_of(config, "num_hidden_layers"),
        eps=float(config.get("layer_norm_eps") or 1e-12),
        activation=activations[activation],
        first_position=padding + 1 if architecture in ROBERTA else 0,
        padding=padding,
    )


def build(graph: Graph, shape: EncoderShape) -> None:
    """Write the whole encoder into `graph`."""
    _Encoder(graph, shape).build()


class _Encoder:
    def __init__(self, graph: Graph, shape: EncoderShape) -> None:
        self.g = graph
        self.shape = shape
        self.names = graph.checkpoint.weights
        plain = "embeddings.word_embeddings.weight"
        found = [name for name in self.names if name.endswith(plain)]
        self.prefix = found[0].removesuffix(plain) if found else ""

    def build(self) -> None:
        g = self.g
        ids = g.input("input_ids", "INT64", ["batch", "length"])
        mask = g.input("attention_mask", "INT64", ["batch", "length"])
        types = g.input("token_type_ids", "INT64", ["batch", "length"])
        x = self._embed(ids, types)
        bias = self._mask_bias(mask)
        for i in range(self.shape.layers):
            x = self._layer(i, x, bias)
        if self.shape.architecture.endswith("ForSequenceClassification"):
            self._score(x)
        else:
            g.node("Identity", [x], "last_hidden_state")
            g.output("last_hidden_state", "FLOAT", ["batch", "length", self.shape.width])

    def _embed(self, ids: str, types: str) -> str:
        g, at = self.g, f"{self.prefix}embeddings"

        def look(kind: str, at_ids: str) -> str:
            table = g.matrix(f"{kind}.weight", [whole(g.checkpoint, f"{at}.{kind}.weight")])
            return g.node("Gather", [table, at_ids], f"embed.{kind}")

        total = g.node(
            "Add",
            [look("word_embeddings", ids), look("token_type_embeddings", types)],
            "embed.typed",
        )
        placed = look("position_embeddings", self._positions(ids))
        total = g.node("Add", [total, placed], "embed.sum")
        return self._norm(total, f"{at}.LayerNorm", "embed.norm")

    def _positions(self, ids: str) -> str:
        """0, 1, 2…; for RoBERTa counted over what is not padding, which keeps its own number."""
        g = self.g
        integer = g.onnx.TensorProto.INT64
        if self.shape.first_position:
            real = g.node("Equal", [ids, g.ints(self.shape.padding)], "positions.padding")
            real = g.node("Cast", [g.node("Not", [real], "positions.not")], "positions.real",
                          to=integer)  # fmt: skip
            count = g.node("CumSum", [real, g.ints(1)], "positions.count")
            count = g.node("Mul", [count, real], "positions.counted")
            return g.node("Add", [count, g.ints(self.shape.padding)], "positions")
        size = g.node("Shape", [ids], "positions.shape", start=1, end=2)
        size = g.node("Squeeze", [size, g.ints(0)], "positions.length")
        zero = g.node("Squeeze", [g.ints(0), g.ints(0)], "positions.zero")
        one = g.node("Squeeze", [g.ints(1), g.ints(0)], "positions.one")
        return g.node("Range", [zero, size, one], "positions")

    def _mask_bias(self, mask: str) -> str:
        """0 where there is a token and a very small number elsewhere: `[batch, 1, 1, length]`."""
        import numpy as np

        g = self.g
        wide = g.node("Unsqueeze", [mask, g.ints(1, 2)], "mask.wide")
        real = g.node("Cast", [wide], "mask.real", to=g.onnx.TensorProto.FLOAT)
        absent = g.node("Sub", [g.number(1.0), real], "mask.absent")
        return g.node("Mul", [absent, g.number(float(np.finfo(np.float32).min))], "mask.bias")

    def _layer(self, i: int, x: str, bias: str) -> str:
        g, at, name = self.g, f"{self.prefix}encoder.layer.{i}", f"layers.{i}"
        heads, width = self.shape.heads, self.shape.width

        def split(kind: str, order: tuple[int, ...]) -> str:
            made = self._linear(x, f"{at}.attention.self.{kind}", f"{name}.{kind}")
            made = g.node("Reshape", [made, g.ints(0, 0, heads, width // heads)],
                          f"{name}.{kind}.heads")  # fmt: skip
            return g.node("Transpose", [made], f"{name}.{kind}.turned", perm=order)

        query, value = split("query", (0, 2, 1, 3)), split("value", (0, 2, 1, 3))
        scores = g.node("MatMul", [query, split("key", (0, 2, 3, 1))], f"{name}.products")
        root = g.number(float((width // heads) ** 0.5))
        scores = g.node("Div", [scores, root], f"{name}.scores")
        scores = g.node("Add", [scores, bias], f"{name}.masked")
        shares = g.node("Softmax", [scores], f"{name}.shares", axis=-1)
        seen = g.node("MatMul", [shares, value], f"{name}.seen")
        seen = g.node("Transpose", [seen], f"{name}.back", perm=(0, 2, 1, 3))
        seen = g.node("Reshape", [seen, g.ints(0, 0, width)], f"{name}.flat")
        out = self._linear(seen, f"{at}.attention.output.dense", f"{name}.attn_out")
        out = g.node("Add", [out, x], f"{name}.attn_sum")
        x = self._norm(out, f"{at}.attention.output.LayerNorm", f"{name}.attn_norm")
        inner = self._linear(x, f"{at}.intermediate.dense", f"{name}.inner")
        if self.shape.activation == "relu":
            inner = g.node("Relu", [inner], f"{name}.act")
        else:
            inner = g.node("Gelu", [inner], f"{name}.act", approximate=self.shape.activation)
        out = self._linear(inner, f"{at}.output.dense", f"{name}.mlp_out")
        out = g.node("Add", [out, x], f"{name}.mlp_sum")
        return self._norm(out, f"{at}.output.LayerNorm", f"{name}.mlp_norm")

    def _score(self, x: str) -> None:
        """The classifier on the first token."""
        g = self.g
        zero = g.node("Squeeze", [g.ints(0), g.ints(0)], "head.zero")
        first = g.node("Gather", [x, zero], "head.first", axis=1)
        roberta = self.shape.architecture in ROBERTA
        dense = "classifier.dense" if roberta else f"{self.prefix}pooler.dense"
        last = "classifier.out_proj" if roberta else "classifier"
        pooled = g.node("Tanh", [self._linear(first, dense, "head.dense")], "head.tanh")
        made = self._linear(pooled, last, "head.out")
        g.node("Identity", [made], "logits")
        g.output("logits", "FLOAT", ["batch", whole(g.checkpoint, f"{last}.weight").count])

    def _linear(self, x: str, source: str, name: str) -> str:
        g = self.g
        rows = whole(g.checkpoint, f"{source}.weight")
        weight = g.matrix(f"{name}.weight", [rows], turned=True)
        made = g.node("MatMul", [x, weight], name)
        bias = g.vector(f"{name}.bias", f"{source}.bias")
        return g.node("Add", [made, bias], f"{name}.biased")

    def _norm(self, x: str, source: str, name: str) -> str:
        g = self.g
        scale = g.vector(f"{name}.weight", f"{source}.weight")
        bias = g.vector(f"{name}.bias", f"{source}.bias")
        return g.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=self.shape.eps)
