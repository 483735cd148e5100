"""Signatures by keys, made and checked with the real package; no network."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llm_runner_router.errors import BadRequest, ModelFileError
from llm_runner_router.models.manifest import Stored
from llm_runner_router.models.signing import Signer, check
from llm_runner_router.refs import parse

from .rigging import Rig

signing = pytest.importorskip("model_signing.signing")
FILES = {"model.safetensors": b"weights" * 400, "config.json": b"{}", "README.md": b"# model"}


def key(folder: Path, name: str) -> tuple[Path, Path]:
    """A fresh key pair: private, public."""
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, timeout=20)
    show = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(show, check=True, timeout=20, capture_output=True)
    return private, public


def sign(folder: Path, private: Path, **files: bytes) -> bytes:
    """The signature of a folder with these files."""
    (folder / "made").mkdir()
    for path, data in files.items():
        (folder / "made" / path).write_bytes(data)
    made = signing.Config().use_elliptic_key_signer(private_key=private)
    made.sign(folder / "made", folder / "out.sig")
    return (folder / "out.sig").read_bytes()


async def pulled(rig: Rig, files: dict[str, bytes], signer: Signer) -> Stored:
    rig.hub.repo("org/name", files)
    return await rig.puller().pull(
        parse("hf:org/name"), accept=lambda stored, store: check(stored, store, signer)
    )


async def test_a_signed_model_gets_its_name(rig: Rig, tmp_path: Path) -> None:
    private, public = key(tmp_path, "maker")
    files = {**FILES, "model.sig": sign(tmp_path, private, **FILES)}
    stored = await pulled(rig, files, Signer(public))
    assert {file.path for file in stored.files} == set(files)
    assert "verifying signature" in rig.notes.lines
    assert not list(rig.puller().store.partial.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.sig": None}, "is not signed"),
        ({"config.json": b"[]"}, "Hash mismatch for 'config.json'"),
        ({"extra.json": b"{}"}, "Extra files found"),
        ({"README.md": None}, "Missing files"),
        ({"model.sig": b"{}"}, "is not what"),
        ({"model.sig": b"\xff\xfe"}, "is not what"),
    ],
    ids=["unsigned", "changed", "extra", "missing", "empty", "no-json"],
)
async def test_what_was_not_signed_gets_none(
    rig: Rig, tmp_path: Path, change: dict[str, bytes | None], words: str
) -> None:
    private, public = key(tmp_path, "maker")
    files = {**FILES, "model.sig": sign(tmp_path, private, **FILES), **change}
    kept = {path: data for path, data in files.items() if data is not None}
    with pytest.raises(ModelFileError, match=words) as caught:
        await pulled(rig, kept, Signer(public))
    assert caught.value.hint
    assert rig.puller().store.names() == []


async def test_another_key_is_another_maker(rig: Rig, tmp_path: Path) -> None:
    private, _ = key(tmp_path, "maker")
    _, other = key(tmp_path, "other")
    files = {**FILES, "model.sig": sign(tmp_path, private, **FILES)}
    with pytest.raises(ModelFileError, match="is not what the key"):
        await pulled(rig, files, Signer(other))


async def test_a_single_file_with_its_signature(rig: Rig, tmp_path: Path) -> None:
    private, public = key(tmp_path, "maker")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" * 500)
    made = signing.Config().use_elliptic_key_signer(private_key=private)
    made.sign(tmp_path / "m.gguf", tmp_path / "m.sig")
    files = {"m.gguf": b"GGUF" * 500, "m.gguf.sig": (tmp_path / "m.sig").read_bytes()}
    stored = await pulled(rig, files, Signer(public))
    assert stored.main == "m.gguf"
    store = rig.puller().store
    check(stored, store, Signer(public), tmp_path / "m.sig")


async def test_whose_signature_must_be_said(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("not a key")
    for signer in (Signer(), Signer(identity="me@example.org"), Signer(tmp_path / "no.pub")):
        with pytest.raises(BadRequest) as caught:
            await pulled(rig, {"model.safetensors": b"w" * 2000}, signer)
        assert caught.value.hint
