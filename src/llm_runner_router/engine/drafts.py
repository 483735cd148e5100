"""A second, small model that guesses tokens ahead for a larger one: whether it can.

Knows: that both must have the same tokens, since the guesses are token ids. Does not know: whether
guessing pays (`speculate.py`), memory (`fit.py`), the engine's parameters (`llamacpp.py`).
"""

from __future__ import annotations

from llm_runner_router.errors import LoadFailed
from llm_runner_router.models.info import LocalModel
from llm_runner_router.tokens.vocab import Vocab, read_vocab

SHOWN = 40
"""Characters of a token that are shown in a message."""


def check(model: LocalModel, draft: LocalModel) -> None:
    """See that `draft` can guess for `model`; reads both vocabularies and no weights.

    Raises:
        LoadFailed: it cannot; names the first token that differs.
        ModelFileError: one of the files is damaged or has no vocabulary.
    """
    why = ""
    if draft.info.format != "gguf":
        why = f"it is {draft.info.format}, and only GGUF can; `llmrr convert` makes it"
    elif draft.path != model.path:
        why = difference(read_vocab(model.path), read_vocab(draft.path))
    if why:
        raise LoadFailed(
            f"`{draft.name}` cannot guess for `{model.name}`: {why}",
            hint="`draft` needs a model of the same family, with the same tokenizer",
        )


def difference(one: Vocab, other: Vocab) -> str:
    """The first difference that makes the ids of one vocabulary useless in the other; or nothing.

    Pure. Compared are the tokens by id, the kind of tokenizer and what begins and ends a text.
    """
    for id, (here, there) in enumerate(zip(one.tokens, other.tokens, strict=False)):
        if here != there:
            return f"token {id} is {_shown(here)} there and {_shown(there)} in the draft"
    if len(one.tokens) != len(other.tokens):
        least = min(len(one.tokens), len(other.tokens))
        longer, which = (one, "there") if len(one.tokens) > least else (other, "in the draft")
        return (
            f"{len(one.tokens)} tokens there and {len(other.tokens)} in the draft; the first that"
            f" only one has is {least}, {_shown(longer.tokens[least])} {which}"
        )
    if one.model != other.model:
        return f"the kind of tokenizer is `{one.model}` there and `{other.model}` in the draft"
    for key in ("bos", "eos"):
        if one.id(key) != other.id(key):
            return f"`{key}` is token {one.id(key)} there and {other.id(key)} in the draft"
    return ""


def _shown(token: str) -> str:
    text = token.encode("utf-8", "backslashreplace").decode()
    return repr(text[:SHOWN]) + ("…" if len(text) > SHOWN else "")
