"""`llmrr export`: the files of a model as a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import click

from llm_runner_router.errors import BadRequest, ModelFileError, Unavailable
from llm_runner_router.models.manifest import hash_file
from llm_runner_router.units import format_size

from . import output
from .group import Verb
from .stored import kept, opened

SUMS = "SHA256SUMS"


@click.command("export", cls=Verb)
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
def command(model: str, folder: Path) -> int:
    """Copy the files of MODEL into a new FOLDER, under their own names, with a `SHA256SUMS`.

    The copies are hashed while they are checked; `sha256sum -c SHA256SUMS` checks them again
    elsewhere.
    """
    store = opened()
    stored = kept(model, store)
    if os.path.lexists(folder):
        raise BadRequest(f"`{folder}` exists already", hint="name a folder that does not")
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        for file in stored.files:
            at = draft / file.path
            at.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(store.place(file), at)
            if hash_file(at)["sha256"] != file.sha256:
                raise ModelFileError(
                    f"`{store.place(file)}` is not what it was when it came here",
                    hint=f"`llmrr verify {model}` tells more",
                )
        sums = "".join(f"{file.sha256}  {file.path}\n" for file in stored.files)
        if not (draft / SUMS).exists():  # the model's own stays as it was signed
            (draft / SUMS).write_text(sums, "utf-8")
        draft.rename(folder)
    except OSError as exc:
        raise Unavailable(
            f"cannot write `{folder}`: {exc.strerror or exc}",
            hint="nothing was left there; name a folder on a disk with space",
        ) from exc
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    files = "1 file" if len(stored.files) == 1 else f"{len(stored.files)} files"
    told = f"{model}: {files}, {format_size(stored.size)}, {folder}"
    print(output.line(told))
    return 0
