"""Models that other programs have put on this machine, found where they are and run from there.

Knows: where Hugging Face's tools, Ollama, LM Studio and llama.cpp keep files, and how their names
read. Does not know: our own store (`blobs.py`), formats. Reads only; nothing is copied or changed.

    Hugging Face   <cache>/models--org--repo/snapshots/<commit>/…         hf:org/repo
    Ollama         manifests/<host>/<user>/<name>/<tag>, blobs/sha256-…   ollama:name:tag
    LM Studio      <root>/<org>/<repo>/<file>                             hf:org/repo, file:…
    llama.cpp      <cache>/<org>_<repo>_<file>                            hf:org/repo, file:…
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from llm_runner_router.errors import BadResponse, NotFound
from llm_runner_router.refs import Ref

from .blobs import Store
from .hubcache import HubCache, Snapshot, folder
from .manifest import Digest
from .pick import Choice, Listed, choose, quant_of, split_names

Owner = Literal["Hugging Face", "Ollama", "LM Studio", "llama.cpp"]
REGISTRY = "registry.ollama.ai"
MODEL_LAYER = "application/vnd.ollama.image.model"
MAX_MANIFEST = 4 << 20
_WEIGHTS = (".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth")


class Found(Struct, frozen=True):
    """A model that another program has."""

    name: str
    """The reference that runs it."""
    owner: Owner
    path: Path
    """What an engine opens."""
    size: int
    digest: Digest | None = None
    """What its main file must hash to, where the owner's names tell it."""


class Layer(Struct, frozen=True, rename="camel"):
    """One content of a model in Ollama's manifests."""

    digest: str
    size: int = 0
    media_type: str = ""


class ImageManifest(Struct, frozen=True, rename="camel"):
    """A manifest of Ollama: the OCI image manifest, as far as it matters."""

    layers: list[Layer] = []
    config: Layer | None = None
    schema_version: int = 2


def everything(environ: Mapping[str, str]) -> list[Found]:
    """All models of other programs, by owner and name."""
    return [*_hub(environ), *_ollama(environ), *_studio(environ), *_llamacpp(environ)]


def locate(ref: Ref, environ: Mapping[str, str]) -> Found | None:
    """The model that `ref` means, if another program has it whole; the Hub's own cache first.

    Raises:
        NotFound: the repository is here but not the file or quantisation asked for.
    """
    if ref.kind == "ollama":
        return _ollama_model(ref, environ)
    if ref.kind != "hf":
        return None
    problem: NotFound | None = None
    for owner, root, files in _copies(ref, environ):
        try:
            chosen = choose(files, ref)
        except NotFound as exc:
            problem = problem or exc
            continue
        path = root / chosen.main if chosen.main else root
        if not chosen.main and not _enough(chosen):
            continue
        size = sum(file.size or 0 for file in chosen.files)
        digest = (
            HubCache(root).digest_of(path) if owner == "Hugging Face" and path.is_file() else None
        )
        return Found(str(ref), owner, path, size, digest)
    if problem is not None:
        raise problem
    return None


def by_sha256(sha256: str, environ: Mapping[str, str], store: Store, hub: HubCache) -> list[Path]:
    """Files on this machine that are named by this hash, here or in another program's store."""
    places = [store.blob(sha256), hub.by_sha256(sha256)]
    places += [root / "blobs" / f"sha256-{sha256}" for root in ollama_roots(environ)]
    return [place for place in places if place is not None and place.is_file()]


# ---------------------------------------------------------------- Hugging Face


def _hub(environ: Mapping[str, str]) -> Iterator[Found]:
    cache = HubCache(folder(environ))
    for snapshot in cache.snapshots():
        files = _listed(snapshot.path)
        tail = "" if "main" in snapshot.refs else f"@{(snapshot.refs or (snapshot.commit,))[0]}"
        base = f"hf:{snapshot.repo}{tail}"
        ggufs = [f for f in files if f.path.lower().endswith(".gguf") and "mmproj" not in f.path]
        for file in ggufs:
            names = split_names(file.path)
            if names[0] != file.path:
                continue
            parts = [f.size or 0 for f in files if f.path in names]
            if len(parts) == len(names):
                path = snapshot.path / file.path
                name = _hub_name(base, file.path, ggufs)
                yield Found(name, "Hugging Face", path, sum(parts), cache.digest_of(path))
        if not ggufs and any(f.path.endswith(_WEIGHTS) for f in files):
            size = sum(f.size or 0 for f in files)
            yield Found(base, "Hugging Face", snapshot.path, size)


def _hub_name(base: str, path: str, ggufs: list[Listed]) -> str:
    quant = quant_of(path)
    same = [f for f in ggufs if quant_of(f.path) == quant and split_names(f.path)[0] == f.path]
    return f"{base}#{quant}" if quant and len(same) == 1 else f"{base}:{path}"


