"""The small files that make a folder of weights a model, copied from one folder to another.

Knows: their names. Does not know: what is in them. An allow-list, so that neither the model's
weights nor program code go along; those of a layer behind an encoder do, which no converter reads.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from llm_runner_router.errors import ModelFileError

NAMES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "*_Dense/config.json",
    "*_Dense/model.safetensors",
    "README.md",
    "LICENSE*",
)
MAX_BYTES: Final = 512 * 1024 * 1024
"""Of one file; the largest vocabularies have 0.03 GB."""


def copy(source: Path, target: Path) -> None:
    """Copy those that are there; `target` is made if it is missing.

    Raises:
        ModelFileError: one is too large for what its name says.
        OSError: one cannot be read or written.
    """
    target.mkdir(parents=True, exist_ok=True)
    folder = source if source.is_dir() else source.parent
    for name in NAMES:
        for path in sorted(folder.glob(name)):
            if not path.is_file():
                continue
            if path.stat().st_size > MAX_BYTES:
                raise ModelFileError(f"`{path}` has more than {MAX_BYTES} bytes")
            place = target / path.relative_to(folder)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
