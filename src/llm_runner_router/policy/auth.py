"""Who may ask: the key, where it is kept, and how a request shows it.

Knows: the key file, `LLMRR_API_KEY`, and the headers clients send a key in. Does not know:
routes, paths or the Host header, which no decision about access may rest on.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping

from llm_runner_router.config import Secret
from llm_runner_router.errors import ConfigError, Unauthenticated
from llm_runner_router.home import Home

PREFIX = "llmrr-"
VARIABLE = "LLMRR_API_KEY"
MIN_LENGTH = 8
"""Shorter keys can be guessed over a network."""
MAX_LENGTH = 512
EXAMPLES = frozenset({"sk-1234"})
"""Keys that stand in LiteLLM's documentation. Everybody knows them, so they are good on this
machine only (`server.admit`), where they let a configuration be tried as it was copied."""


SIGNED = b"AWS4-"
"""How the header of a request begins that an AWS client signed."""


class Key:
    """One key and its name. Only a digest is compared; the value is for whoever must show it."""

    __slots__ = ("_digest", "name", "secret", "source")

    def __init__(self, value: str, *, name: str, source: str) -> None:
        self.secret = Secret(value)
        self.name = name
        self.source = source
        """Where it came from, for people: a variable or a path."""
        self._digest = hashlib.sha256(value.encode()).digest()

    @property
    def example(self) -> bool:
        """Whether everybody knows it."""
        return self.secret.reveal() in EXAMPLES

    def matches(self, shown: bytes) -> bool:
        """Whether `shown` is this key, in time that does not depend on how much of it is right."""
        return hmac.compare_digest(hashlib.sha256(shown).digest(), self._digest)


class Keys:
    """The keys that are let in."""

    def __init__(self, *keys: Key) -> None:
        self._keys = keys

    def authenticate(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of the key in `headers` (lower-case names, raw values).

        Raises:
            Unauthenticated: no key, or none of those shown is right.
        """
        shown = _shown(headers)
        for value in shown:
            for key in self._keys:
                if key.matches(value):
                    return key.name
        if headers.get(b"authorization", b"").startswith(SIGNED):
            # Only who has the secret could check it. The session token beside it is sent as it is,
            # and may be our key.
            raise Unauthenticated(
                "the request is signed with AWS credentials, which cannot be checked here",
                hint="set AWS_SESSION_TOKEN to this server's key, or AWS_BEARER_TOKEN_BEDROCK where"
                " the address is https",
                code="missing_api_key",
            )
        if not shown:
            raise Unauthenticated(
                "no API key was sent",
                hint="send `Authorization: Bearer …`; `llmrr serve` says where the key is",
                code="missing_api_key",
            )
        raise Unauthenticated(
            "the API key is not right",
            hint=f"it is in the file `key` of the data folder, or in `{VARIABLE}`",
        )


def _shown(headers: Mapping[bytes, bytes]) -> list[bytes]:
    shown = []
    bearer = headers.get(b"authorization")
    if bearer is not None and bearer[:7].lower() == b"bearer ":
        shown.append(bearer[7:].strip())
    for name in (
        *(b"x-api-key", b"api-key", b"x-goog-api-key", b"x-amz-security-token"),
        b"x-litellm-api-key",
    ):
        value = headers.get(name)
        if value is not None:
            shown.append(value.strip())
            if name == b"x-litellm-api-key" and value[:7].lower() == b"bearer ":
                shown[-1] = value[7:].strip()  # with and without it is usual there
    return [value for value in shown if 0 < len(value) <= MAX_LENGTH]


def find_key(home: Home, environ: Mapping[str, str] = os.environ) -> Key | None:
    """The key of this installation, or None if there is none yet.

    Raises:
        ConfigError: the key is too short, or its file cannot be read or is open to others.
    """
    value = environ.get(VARIABLE, "").strip()
    if value:
        return _checked(value, name="env", source=f"the variable {VARIABLE}")
    path = home.key
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(MAX_LENGTH + 2)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"cannot read the key file {path}: {exc.strerror}") from exc
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"the key file {path} is open to other users (mode {mode:04o})",
            hint=f"chmod 600 {path}; if others may have read it, delete it for a new key",
        )
    try:
        return _checked(data.decode("ascii").strip(), name="local", source=str(path))
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the key file {path} does not hold a key") from exc


def ensure_key(home: Home, environ: Mapping[str, str] = os.environ) -> Key:
    """The key of this installation; made on first use.

    The file appears complete or not at all, and the first of two processes wins.

    Raises:
        ConfigError: as `find_key`, or the file cannot be written.
    """
    key = find_key(home, environ)
    if key is not None:
        return key
    path = home.key
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    home.create()
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(PREFIX + secrets.token_urlsafe(24) + "\n")
        try:
            os.link(draft, path)  # fails if the other process was first; rename would replace
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as exc:
        raise ConfigError(
            f"cannot write the key file {path}: {exc.strerror}",
            hint=f"set {VARIABLE}, or LLMRR_HOME to a folder you can write to",
        ) from exc
    made = find_key(home, environ)
    if made is None:
        raise ConfigError(f"the key file {path} vanished while it was made")
    return made


def _checked(value: str, *, name: str, source: str) -> Key:
    if value in EXAMPLES:
        return Key(value, name=name, source=source)
    if not MIN_LENGTH <= len(value) <= MAX_LENGTH or not value.isascii() or " " in value:
        raise ConfigError(
            f"the key in {source} is not usable: {MIN_LENGTH} to {MAX_LENGTH} ASCII characters "
            "without spaces are needed"
        )
    return Key(value, name=name, source=source)
