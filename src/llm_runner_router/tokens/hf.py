"""Tokenizers of Hugging Face folders: `tokenizer.json` through the `tokenizers` library, or older
files made into one.

Knows: the files of such a folder, which bytes a token is by its decoder. Does not know: GGUF.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from tokenizers import Tokenizer as Engine

from llm_runner_router.errors import BadRequest, ModelFileError

from .base import Detokenizer, Kind
from .chars import letter_bytes
from .spm import SPACE

MAX_FILE: Final = 256 * 1024 * 1024


class HfTokenizer:
    """A `Tokenizer` around a `tokenizers.Tokenizer`. See `base.Tokenizer`."""

    kind: Kind = "hf"

    def __init__(self, engine: Engine, settings: dict[str, Any] | None = None) -> None:
        """`settings`: the content of `tokenizer_config.json`, for the names of BOS and EOS."""
        settings = settings or {}
        self._engine = engine
        engine.no_truncation()
        engine.no_padding()
        # Whether control tokens are read is a state of the library's object.
        self._lock = threading.Lock()
        added = engine.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self._added = {id: token.content for id, token in added.items()}
        vocabulary = engine.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        self.bos = self._named(settings.get("bos_token"))
        self.eos = self._named(settings.get("eos_token"))
        self._adds = (settings.get("add_bos_token"), settings.get("add_eos_token"))

    def _named(self, value: Any) -> int | None:
        name = value.get("content") if isinstance(value, dict) else value
        return self._engine.token_to_id(name) if isinstance(name, str) else None

    def encode(
        self, text: str, *, special: bool = False, add_bos: bool | None = False
    ) -> list[int]:
        """See `base.Tokenizer`."""
        text = text.encode("utf-8", "replace").decode("utf-8")
        with self._lock:
            self._engine.encode_special_tokens = not special
            ids = self._engine.encode(text, add_special_tokens=add_bos is not False).ids
        if add_bos is not False:
            wanted = add_bos or self._adds[0] is True
            if wanted and self.bos is not None and ids[:1] != [self.bos]:
                ids = [self.bos, *ids]
            if self._adds[1] is True and self.eos is not None and ids[-1:] != [self.eos]:
                ids = [*ids, self.eos]
        return ids

    def count(self, text: str) -> int:
        """See `base.Tokenizer`."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """See `base.Tokenizer`."""
        for id in ids:
            self._checked(id)
        return self._engine.decode(list(ids), skip_special_tokens=skip_special)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `base.Tokenizer`."""
        return b"".join([self.piece(id) for id in ids])

    def is_special(self, id: int) -> bool:
        """See `base.Tokenizer`."""
        return self._checked(id) in self._special

    def stream(self) -> Detokenizer:
        """See `base.Tokenizer`."""
        return Detokenizer(self, strip=self._style != "letters")

    def piece(self, id: int) -> bytes:
        """See `base.Tokenizer`."""
        text = self._added.get(self._checked(id))
        if text is not None:
            return text.encode("utf-8", "replace")
        text = self._engine.id_to_token(id) or ""
        if self._style == "letters":
            known = letter_bytes()
            if all(char in known for char in text):
                return bytes(known[char] for char in text)
        elif self._style == "words":
            text = text[2:] if text.startswith("##") else f" {text}"
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            try:
                return bytes((int(text[3:5], 16),))
            except ValueError:
                pass
        return text.replace(SPACE, " ").encode("utf-8", "replace")

    @cached_property
    def _style(self) -> str:
        """How tokens spell bytes: `letters` of GPT-2, `words` of BERT, or `spaces`."""
        data = msgspec.json.decode(self._engine.to_str().encode())
        decoders = data.get("decoder") or {}
        kinds = {d.get("type") for d in (decoders, *decoders.get("decoders", ()))}
        if "ByteLevel" in kinds:
            return "letters"
        return "words" if "WordPiece" in kinds else "spaces"

    def _checked(self, id: int) -> int:
        if not 0 <= id < self.size:
            raise BadRequest(f"{id} is no token: ids are 0 to {self.size - 1}", param="tokens")
        return id


