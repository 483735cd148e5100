"""A Llama in PyTorch: RoPE, RMSNorm, SwiGLU, grouped queries, tied embeddings.

Knows shapes and arithmetic; parameter names are those of Hugging Face's LlamaForCausalLM. Knows
nothing of text, files or training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, named as in a Hugging Face `config.json`."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 1024
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def config(self) -> dict[str, object]:
        """The content of Hugging Face's `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": NORM_EPS,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "torch_dtype": "float16",
        }


_TINY = Shape(128, 384, 4, 4, 2)
SHAPES: dict[str, Shape] = {
    "tiny-math": _TINY,
    "tiny-text": _TINY,
    "tiny-chat": _TINY,
    "tiny-general": Shape(256, 768, 5, 8, 4),
}

Cache = list[tuple[Tensor, Tensor]]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention written out: on a CPU the fused kernel's backward took a third of each step."""
    rows, heads, length, width = q.shape
    kv_heads, seen = k.shape[1:3]
    grouped = q.reshape(rows, kv_heads, heads // kv_heads * length, width) * width**-0.5
    scores = (grouped @ k.transpose(-1, -2)).view(rows, heads, length, seen)
    shares = F.softmax(scores.masked_fill(~mask, -1e9), dim=-1).to(v.dtype)
    return (shares.view(rows, kv_heads, -1, seen) @ v).view(rows, heads, length, width)


class Attention(nn.Module):
    """Causal attention in which several query heads share one key head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        width, narrow = shape.hidden_size, shape.num_key_value_heads * shape.head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, narrow, bias=False)
        self.v_proj = nn.Linear(width, narrow, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: Cache | None, mask: Tensor | None
    ) -> Tensor:
        """The output for `x`, of the same shape."""
        rows, length, _ = x.shape
        q = self.q_proj(x).view(rows, length, self.heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(rows, length, self.kv_heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, self.kv_heads, -1).transpose(1, 2)
        q, k = _rotate(q, *rope).to(v.dtype), _rotate(k, *rope).to(v.dtype)
        if past is not None:
            old_k, old_v = past.pop(0)
            k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
            past.append((k, v))
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        out = _attend(q, k, v, mask)
        joined: Tensor = self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))
        return joined


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The output for `x`, of the same shape."""
        down: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """Attention and MLP, each on a normed copy of the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(shape), MLP(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: Cache | None, mask: Tensor | None
    ) -> Tensor:
        """The output for `x`, of the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), rope, past, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Body(nn.Module):
    """Everything below the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, eps=NORM_EPS)


class Llama(nn.Module):
    """The whole model, with greedy decoding."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        half = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.outer(
            torch.arange(shape.max_position_embeddings).float(), shape.rope_theta**-half
        )
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(self._init)
        # Embeddings of size 1 keep tokens visible beside what layers add (with 0.05 copying was not
        # learned); the last norm makes up for it, since the output matrix is the embedding.
        nn.init.constant_(self.model.norm.weight, shape.hidden_size**-0.5)
        for part in self.modules():
            if isinstance(part, Attention):
                nn.init.zeros_(part.o_proj.weight)
            elif isinstance(part, MLP):
                nn.init.zeros_(part.down_proj.weight)

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        past: Cache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states. Without a mask attention is causal; padding sits on the right."""
        if positions is None:
            rope = (self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]])
        else:
            rope = (self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1))
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, rope, past, mask)
        out: Tensor = self.model.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token; the output matrix is the embedding."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], limit: int, stop: int) -> list[list[int]]:
        """Greedy continuations of a batch, each cut before `stop`."""
        device = self.model.embed_tokens.weight.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        width, rows = int(lengths.max()), len(prompts)
        padded = torch.zeros(rows, width, dtype=torch.long, device=device)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(prompt, device=device)
        seen = torch.arange(width, device=device)[None] < lengths[:, None]
        causal = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        mask = (seen[:, None] & causal[None] | torch.eye(width, device=device).bool())[:, None]
        past: Cache = [self._empty(rows) for _ in self.model.layers]
        hidden = self.hidden(padded, None, past, mask)
        state = hidden[torch.arange(rows, device=device), lengths - 1]
        out: list[list[int]] = [[] for _ in prompts]
        done = [False] * rows
        for step in range(limit):
            token = self.logits(state).argmax(-1)
            for row, one in enumerate(token.tolist()):
                done[row] = done[row] or one == stop
                if not done[row]:
                    out[row].append(one)
            if all(done):
                break
            seen = F.pad(seen, (0, 1), value=True)
            positions = (lengths + step)[:, None].clamp(max=self.shape.max_position_embeddings - 1)
            state = self.hidden(token[:, None], positions, past, seen[:, None, None])[:, 0]
        return out

    def _empty(self, rows: int) -> tuple[Tensor, Tensor]:
        weight = self.model.embed_tokens.weight
        empty = weight.new_zeros(rows, self.shape.num_key_value_heads, 0, self.shape.head_dim)
        return empty, empty
