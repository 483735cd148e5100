"""How much memory a model takes, and how much context it gets. Pure.

Knows: the terms that a runner's memory is made of, the sizes of weights, keys and values, and the
numbers of llama.cpp; engines of ours with numbers of their own count in their modules. Does not
know: the machine; the budget is an argument.

The numbers are bytes of the process itself (anonymous pages, pages of the model's file) and of the
code that all runners of an engine share, apart. Together they are what the system calls resident;
in proportion to who shares them (PSS) the same process differs by the size of the code.
`python -m bench --only memory` compares every engine's estimate with what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.models.info import ModelInfo

MIB = 1 << 20
PROCESS = 14 * MIB
"""Bytes of llama.cpp's runner itself: interpreter, the engine's tables, its HTTP threads. Measured
right after the load, less weights and cache: 13.5 to 14.9 MiB for 0.9 to 140 M weights."""
PAGES = 4 * MIB
"""Bytes that large pages (`pages.py`) round up: after the load and in service 2 to 4 MiB more than
without, at the top of the load 6 to 10. Where the system has none, that much is too much."""
CODE = 20 * MIB
"""Bytes of its code (interpreter and libraries): 19.5 MiB after the load, 19.8 in service."""
TOKEN = 500
"""Bytes per token of llama.cpp's vocabulary: a BPE tokenizer with two merges per token took 14 MiB
for 32,768 tokens and 63 for 131,072. That of other kinds was not measured."""
HUB_TOKEN, HUB_PARSED, HUB_SHOWN = 600, 1460, 290
"""Bytes per token of such a tokenizer in our own endpoint (`runners/vocabulary.py`), which Hugging
Face's library reads: kept, beside that while it is read, and more once texts are shown; the process
of `onnx` with 131,072 tokens."""
DEFAULT_CONTEXT = 2048
"""For a file that does not say what it was trained for."""
LEAST_CONTEXT = 4096
"""The context is not cut below this to save memory, if the model has it."""
EMBED_CONTEXT = 8192
"""Longest text to embed when nothing is configured: its work buffers grow with it."""
EMBED_CACHE = 256 << 20
"""Bytes of keys and values for texts that are embedded at the same time."""
UBATCH = 512
"""Tokens computed at a time; sets the size of the work buffers."""
CHUNK = 256
"""Tokens of a prompt that our own endpoint computes at a time (`runners/run.py`)."""
GRAPH = MIB
"""Bytes of the nodes that one LoRA adapter adds to the engine's graphs."""

KvType = Literal["f16", "q8_0"]
"""How keys and values are kept."""
_KV_BYTES: dict[Literal["f16", "q8_0", "f32"], tuple[int, int]] = {
    "f16": (2, 1),
    "q8_0": (34, 32),
    "f32": (4, 1),
}
"""Bytes per number, as a fraction: a block of Q8_0 is 32 numbers and a 16-bit scale."""
REPACKED = frozenset({"Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"})
"""Types that the engine may copy into another order at load, for its matrix kernels. Which of them
it does depends on the processor; reading instead of mapping is right in either case."""
_WINDOWED: dict[str, tuple[int, int]] = {
    "gemma2": (1, 2),
    "gemma3": (5, 6),
    "gemma3n": (4, 5),
    "gpt-oss": (1, 2),
    "cohere2": (3, 4),
    "exaone4": (3, 4),
}
"""The share of layers that see a window only, as llama.cpp loads these architectures. Others with a
window are counted as if every layer saw everything."""


class Memory(Struct, frozen=True):
    """What a runner takes, term by term, in bytes; 0 is what there is not."""

    process: int = 0
    """The process itself: interpreter, HTTP, what the libraries keep for themselves."""
    code: int = 0
    """Pages of the libraries' code; in memory once for all runners of the engine."""
    weights: int = 0
    """Weights that were read, copied or converted."""
    mapped: int = 0
    """Pages of the model's file that stay in memory: shared with whoever maps it too."""
    adapters: int = 0
    """LoRA adapters; what they add to the work buffers is among `work`."""
    cache: int = 0
    """Keys and values of all slots."""
    late: bool = False
    """The cache grows with the requests; else it is there from the load on."""
    work: int = 0
    """Work buffers; they come with the first long prompts."""
    prompts: int = 0
    """Prompts kept after their slot went to another request, at most. Many runners never have so
    many, so it is told apart from the rest."""
    draft: int = 0
    """A model that may guess for it, all in all; apart, as it comes and goes."""
    peak: int = 0
    """What loading takes for a while beside what is there after it."""

    @property
    def loaded(self) -> int:
        """All right after the load."""
        rest = self.process + self.code + self.weights + self.mapped + self.adapters
        return rest + (0 if self.late else self.cache)

    @property
    def serving(self) -> int:
        """All with every slot full, and no prompt kept beside them."""
        return self.loaded + (self.cache if self.late else 0) + self.work

    @property
    def most(self) -> int:
        """All that it may take while it serves."""
        return self.serving + self.prompts + self.draft

    @property
    def loading(self) -> int:
        """All at the top of its load."""
        return self.loaded + self.peak

    @property
    def later(self) -> int:
        """What may come after the load; a draft model is there from the load on, or never."""
        return self.serving + self.prompts - self.loaded


