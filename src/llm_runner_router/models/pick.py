"""Which of a repository's files to bring: the quantisation asked for, and all that belongs to it.

Pure. Knows: how files of models are named. Does not know: where they lie, or what is in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from llm_runner_router.errors import NotFound
from llm_runner_router.refs import Ref

DEFAULT_QUANT = "Q4_K_M"
"""What llama.cpp and Ollama take when nothing is said; the usual point between size and quality."""

PREFERENCE = (
    *(DEFAULT_QUANT, "Q4_K_S", "Q4_K_L", "Q4_K_XL", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4", "Q4_1"),
    *("Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M"),
    *("IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "TQ2_0", "TQ1_0", "BF16", "F16"),
    "F32",
)
"""The order in which a file is taken when nobody said which: near 4 bits, better before smaller."""

BITS = {
    "Q2_K": 3.16,
    "Q3_K_S": 3.64,
    "Q3_K_M": 4.0,
    "Q3_K_L": 4.3,
    "IQ3_M": 3.76,
    "IQ3_S": 3.66,
    "IQ3_XS": 3.5,
    "IQ3_XXS": 3.25,
    "IQ2_M": 2.93,
    "Q2_K_S": 2.97,
    "Q4_K_S": 4.67,
    "Q4_K_M": 4.89,
    "Q4_0": 4.64,
    "Q4_1": 5.1,
    "IQ4_XS": 4.46,
    "IQ4_NL": 4.68,
    "Q5_K_S": 5.57,
    "Q5_K_M": 5.7,
    "Q5_0": 5.57,
    "Q5_1": 6.04,
    "Q6_K": 6.56,
    "Q8_0": 8.5,
    "MXFP4": 4.25,
    "TQ1_0": 2.19,
    "TQ2_0": 2.52,
    "F16": 16.0,
    "BF16": 16.0,
    "F32": 32.0,
}
"""Bits per weight of a model of the shape of Llama 3.1 8B, embeddings and norms included: what the
mixes of `convert/mixes.py` come to, which a test holds them against. llama.cpp's
`tools/quantize/README.md` measures the same to a hundredth where it lists one; IQ2, IQ3 and Q2_K_S,
for which we have no mix, are from there, and MXFP4 is its block's own size."""

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])(I?Q[1-8](?:_(?:[01]|K|NL|XXS|XS|XL|S|M|L))*|[TI]Q\d_\d|I2_S|TL[12]"
    r"|MXFP4(?:_MOE)?|NVFP4|B?F16|FP16|F32|FP32)(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf|\.safetensors|\.bin)")
_COMPANION = re.compile(
    r"((adapter_|generation_)?config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|preprocessor_config|processor_config|chat_template|genai_config|quantize_config|params"
    r"|sentence_bert_config|config_sentence_transformers|modules|quantization_config|tekken"
    r"|.*\.index)\.json"
    r"|merges\.txt|vocab\.txt|bpe\.codes|spiece\.model|tokenizer\.model.*|sentencepiece\S*\.model"
    r"|.*\.sig|claims\.jsonl|.*\.tiktoken|chat_template\.jinja|.*\.jinja|LICENSE.*|LICENCE.*|NOTICE.*",
    re.IGNORECASE,
)
_MODULE = re.compile(r"\d+_\w+/config\.json|\d+_Dense/(model\.safetensors|pytorch_model\.bin)")
"""Files of sentence-transformers' modules: how vectors are pooled, and layers behind that."""
MAX_PARTS = 999


class Listed(Struct, frozen=True):
    """A file in a repository's list."""

    path: str
    size: int | None = None


class Choice(Struct, frozen=True):
    """What to bring."""

    files: tuple[Listed, ...]
    main: str = ""
    """The file an engine opens; empty: the folder."""
    quant: str = ""
    notes: tuple[str, ...] = ()


def quant_of(path: str) -> str:
    """The quantisation that a file's name tells, in capitals, or nothing.

    The folder counts where the name says nothing: `Q4_K_M/model.gguf`.
    """
    for part in reversed(path.rsplit(".", 1)[0].split("/")):
        found: list[str] = _QUANT.findall(part)
        if found:
            return found[-1].upper().replace("FP16", "F16").replace("FP32", "F32")
    return ""


def split_names(name: str) -> tuple[str, ...]:
    """The names of all parts of `a-00001-of-00003.gguf`, in order; otherwise the name itself."""
    found = _SPLIT.fullmatch(name)
    if found is None or not 1 < int(found[3]) <= MAX_PARTS:
        return (name,)
    stem, count, suffix = found[1], int(found[3]), found[4]
    return tuple(f"{stem}-{part:05}-of-{count:05}{suffix}" for part in range(1, count + 1))


