"""The options that ask for a signature; shared by `pull` and `verify`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec import Struct

from llm_runner_router.models.blobs import Store
from llm_runner_router.models.manifest import Stored

F = TypeVar("F", bound=Callable[..., Any])


class Signature(Struct, frozen=True):
    """What the options said."""

    file: Path | None = None
    public_key: Path | None = None
    identity: str = ""
    issuer: str = ""

    @property
    def wanted(self) -> bool:
        """Whether any of them was given."""
        return bool(self.file or self.public_key or self.identity or self.issuer)

    def check(self, stored: Stored, store: Store) -> None:
        """Nothing if it is signed as wanted, or if nothing is wanted.

        Raises:
            ModelFileError, BadRequest, ConfigError: as `models.signing.check`.
        """
        if not self.wanted:
            return
        from llm_runner_router.models import signing

        signer = signing.Signer(self.public_key, self.identity, self.issuer)
        signing.check(stored, store, signer, self.file)


def given(said: Mapping[str, Any]) -> Signature:
    """What the command got for `options`."""
    return Signature(said["signature"], said["public_key"], said["identity"], said["issuer"])


def options(function: F) -> F:
    """Adds the options; the command gets `signature`, `public_key`, `identity`, `issuer`."""
    path = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option(
            "--identity-provider", "issuer", default="", metavar="URL", help="Who vouches for it."
        ),
        click.option(
            "--identity", default="", metavar="NAME", help="Refuse it unless NAME signed it."
        ),
        click.option("--public-key", type=path, help="Refuse it unless this key signed it."),
        click.option("--signature", type=path, help="The signature; default is the model's own."),
    ):
        function = option(function)
    return function
