"""A Hugging Face folder's tokenizer as the fields of a GGUF file.

Knows: `tokenizer.json`, `tokenizer.model`, `tokenizer_config.json` and the files beside them, and
llama.cpp's four kinds of vocabulary. Does not know: weights; only how many rows the embedding has,
because a vocabulary in GGUF has a token for each.

    gpt2    byte-level BPE (GPT-2, Llama 3, Qwen, …)     tokens as letters for bytes, merges
    llama   SentencePiece's BPE (Llama 2, Gemma, …)      scores instead of merges
    t5      SentencePiece's Unigram (XLM-R, T5)          scores, and a table of characters
    bert    WordPiece                                    words begin with U+2581, parts do not
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from llm_runner_router.errors import ModelFileError, Unsupported

from . import around, pretokenizers, sentencepiece
from .around import steps

MAX_JSON: Final = 512 * 1024 * 1024
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Values of `token_type`."""
ADDED_SCORE: Final = -1000.0
"""Score of a token that no merge makes: it is found as a whole, before merging."""
_SPACE = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")
_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d+>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.S)
"""Names of tokens that steer, also where their maker forgot to say so (as llama.cpp judges)."""
_ENDS: Final = {
    "eot": ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<EOT>"),
    "eom": ("<|eom_id|>",),
}
"""Names of tokens that end a turn or a message, beside the one that ends a text."""
_KEYS: Final = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # GGUF's own spelling


class Vocabulary(Struct, frozen=True):
    """Everything that goes under `tokenizer.ggml`."""

    model: str
    tokens: list[str]
    types: list[int]
    pre: str = "default"
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = {}
    """Ids by role: `bos eos eot eom unk sep pad cls mask`."""
    flags: dict[str, bool] = {}
    charsmap: bytes = b""

    def fields(self) -> Iterator[tuple[str, Any, str | None]]:
        """`(key, value, kind)` for each GGUF field; `kind` None is what the value says."""
        prefix = "tokenizer.ggml."
        yield prefix + "model", self.model, None
        yield prefix + "pre", self.pre, None
        yield prefix + "tokens", self.tokens, "STRING"
        yield prefix + "token_type", self.types, "I32"
        if self.scores is not None:
            yield prefix + "scores", self.scores, "F32"
        if self.merges is not None:
            yield prefix + "merges", self.merges, "STRING"
        if self.charsmap:
            yield prefix + "precompiled_charsmap", list(self.charsmap), "U8"
        for role, number in self.special.items():
            yield f"{prefix}{_KEYS.get(role, role)}_token_id", number, "U32"
        for name, value in self.flags.items():
            yield prefix + name, value, "BOOL"


class _Files(Struct, frozen=True):
    """The parsed files of a folder; empty where there is none."""

    folder: Path
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    """`tokenizer_config.json`, with `special_tokens_map.json` below it."""
    config: Mapping[str, Any]
    generation: dict[str, Any]


def read(folder: Path, rows: int, config: Mapping[str, Any], *, pairs: bool = False) -> Vocabulary:
    """The vocabulary in `folder` for an embedding of `rows` rows.

    With `pairs`, it also says how a query and a document are put together to be scored.

    Raises:
        ModelFileError: no tokenizer, or one that does not fit the weights; names the file.
        Unsupported: llama.cpp has nothing like it.
    """
    try:
        return _read(folder, rows, config, pairs=pairs)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ModelFileError(
            f"the tokenizer in `{folder}` says something that cannot be:"
            f" {type(exc).__name__}: {exc}",
            hint="download `tokenizer.json` again",
        ) from exc


def _read(folder: Path, rows: int, config: Mapping[str, Any], *, pairs: bool) -> Vocabulary:
    settings = read_json(folder / "special_tokens_map.json")
    settings |= read_json(folder / "tokenizer_config.json")
    files = _Files(
        folder,
        read_json(folder / "tokenizer.json"),
        settings,
        config,
        read_json(folder / "generation_config.json"),
    )
    model, fairseq = folder / "tokenizer.model", folder / "sentencepiece.bpe.model"
    if not files.tokenizer and not model.is_file() and fairseq.is_file():
        files = msgspec.structs.replace(files, tokenizer=_fairseq(fairseq, config))
    if model.is_file():
        found = _from_sentencepiece(sentencepiece.read(model), files, rows)
    elif files.tokenizer:
        found = _from_json(files, rows)
    else:
        tekken = (folder / "tekken.json").is_file()
        raise ModelFileError(
            f"`{folder}` has no `tokenizer.json` and no `tokenizer.model`"
            + (", only Mistral's `tekken.json`" if tekken else ""),
            hint="save the tokenizer with transformers (`save_pretrained`) into the folder",
        )
    return _finished(found, files, pairs=pairs)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file.

    Raises:
        ModelFileError: it is too large, unreadable or not an object.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFileError(f"`{path}` has more than {MAX_JSON} bytes")
        value = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ModelFileError(f"cannot read `{path}`: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ModelFileError(f"`{path}` is not JSON: {exc}", hint="download it again") from exc
    if not isinstance(value, dict):
        raise ModelFileError(f"`{path}` holds no object", hint="download it again")
    return value


# ---------------------------------------------------------------- tokenizer.json


def _from_json(files: _Files, rows: int) -> Vocabulary:
    model = files.tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict):
        raise _bad(files, "it has no `model`")
    if kind is None:  # files of old versions left it out for BPE
        kind = "BPE" if "merges" in model else "WordPiece"
    if kind == "WordPiece":
        return _wordpiece(files, model, rows)
    if kind == "Unigram":
        return _unigram(files, model, rows)
    if kind != "BPE":
        raise Unsupported(f"llama.cpp has no tokenizer like `{kind}`, which `tokenizer.json` has")
    return _bpe(files, model, rows)


