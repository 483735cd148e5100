"""References to files on this machine: the zoo, paths and folders, the store, others' stores.

Knows: where to look, in which order, and the shape of the zoo's `cards.json`. Does not know:
providers, names of the configuration, downloads (`pull.py`), engines. Fetches nothing: what is not
here is an error whose hint is the command that brings it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from llm_runner_router import home
from llm_runner_router.errors import BadRequest, ModelFileError, NotFound, UnknownModel, Unsupported
from llm_runner_router.refs import REMOTE, Ref, parse
from llm_runner_router.types import Capabilities, ModelCard

from . import overrides
from .blobs import Store, name_of
from .detect import AUTO, check_whole, describe, detect
from .formats import gguf
from .info import PARTS, LocalModel, ModelInfo

ZOO = Path(__file__).parent.parent / "zoo"
"""The built-in demonstration models and their `cards.json`."""


def resolve(
    ref: Ref,
    *,
    zoo: Path = ZOO,
    environ: Mapping[str, str] = os.environ,
    format: str = AUTO,
    part: str | None = "",
) -> LocalModel:
    """The model that `ref` means, if it is on this machine, with its header read and checked.

    The store is asked before other programs' folders: what was pulled was verified.

    Args:
        environ: where the data folder and the other programs' folders are read.
        format: read a file or folder as this format, whatever its content looks like.
        part: one of `info.PARTS`, where not a model is wanted but what goes with one; None takes
            anything.

    Raises:
        UnknownModel: it is not here; the hint says how to get it, or names the nearest.
        ModelFileError: a file is missing, not sound, or no model (or not the `part`).
        Unsupported: the reference is of a kind that is no local model.
    """
    found = _found(ref, zoo, environ, format)
    if part is not None:
        _check_part(found, part)
    return found if ref.kind == "zoo" else overrides.applied(found, store(environ))


def _found(ref: Ref, zoo: Path, environ: Mapping[str, str], format: str) -> LocalModel:
    match ref.kind:
        case "zoo":
            return _from_zoo(ref.name, zoo)
        case "file":
            return _from_path(Path(ref.name).expanduser(), format)
        case "provider":
            step = path_hint(ref) or "see `llmrr ls`"
            raise Unsupported(f"`{ref}` is not a local model", hint=step, param="model")
    return _from_store(ref, environ) or _from_others(ref, environ) or _not_here(ref, environ)


def _check_part(found: LocalModel, part: str) -> None:
    """Raise if it is a model where a part is wanted, or the other way round."""
    if found.info.part == part:
        return
    check_whole(found.path, found.info)
    what, _ = PARTS[part]
    raise ModelFileError(f"`{found.path}` is a whole model, not {what.partition(',')[0]}")


async def ensure(name: str, *, environ: Mapping[str, str] = os.environ) -> None:
    """Bring what `name` refers to, if it can be downloaded and is not here; anything else is left.

    Raises:
        RunnerError: as `pull.Puller.pull`.
    """
    try:
        ref = parse(name)
    except BadRequest:
        return  # a name that only the configuration can know
    if ref.kind not in REMOTE:
        return
    try:
        resolve(ref, environ=environ, part=None)
    except UnknownModel:
        from .pull import Puller  # here: what downloads is needed once per model

        await Puller(environ).pull(ref)


def store(environ: Mapping[str, str] = os.environ) -> Store:
    """The store of the data folder."""
    return Store(home.find(environ).models)


def path_hint(ref: Ref) -> str:
    """What to write if `ref` reads as a provider's model and a file or folder is called so.

    `models/tiny` has the shape of `openai/gpt-4o-mini`; asked only where no provider is called so.
    """
    if ref.kind == "provider" and os.path.exists(str(ref)):
        return f"to use the path of that name, write `./{ref}`"
    return ""


def zoo_names(*, zoo: Path = ZOO) -> tuple[str, ...]:
    """Names of the built-in models, without `zoo:`; those with a card first, in its order."""
    carded = [name for name in _cards(zoo) if (zoo / _file(zoo, name)).is_file()]
    others = sorted(p.stem for p in zoo.glob("*.gguf") if p.stem not in carded)
    return (*carded, *others)


def zoo_models(*, zoo: Path = ZOO) -> tuple[LocalModel, ...]:
    """All built-in models.

    Raises:
        ModelFileError: one of the files is damaged.
    """
    return tuple(_from_zoo(name, zoo) for name in zoo_names(zoo=zoo))


def _from_zoo(name: str, zoo: Path) -> LocalModel:
    names = zoo_names(zoo=zoo)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        meant = " or ".join(f"`zoo:{n}`" for n in near)
        raise UnknownModel(
            f"there is no built-in model {name[:200]!r}"
            + (f"; did you mean {meant}?" if near else ""),
            hint="built in are: " + ", ".join(f"zoo:{n}" for n in names),
            param="model",
        )
    path = zoo / _file(zoo, name)
    info = gguf.describe(path)
    card = _card(f"zoo:{name}", info, _cards(zoo).get(name, {}))
    return LocalModel(name=f"zoo:{name}", path=path, info=info, card=card)


def _from_path(path: Path, format: str) -> LocalModel:
    """A file or folder named by its path; the absolute path is its name, so two spellings are one
    model."""
    path = Path(path).absolute()
    if format != AUTO:
        return _local(f"file:{path}", path, format=format)
    return _local(f"file:{path}", _inside(path) if path.is_dir() else path)


def _inside(folder: Path) -> Path:
    """What to open of a folder: the GGUF file in it, or the folder itself."""
    from .pick import choose
    from .sources.path import listed

    try:
        chosen = choose(listed(folder), Ref("file", str(folder)))
    except NotFound as exc:
        try:
            detect(folder)  # a format of another package may know files that we do not
        except ModelFileError:
            raise ModelFileError(
                f"the folder `{folder}` has no model files", hint="name the folder of one model"
            ) from exc
        return folder
    return folder / chosen.main if chosen.main else folder


def _from_store(ref: Ref, environ: Mapping[str, str]) -> LocalModel | None:
    kept = store(environ)
    stored = kept.get(name_of(ref))
    if stored is None:
        return None
    return _local(stored.name, kept.path_of(stored), license=stored.license)


def _from_others(ref: Ref, environ: Mapping[str, str]) -> LocalModel | None:
    from .found import locate  # here: most references are answered without it

    try:
        there = locate(ref, environ)
    except NotFound as exc:
        raise UnknownModel(
            f"{exc.message} on this machine", hint=f"`llmrr pull {ref}`; {exc.hint}", param="model"
        ) from exc
    return None if there is None else _local(there.name, there.path)


def _not_here(ref: Ref, environ: Mapping[str, str]) -> LocalModel:
    if ref.kind in REMOTE:
        raise UnknownModel(
            f"`{ref}` is not on this machine", hint=f"`llmrr pull {ref}` brings it", param="model"
        )
    near = difflib.get_close_matches(ref.name, store(environ).names(), n=3, cutoff=0.5)
    meant = " or ".join(f"`{name}`" for name in near)
    raise UnknownModel(
        f"there is no model {ref.name[:200]!r}" + (f"; did you mean {meant}?" if near else ""),
        hint="`llmrr ls --all` lists what is on this machine",
        param="model",
    )


def _local(name: str, path: Path, *, license: str = "", format: str = AUTO) -> LocalModel:
    info = describe(path, format)
    return LocalModel(name, path, info, _card(name, info, {"license": info.license or license}))


def _card(name: str, info: ModelInfo, entry: dict[str, Any]) -> ModelCard:
    """What the file says, and what was measured of it where a card entry tells."""
    template = info.chat_template or ""
    able = entry.get("capabilities") or {}
    scores = entry.get("scores") or {}
    return ModelCard(
        name=name,
        local=True,
        description=str(entry.get("description") or info.name or info.architecture),
        context=info.context,
        parameters=int(entry.get("parameters") or info.parameters),
        capabilities=Capabilities(
            tools=bool(able.get("tools", "tools" in template)),
            json=bool(able.get("json", True)),
            embeddings=True,
            logprobs=True,
        ),
        scores={str(task): float(share) for task, share in scores.items()},
        license=str(entry.get("license") or info.license),
        source="measured with the zoo's evaluator" if scores else "the file's own header",
    )


def _cards(zoo: Path) -> dict[str, dict[str, Any]]:
    """Entries of `cards.json` by name; a missing file means none."""
    path = zoo / "cards.json"
    try:
        content = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as exc:
        raise ModelFileError(
            f"cannot read the model cards `{path}`: {exc}", hint="reinstall the package"
        ) from exc
    entries = content.get("models", []) if isinstance(content, dict) else content
    return {str(e["name"]): e for e in entries if isinstance(e, dict) and "name" in e}


def _file(zoo: Path, name: str) -> str:
    """The file name of a built-in model; a plain name, never a path."""
    entry = _cards(zoo).get(name, {})
    return Path(str(entry.get("file") or f"{name}.gguf")).name
