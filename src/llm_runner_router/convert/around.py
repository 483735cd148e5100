"""What a tokenizer puts around a text, and around two that are scored together.

Knows: the post-processors of `tokenizer.json`, and how llama.cpp lays out a query and a document
(`format_prompt_rerank` in b11549). Does not know: files, vocabularies.

A layout is a list of ids of special tokens, with `A` and `B` where the texts stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_runner_router.errors import Unsupported

Layout = list[int | str]


def steps(step: Any, kind: str) -> Iterator[dict[str, Any]]:
    """Every step of that type in a part of `tokenizer.json`, also inside sequences."""
    if not isinstance(step, dict):
        return
    if step.get("type") == kind:
        yield step
    for key in ("normalizers", "pretokenizers", "processors", "decoders"):
        for inner in step.get(key) or ():
            yield from steps(inner, kind)


def layouts(post_processor: Any, ids: Mapping[str, int]) -> tuple[Layout, Layout] | None:
    """The layout of one text and of two; None where the tokenizer puts nothing around them.

    Args:
        post_processor: that of `tokenizer.json`.
        ids: of tokens by their text, for templates that name a token and not its ids.
    """
    template = next(steps(post_processor, "TemplateProcessing"), None)
    if template is not None:
        return _parts(template, "single", ids), _parts(template, "pair", ids)
    for kind, between in (("BertProcessing", 1), ("RobertaProcessing", 2)):
        step = next(steps(post_processor, kind), None)
        if step is not None:
            cls, sep = int(step["cls"][1]), int(step["sep"][1])
            return [cls, "A", sep], [cls, "A", *[sep] * between, "B", sep]
    return None


def _parts(template: dict[str, Any], name: str, ids: Mapping[str, int]) -> Layout:
    known = template.get("special_tokens") or {}
    found: Layout = []
    for part in template.get(name) or ():
        if "Sequence" in part:
            found.append(str(part["Sequence"]["id"]))
            continue
        word = str(part["SpecialToken"]["id"])
        listed = known.get(word, {}).get("ids") if isinstance(known, dict) else None
        found += [int(i) for i in listed] if listed else [ids.get(word, -1)]
    return found


def ends(layout: Layout) -> tuple[list[int], list[int]]:
    """Ids before the first text and behind the last."""
    texts = [i for i, part in enumerate(layout) if isinstance(part, str)]
    first, last = (texts[0], texts[-1]) if texts else (len(layout), len(layout))
    front = [part for part in layout[:first] if isinstance(part, int)]
    return front, [part for part in layout[last + 1 :] if isinstance(part, int)]


def paired(pair: Layout) -> tuple[dict[str, int], dict[str, bool]]:
    """Special tokens and flags with which the engine lays out a query and a document like `pair`.

    The engine's way: [BOS] query [EOS] [SEP] document [EOS], where a flag switches each token on.

    Raises:
        Unsupported: no flags give that layout.
    """
    front, back = ends(pair)
    texts = [i for i, part in enumerate(pair) if isinstance(part, str)]
    between = [p for p in pair[texts[0] + 1 : texts[-1]] if isinstance(p, int)] if texts else []
    named = (("bos", front[:1]), ("eos", back[:1]), ("sep", between[-1:]))
    special = {role: at[0] for role, at in named if at}
    separates = len(between) > len(back[:1])
    engine: Layout = [*front[:1], "A", *back[:1], *(between[-1:] if separates else []), "B"]
    engine += back[:1]
    if engine != pair or -1 in pair:
        shown = " ".join(str(part) for part in pair) or "nothing"
        raise Unsupported(
            "llama.cpp does not put a query and a document together as `tokenizer.json` says"
            f" ({shown})",
            hint="run the folder as it is, with the engine `transformers` or `onnx`",
        )
    flags = {
        "add_bos_token": bool(front),
        "add_eos_token": bool(back),
        "add_sep_token": separates,
    }
    return special, flags
