"""References to files on disk: `zoo:…` from the package, `file:…` from the disk.

Knows: where the zoo lies and the shape of its `cards.json`. Does not know: providers, plain names
(the configuration's), downloads, engines.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import msgspec

from llm_runner_router.errors import ModelFileError, UnknownModel, Unsupported
from llm_runner_router.refs import Ref
from llm_runner_router.types import Capabilities, ModelCard

from .formats import gguf
from .info import LocalModel, ModelInfo

ZOO = Path(__file__).parent.parent / "zoo"
"""The built-in demonstration models and their `cards.json`."""


def resolve(ref: Ref, *, zoo: Path = ZOO) -> LocalModel:
    """The file that `ref` means, with its header read and checked.

    Raises:
        UnknownModel: no such built-in model; carries the nearest names.
        ModelFileError: the file is missing or not sound.
        Unsupported: the reference is of a kind that is no local file.
    """
    match ref.kind:
        case "zoo":
            return _from_zoo(ref.name, zoo)
        case "file":
            return _from_file(Path(ref.name).expanduser())
        case "hf":
            raise Unsupported(
                f"`{ref}` is not on this machine and downloading is not built in yet",
                hint="download the GGUF file and name its path, as in `file:/models/a.gguf`",
                param="model",
            )
    raise Unsupported(f"`{ref}` is not a local model", hint="see `llmrr ls`", param="model")


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


def _from_file(path: Path) -> LocalModel:
    """A file named by its path; its absolute path is its name, so two spellings are one model."""
    path = Path(path).absolute()
    if path.is_dir():
        raise ModelFileError(
            f"`{path}` is a folder, not a model file", hint="name the `.gguf` file in it"
        )
    info = gguf.describe(path)
    name = f"file:{path}"
    return LocalModel(name=name, path=path, info=info, card=_card(name, info, {}))


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