class Placement(Struct, frozen=True):
    """How a model is loaded: tokens per request, requests at a time, memory."""

    context: int
    slots: int
    memory: Memory = Memory()
    prompt_cache: int = 0
    """The limit told to the engine for prompts kept after their slot went to another request."""
    kv_type: KvType = "f16"
    mapped: bool = True
    """The file is mapped into memory; else it is read, so that what is copied is there once."""

    @property
    def bytes(self) -> int:
        """What must be free for it: loading may take more than serving."""
        return max(self.memory.most, self.memory.loading)


class Wanted(Struct, frozen=True):
    """What a model is to be placed for: the settings that its memory depends on."""

    slots: int
    """Requests at a time; fewer only if even the least context needs it."""
    budget: int
    """Bytes that there are for all models."""
    context: int | None = None
    """Tokens per request as configured, which is never changed. None: what the model was trained
    for, halved (not below `LEAST_CONTEXT`) while the model would take more than half the budget."""
    embed: bool = False
    """For embeddings or scores: texts are computed whole, and no cache is kept."""
    kv_type: KvType = "f16"
    """How keys and values are kept, where the engine lets one choose."""
    options: Mapping[str, Any] = {}
    """What the configuration says to the engine of this model."""
    draft: ModelInfo | None = None
    """A model that may guess for it in the same process."""
    adapters: tuple[int, ...] = ()
    """Bytes of each of its LoRA adapters."""


