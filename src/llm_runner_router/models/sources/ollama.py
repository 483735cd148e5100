"""Ollama's registry: `ollama:name[:tag]`, also of another host as `ollama:host/user/name:tag`.

Knows: its protocol, which is the OCI distribution's (`/v2/<user>/<name>/manifests/<tag>`, blobs by
digest), with bearer tokens where a host asks for them. Does not know: Ollama's folder on this
machine (`found.py`).

Layers become files: the model `model.gguf`, and beside it what Ollama keeps apart: `template` (in
Go's template language, kept as text; the chat template inside the GGUF is what is used), `system`,
`params`, `license`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from urllib.parse import urlencode, urlsplit

import msgspec

from llm_runner_router.errors import BadResponse, NotFound, UpstreamRefused
from llm_runner_router.models.found import MAX_MANIFEST, REGISTRY, ImageManifest, ollama_parts
from llm_runner_router.models.manifest import Digest, Manifest, RemoteFile, check
from llm_runner_router.refs import Ref

from ._http import ODD, Http, Response, body, check_status, offline

ACCEPT = (
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.manifest.v1+json"
)
LAYERS = {
    "model": "model.gguf",
    "template": "template",
    "system": "system",
    "params": "params.json",
    "license": "LICENSE",
    "messages": "messages.json",
    "adapter": "adapter.gguf",
    "projector": "mmproj.gguf",
}
"""Kind of layer, the end of its media type, to the name of its file."""
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


def connect(environ: Mapping[str, str]) -> OllamaSource:
    """The registry of the reference."""
    return OllamaSource(environ)


class OllamaSource:
    """See `Source`. `LLMRR_OLLAMA_REGISTRY` names another address for Ollama's own registry."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._http = Http(environ)
        self._tokens: dict[str, str] = {}

    def _base(self, host: str) -> str:
        if host == REGISTRY:
            return (environ_url(self._environ) or f"https://{REGISTRY}").rstrip("/")
        local = host.partition(":")[0] in ("localhost", "127.0.0.1")
        return f"{'http' if local else 'https'}://{host}"

    async def manifest(self, ref: Ref) -> Manifest:
        """The layers of the model."""
        offline(self._environ)
        host, user, name = ollama_parts(ref)
        base = self._base(host)
        tag = ref.revision or "latest"
        url = f"{base}/v2/{user}/{name}/manifests/{tag}"
        text = await self._document(url, f"model `{ref}`")
        try:
            read = msgspec.json.decode(text, type=ImageManifest)
        except (msgspec.DecodeError, msgspec.ValidationError) as exc:
            raise BadResponse(f"{host} gives no manifest for `{ref}`: {exc}", hint=ODD) from exc
        files = _files(read, f"{base}/v2/{user}/{name}/blobs/")
        if not any(file.path == LAYERS["model"] for file in files):
            raise NotFound(
                f"`{ref}` has no model in it",
                hint="it may run in Ollama's cloud only",
                param="model",
            )
        notes = []
        if any(file.path == "template" for file in files):
            notes.append("its Go template is kept as text; the one inside the model is used")
        if any(file.path == LAYERS["projector"] for file in files):
            notes.append("it has a projector for images, which is not used")
        return check(
            Manifest(
                name=str(ref),
                source="ollama",
                files=tuple(files),
                revision=sha256(text).hexdigest(),
                main=LAYERS["model"],
                notes=tuple(notes),
            )
        )

    async def _document(self, url: str, what: str) -> bytes:
        for _ in range(2):
            headers = {"Accept": ACCEPT, **self._bearer(url)}
            async with self._http.get(url, headers) as response:
                if response.status == 401 and await self._login(response, url):
                    continue
                check_status(response, what)
                return await response.document(MAX_MANIFEST)
        raise UpstreamRefused(f"the registry refuses {what}", hint="it needs a login")

    def _bearer(self, url: str) -> dict[str, str]:
        token = self._tokens.get(_repository(url))
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def _login(self, response: Response, url: str) -> bool:
        """Get a token as the registry's challenge says; whether there is a new one."""
        kind, _, rest = (response.headers.get("www-authenticate") or "").partition(" ")
        said = dict(_CHALLENGE.findall(rest))
        realm = urlsplit(said.get("realm", ""))
        known = urlsplit(url)
        if kind.lower() != "bearer" or realm.scheme not in ("https", known.scheme):
            return False
        query = urlencode({k: said[k] for k in ("service", "scope") if k in said})
        async with self._http.get(f"{said['realm']}?{query}") as answer:
            check_status(answer, "a token")
            try:
                read = msgspec.json.decode(await answer.document(1 << 20))
                token = read.get("token") or read.get("access_token")
            except (msgspec.DecodeError, AttributeError):
                return False
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            return False
        new = self._tokens.get(_repository(url)) != token
        self._tokens[_repository(url)] = token
        return new

    @asynccontextmanager
    async def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """See `Source.open`."""
        offline(self._environ)
        async with body(self._http, file, self._bearer(file.url), from_byte, to_byte) as pieces:
            yield pieces

    async def close(self) -> None:
        """See `Source.close`."""
        self._http.close()


def environ_url(environ: Mapping[str, str]) -> str:
    """Another address of Ollama's registry: a mirror, or a test's own."""
    return environ.get("LLMRR_OLLAMA_REGISTRY", "").strip()


def _files(read: ImageManifest, base: str) -> list[RemoteFile]:
    files = []
    seen: dict[str, int] = {}
    for layer in read.layers:
        kind = layer.media_type.rpartition(".image.")[2]
        path = LAYERS.get(kind)
        if path is None:
            continue
        count = seen[path] = seen.get(path, 0) + 1
        if count > 1:  # a model may have several licences, or be split
            if path == LAYERS["model"]:
                raise BadResponse("a model of several files is not supported", hint=ODD)
            path = f"{path}.{count}"
        digest = Digest.parse(layer.digest)
        files.append(RemoteFile(path, layer.size, digest, f"{base}sha256:{digest.hex}"))
    return files


def _repository(url: str) -> str:
    parts = urlsplit(url)
    path = re.split(r"/(?:manifests|blobs)/", parts.path)[0]
    return f"{parts.scheme}://{parts.netloc}{path}"
