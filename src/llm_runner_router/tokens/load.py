"""One way to open any model's tokenizer, and a memory of the last few.

Knows: which file of a model holds its tokenizer. Does not know: what is in it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final

from llm_runner_router.errors import ModelFileError, Unsupported

from .base import Tokenizer

KEPT: Final = 8
"""Tokenizers remembered; a large one takes about 100 MB."""

_Key = tuple[str, int, int]
_lock = threading.Lock()
_cache: OrderedDict[_Key, Tokenizer] = OrderedDict()


def load(path: Path) -> Tokenizer:
    """The tokenizer of a model; no weight is read.

    Args:
        path: a GGUF file, a Hugging Face folder, one of its tokenizer's files, or a `.tiktoken`
            file.

    A file that was opened before and did not change is not read again. Safe in any thread; two
    threads that ask for a new one wait for each other.

    Raises:
        ModelFileError: there is no tokenizer, or it is damaged; names the file.
        Unsupported: a kind that is not known here, or whose package is not installed; or the model
            is packed.
    """
    file = _file(path)
    try:
        stat = file.stat()
    except OSError as exc:
        raise ModelFileError(
            f"cannot read `{file}`: {exc.strerror}", hint="check the path"
        ) from exc
    key = (str(file.absolute()), stat.st_mtime_ns, stat.st_size)
    with _lock:
        found = _cache.get(key)
        if found is None:
            found = _cache[key] = _open(file)
            while len(_cache) > KEPT:
                _cache.popitem(last=False)
        _cache.move_to_end(key)
        return found


def _file(path: Path) -> Path:
    """The file that says the vocabulary."""
    if not path.is_dir():
        return path
    for name in ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt"):
        if (path / name).is_file() and (name != "vocab.json" or (path / "merges.txt").is_file()):
            return path / name
    ranks = sorted(path.glob("*.tiktoken"))
    files = ranks or sorted(path.glob("*.gguf"))
    if files:
        return files[0]
    raise ModelFileError(
        f"`{path}` has no tokenizer: no tokenizer.json, tokenizer.model, vocab.json with"
        " merges.txt, or vocab.txt",
        hint="download the tokenizer's files of the model too",
    )


def _open(file: Path) -> Tokenizer:
    match file.name, file.suffix:
        case _, ".tiktoken":
            from .tiktoken import open_tiktoken

            return open_tiktoken(file)
        case _, ".model":
            from .gguf import GgufTokenizer
            from .sentencepiece import read_sentencepiece

            return GgufTokenizer(read_sentencepiece(file))
        case "vocab.json", _:
            from .hf import open_pairs

            return open_pairs(file.parent)
        case "vocab.txt", _:
            from .hf import open_words

            return open_words(file.parent)
        case _, ".json":
            from .hf import open_json

            return open_json(file)
    from llm_runner_router.models.formats import packed

    from .gguf import open_gguf

    with file.open("rb") as opened:
        head = opened.read(packed.HEAD)
    if head[:4] != b"GGUF" and packed.sniff(file, head):
        raise Unsupported(
            f"`{file}` is packed, and its tokenizer is in it",
            hint=f"`llmrr convert` unpacks it: `llmrr inspect {file}` tells to which kind",
        )
    return open_gguf(file)
