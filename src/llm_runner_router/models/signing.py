"""Signatures of models, by the OpenSSF model-signing specification: who made these files?

Knows: whose signature is wanted, and which files it must cover. Does not know: cryptography; that
is the package `model_signing` (the extra `signing`). A digest says that a file is the one that the
source has; a signature says that it is the one its maker made, even if the source was taken over.

A signature covers a list of files with their hashes. It is refused when there is none, when it is
another's, when a file was changed, is missing, or is there without being covered.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from msgspec import Struct

from llm_runner_router.errors import BadRequest, ConfigError, ModelFileError

from .blobs import Store, share
from .manifest import Stored, StoredFile

NAMES = ("model.sig", "claims.jsonl")
"""What signatures in repositories are called; also `<file>.sig` beside a single file."""


class Signer(Struct, frozen=True):
    """Whose signature is wanted: a key's, or that of an identity that a provider vouched for."""

    public_key: Path | None = None
    """An elliptic-curve key in PEM."""
    identity: str = ""
    """An address or workflow, as Sigstore's certificate names it."""
    issuer: str = ""
    """The identity's provider, for example `https://accounts.google.com`."""

    def __str__(self) -> str:
        return f"the key `{self.public_key}`" if self.public_key else f"{self.identity!r}"


def check(stored: Stored, store: Store, signer: Signer, signature: Path | None = None) -> None:
    """Nothing, if `signer` signed exactly the files of `stored`.

    Args:
        signature: the signature's file; default is the one that came with the model.

    Raises:
        ModelFileError: it is not so; says what is wrong.
        BadRequest: nobody said whose signature, or a key cannot be read.
        ConfigError: the extra is not installed.
    """
    verifier = _verifier(signer)
    own = _own(stored)  # covers nothing itself
    at = signature or (None if own is None else store.place(own))
    if at is None:
        raise ModelFileError(
            f"`{stored.name}` is not signed: no `model.sig` came with it",
            hint="name the signature with `--signature FILE`, or do without one",
        )
    covered = [file for file in stored.files if file != own]
    scratch = store.partial / f"signed-{secrets.token_hex(4)}"
    try:
        # Links of exactly these files: caches hold others beside them, and links the check refuses.
        for file in covered:
            (scratch / file.path).parent.mkdir(parents=True, exist_ok=True)
            share(store.place(file).resolve(), scratch / file.path)
        single = len(covered) == 1 and "/" not in covered[0].path
        tried = [scratch / covered[0].path, scratch] if single else [scratch]
        _verified(verifier, tried, at, stored, signer)
    except OSError as exc:
        raise ModelFileError(f"cannot check the signature `{at}`: {exc}", hint=_LOOK) from exc
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


_LOOK = "check the path, and that the file is readable"


def _verified(
    verifier: Any, tried: list[Path], signature: Path, stored: Stored, signer: Signer
) -> None:
    """A single file may be signed as a file or as the folder it is alone in."""
    problem: Exception | None = None
    for path in tried:
        try:
            verifier.verify(path, signature)
        except Exception as exc:  # the package and its parsers raise many kinds; all mean: refused
            problem = problem or exc
            continue
        return
    words = " ".join(str(problem).split())[:500]
    raise ModelFileError(
        f"`{stored.name}` is not what {signer} signed: {words}",
        hint="do not use it; ask its maker for the signature of this version",
    ) from problem


def _own(stored: Stored) -> StoredFile | None:
    """The signature that came with the model."""
    wanted = (*NAMES, f"{stored.main}.sig")
    return next((file for file in stored.files if file.path in wanted), None)


def _verifier(signer: Signer) -> Any:
    try:
        from model_signing import verifying
    except ImportError as exc:
        raise ConfigError(
            "checking signatures needs the package `model-signing`, which is not installed",
            hint="pip install 'llm-runner-router[signing]'",
        ) from exc
    made: Any = verifying.Config()  # type: ignore[no-untyped-call]  # it has no annotations
    if signer.public_key is not None:
        try:
            return made.use_elliptic_key_verifier(public_key=signer.public_key)
        except (OSError, ValueError, TypeError) as exc:
            raise BadRequest(
                f"`{signer.public_key}` is no public key: {exc}", hint="an EC key in PEM is wanted"
            ) from exc
    if signer.identity and signer.issuer:
        return made.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.issuer)
    raise BadRequest(
        "nobody said whose signature is wanted",
        hint="`--public-key FILE`, or `--identity NAME --identity-provider URL`",
    )
