"""The graph of a decoder of Llama's family, with the operators and names onnxruntime-genai uses.

Knows: what a layer computes, and what each tensor of a checkpoint is for. Does not know: files,
configurations (`onnx_shape.py`), how weights are stored (`onnx_graph.py`).

    input_ids [batch, new] · attention_mask [batch, past + new]
    past_key_values.N.key|value [batch, kv heads, past, head]
        → logits [batch, 1, vocabulary] of the last position · present.N.key|value

Attention is `GroupQueryAttention`, which turns queries and keys, appends to the cache in place and
applies windows and caps. The first batch of a prompt needs no attention mask of its own, because
sequences are padded on the right only.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_runner_router.errors import ModelFileError, Unsupported

from .onnx_graph import ORT, Graph
from .onnx_shape import DecoderShape, Layer, Rope
from .onnx_weights import Rows, whole

HEAD_BITS = 8
"""Bits of embedding and output in a graph of fewer: they matter most and are read least."""


def build(graph: Graph, shape: DecoderShape) -> None:
    """Write the whole decoder into `graph`."""
    _Decoder(graph, shape).build()


class _Decoder:
    def __init__(self, graph: Graph, shape: DecoderShape) -> None:
        self.g = graph
        self.shape = shape
        self.names = graph.checkpoint.weights

    def build(self) -> None:
        g, shape = self.g, self.shape
        ids = g.input("input_ids", "INT64", ["batch", "new"])
        mask = g.input("attention_mask", "INT64", ["batch", "total"])
        lengths = self._lengths(mask)
        stream = self._scaled(self._embed(ids), shape.embed_scale, "embed.scaled")
        branch = ""
        for i, layer in enumerate(shape.layers):
            stream, branch = self._layer(i, layer, stream, branch, lengths)
        hidden, _ = self._join(stream, branch, "model.norm", "norm")
        self._logits(hidden)
        for i in range(len(shape.layers)):
            for kind in ("key", "value"):
                g.output(
                    f"present.{i}.{kind}", "FLOAT", ["batch", shape.kv_heads, "total", shape.head]
                )

    # ------------------------------------------------------------ ends

    def _lengths(self, mask: str) -> tuple[str, str]:
        """What `GroupQueryAttention` asks: the last position of each sequence, and the longest."""
        g = self.g
        integer = g.onnx.TensorProto.INT32
        total = g.node("ReduceSum", [mask, g.ints(1)], "lengths.total", keepdims=0)
        last = g.node("Sub", [total, g.ints(1)], "lengths.last")
        last = g.node("Cast", [last], "lengths.last32", to=integer)
        size = g.node("Shape", [mask], "lengths.shape", start=1, end=2)
        size = g.node("Squeeze", [size, g.ints(0)], "lengths.longest")
        return last, g.node("Cast", [size], "lengths.longest32", to=integer)

    def _embed(self, ids: str) -> str:
        g = self.g
        rows = [self._rows("model.embed_tokens.weight", (0, self.shape.width))]
        if not g.type.startswith("q"):
            return g.node("Gather", [g.matrix(self._table, rows), ids], "embed")
        codes, scales = g.coded(self._table, rows, HEAD_BITS)
        flat = g.node("Reshape", [codes, g.ints(rows[0].count, -1)], "embed.codes")
        return g.node(
            "GatherBlockQuantized",
            [flat, ids, scales],
            "embed",
            domain=ORT,
            bits=HEAD_BITS,
            block_size=32,
            gather_axis=0,
            quantize_axis=1,
        )

    @property
    def _tied(self) -> bool:
        return self.shape.tied or "lm_head.weight" not in self.names

    @property
    def _table(self) -> str:
        """The embedding has the output's name where both are one."""
        return "lm_head.weight" if self._tied else "embed.weight"

    def _logits(self, hidden: str) -> None:
        g, shape = self.g, self.shape
        last = g.node("Slice", [hidden, g.ints(-1), g.ints((1 << 63) - 1), g.ints(1)], "last")
        source = "model.embed_tokens.weight" if self._tied else "lm_head.weight"
        rows = self._rows(source, (0, shape.width))
        bits = HEAD_BITS if g.type.startswith("q") else None
        logits = g.linear(last, "lm_head", [rows], bits=bits)
        logits = self._scaled(logits, 1 / shape.logits_scale, "lm_head.scaled")
        if shape.logits_cap:
            cap = g.number(shape.logits_cap)
            logits = g.node("Div", [logits, cap], "lm_head.divided")
            logits = g.node("Tanh", [logits], "lm_head.tanh")
            logits = g.node("Mul", [logits, cap], "lm_head.capped")
        g.node("Identity", [logits], "logits")
        g.output("logits", "FLOAT", ["batch", 1, rows.count])

    # ------------------------------------------------------------ a layer

    def _layer(
        self, i: int, layer: Layer, stream: str, branch: str, lengths: tuple[str, str]
    ) -> tuple[str, str]:
        """One layer; `branch` is what the layer before has still to add to `stream`."""
        at, shape = f"model.layers.{i}", self.shape
        sandwich = f"{at}.pre_feedforward_layernorm.weight" in self.names  # Gemma 2 and 3
        after = f"{at}.post_feedforward_layernorm.weight" in self.names  # these, and OLMo 2
        before = "post_attention_layernorm"
        x, stream = self._join(stream, branch, f"{at}.input_layernorm", f"layers.{i}.attn_norm")
        branch = self._attention(i, layer, x, lengths)
        if after:
            branch = self._norm(branch, f"{at}.{before}", f"layers.{i}.attn_post")
            before = "pre_feedforward_layernorm" if sandwich else ""
        branch = self._scaled(branch, shape.residual_scale, f"layers.{i}.attn_scaled")
        norm = f"{at}.{before}" if before else ""
        x, stream = self._join(stream, branch, norm, f"layers.{i}.mlp_norm")
        branch = self._feed_forward(i, x)
        if after:
            branch = self._norm(branch, f"{at}.post_feedforward_layernorm", f"layers.{i}.mlp_post")
        return stream, self._scaled(branch, shape.residual_scale, f"layers.{i}.mlp_scaled")

    def _join(self, stream: str, branch: str, norm: str, name: str) -> tuple[str, str]:
        """Add `branch` to `stream`: the sum normed by the tensor `norm`, if there is one, and as
        it is."""
        g = self.g
        has_norm = f"{norm}.weight" in self.names
        if not branch:
            return (self._norm(stream, norm, name) if has_norm else stream), stream
        if not has_norm:
            total = g.node("Add", [stream, branch], f"{name}.sum")
            return total, total
        total = f"{name}.sum"
        normed = g.node(
            "SkipSimplifiedLayerNormalization",
            [stream, branch, self._norm_weight(norm)],
            name,
            domain=ORT,
            outputs=[name, "", "", total],
            epsilon=self.shape.eps,
        )
        return normed, total

    def _norm(self, x: str, norm: str, name: str) -> str:
        weight = self._norm_weight(norm)
        return self.g.node(
            "SimplifiedLayerNormalization", [x, weight], name, axis=-1, epsilon=self.shape.eps
        )

    def _norm_weight(self, norm: str) -> str:
        plus = 1.0 if self.shape.family.plus_one else 0.0
        return self.g.vector(f"{norm}.weight", f"{norm}.weight", plus=plus)

    # ------------------------------------------------------------ attention

    def _attention(self, i: int, layer: Layer, x: str, lengths: tuple[str, str]) -> str:
        g, shape = self.g, self.shape
        at = f"model.layers.{i}.self_attn"
        past = [
            g.input(
                f"past_key_values.{i}.{kind}",
                "FLOAT",
                ["batch", shape.kv_heads, "past", shape.head],
            )
            for kind in ("key", "value")
        ]
        tables = self._tables(layer.rope)
        attended = g.node(
            "GroupQueryAttention",
            [*self._projected(i, at, x), *past, *lengths, *tables],
            f"layers.{i}.attn",
            domain=ORT,
            outputs=[f"layers.{i}.attn", f"present.{i}.key", f"present.{i}.value"],
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            scale=shape.attention_scale,
            softcap=shape.attention_cap,
            local_window_size=layer.window or -1,
            do_rotary=1 if layer.rope else 0,
            rotary_interleaved=0,
        )
        self._rows(f"{at}.o_proj.weight", (shape.width, shape.heads * shape.head))
        return self._linear(attended, f"layers.{i}.o_proj", [f"{at}.o_proj"])

    def _projected(self, i: int, at: str, x: str) -> tuple[str, str, str]:
        """Queries, keys and values; in one tensor where nothing is done to them."""
        if f"{at}.qkv_proj.weight" in self.names:
            self._rows(f"{at}.qkv_proj.weight", (sum(self._widths), self.shape.width))
            return self._linear(x, f"layers.{i}.qkv_proj", [f"{at}.qkv_proj"]), "", ""
        for kind, count in zip("qkv", self._widths, strict=True):
            self._rows(f"{at}.{kind}_proj.weight", (count, self.shape.width))
        sources = [f"{at}.{kind}_proj" for kind in "qkv"]
        if f"{at}.q_norm.weight" not in self.names:
            return self._linear(x, f"layers.{i}.qkv_proj", sources), "", ""
        made = []
        for kind, source in zip("qkv", sources, strict=True):
            value = self._linear(x, f"layers.{i}.{kind}_proj", [source])
            if kind != "v":
                value = self._norm_heads(i, kind, at, value)
            made.append(value)
        return made[0], made[1], made[2]

    def _norm_heads(self, i: int, kind: str, at: str, x: str) -> str:
        """Norm queries or keys: each head (Qwen 3, Gemma 3), or all together (OLMo 2)."""
        g, head = self.g, self.shape.head
        norm, name = f"{at}.{kind}_norm", f"layers.{i}.{kind}_norm"
        if whole(g.checkpoint, f"{norm}.weight").count != head:
            return self._norm(x, norm, name)
        heads = self.shape.heads if kind == "q" else self.shape.kv_heads
        x = g.node("Reshape", [x, g.ints(0, 0, heads, head)], f"{name}.heads")
        x = self._norm(x, norm, name)
        return g.node("Reshape", [x, g.ints(0, 0, heads * head)], f"{name}.flat")

    def _tables(self, name: str) -> tuple[str, ...]:
        """Cosines and sines `[context, pairs]`; fewer pairs than a head has turn its first part."""
        import numpy as np

        if not name:
            return ()
        rope: Rope = self.shape.ropes[name]
        if len(rope.frequencies) % 8:
            raise Unsupported(
                f"{2 * len(rope.frequencies)} of {self.shape.head} dimensions of a head turn with "
                "the position; ONNX Runtime turns multiples of 16",
                param="head_dim",
                hint="GGUF takes any: `llmrr convert --to gguf`",
            )
        positions = np.arange(self.shape.context, dtype=np.float64)
        # Frequencies are F32 in the reference, and angles are rounded to it too.
        rates = np.array(rope.frequencies, np.float32)
        angles = (positions[:, None] * rates[None, :].astype(np.float64)).astype(np.float32)
        return tuple(
            self.g.constant(f"rope.{name}.{kind}", (turn(angles) * rope.scale).astype(np.float32))
            for kind, turn in (("cos", np.cos), ("sin", np.sin))
        )

    # ------------------------------------------------------------ the rest

    def _feed_forward(self, i: int, x: str) -> str:
        g, at = self.g, f"model.layers.{i}.mlp"
        if f"{at}.gate_up_proj.weight" in self.names:  # Phi 3: both in one
            both = self._rows(f"{at}.gate_up_proj.weight", (2 * self.shape.inner, self.shape.width))
            half = both.count // 2
            halves = [Rows(both.name, first, half, both.width) for first in (0, half)]
            gate = g.linear(x, f"layers.{i}.gate_proj", [halves[0]])
            up = g.linear(x, f"layers.{i}.up_proj", [halves[1]])
        else:
            for kind in ("gate", "up"):
                self._rows(f"{at}.{kind}_proj.weight", (self.shape.inner, self.shape.width))
            gate = self._linear(x, f"layers.{i}.gate_proj", [f"{at}.gate_proj"])
            up = self._linear(x, f"layers.{i}.up_proj", [f"{at}.up_proj"])
        active = self._activated(gate, f"layers.{i}.act")
        inner = g.node("Mul", [active, up], f"layers.{i}.inner")
        self._rows(f"{at}.down_proj.weight", (self.shape.width, self.shape.inner))
        return self._linear(inner, f"layers.{i}.down_proj", [f"{at}.down_proj"])

    @property
    def _widths(self) -> tuple[int, int, int]:
        """Rows of the projections to queries, keys and values."""
        keys = self.shape.kv_heads * self.shape.head
        return self.shape.heads * self.shape.head, keys, keys

    def _rows(self, name: str, shape: tuple[int, int]) -> Rows:
        """A matrix, of this shape; a count of zero is any.

        Raises:
            ModelFileError: it is absent, or the configuration speaks of another shape.
        """
        found = whole(self.g.checkpoint, name)
        if (shape[0] or found.count, shape[1]) != (found.count, found.width):
            raise ModelFileError(
                f"tensor `{name}` of {self.g.checkpoint.path} has shape"
                f" [{found.count}, {found.width}], config.json says [{shape[0] or 'any'},"
                f" {shape[1]}]",
                hint="the files are not of one model, or one is damaged",
            )
        return found

    def _activated(self, x: str, name: str) -> str:
        g, kind = self.g, self.shape.activation
        if kind == "silu":
            return g.node("Mul", [x, g.node("Sigmoid", [x], f"{name}.sigmoid")], name)
        if kind == "relu":
            return g.node("Relu", [x], name)
        return g.node("Gelu", [x], name, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _linear(self, x: str, name: str, sources: Sequence[str]) -> str:
        """Projections by the tensors `sources`, one after the other, with their biases."""
        g = self.g
        made = g.linear(x, name, [whole(g.checkpoint, f"{one}.weight") for one in sources])
        biases = [f"{one}.bias" for one in sources if f"{one}.bias" in self.names]
        if not biases:
            return made
        return g.node("Add", [made, g.vector(f"{name}.bias", *biases)], f"{name}.biased")

    def _scaled(self, x: str, scale: float, name: str) -> str:
        return x if scale == 1.0 else self.g.node("Mul", [x, self.g.number(scale)], name)