def choose(files: Sequence[Listed], ref: Ref) -> Choice:
    """The files that `ref` means, of those a repository lists.

    Raises:
        NotFound: the file or the quantisation is not there, or nothing is a model; says what is.
    """
    usable = [file for file in files if not file.path.endswith((".py", ".pyc", ".sh", ".exe"))]
    if ref.file is not None:
        return _named(usable, ref)
    ggufs = [f for f in usable if f.path.lower().endswith(".gguf") and not _beside(f.path)]
    if ref.quant is not None:
        return _quantised(ggufs, usable, ref)
    if ggufs:
        return _gguf(ggufs, usable, ref)
    adapters = [f for f in usable if f.path.lower().endswith(".gguf") and "lora" in f.path.lower()]
    if adapters and not any(f.path.endswith((".safetensors", ".bin", ".onnx")) for f in usable):
        return _gguf(adapters, usable, ref)
    return _folder(usable, ref)


def _named(files: Sequence[Listed], ref: Ref) -> Choice:
    wanted = ref.file or ""
    known = {file.path: file for file in files}
    if wanted not in known:
        ends = [path for path in known if path.endswith(f"/{wanted}")]
        if len(ends) != 1:
            raise NotFound(
                f"`{ref}`: there is no file {wanted!r}", hint=_there(files), param="model"
            )
        wanted = ends[0]
    names = split_names(wanted)
    _whole(names, known, ref)
    chosen = tuple(known[name] for name in names)
    if wanted.lower().endswith(".gguf"):
        return Choice((*chosen, *_signature(known, names[0])), names[0], quant_of(wanted))
    extra = _companions(files, wanted.rpartition("/")[0])
    return Choice((*chosen, *(f for f in extra if f.path not in names)), wanted)


def _quantised(ggufs: Sequence[Listed], files: Sequence[Listed], ref: Ref) -> Choice:
    wanted = (ref.quant or "").upper()
    exact = [f for f in ggufs if quant_of(f.path) == wanted]
    begins = [f for f in ggufs if quant_of(f.path).startswith(f"{wanted}_")]
    # The habit of naming a variant that no list of types has, such as `UD-Q4_K_XL`.
    said = [
        f for f in ggufs if wanted in re.split(r"[./]", f.path.upper()) or wanted in f.path.upper()
    ]
    for found in (exact, begins, said):
        if found:
            return _gguf(found, files, ref)
    if not ggufs:
        raise NotFound(
            f"`{ref}` has no GGUF file, so none with {wanted}",
            hint=f"`{_bare(ref)}` brings what there is; `llmrr quantize` makes {wanted} of it",
            param="model",
        )
    raise NotFound(f"`{ref}`: there is no {wanted}", hint=_there(ggufs), param="model")


def _gguf(ggufs: Sequence[Listed], files: Sequence[Listed], ref: Ref) -> Choice:
    firsts = [f for f in ggufs if split_names(f.path)[0] == f.path]
    if not firsts:
        _whole(split_names(ggufs[0].path), {f.path: f for f in ggufs}, ref)
    best = min(firsts, key=lambda f: (_rank(quant_of(f.path)), f.path.count("/"), f.path))
    known = {file.path: file for file in files}
    names = split_names(best.path)
    _whole(names, known, ref)
    quant = quant_of(best.path)
    notes = []
    if ref.quant is None and len(firsts) > 1:
        why = "the usual choice" if quant == DEFAULT_QUANT else f"there is no {DEFAULT_QUANT}"
        notes.append(f"chose {quant or best.path} of {len(firsts)} files: {why}")
    seers = [f.path for f in files if "mmproj" in f.path.lower()]
    if seers:
        notes.append(f"left out the projector for images ({seers[0]})")
    chosen = (*(known[name] for name in names), *_signature(known, names[0]))
    return Choice(chosen, names[0], quant, tuple(notes))


