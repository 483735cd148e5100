"""Holds an answer to a JSON Schema or a grammar, through llguidance.

Knows: llguidance's matcher and masks. Does not know: requests, models.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from .refusal import Refusal, unsupported
from .sampling import Allowed
from .session import Vocabulary

SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""White space as Python's `json.dumps` writes it, which is what most training data has."""


def of_schema(schema: dict[str, Any], before: str = "", after: str = "") -> str:
    """A grammar of the texts that are JSON of this schema, between two fixed ones."""
    body = "%json " + json.dumps(schema | {"x-guidance": SPACING})
    parts = [json.dumps(before), "body", json.dumps(after)]
    start = " ".join(part for part in parts if part != '""')
    return f"%llguidance {{}}\nstart: {start}\nbody: {body}"


def of_text(grammar: str) -> str:
    """A grammar as a client wrote it: llguidance's Lark, or llama.cpp's GBNF.

    Raises:
        Refusal: it is neither.
    """
    if grammar.lstrip().startswith("%llguidance") or "::=" not in grammar:
        return grammar
    try:
        from llguidance.gbnf_to_lark import any_to_lark
    except ImportError as exc:
        raise _missing() from exc
    try:
        return str(any_to_lark(grammar))
    except Exception as exc:  # its parser raises plain Exceptions
        raise Refusal(f"the grammar is not valid: {exc}", param="grammar") from exc


class Grammars:
    """Makes matchers for one vocabulary; the first takes the time to read it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokenizer: Any = None

    def match(self, grammar: str) -> Matcher:
        """A matcher at the grammar's start.

        Raises:
            Refusal: the grammar is not valid, or llguidance is not installed.
        """
        try:
            import llguidance
        except ImportError as exc:
            raise _missing() from exc
        if self._tokenizer is None:
            self._tokenizer = llguidance.LLTokenizer(
                self._vocabulary.matcher_source(),
                n_vocab=self._vocabulary.size,
                eos_token=sorted(self._vocabulary.ends) or None,
            )
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise Refusal(
                f"the grammar or schema cannot be used: {matcher.get_error()[:500]}",
                param="response_format",
            )
        return Matcher(matcher, self._vocabulary.size)


class Matcher:
    """Where an answer stands in its grammar."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._words = np.zeros((size + 31) // 32, np.int32)
        self._size = size

    def allowed(self) -> Allowed:
        """Which tokens may come next, shape (vocabulary,).

        Raises:
            Refusal: the grammar became too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        if self._matcher.is_error():
            raise Refusal(f"the grammar failed: {self._matcher.get_error()[:500]}", status=500)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return bits[: self._size].astype(np.bool_)

    def accept(self, token: int) -> None:
        """`token` was drawn.

        Raises:
            Refusal: it does not go on as the grammar says, though it was allowed.
        """
        if not self._matcher.consume_token(token):
            # Its matcher counts as stopped then, which is no end of an answer.
            words = str(self._matcher.get_error()).partition("\n")[0][:300]
            raise Refusal(f"the grammar failed: {words}", status=500, type="server_error")

    @property
    def is_done(self) -> bool:
        """Nothing more may come."""
        return bool(self._matcher.is_stopped())


def _missing() -> Refusal:
    return unsupported(
        "this engine needs the package `llguidance` for schemas and grammars"
        " (pip install llguidance)",
        "response_format",
    )
