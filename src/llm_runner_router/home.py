"""The data folder: where it is, what is in it, and how a file is put there whole.

Knows: `LLMRR_HOME`, the platform's own place for user data, the names inside the folder, file
modes. Does not know: what the files mean (`policy/auth.py` the key, `server.py` the state file,
`policy/sink.py` the records).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from .errors import ConfigError

VARIABLE = "LLMRR_HOME"
APP = "llm-runner-router"


class Home:
    """The paths in one data folder. Naming a path creates nothing; `create` does."""

    __slots__ = ("path",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Home({str(self.path)!r})"

    @property
    def key(self) -> Path:
        """The API key of this installation, mode 0600."""
        return self.path / "key"

    @property
    def server(self) -> Path:
        """Where the running server says its address and process id."""
        return self.path / "server.json"

    @property
    def config(self) -> Path:
        """The configuration that is read when no nearer one exists."""
        return self.path / "llmrr.yaml"

    @property
    def records(self) -> Path:
        """Folder of request records, one file per day."""
        return self.path / "records"

    @property
    def logs(self) -> Path:
        """Folder of the runners' own output."""
        return self.path / "logs"

    @property
    def prompts(self) -> Path:
        """Folder of prompts that unloaded models had computed; empty while nothing runs."""
        return self.path / "prompts"

    @property
    def models(self) -> Path:
        """Folder of the store of models."""
        return self.path / "models"

    @property
    def responses(self) -> Path:
        """Responses that clients may come back to."""
        return self.path / "responses.sqlite"

    @property
    def files(self) -> Path:
        """Folder of the files that clients put here."""
        return self.path / "files"

    @property
    def batches(self) -> Path:
        """Folder of batches: their index, and what those at work have read and written."""
        return self.path / "batches"

    @property
    def history(self) -> Path:
        """What was typed into `llmrr run`."""
        return self.path / "history"

    def create(self) -> Home:
        """Make the folder with mode 0700 if it is not there.

        Raises:
            ConfigError: it cannot be made, or a file stands in its place.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(
                f"cannot create the data folder `{self.path}`: {exc.strerror}",
                hint=f"set {VARIABLE} to a folder you can write to",
            ) from exc
        return self


def find(env: Mapping[str, str]) -> Home:
    """The data folder: `LLMRR_HOME`, else `llm-runner-router` in the platform's user data."""
    chosen = env.get(VARIABLE, "").strip()
    if chosen:
        return Home(Path(chosen).expanduser().absolute())
    from platformdirs import user_data_path  # here: whoever sets the variable does not pay for it

    return Home(user_data_path(APP, appauthor=False))


def stored_names(models: Path) -> list[str]:
    """The names in the store of models at `models`, sorted; nothing is opened.

    Here and not with the store, because checking a configuration must not import one.
    """
    from urllib.parse import unquote

    try:
        found = [path.stem for path in (models / "names").iterdir() if path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(unquote(stem) for stem in found if not stem.startswith("."))


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` whole or not at all, also when the machine stops half-way.

    The mode holds from the first byte on, whatever the umask lets through.

    Raises:
        OSError: the folder is missing, full or not writable; nothing is left behind then.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            if os.name == "posix":
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
