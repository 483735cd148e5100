"""`llmrr tokenize`: a text as a model's tokens, their count, or ids back as text.

Knows: how tokens are shown. Does not know: tokenizers. Works in this process, without a server and
without loading the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_runner_router.errors import BadRequest

from . import asking, output
from .group import Verb, place

if TYPE_CHECKING:
    from llm_runner_router.tokens.base import Tokenizer


@click.command("tokenize", cls=Verb)
@click.argument("model")
@click.argument("text", nargs=-1)
@click.option("--count", "how", flag_value="count", help="Only how many tokens there are.")
@click.option("--ids", "how", flag_value="ids", help="Only the ids, in one line.")
@click.option("--json", "how", flag_value="json", help="As JSON.")
@click.option("--decode", "how", flag_value="decode", help="TEXT is ids; print what they spell.")
@click.option("--special", is_flag=True, help="Read names of control tokens as those tokens.")
@click.option("--bos", is_flag=True, help="Add what the model wants around a whole prompt.")
def command(model: str, text: tuple[str, ...], how: str | None, special: bool, bos: bool) -> int:
    """Cut TEXT into the tokens of MODEL, without loading it.

    MODEL is a local model's name, a model file, a folder, or a tokenizer's file. Without TEXT, or
    with `-`, standard input is read to its end.
    """
    tokenizer = _tokenizer(model)
    content = sys.stdin.read() if text in ((), ("-",)) else " ".join(text)
    if how == "decode":
        print(output.safe(tokenizer.decode(_numbers(content), skip_special=False)))
        return 0
    ids = tokenizer.encode(content, special=special, add_bos=None if bos else False)
    if how == "count":
        print(len(ids))
    elif how == "ids":
        print(*ids)
    elif how == "json":
        tokens = [{"id": id, "piece": _listed(tokenizer.piece(id))} for id in ids]
        output.json({"model": model, "count": len(ids), "tokens": tokens})
    else:
        rows = [(str(id), repr(_shown(tokenizer.piece(id)))) for id in ids]
        output.table(("ID", "PIECE"), rows, numbers=("ID",))
        output.dim(f"{len(ids)} tokens")
    return 0


def _tokenizer(model: str) -> Tokenizer:
    from llm_runner_router.app import App
    from llm_runner_router.tokens.load import load

    path = Path(model).expanduser()
    if path.exists():  # a folder or a tokenizer's own file has no model's name
        return load(path)
    return App(asking.load(place()), local_files=True).tokens.tokenizer(model)


def _numbers(text: str) -> list[int]:
    words = text.replace(",", " ").replace("[", " ").replace("]", " ").split()
    for word in words:
        if not word.isascii() or not word.isdigit():
            raise BadRequest(f"{word[:40]!r} is no token id", hint="give numbers, as in `12 7 300`")
    return [int(word) for word in words]


def _shown(piece: bytes) -> str | bytes:
    """Text, or the bytes where they are no text by themselves."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return piece


def _listed(piece: bytes) -> str | list[int]:
    shown = _shown(piece)
    return shown if isinstance(shown, str) else list(shown)
