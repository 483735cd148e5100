"""`tokenizer.json` and `tokenizer_config.json` from the vocabulary of a GGUF file.

Knows: the kinds `gpt2` and `llama`, which generators have. Does not know: weights. Pure but for
building the text; merges of SentencePiece's BPE are found again from its scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llm_runner_router.errors import ModelFileError, Unsupported

from . import pretokenizers
from .vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_SPACE: Final = "\u2581"
_ROLES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def files(fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The contents of the files by name.

    Raises:
        Unsupported: a kind of vocabulary, or a pre-tokenizer, that is not converted back.
        ModelFileError: a field is missing or the lists differ in length.
    """
    prefix = "tokenizer.ggml."
    tokens = [str(token) for token in fields.get(prefix + "tokens") or ()]
    types = list(fields.get(prefix + "token_type") or [NORMAL] * len(tokens))
    if not tokens or len(types) != len(tokens):
        raise ModelFileError("the file has no tokens, or not a type for each of them")
    kind = fields.get(prefix + "model")
    if kind == "gpt2":
        model, steps = _byte_level(fields, tokens, types)
    elif kind == "llama":
        model, steps = _sentencepiece(fields, tokens, types)
    else:
        raise Unsupported(f"a vocabulary of the kind `{kind}` is not converted from GGUF")
    special = _special(fields, tokens)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, "special": types[i] != USER_DEFINED, **flags}
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _around(fields, tokens, kind == "llama"),
        **steps,
        "model": model,
    }
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        **{f"{role}_token": word for role, word in special.items()},
    }
    if fields.get("tokenizer.chat_template"):
        settings["chat_template"] = fields["tokenizer.chat_template"]
    return {"tokenizer.json": content, "tokenizer_config.json": settings}


def _byte_level(
    fields: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    name = str(fields.get("tokenizer.ggml.pre", "default"))
    shape = pretokenizers.shape_of(name)
    if shape is None:
        raise Unsupported(
            f"the pre-tokenizer `{name}` is not converted from GGUF",
            hint="take `tokenizer.json` from where the model comes from",
        )
    model = {
        "type": "BPE",
        "ignore_merges": shape.whole,
        "vocab": _vocab(tokens, types),
        "merges": [_pair(str(merge)) for merge in fields.get("tokenizer.ggml.merges") or ()],
    }
    letters = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    steps = {
        "normalizer": None,
        "pre_tokenizer": pretokenizers.steps_of(shape),
        "decoder": {"type": "ByteLevel", **letters},
    }
    return model, steps


def _vocab(tokens: list[str], types: list[int]) -> dict[str, int]:
    """Ids by token, added ones too: one that the vocabulary lacks would get a new id at its end."""
    return {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}


def _pair(merge: str) -> list[str]:
    at = merge.find(" ", 1)
    return [merge[:at], merge[at + 1 :]]


def _sentencepiece(
    fields: Mapping[str, Any], tokens: list[str], types: list[int]
) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = list(fields.get("tokenizer.ggml.scores") or ())
    if len(scores) != len(tokens):
        raise ModelFileError("the file has not a score for each token")
    vocab = _vocab(tokens, types)
    normal = {token: i for token, i in vocab.items() if types[i] == NORMAL}
    _check_letters(normal)
    merges = [
        (-scores[i], normal[token[:at]], normal[token[at:]], token[:at], token[at:])
        for token, i in normal.items()
        for at in range(1, len(token))
        if token[:at] in normal and token[at:] in normal
    ]
    unknown = next((token for i, token in enumerate(tokens) if types[i] == UNKNOWN), None)
    model = {
        "type": "BPE",
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [[left, right] for *_, left, right in sorted(merges)],
    }
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    before = [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    after = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    steps = {
        "normalizer": {"type": "Sequence", "normalizers": [*before, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *after],
        },
    }
    return model, steps


def _check_letters(normal: Mapping[str, int]) -> None:
    """llama.cpp joins characters that are no tokens; a list of merges cannot say that.

    Only of letters and digits of ASCII, which every vocabulary that was trained has: it may lack a
    rare character of one of its tokens, which then is never reached.
    """
    parts = {c for token in normal if len(token) > 1 for c in token if c.isascii() and c.isalnum()}
    if bare := parts - normal.keys():
        raise Unsupported(
            f"the tokenizer has no token for {min(bare)!r}, of which others are made: no list of"
            " merges in `tokenizer.json` can say that",
            hint="run the GGUF file as it is",
        )


def _special(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """The text of each special token, by role."""
    found = {}
    for role, name in _ROLES.items():
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int) and number < len(tokens):
            found[role] = tokens[number]
    return found


def _around(fields: Mapping[str, Any], tokens: list[str], default: bool) -> dict[str, Any] | None:
    """The step that puts BOS before a text and EOS behind it."""
    special = _special(fields, tokens)
    begin = fields.get("tokenizer.ggml.add_bos_token", default) and "bos" in special
    end = fields.get("tokenizer.ggml.add_eos_token", False) and "eos" in special
    if not begin and not end:
        return None

    def around(name: str, part: int) -> list[dict[str, Any]]:
        token = {"SpecialToken": {"id": special.get("bos"), "type_id": part}}
        last = {"SpecialToken": {"id": special.get("eos"), "type_id": part}}
        text = {"Sequence": {"id": name, "type_id": part}}
        return [*([token] if begin else []), text, *([last] if end else [])]

    used = [special[role] for role, wanted in (("bos", begin), ("eos", end)) if wanted]
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            word: {"id": word, "ids": [tokens.index(word)], "tokens": [word]} for word in used
        },
    }