def _bpe(files: _Files, model: dict[str, Any], rows: int) -> Vocabulary:
    words = _by_id(files, model.get("vocab"))
    merges = [_merge(files, pair) for pair in model.get("merges") or ()]
    if _has(files.tokenizer.get("pre_tokenizer"), "ByteLevel"):
        tokens, types = _listed(files, words, rows, spaces=False)
        # llama.cpp parts a merge at the first space after its first letter.
        joined = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
        pre = pretokenizers.name_of(files.tokenizer)
        return Vocabulary("gpt2", tokens, types, pre, merges=joined)
    if not model.get("byte_fallback"):
        raise Unsupported(
            "llama.cpp has no BPE without bytes: `tokenizer.json` has neither `ByteLevel` nor"
            " `byte_fallback`",
            hint="run the folder as it is, with the engine `torch`",
        )
    tokens, types = _listed(files, words, rows, spaces=True)
    unknown = words_of(model.get("vocab")).get(str(model.get("unk_token")))
    types = [
        BYTE if t == NORMAL and _BYTE_TOKEN.match(tokens[i]) else UNKNOWN if i == unknown else t
        for i, t in enumerate(types)
    ]
    prefix = _has(files.tokenizer.get("normalizer"), "Prepend") or _metaspace_prefix(files)
    return Vocabulary(
        "llama",
        tokens,
        types,
        scores=_scores(tokens, types, merges),
        flags={"add_space_prefix": prefix},
    )


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, str]]) -> list[float]:
    """A score for each token, so that the best-scored pair is the one to merge first.

    SentencePiece's BPE gives a piece minus the number of the merge that made it; a `tokenizer.json`
    made from it lists the merges in that order.
    """
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    last = len(merges)
    return [
        ADDED_SCORE - last if kind in (CONTROL, USER_DEFINED, UNUSED) else
        0.0 if kind in (BYTE, UNKNOWN) else
        -float(rank.get(token, last))
        for token, kind in zip(tokens, types, strict=True)
    ]  # fmt: skip


def _unigram(files: _Files, model: dict[str, Any], rows: int) -> Vocabulary:
    pieces = model.get("vocab") or []
    try:
        words = {i: str(piece[0]) for i, piece in enumerate(pieces)}
        scores = [float(piece[1]) for piece in pieces]
    except (TypeError, ValueError, IndexError) as exc:
        raise _bad(files, f"its `vocab` is no list of pieces and scores ({exc})") from exc
    tokens, types = _listed(files, words, rows, spaces=True)
    unknown = model.get("unk_id")
    if isinstance(unknown, int) and unknown < len(types):
        types[unknown] = UNKNOWN
    scores += [ADDED_SCORE] * (len(tokens) - len(scores))
    normalizer = files.tokenizer.get("normalizer")
    return Vocabulary(
        "t5",
        tokens,
        types,
        scores=scores[: len(tokens)],
        flags={
            "add_space_prefix": _metaspace_prefix(files),
            "remove_extra_whitespaces": _has(normalizer, "Strip")
            or _squeezes(normalizer)
            or _has(files.tokenizer.get("pre_tokenizer"), "WhitespaceSplit"),
        },
        charsmap=_charsmap(files, normalizer),
    )


