"""Any model's tokenizer through one door, and two files of one tokenizer against each other."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

from llm_runner_router.errors import BadRequest, ModelFileError, RunnerError, Unsupported
from llm_runner_router.tokens import load as load_module
from llm_runner_router.tokens.base import Tokenizer
from llm_runner_router.tokens.load import load

from . import making

ROOT = Path(__file__).parents[2]
GGUF = ROOT / "src" / "llm_runner_router" / "zoo" / "tiny-math.gguf"
FOLDER = ROOT / "zoo" / "models" / "tiny-math"
TEXTS = making.texts(400, seed=9)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    load_module._cache.clear()
    yield
    load_module._cache.clear()


def same(one: Tokenizer, other: Tokenizer, special: bool = False) -> None:
    for text in TEXTS:
        ids = one.encode(text, special=special)
        assert other.encode(text, special=special) == ids, text
        assert other.decode(ids) == one.decode(ids)
        assert other.decode_bytes(ids) == one.decode_bytes(ids)
        assert other.count(text) == one.count(text)


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the zoo's folders come with the repository only")
@pytest.mark.parametrize("special", [False, True])
def test_a_folder_and_its_gguf_file_agree(special: bool) -> None:
    same(load(GGUF), load(FOLDER), special)
    assert (load(GGUF).bos, load(GGUF).eos) == (load(FOLDER).bos, load(FOLDER).eos)


def test_control_tokens_are_read_only_when_asked() -> None:
    tokenizer = load(GGUF)
    (end,) = tokenizer.encode("<|im_end|>", special=True)
    assert tokenizer.eos == end
    assert end not in tokenizer.encode("<|im_end|>")
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special=False) == "<|im_end|>"
    assert tokenizer.piece(end) == b"<|im_end|>"
    (call,) = tokenizer.encode("<tool_call>")
    assert tokenizer.decode([call]) == "<tool_call>", "an added word is no control token"


def test_older_files_of_pairs(tmp_path: Path) -> None:
    fields = making.byte_pairs()
    names = fields["tokenizer.ggml.tokens"]
    (tmp_path / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    lines = ["#version: 0.2", *fields["tokenizer.ggml.merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(lines))
    del fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]
    path = tmp_path / "other" / "a.gguf"
    path.parent.mkdir()
    making.write_model(path, fields | {"tokenizer.ggml.pre": "gpt-2"})
    one, other = load(path), load(tmp_path)
    for text in making.SENTENCES:
        assert other.encode(text) == one.encode(text)
        assert other.decode(other.encode(text)) == text


def test_older_files_of_words(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox", "##es", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = load(tmp_path)
    assert tokenizer.encode("The quick FOXES.") == [5, 6, 7, 8, 9]
    assert tokenizer.encode("the fox", add_bos=None) == [2, 5, 7, 3]
    assert tokenizer.encode("[MASK]", special=True) == [4]
    stream = tokenizer.stream()
    assert "".join(map(stream.feed, [5, 7, 8])) == "the foxes"
    (tmp_path / "vocab.txt").write_text("just\nlines")
    with pytest.raises(ModelFileError, match="lacks"):
        load(tmp_path)


def protobuf(fields: dict[str, Any], kind: int) -> bytes:
    """A `tokenizer.model` of the same vocabulary."""

    def varint(number: int) -> bytes:
        out = bytearray()
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        return bytes((*out, number))

    def part(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    def piece(text: str, score: float, type: int) -> bytes:
        body = part(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(type)
        return part(1, body)

    rows = zip(
        *(fields[f"tokenizer.ggml.{k}"] for k in ("tokens", "scores", "token_type")), strict=True
    )
    prefix = bytes((3 << 3, int(fields.get("tokenizer.ggml.add_space_prefix", True))))
    extra = bytes((4 << 3, int(fields.get("tokenizer.ggml.remove_extra_whitespaces", True))))
    return (
        b"".join(piece(*row) for row in rows)
        + part(2, bytes((3 << 3, kind)))
        + part(3, prefix + extra)
    )


@pytest.mark.parametrize("kind", [1, 2])
def test_a_sentencepiece_file_and_its_gguf_file_agree(tmp_path: Path, kind: int) -> None:
    fields = making.sentence_pieces() if kind == 2 else making.unigrams()
    if kind == 1:
        for key in ("add_space_prefix", "remove_extra_whitespaces"):
            fields[f"tokenizer.ggml.{key}"] = True
        fields["tokenizer.ggml.unknown_token_id"] = 0
        fields["tokenizer.ggml.tokens"][0], fields["tokenizer.ggml.tokens"][2] = "<unk>", "<pad>"
    (tmp_path / "tokenizer.model").write_bytes(protobuf(fields, kind))
    same(load(making.write_model(tmp_path / "a.gguf", fields)), load(tmp_path))


def test_sentencepiece_as_hugging_face_has_it(tmp_path: Path) -> None:
    """The joining kind against the reference library, made from the same pieces."""
    fields = making.sentence_pieces()
    names = fields["tokenizer.ggml.tokens"]
    scores = fields["tokenizer.ggml.scores"]
    ids = {name: i for i, name in enumerate(names)}
    plain = [n for n in names if n[:1] != "<"]
    # A merge for every way to make a piece of two, best piece first.
    merges = [
        (name[:n], name[n:])
        for name in sorted(plain, key=lambda n: (-scores[ids[n]], ids[n]))
        for n in range(1, len(name))
        if name[:n] in ids and name[n:] in ids
    ]
    engine = Engine(models.BPE(vocab=ids, merges=merges, byte_fallback=True, unk_token="<unk>"))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    engine.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1),
    ])  # fmt: skip
    engine.save(str(tmp_path / "tokenizer.json"))
    one, other = load(making.write_model(tmp_path / "a.gguf", fields)), load(tmp_path)
    for text in making.SENTENCES:
        # Merges have an order even where scores are equal, so only text is compared.
        assert other.decode(other.encode(text)) == text == one.decode(one.encode(text))
        pieces = [other.piece(id) for id in other.encode(text)]
        assert b"".join(pieces).decode() == " " + text


def test_a_rank_file(tmp_path: Path) -> None:
    fields = making.byte_pairs()
    known = {letter: byte for byte, letter in enumerate(load_letters())}
    tokens = [bytes(known[c] for c in name) for name in fields["tokenizer.ggml.tokens"]]
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(b"".join(b"%s %d\n" % (b64encode(t), i) for i, t in enumerate(tokens)))
    tokenizer = load(path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        assert "".join([*map(stream.feed, ids), stream.close()]) == text
    assert tokenizer.encode("<|endoftext|>", special=True) == [100257] == [tokenizer.eos]
    assert 100257 not in tokenizer.encode("<|endoftext|>")
    with pytest.raises(BadRequest, match="is no token"):
        tokenizer.decode([99_999])
    with pytest.raises(Unsupported, match="unknown encoding"):
        load(path.rename(tmp_path / "mine.tiktoken"))
    path.write_bytes(b"not a rank\n")
    with pytest.raises(ModelFileError, match="line 1"):
        load(path)


def test_without_the_package_a_rank_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(b"IQ== 0\n")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(Unsupported) as caught:
        load(path)
    assert caught.value.hint == "pip install 'llm-runner-router[tiktoken]'"


def load_letters() -> tuple[str, ...]:
    from llm_runner_router.tokens.chars import byte_letters

    return byte_letters()


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    path = Path(shutil.copy(GGUF, tmp_path / "a.gguf"))
    first = load(path)
    assert load(path) is first
    os.utime(path, (1, 1))
    assert load(path) is not first
    for number in range(load_module.KEPT + 2):
        load(Path(shutil.copy(GGUF, tmp_path / f"{number}.gguf")))
    assert len(load_module._cache) == load_module.KEPT


def test_what_is_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has no tokenizer"):
        load(tmp_path)
    with pytest.raises(ModelFileError, match="cannot read"):
        load(tmp_path / "nowhere.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFileError, match="cannot be read"):
        load(tmp_path)


def test_a_packed_model_is_no_damaged_file(tmp_path: Path) -> None:
    packed = tmp_path / "a.gguf.gz"
    packed.write_bytes(gzip.compress(Path(GGUF).read_bytes(), 1))
    with pytest.raises(Unsupported, match="is packed"):
        load(packed)


@pytest.mark.parametrize("kind", ["gguf", "model", "json"])
def test_damaged_files_are_refused_in_words(tmp_path: Path, kind: str) -> None:
    name = {"gguf": "a.gguf", "model": "tokenizer.model", "json": "tokenizer.json"}[kind]
    path = tmp_path / name
    if kind == "gguf":
        fields = making.unigrams(charsmap=making.charsmap({"ab": "X", "é": "e"}))
        data = making.write_model(path, fields).read_bytes()
    elif kind == "model":
        data = protobuf(making.sentence_pieces(200), 2)
    else:
        data = (FOLDER / "tokenizer.json").read_bytes() if FOLDER.is_dir() else b"{}"
    rng = random.Random(4)
    hints = []
    for _ in range(150):
        bad = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(min(len(bad), 30_000))] = rng.randrange(256)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        path.write_bytes(bad)
        try:
            load(path).encode("abc é hello <extra> \0 日")
        except RunnerError as exc:
            hints.append(exc.hint)
    assert hints
    assert all(hints)
