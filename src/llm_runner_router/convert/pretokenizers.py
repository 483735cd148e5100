"""Which of the engine's pre-tokenizers a `tokenizer.json` describes, told by structure.

Knows: the steps that `pre_tokenizer` can have, spellings of regular expressions that mean the same,
and the names llama.cpp gives to combinations (`llm_tokenizer_bpe` in `src/llama-vocab.cpp`,
b11549). Does not know: vocabularies. A hash of what a sample text becomes, which llama.cpp's own
converter uses, changes with every token somebody adds and cannot say what is different.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from llm_runner_router.errors import Unsupported

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` splits by when `use_regex` is on."""
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED_SHORT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}|"
)
_CJK = r"[一-龥぀-ゟ゠-ヿ]+"
_CJK_OLD = r"[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_LETTERS = "<letters>"
"""DeepSeek's list of all cased letters: a thousand characters, recognised by its beginning."""


class Shape(Struct, frozen=True):
    """What matters of a pre-tokenizer: its splits in order, and whether whole words stay whole."""

    splits: tuple[str, ...]
    whole: bool = False
    """`ignore_merges`: a word that is a token is not merged anew."""


def _rows() -> dict[Shape, str]:
    plain = {
        "gpt-2": (GPT2,),
        "smollm": (r"\p{N}", GPT2),
        "qwen2": (_WORD + r"\p{N}" + _TAIL,),
        "qwen35": (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        "dbrx": (_WORD + r"\p{N}{1,3}" + _TAIL,),
        "gpt-4o": (_CASED_SHORT + r"\p{N}{1,3}" + _TAIL_SLASH,),
        "deepseek-v3": (r"\p{N}{1,3}", _CJK, _DEEPSEEK3),
        "deepseek-llm": (r"[\r\n]", _LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$",
                         _CJK_OLD, r"\p{N}"),
        "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_OLD, r"\p{N}"),
        "falcon": ("<punctuation>", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
        "viking": (r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}"),
    }  # fmt: skip
    whole = {
        "llama-bpe": (_WORD + r"\p{N}{1,3}" + _TAIL,),
        "tekken": (_CASED + r"\p{N}" + _TAIL_SLASH,),
        "minicpm5": (r"\p{N}{1,3}", _WORD + r"\p{N}+" + _TAIL),
    }
    rows = {Shape(splits): name for name, splits in plain.items()}
    return rows | {Shape(splits, whole=True): name for name, splits in whole.items()}


_ALIKE: Final = frozenset({"gpt-2", "smollm", "qwen2", "qwen35", "gpt-4o", "bloom", "viking"})
"""Names that also serve with `ignore_merges`: a token of a vocabulary trained by merges is what
merging gives, so the setting changes nothing but the time it takes."""


def name_of(tokenizer: Mapping[str, Any]) -> str:
    """The engine's name for the pre-tokenizer of a byte-level BPE `tokenizer.json`.

    Raises:
        Unsupported: the engine has none that splits like it; says the splits.
    """
    rows = {Shape(tuple(map(canonical, shape.splits)), shape.whole): name
            for shape, name in _rows().items()}  # fmt: skip
    splits = tuple(canonical(split) for split in _splits(tokenizer.get("pre_tokenizer")))
    whole = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    found = rows.get(Shape(splits, whole))
    if found is None and whole and rows.get(Shape(splits)) in _ALIKE:
        found = rows[Shape(splits)]
    # Without `ignore_merges` tekken and minicpm5 differ only in words that merges cannot reach.
    if found is None and not whole:
        found = rows.get(Shape(splits, whole=True))
    if found is None:
        shown = " then ".join(repr(split[:120]) for split in splits) or "nothing"
        raise Unsupported(
            f"llama.cpp has no pre-tokenizer like that in `tokenizer.json`: it splits by {shown}",
            hint="run the folder as it is, with the engine `torch`",
        )
    return found


def shape_of(name: str) -> Shape | None:
    """The splits of the engine's pre-tokenizer `name`; None if they are not known here.

    Several names stand for one; those of one row of `tokens/pretokenizers.toml` are alike.
    """
    from llm_runner_router.tokens import pre

    known = {row_name: shape for shape, row_name in _rows().items()}
    row = pre.rows().get(name)
    names = (name, *(row.names if row is not None else ()))
    shape = next((known[other] for other in names if other in known), None)
    # DeepSeek's long list of letters is only recognised, not kept.
    return None if shape is None or _LETTERS in shape.splits else shape


def steps_of(shape: Shape) -> dict[str, Any]:
    """`pre_tokenizer` of a `tokenizer.json` that splits so."""
    steps: list[dict[str, Any]] = [
        {"type": "Punctuation", "behavior": "Contiguous"}
        if split == "<punctuation>"
        else {
            "type": "Split",
            "pattern": {"Regex": split},
            "behavior": "Isolated",
            "invert": False,
        }
        for split in shape.splits
    ]
    letters = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", **letters}]}


_CONTRACTIONS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"(?i:'s|'t|'re|'ve|'m|'d|'ll)",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"'(?i:[sdmt]|ll|ve|re)",
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
)
_POSSESSIVE = re.compile(r"(?<!\\)([+*?]|\{\d+(?:,\d*)?\})\+")


def canonical(split: str) -> str:
    """One spelling for expressions that split alike.

    Contractions in either case, possessive quantifiers (which here only save time), line ends as
    characters or escapes, `{1}`, and `\\s*[\\r\\n]` with or without a `+` (the blank run before
    takes the other line ends) are the ways in which the same rule is written.
    """
    split = split.replace("\r", r"\r").replace("\n", r"\n")
    for way in _CONTRACTIONS:
        split = split.replace(way, "<short>")
    split = _POSSESSIVE.sub(r"\1", split).replace(r"\p{N}{1}", r"\p{N}")
    split = re.sub(r"\\s\*\[\\r\\n\](?!\+)", r"\\s*[\\r\\n]+", split)
    if split.startswith(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ"):
        return _LETTERS
    return split


def _splits(step: Any) -> Iterator[str]:
    """The expressions of a pre-tokenizer, in order; other steps under a name of their own."""
    if not isinstance(step, Mapping):
        return
    kind = step.get("type")
    if kind == "Sequence":
        for inner in step.get("pretokenizers") or ():
            yield from _splits(inner)
    elif kind == "ByteLevel":
        if step.get("use_regex", True):
            yield GPT2
    elif kind == "Digits":
        yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    elif kind == "Punctuation":
        yield "<punctuation>"
    elif kind == "Split":
        pattern = step.get("pattern") or {}
        written = pattern.get("Regex", re.escape(str(pattern.get("String", ""))))
        # What is matched is kept as a piece, by either of two ways to say so.
        kept = step.get("behavior") == "Isolated" or (
            step.get("behavior") == "Removed" and bool(step.get("invert"))
        )
        yield written if kept else f"<{step.get('behavior')}>{written}"
    else:
        yield f"<{kind}>"