def _wordpiece(files: _Files, model: dict[str, Any], rows: int) -> Vocabulary:
    words = _by_id(files, model.get("vocab"))
    part = str(model.get("continuing_subword_prefix") or "##")
    tokens, types = _listed(files, words, rows, spaces=False)
    tokens = [
        token
        if kind in (CONTROL, UNUSED)
        else token.removeprefix(part)
        if token.startswith(part)
        else _SPACE + token
        for token, kind in zip(tokens, types, strict=True)
    ]
    normalizer = next(steps(files.tokenizer.get("normalizer"), "BertNormalizer"), {})
    lower = bool(normalizer.get("lowercase", False))
    accents = normalizer.get("strip_accents")
    return Vocabulary(
        "bert",
        _distinct(tokens),
        types,
        flags={
            "normalizer.lowercase": lower,
            "normalizer.strip_accents": lower if accents is None else bool(accents),
        },
    )


# ---------------------------------------------------------------- tokenizer.model


def _from_sentencepiece(
    model: sentencepiece.SentencePieceModel, files: _Files, rows: int
) -> Vocabulary:
    words = {i: piece.text for i, piece in enumerate(model.pieces)}
    tokens, added = _listed(files, words, rows, spaces=True)
    types, scores = list(added), [ADDED_SCORE] * len(tokens)
    for i, piece in enumerate(model.pieces[: len(tokens)]):
        if added[i] == NORMAL:
            types[i] = piece.type
        if added[i] == NORMAL or tokens[i] == piece.text:
            scores[i] = piece.score
    flags = {"add_space_prefix": model.prefix}
    if model.kind == sentencepiece.BPE:
        return Vocabulary("llama", tokens, types, scores=scores, flags=flags)
    if model.kind == sentencepiece.UNIGRAM:
        flags["remove_extra_whitespaces"] = model.squeeze
        return Vocabulary("t5", tokens, types, scores=scores, flags=flags, charsmap=model.charsmap)
    raise Unsupported(f"`tokenizer.model` is of the kind {model.kind}, neither BPE nor Unigram")


