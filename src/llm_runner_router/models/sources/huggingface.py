"""The Hugging Face Hub: `hf:org/repo[@revision][#quant|:file]`.

Knows: how the Hub lists a repository (through `huggingface_hub`, which brings the token, the
endpoint and the errors) and where a file of a commit is read. Does not know: the cache
(`hubcache.py`), parts and retries (`download.py`).

The bytes are fetched by us and not by that package: it reads one stream per file and does not
compare the SHA-256.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from llm_runner_router.errors import (
    BadResponse,
    ConnectFailed,
    NotFound,
    RateLimited,
    RunnerError,
    UpstreamError,
    UpstreamRefused,
)
from llm_runner_router.models.manifest import Digest, Manifest, RemoteFile, check, safe_path
from llm_runner_router.models.pick import Listed, choose
from llm_runner_router.refs import Ref

from ._http import AGAIN, LATER, ODD, PROXY, Http, body, offline

ENDPOINT = "https://huggingface.co"
REACH_SECONDS = 10.0


class Card(Struct, frozen=True):
    """One result of a search."""

    name: str
    downloads: int
    likes: int
    task: str
    license: str
    library: str
    gated: bool
    files: tuple[Listed, ...]
    parameters: int = 0
    tags: tuple[str, ...] = ()


def connect(environ: Mapping[str, str]) -> HubSource:
    """The Hub, or whatever `HF_ENDPOINT` names."""
    return HubSource(environ)


class HubSource:
    """See `Source`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.endpoint = (environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        self._http = Http(environ)

    def _api(self) -> Any:
        """The Hub's client. Its import takes longer than most pulls of a cached model."""
        offline(self._environ, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self._token(), library_name="llm-runner-router")

    def _token(self) -> str | bool | None:
        """The variable's token, else what `hf auth login` left, else none."""
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            if self._environ.get(name, "").strip():
                return self._environ[name].strip()
        if self._environ is not os.environ:
            return False
        return None

    async def manifest(self, ref: Ref) -> Manifest:
        """The files of the repository that `ref` means, with sizes and digests."""
        info = await asyncio.to_thread(self._info, ref)
        commit = str(info.sha or "")
        if len(commit) != 40 or not all(c in "0123456789abcdef" for c in commit):
            raise BadResponse(f"the Hub gives no commit for `{ref}`", hint=ODD)
        known = {str(s.rfilename): s for s in info.siblings or ()}
        listed = [Listed(path, s.size) for path, s in known.items()]
        chosen = choose(listed, ref)
        files = tuple(self._file(ref, commit, known[f.path]) for f in chosen.files)
        return check(
            Manifest(
                name=str(ref),
                source="huggingface",
                files=files,
                revision=commit,
                main=chosen.main,
                license=_license(info),
                notes=chosen.notes,
            )
        )

    def _file(self, ref: Ref, commit: str, sibling: Any) -> RemoteFile:
        path = safe_path(str(sibling.rfilename))
        lfs = sibling.lfs
        if lfs is not None:
            digest, size = Digest.parse(f"sha256:{lfs.sha256}"), int(lfs.size)
        elif sibling.blob_id and sibling.size is not None:
            digest, size = Digest.parse(f"git:{sibling.blob_id}"), int(sibling.size)
        else:
            raise BadResponse(f"the Hub gives no digest for {path!r} of `{ref.name}`", hint=ODD)
        url = f"{self.endpoint}/{ref.name}/resolve/{commit}/{quote(path)}"
        return RemoteFile(path, size, digest, url)

    def _info(self, ref: Ref) -> Any:
        api = self._api()
        with _translated(f"`{ref.name}`" + (f" at {ref.revision!r}" if ref.revision else ""), ref):
            return api.model_info(ref.name, revision=ref.revision, files_metadata=True, timeout=30)

    @asynccontextmanager
    async def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """See `Source.open`."""
        headers = await asyncio.to_thread(self._headers)
        repo = file.url.removeprefix(self.endpoint).partition("/resolve/")[0].strip("/")
        page = f"{self.endpoint}/{repo}"
        async with body(
            self._http, file, headers, from_byte, to_byte, key="HF_TOKEN", page=page
        ) as pieces:
            yield pieces

    def _headers(self) -> dict[str, str]:
        offline(self._environ, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # its lazy

        headers: dict[str, str] = build_hf_headers(token=self._token())
        return {k: v for k, v in headers.items() if k.lower() == "authorization"}

    async def search(
        self, text: str, *, task: str | None = None, limit: int = 20, author: str | None = None
    ) -> list[Card]:
        """Models on the Hub whose names match, the most downloaded first.

        Raises:
            UpstreamError, Unavailable
        """
        return await asyncio.to_thread(self._search, text, task, limit, author)

    def _search(self, text: str, task: str | None, limit: int, author: str | None) -> list[Card]:
        api = self._api()
        wanted = ["downloads", "likes", "pipeline_tag", "tags", "library_name", "gated", "siblings"]
        with _translated(f"search for {text!r}", None):
            self._reach()
            found = api.list_models(
                search=text or None,
                author=author,
                pipeline_tag=task,
                sort="downloads",
                limit=limit,
                expand=[*wanted, "safetensors", "gguf"],
            )
            return [_card(info) for info in found]

    def _reach(self) -> None:
        """Whatever answers will do. A search that finds nobody would be tried six times by the
        Hub's client, for half a minute, with a line on the screen for each."""
        from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # its lazy

        get_session().head(self.endpoint, timeout=REACH_SECONDS)

    async def close(self) -> None:
        """See `Source.close`."""
        self._http.close()


def _card(info: Any) -> Card:
    tags = tuple(str(tag) for tag in info.tags or ())
    total = getattr(info.safetensors, "total", 0) or (info.gguf or {}).get("total", 0)
    return Card(
        name=str(info.id),
        downloads=int(info.downloads or 0),
        likes=int(info.likes or 0),
        task=str(info.pipeline_tag or ""),
        license=_license(info),
        library=str(info.library_name or ""),
        gated=bool(info.gated),
        files=tuple(Listed(str(s.rfilename), s.size) for s in info.siblings or ()),
        parameters=int(total or 0),
        tags=tags,
    )


def _license(info: Any) -> str:
    tags = [str(tag) for tag in info.tags or ()]
    return next((t.removeprefix("license:") for t in tags if t.startswith("license:")), "")


class _translated:
    """The border: failures of `huggingface_hub` and its HTTP client become ours."""

    def __init__(self, what: str, ref: Ref | None) -> None:
        self._what = what
        self._ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, Exception) and not isinstance(exc, RunnerError):
            raise _ours(exc, self._what, self._ref) from exc


def _ours(exc: Exception, what: str, ref: Ref | None) -> RunnerError:
    import httpx2
    from huggingface_hub import errors as hub

    page = f"{ENDPOINT}/{ref.name}" if ref else ENDPOINT
    if isinstance(exc, hub.GatedRepoError):
        return UpstreamRefused(
            f"{what} is gated", hint=f"accept its licence at {page} and set HF_TOKEN"
        )
    if isinstance(exc, hub.RevisionNotFoundError):
        return NotFound(f"there is no {what} on the Hub", hint=f"see {page}/tree/main")
    if isinstance(exc, hub.RepositoryNotFoundError):
        return NotFound(
            f"there is no {what} on the Hub, or it is private",
            hint="`llmrr search` finds names; a private one needs HF_TOKEN",
            param="model",
        )
    if isinstance(exc, hub.HFValidationError):
        return NotFound(f"{what} is no name of the Hub: {exc}", hint="for example hf:org/repo")
    if isinstance(exc, hub.HfHubHTTPError):
        status = exc.response.status_code
        if status == 429:
            return RateLimited(f"the Hub asks to slow down ({what})", hint=LATER)
        if status in (401, 403):
            return UpstreamRefused(f"the Hub refuses {what} ({status})", hint="set HF_TOKEN")
        return UpstreamError(f"the Hub answers {status} to {what}", hint=LATER)
    if isinstance(exc, hub.OfflineModeIsEnabled):
        return ConnectFailed(f"offline: {what}", hint="unset HF_HUB_OFFLINE to download")
    if isinstance(exc, httpx2.TimeoutException):
        return UpstreamError(f"the Hub was silent for too long ({what})", hint=AGAIN)
    if isinstance(exc, httpx2.HTTPError | OSError):
        return ConnectFailed(f"cannot reach the Hub for {what}: {exc}", hint=PROXY)
    return BadResponse(f"the Hub's answer to {what} is not understood: {exc!r}", hint=ODD)