def settle(
    info: ModelInfo, wanted: Wanted, count: Callable[[int, int], Memory], **more: Any
) -> Placement:
    """Context and slots for a model, by what an engine counts for them.

    Args:
        info: the model's facts.
        wanted: what it is placed for.
        count: the memory with so many tokens of context for each of so many slots.
        more: further fields of the placement.

    Returns:
        The placement; its bytes may exceed the budget, which the scheduler refuses with both
        numbers.
    """
    trained = info.context or DEFAULT_CONTEXT
    tokens, slots = min(wanted.context or trained, trained), wanted.slots
    if wanted.embed:
        if wanted.context is None:
            tokens = min(tokens, EMBED_CONTEXT)
        return Placement(tokens, slots, count(tokens, slots), **more)
    found = Placement(tokens, slots, count(tokens, slots), **more)
    while wanted.context is None and found.context > LEAST_CONTEXT:
        if found.bytes <= wanted.budget // 2:
            break
        tokens = max(LEAST_CONTEXT, found.context // 2)
        found = replace(found, context=tokens, memory=count(tokens, slots))
    while found.slots > 1 and found.bytes > wanted.budget:
        slots = found.slots - 1
        found = replace(found, slots=slots, memory=count(found.context, slots))
    return found


def kv_bytes(info: ModelInfo, tokens: int, kv_type: Literal["f16", "q8_0", "f32"] = "f16") -> int:
    """Bytes of keys and values of one slot for `tokens`: layers · kv heads · length each.

    Layers with a window keep that much and a batch. With latent attention (MLA) the values are
    part of the keys and not kept twice.
    """
    latent = info.architecture == "deepseek2" and info.kv_heads == 1
    length = info.key_length + (0 if latent else info.value_length)
    part, of = _WINDOWED.get(info.architecture, (0, 1)) if info.window else (0, 1)
    windowed = info.layers * part // of
    seen = min(tokens, -(-(info.window + UBATCH) // 256) * 256)
    numbers = info.kv_heads * length * ((info.layers - windowed) * tokens + windowed * seen)
    times, per = _KV_BYTES[kv_type]
    return numbers * times // per


def is_mapped(info: ModelInfo) -> bool:
    """Whether the file is better mapped than read.

    Mapped pages are there at once and shared between processes. But of weights that are repacked,
    a mapped file stays in memory beside the copy: 140 M weights of Q4_0 took 196 MiB mapped and
    122 MiB read, loaded in 0.5 to 0.8 s mapped and 0.3 s read, and decoded no slower.
    """
    return _repacked(info) * 4 < sum(info.types.values())


def weight_bytes(info: ModelInfo) -> int:
    """Bytes of weights in memory."""
    return info.bytes + (_repacked(info) if is_mapped(info) else 0)


def _repacked(info: ModelInfo) -> int:
    return sum(size for kind, size in info.types.items() if kind in REPACKED)


def work_bytes(info: ModelInfo, tokens: int, *, slots: int = 1, ubatch: int = UBATCH) -> int:
    """Bytes of work buffers that are really used, for a context of `tokens`.

    The two widest values of an MLP and seven of the model's width, F32, per token of a batch; the
    mask of attention, F16; logits and the sampler's candidates of one token per slot.
    """
    batch = min(ubatch, tokens)
    mask = 2 * batch * tokens
    return hidden_bytes(info, batch) + mask + 24 * info.vocabulary * slots


def hidden_bytes(info: ModelInfo, tokens: int) -> int:
    """Bytes between two layers for `tokens` at a time: see `work_bytes`."""
    return 4 * tokens * (2 * _mlp_width(info) + 7 * info.width)


def _mlp_width(info: ModelInfo) -> int:
    """The width inside an MLP: what the number of weights leaves for three matrices of it.

    Between 2 and 8 widths; 4 where the file does not say enough, or for a mixture of experts.
    """
    if not (info.width and info.layers and info.parameters) or info.experts:
        return 4 * info.width
    ends = info.vocabulary * info.width * (1 if info.tied else 2)
    heads = info.heads * info.key_length + info.kv_heads * (info.key_length + info.value_length)
    attention = info.width * (heads + info.heads * info.value_length)
    found = ((info.parameters - ends) // info.layers - attention) // (3 * info.width)
    return max(2 * info.width, min(8 * info.width, found))


def adapter_bytes(sizes: tuple[int, ...]) -> int:
    """Bytes of LoRA adapters whose files have `sizes`, with their nodes in the engine's graphs.

    Three of 18 MiB for 154 matrices of a model of 140 M weights took 59 MiB after the load and 62
    once all were applied to a long prompt; this and `adapter_work` say 58 and 62.
    """
    return sum(sizes) + len(sizes) * GRAPH


def adapter_work(info: ModelInfo, tokens: int) -> int:
    """Bytes of work buffers that adapters add: the widest value of a batch once more, F32."""
    return 4 * min(UBATCH, tokens) * _mlp_width(info)


def place(info: ModelInfo, wanted: Wanted) -> Placement:
    """Context, slots and memory for a model with llama.cpp."""
    mapped = is_mapped(info)
    kv_type = "f16" if wanted.embed else wanted.kv_type

    def count(tokens: int, slots: int) -> Memory:
        copied = _repacked(info)
        tensors = sum(info.types.values()) or info.bytes
        memory = Memory(
            process=PROCESS + PAGES + TOKEN * info.vocabulary,
            code=CODE,
            weights=copied if mapped else tensors,
            mapped=tensors if mapped else 0,
            peak=max(0, info.bytes - tensors),
        )
        if wanted.embed:
            texts = 1 if info.encoder else slots
            cache, work = kv_bytes(info, tokens) * texts, work_bytes(info, tokens, ubatch=tokens)
            return replace(memory, cache=cache, work=work)
        cache = kv_bytes(info, tokens, kv_type) * slots
        work = work_bytes(info, tokens, slots=slots)
        memory = replace(memory, cache=cache, work=work)
        if wanted.draft is not None:
            memory = replace(memory, draft=draft_bytes(wanted.draft, tokens, slots))
        if wanted.adapters:
            # No prompts are kept then: the engine would find them by their tokens (`lora.py`).
            work += adapter_work(info, tokens)
            return replace(memory, adapters=adapter_bytes(wanted.adapters), work=work)
        return replace(memory, prompts=_kept(info, tokens, kv_type))

    found = settle(info, wanted, count, kv_type=kv_type, mapped=mapped)
    if wanted.embed and not info.encoder:
        # Each text has room of its own: what the engine still holds of the last ones made one of
        # three fail where all shared the room of one.
        slots = max(1, min(found.slots, EMBED_CACHE // max(1, kv_bytes(info, found.context))))
        return replace(found, slots=slots, memory=count(found.context, slots))
    if not found.memory.prompts:
        return found
    return replace(found, prompt_cache=prompt_cache(info, found.context, kv_type))


def draft_bytes(draft: ModelInfo, tokens: int, slots: int) -> int:
    """Bytes of a model that guesses for another: it has the other's context and slots.

    Its keys and values are F16 whatever the other's are. Whether its file is mapped follows the
    other's, so weights that are repacked are counted twice.
    """
    kept = kv_bytes(draft, tokens) * slots
    work = work_bytes(draft, tokens, slots=slots)
    return draft.bytes + _repacked(draft) + kept + work


def prompt_cache(info: ModelInfo, tokens: int, kv_type: KvType = "f16") -> int:
    """The limit for kept prompts: room for two whole contexts, between 8 MiB and 256 MiB.

    In whole MiB, as the engine takes it; a prompt that is larger alone is not kept at all.
    """
    room = max(8 * MIB, min(256 * MIB, 2 * kv_bytes(info, tokens, kv_type)))
    return -(-room // MIB) * MIB


def _kept(info: ModelInfo, tokens: int, kv_type: KvType) -> int:
    """What kept prompts take at most: the limit, and the pieces of one that is gone.

    glibc gives back at once only what was larger than 32 MiB. Measured with 140 M weights: 35 to 38
    MiB for prompts of 11 with a limit of 22, and 88 for prompts of 44 with a limit of 88.
    """
    one = kv_bytes(info, tokens, kv_type)
    return prompt_cache(info, tokens, kv_type) + (one if one < 32 * MIB else 0)