def _fairseq(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`tokenizer.json` of an XLM-R that comes with SentencePiece's file alone.

    fairseq put its own four special tokens first and a mask last; the file has three of them, in
    another order (`XLMRobertaTokenizer` of transformers).

    Raises:
        Unsupported: another model that moves its tokens in another way, or no Unigram.
    """
    model = sentencepiece.read(path)
    if model.kind != sentencepiece.UNIGRAM or config.get("model_type") not in (None, "xlm-roberta"):
        raise Unsupported(
            f"`{path.name}` is read for XLM-RoBERTa only, and for its Unigram vocabulary",
            hint="save the tokenizer with transformers, so that there is a `tokenizer.json`",
        )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocab = [[word, 0.0] for word in special]
    vocab += [[piece.text, piece.score] for piece in model.pieces[3:]]
    vocab.append(["<mask>", 0.0])
    named = [*enumerate(special), (len(vocab) - 1, "<mask>")]
    return {
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab},
        "added_tokens": [{"id": i, "content": word, "special": True} for i, word in named],
        "normalizer": {
            "type": "Precompiled",
            "precompiled_charsmap": b64encode(model.charsmap).decode(),
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "prepend_scheme": "always"},
            ],
        },
        "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]},
    }


# ---------------------------------------------------------------- tokens


def words_of(vocab: Any) -> dict[str, int]:
    """A vocabulary as an object of ids; empty where it is none."""
    return vocab if isinstance(vocab, dict) else {}


def _by_id(files: _Files, vocab: Any) -> dict[int, str]:
    words = {number: word for word, number in words_of(vocab).items()}
    if not words or not all(type(number) is int and number >= 0 for number in words):
        raise _bad(files, "its `vocab` is no object of ids")
    return words


def _merge(files: _Files, pair: Any) -> tuple[str, str]:
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or len(parts) != 2:
        raise _bad(files, f"{str(pair)[:60]!r} among its `merges` is no pair")
    return str(parts[0]), str(parts[1])


def _added(files: _Files) -> dict[int, tuple[str, bool]]:
    """Added tokens by id: content, and whether they are special. Later files count more."""
    found: dict[int, tuple[str, bool]] = {}
    for word, number in read_json(files.folder / "added_tokens.json").items():
        if isinstance(number, int):
            found[number] = (word, False)
    decoder = files.settings.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if str(number).isdecimal() and isinstance(entry, dict):
            found[int(number)] = (str(entry.get("content", "")), bool(entry.get("special")))
    for entry in files.tokenizer.get("added_tokens") or ():
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            found[entry["id"]] = (str(entry.get("content", "")), bool(entry.get("special")))
    return found


def _listed(
    files: _Files, words: Mapping[int, str], rows: int, *, spaces: bool
) -> tuple[list[str], list[int]]:
    """A token and a type for each of `rows` ids.

    With `spaces`, added words that are not special say a space where the vocabulary says U+2581.

    Raises:
        ModelFileError: a token has an id that the embedding has no row for.
    """
    added = _added(files)
    most = max((*words, *added), default=-1)
    if most >= rows:
        # Some makers list more added tokens than they trained; a token in use is no such.
        if max(words, default=-1) >= rows:
            raise ModelFileError(
                f"the tokenizer has the id {most}, but the embedding only {rows} rows",
                hint="the tokenizer belongs to another model, or the checkpoint is incomplete",
            )
        added = {number: entry for number, entry in added.items() if number < rows}
    tokens, types = [], []
    for i in range(rows):
        if i in added:
            word, special = added[i]
            special = special or _LOOKS_SPECIAL.fullmatch(word) is not None
            tokens.append(word.replace(_SPACE, " ") if spaces and not special else word)
            types.append(CONTROL if special else USER_DEFINED)
        elif i in words:
            tokens.append(words[i])
            types.append(NORMAL)
        else:
            tokens.append(f"[PAD{i}]")
            types.append(UNUSED)
    return _distinct(tokens), types


def _distinct(tokens: list[str]) -> list[str]:
    """The engine ends itself over two tokens of one text; the later one gets another name."""
    seen: set[str] = set()
    named = []
    for i, token in enumerate(tokens):
        while token in seen:
            token = f"{token}[{i}]"
        seen.add(token)
        named.append(token)
    return named


# ---------------------------------------------------------------- special tokens


def _finished(found: Vocabulary, files: _Files, *, pairs: bool) -> Vocabulary:
    ids = {token: i for i, token in enumerate(found.tokens)}
    special = _special(files, ids, len(found.tokens))
    if found.model == "bert":
        # The engine begins a text with its BOS token, which BERT calls CLS.
        special.setdefault("bos", special.get("cls", 0))
    laid = around.layouts(files.tokenizer.get("post_processor"), ids)
    flags = {**found.flags, **_around(files, found, special, laid)}
    if pairs:
        named, switched = around.paired(laid[1] if laid is not None else [])
        special |= named
        flags |= switched
    return msgspec.structs.replace(found, special=special, flags=flags)


def _special(files: _Files, ids: Mapping[str, int], size: int) -> dict[str, int]:
    special: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        named = files.settings.get(f"{role}_token")
        word = named.get("content") if isinstance(named, dict) else named
        number = ids.get(word) if isinstance(word, str) else None
        if number is None:
            number = _first(files.config.get(f"{role}_token_id"))
        if number is None:
            number = _first(files.generation.get(f"{role}_token_id"))
        if number is not None and 0 <= number < size:
            special[role] = number
    for role, words in _ENDS.items():
        known = [ids[word] for word in words if word in ids]
        if known and known[0] != special.get("eos"):
            special[role] = known[0]
    return special


def _first(value: Any) -> int | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _around(
    files: _Files,
    found: Vocabulary,
    special: dict[str, int],
    laid: tuple[around.Layout, around.Layout] | None,
) -> dict[str, bool]:
    """Whether a text begins with BOS and ends with EOS, which are named where nothing else did."""
    if laid is not None:
        front, back = around.ends(laid[0])
        begin, end = bool(front), bool(back)
        for role, ids in (("bos", front[:1]), ("eos", back[-1:])):
            if ids and ids[0] >= 0 and found.model != "bert":
                special.setdefault(role, ids[0])
    else:
        begin = bool(files.settings.get("add_bos_token", found.model == "llama"))
        end = bool(files.settings.get("add_eos_token", False))
    if found.model == "bert":
        return {"add_bos_token": begin, "add_sep_token": end}
    return {"add_bos_token": begin and "bos" in special, "add_eos_token": end and "eos" in special}


# ---------------------------------------------------------------- steps of tokenizer.json


def _has(step: Any, kind: str) -> bool:
    return next(steps(step, kind), None) is not None


def _metaspace_prefix(files: _Files) -> bool:
    step = next(steps(files.tokenizer.get("pre_tokenizer"), "Metaspace"), None)
    if step is None:
        return False
    scheme = step.get("prepend_scheme")
    return scheme != "never" if scheme is not None else bool(step.get("add_prefix_space", True))


def _squeezes(normalizer: Any) -> bool:
    """Whether runs of spaces become one."""
    return any("{2,}" in str(step.get("pattern")) for step in steps(normalizer, "Replace"))


def _charsmap(files: _Files, normalizer: Any) -> bytes:
    step = next(steps(normalizer, "Precompiled"), {})
    try:
        return b64decode(step.get("precompiled_charsmap") or "", validate=True)
    except (BadBase64, TypeError, ValueError) as exc:
        raise _bad(files, f"its `precompiled_charsmap` is not base64 ({exc})") from exc


def _bad(files: _Files, why: str) -> ModelFileError:
    path = files.folder / "tokenizer.json"
    return ModelFileError(f"`{path}` cannot be used: {why}", hint="download it again")