def _folder(files: Sequence[Listed], ref: Ref) -> Choice:
    """Weights that are no GGUF, with everything that is read beside them."""
    top = [f for f in files if "/" not in f.path]
    groups = (
        ("safetensors", _safetensors(top)),
        ("ONNX", _onnx(files)),
        ("TensorFlow.js", _tfjs(files)),
        ("PyTorch", [f for f in top if re.fullmatch(r"pytorch_model.*\.bin", f.path)]),
        ("PyTorch", [f for f in top if re.fullmatch(r"(consolidated|model).*\.(pth|pt)", f.path)]),
        ("binary", [f for f in top if f.path.endswith(".bin")][:1]),
        ("safetensors", [f for f in files if f.path.endswith(".safetensors")][:1]),
    )
    for kind, weights in groups:
        if not weights:
            continue
        known = {f.path: f for f in files}
        for weight in weights:
            _whole(split_names(weight.path), known, ref)
        home = weights[0].path.rpartition("/")[0]
        extra = [*_companions(files, ""), *(_companions(files, home) if home else ())]
        if any(f.path in ("model.sig", "claims.jsonl") for f in files):
            extra = list(files)  # what is signed is the whole, and can be checked only so
        chosen = {f.path: f for f in (*weights, *extra)}
        others = sorted({k for k, found in groups if found and k != kind})
        notes = (f"chose the {kind} files; {', '.join(others)} left out",) if others else ()
        return Choice(tuple(chosen.values()), notes=notes)
    raise NotFound(f"`{ref}` has no model files", hint=_there(files), param="model")


def _signature(known: dict[str, Listed], main: str) -> list[Listed]:
    """The signature of a single file, if one lies beside it."""
    return [known[f"{main}.sig"]] if f"{main}.sig" in known else []


def _safetensors(top: Sequence[Listed]) -> list[Listed]:
    found = [f for f in top if f.path.endswith(".safetensors")]
    # `consolidated…` repeats the same weights in the maker's own layout; adapters are no models.
    own = [f for f in found if re.fullmatch(r"model.*", f.path)]
    return own or [f for f in found if not f.path.startswith(("consolidated", "adapter"))] or found


def _onnx(files: Sequence[Listed]) -> list[Listed]:
    whole = [f.path.rpartition("/")[0] for f in files if f.path.endswith("genai_config.json")]
    if whole:
        # One folder per target; the one for processors runs everywhere.
        home = min(whole, key=lambda path: ("cpu" not in path, len(path), path))
        return [f for f in files if f.path.rpartition("/")[0] == home]
    models = [f for f in files if f.path.endswith(".onnx")]
    if not models:
        return []
    order = ("model.onnx", "decoder_model_merged.onnx")
    best = min(models, key=lambda f: (f.path.rpartition("/")[2] not in order, len(f.path), f.path))
    return [
        best,
        *(f for f in files if f.path.startswith((f"{best.path}_data", f"{best.path}.data"))),
    ]


def _tfjs(files: Sequence[Listed]) -> list[Listed]:
    heads = [f for f in files if f.path.rpartition("/")[2] == "model.json"]
    if not heads:
        return []
    home = min(heads, key=lambda f: len(f.path)).path.rpartition("/")[0]
    inside = [f for f in files if f.path.rpartition("/")[0] == home]
    shards = [f for f in inside if re.search(r"shard\d+of\d+(\.bin)?$", f.path)]
    return [f for f in inside if f.path.endswith("model.json")] + shards if shards else []


def _companions(files: Sequence[Listed], home: str) -> list[Listed]:
    inside = f"{home}/" if home else ""
    found = []
    for file in files:
        if not file.path.startswith(inside):
            continue
        rest = file.path.removeprefix(inside)
        if _COMPANION.fullmatch(rest) or _MODULE.fullmatch(rest):
            found.append(file)
    return found


def _whole(names: Sequence[str], known: dict[str, Listed], ref: Ref) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise NotFound(
            f"`{ref}`: {len(missing)} of {len(names)} parts are missing, first {missing[0]!r}",
            hint="the repository is not complete; take another file of it",
            param="model",
        )


def _beside(path: str) -> bool:
    """Whether a GGUF file is no language model: a projector, an importance matrix, an adapter."""
    name = path.rpartition("/")[2].lower()
    return "mmproj" in name or "imatrix" in name or "lora" in name


def _rank(quant: str) -> int:
    return PREFERENCE.index(quant) if quant in PREFERENCE else len(PREFERENCE)


def _bare(ref: Ref) -> str:
    return f"{ref.kind}:{ref.name}" + (f"@{ref.revision}" if ref.revision else "")


def _there(files: Sequence[Listed]) -> str:
    quants = sorted(
        {q for f in files if f.path.lower().endswith(".gguf") if (q := quant_of(f.path))}
    )
    if quants:
        return "there are: " + ", ".join(quants)
    shown = [f.path for f in files][:8]
    return "there are: " + (", ".join(shown) if shown else "no files")