def _copies(ref: Ref, environ: Mapping[str, str]) -> Iterator[tuple[Owner, Path, list[Listed]]]:
    """Every folder on this machine that holds files of the repository."""
    cache = HubCache(folder(environ))
    snapshot: Snapshot | None = cache.snapshot(ref.name, ref.revision)
    if snapshot is not None:
        yield "Hugging Face", snapshot.path, _listed(snapshot.path)
    if ref.revision not in (None, "main"):
        return  # the others do not say which revision they have
    for root in studio_roots(environ):
        if (root / ref.name).is_dir():
            yield "LM Studio", root / ref.name, _listed(root / ref.name)
    prefix = ref.name.replace("/", "_") + "_"
    for root in llamacpp_roots(environ):
        mine = [Listed(f.path, f.size) for f in _listed(root) if f.path.startswith(prefix)]
        if mine:
            yield "llama.cpp", root, mine


def _enough(chosen: Choice) -> bool:
    """Whether a folder has what it needs: weights, and all parts that an index names."""
    paths = {file.path for file in chosen.files}
    return "config.json" in paths or not any(p.endswith(".safetensors") for p in paths)


# ---------------------------------------------------------------- Ollama


def ollama_roots(environ: Mapping[str, str]) -> list[Path]:
    """Folders where Ollama keeps models: the variable's, else the user's and the service's."""
    if environ.get("OLLAMA_MODELS"):
        return [Path(environ["OLLAMA_MODELS"]).expanduser()]
    return [_home(environ) / ".ollama/models", Path("/usr/share/ollama/.ollama/models")]


def _ollama(environ: Mapping[str, str]) -> Iterator[Found]:
    for root in ollama_roots(environ):
        manifests = root / "manifests"
        for path in sorted(manifests.glob("*/*/*/*")):
            host, user, name, tag = path.relative_to(manifests).parts
            if path.name.startswith("."):
                continue
            short = "/".join(
                part
                for part in ("" if host == REGISTRY else host, user, name)
                if part and not (part == "library" and host == REGISTRY)
            )
            found = _ollama_file(root, path, f"ollama:{short}:{tag}")
            if found is not None:
                yield found


def _ollama_model(ref: Ref, environ: Mapping[str, str]) -> Found | None:
    host, user, name = ollama_parts(ref)
    for root in ollama_roots(environ):
        path = (
            root / "manifests" / host.replace(":", "_") / user / name / (ref.revision or "latest")
        )
        for spelling in (
            path,
            root / "manifests" / host / user / name / (ref.revision or "latest"),
        ):
            found = _ollama_file(root, spelling, str(ref))
            if found is not None:
                return found
    return None


def ollama_parts(ref: Ref) -> tuple[str, str, str]:
    """Host, user and name of a model of Ollama's registry, with what is left out filled in."""
    parts = ref.name.split("/")
    if len(parts) == 1:
        return REGISTRY, "library", parts[0]
    if len(parts) == 2:
        return REGISTRY, parts[0], parts[1]
    return parts[0], parts[1], parts[2]


def _ollama_file(root: Path, manifest: Path, name: str) -> Found | None:
    """The model file that one of Ollama's manifests names, if it is whole."""
    with contextlib.suppress(OSError, msgspec.DecodeError, msgspec.ValidationError, BadResponse):
        if manifest.stat().st_size > MAX_MANIFEST:
            return None
        read = msgspec.json.decode(manifest.read_bytes(), type=ImageManifest)
        for layer in read.layers:
            if layer.media_type == MODEL_LAYER:
                digest = Digest.parse(layer.digest)
                blob = root / "blobs" / f"sha256-{digest.hex}"
                if blob.stat().st_size == layer.size:
                    return Found(name, "Ollama", blob, layer.size, digest)
    return None


# ---------------------------------------------------------------- LM Studio, llama.cpp


def studio_roots(environ: Mapping[str, str]) -> list[Path]:
    """Folders where LM Studio keeps models."""
    home = _home(environ)
    return [home / ".lmstudio/models", home / ".cache/lm-studio/models"]


def llamacpp_roots(environ: Mapping[str, str]) -> list[Path]:
    """Folders where llama.cpp keeps what `-hf` fetched."""
    if environ.get("LLAMA_CACHE"):
        return [Path(environ["LLAMA_CACHE"]).expanduser()]
    cache = Path(environ.get("XDG_CACHE_HOME") or _home(environ) / ".cache")
    return [cache / "llama.cpp", _home(environ) / "Library/Caches/llama.cpp"]


def _studio(environ: Mapping[str, str]) -> Iterator[Found]:
    for root in studio_roots(environ):
        for repo in sorted(root.glob("*/*")):
            if repo.is_dir():
                yield from _loose("LM Studio", repo)


def _llamacpp(environ: Mapping[str, str]) -> Iterator[Found]:
    for root in llamacpp_roots(environ):
        yield from _loose("llama.cpp", root)


def _loose(owner: Owner, root: Path) -> Iterator[Found]:
    """Every model file in a folder, by its path; a folder of safetensors as a whole."""
    files = _listed(root)
    known = {file.path: file.size or 0 for file in files}
    for path in known:
        names = split_names(path)
        if path.lower().endswith(".gguf") and "mmproj" not in path and names[0] == path:
            if all(name in known for name in names):
                yield Found(f"file:{root / path}", owner, root / path, sum(known[n] for n in names))
    if "config.json" in known and any(path.endswith(".safetensors") for path in known):
        yield Found(f"file:{root}", owner, root, sum(known.values()))


def _listed(root: Path) -> list[Listed]:
    from .sources.path import listed

    return listed(root)


def _home(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("HOME") or os.path.expanduser("~"))