def open_json(path: Path) -> HfTokenizer:
    """The tokenizer in the `tokenizer.json` at `path`.

    Raises:
        ModelFileError: it is too large or cannot be read.
    """
    text = read_bounded(path).decode("utf-8", "replace")
    try:
        engine = Engine.from_str(text)
    except Exception as exc:  # the library raises plain `Exception`
        raise _unreadable(path, exc) from exc
    return HfTokenizer(engine, settings_of(path.parent))


def open_pairs(folder: Path) -> HfTokenizer:
    """The GPT-2 style `vocab.json` and `merges.txt` in `folder`.

    Raises:
        ModelFileError: as `open_json`.
    """
    from tokenizers import decoders, models, pre_tokenizers

    path = folder / "vocab.json"
    try:
        vocabulary = msgspec.json.decode(read_bounded(path), type=dict[str, int])
        lines = read_bounded(folder / "merges.txt").decode("utf-8", "replace").splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#v")]
        merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
        engine = Engine(models.BPE(vocab=vocabulary, merges=merges))
    except ModelFileError:
        raise
    except Exception as exc:  # the library raises plain `Exception`
        raise _unreadable(path, exc) from exc
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return _with_specials(engine, folder)


def open_words(folder: Path) -> HfTokenizer:
    """BERT's `vocab.txt` in `folder`.

    Raises:
        ModelFileError: as `open_json`.
    """
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    path = folder / "vocab.txt"
    names = read_bounded(path).decode("utf-8", "replace").splitlines()
    vocabulary = {name: id for id, name in enumerate(names) if name}
    missing = [name for name in ("[UNK]", "[CLS]", "[SEP]") if name not in vocabulary]
    if missing:
        raise ModelFileError(
            f"`{path}` is no vocabulary of BERT's kind: it lacks {', '.join(missing)}",
            hint="use the tokenizer.json of the model",
        )
    settings = settings_of(folder)
    engine = Engine(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    engine.normalizer = normalizers.BertNormalizer(
        lowercase=bool(settings.get("do_lower_case", True))
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    names = [n for n in vocabulary if n[:1] == "[" and n[-1:] == "]" and n[1:-1].isalpha()]
    engine.add_special_tokens(names)
    return HfTokenizer(engine, settings)


def _with_specials(engine: Engine, folder: Path) -> HfTokenizer:
    settings = settings_of(folder)
    names = [settings.get(f"{key}_token") for key in ("bos", "eos", "unk", "pad")]
    texts = [n.get("content") if isinstance(n, dict) else n for n in names]
    engine.add_special_tokens(sorted({t for t in texts if isinstance(t, str)}))
    return HfTokenizer(engine, settings)


def settings_of(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, with names from `special_tokens_map.json`; empty
    where there is none.

    Raises:
        ModelFileError: it is no JSON object.
    """
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                found |= msgspec.json.decode(read_bounded(path), type=dict[str, Any])
            except msgspec.DecodeError as exc:
                raise _unreadable(path, exc) from exc
    return found


def read_bounded(path: Path) -> bytes:
    """The bytes of a file of bounded size.

    Raises:
        ModelFileError: it is missing, unreadable or larger than `MAX_FILE`.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise ModelFileError(
                f"`{path}` has more than {MAX_FILE} bytes", hint="is it a tokenizer's file?"
            )
        return path.read_bytes()
    except OSError as exc:
        raise ModelFileError(
            f"cannot read `{path}`: {exc.strerror}", hint="check the path"
        ) from exc


def _unreadable(path: Path, exc: Exception) -> ModelFileError:
    return ModelFileError(f"the tokenizer `{path}` cannot be read: {exc}", hint="download it again")
