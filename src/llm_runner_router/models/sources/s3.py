"""Objects of S3 and of everything that speaks its protocol: `s3://bucket/key`, `s3://bucket/folder/`.

Knows: how the package `obstore` (the extra `s3`) lists and reads. Does not know: credentials; that
package takes them, region and endpoint from the usual variables (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_SKIP_SIGNATURE` for open buckets).

S3 gives no SHA-256 of what was put in parts, so these files are taken as they come, with the ETag
holding the pieces of one download together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from llm_runner_router.errors import (
    ConfigError,
    NotFound,
    StreamBroken,
    UpstreamError,
    UpstreamRefused,
)
from llm_runner_router.models.manifest import Manifest, RemoteFile, check
from llm_runner_router.models.pick import Listed, choose, split_names
from llm_runner_router.refs import Ref

from ._http import AGAIN, CHUNK, Changed, offline

MAX_LISTED = 10_000
_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true"


def connect(environ: Mapping[str, str]) -> S3Source:
    """The buckets that the environment gives access to.

    Raises:
        ConfigError: the extra is not installed.
    """
    try:
        import obstore.store  # noqa: F401  # only to see that it is there
    except ImportError as exc:
        raise ConfigError(
            "`s3://` needs the package `obstore`, which is not installed",
            hint="pip install 'llm-runner-router[s3]'",
        ) from exc
    return S3Source(environ)


class S3Source:
    """See `Source`."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._stores: dict[str, Any] = {}

    def _store(self, bucket: str) -> Any:
        from obstore.store import S3Store

        if bucket not in self._stores:
            config = {
                name.lower(): value
                for name, value in self._environ.items()
                if name.startswith("AWS_") and value and name not in ("AWS_PROFILE", "AWS_PAGER")
            }
            plain = self._environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
            self._stores[bucket] = S3Store(
                bucket,
                config=config,  # type: ignore[arg-type]  # keys are checked by the package
                client_options={"allow_http": plain},
                retry_config={"max_retries": 0},  # we try again ourselves, where it stopped
            )
        return self._stores[bucket]

    async def manifest(self, ref: Ref) -> Manifest:
        """The object (with the other parts of a split model), or the model in a folder of them."""
        offline(self._environ)
        bucket, _, key = ref.name.partition("/")
        with _translated(f"`{ref}`"):
            store = self._store(bucket)
            if key.endswith("/"):
                return await self._folder(store, ref, bucket, key)
            above, _, name = key.rpartition("/")
            inside = f"{above}/" if above else ""
            files = tuple(
                [await self._file(store, bucket, inside, part) for part in split_names(name)]
            )
        return check(Manifest(str(ref), "s3", files, main=files[0].path))

    async def _folder(self, store: Any, ref: Ref, bucket: str, prefix: str) -> Manifest:
        import obstore

        listed: list[Listed] = []
        async for chunk in obstore.list(store, prefix, chunk_size=1000):
            listed += [Listed(row["path"].removeprefix(prefix), row["size"]) for row in chunk]
            if len(listed) > MAX_LISTED:
                raise NotFound(f"`{ref}` has over {MAX_LISTED} objects", hint="name a folder in it")
        chosen = choose(listed, ref)
        files = tuple([await self._file(store, bucket, prefix, f.path) for f in chosen.files])
        return check(Manifest(str(ref), "s3", files, main=chosen.main, notes=chosen.notes))

    @staticmethod
    async def _file(store: Any, bucket: str, prefix: str, path: str) -> RemoteFile:
        import obstore

        meta = await obstore.head_async(store, prefix + path)
        url = f"s3://{bucket}/{prefix}{path}"
        return RemoteFile(path, meta["size"], url=url, etag=meta["e_tag"] or "")

    @asynccontextmanager
    async def open(
        self, file: RemoteFile, from_byte: int = 0, to_byte: int | None = None
    ) -> AsyncIterator[AsyncIterator[memoryview]]:
        """See `Source.open`."""
        import obstore

        offline(self._environ)
        bucket, _, key = file.url.removeprefix("s3://").partition("/")
        options: Any = {"if_match": file.etag} if file.etag else {}
        end = file.size if to_byte is None else to_byte
        if end is None or from_byte or end != file.size:
            options["range"] = {"offset": from_byte} if end is None else (from_byte, end)
        with _translated(f"file {file.path!r}"):
            result = await obstore.get_async(self._store(bucket), key, options=options)
            yield _pieces(result, file, None if end is None else end - from_byte)

    async def close(self) -> None:
        """Nothing is kept that has to be closed."""
        self._stores.clear()


async def _pieces(result: Any, file: RemoteFile, expected: int | None) -> AsyncIterator[memoryview]:
    count = 0
    with _translated(f"file {file.path!r}"):
        async for piece in result.stream(min_chunk_size=CHUNK):
            count += len(piece)
            yield memoryview(piece)
    if expected is not None and count != expected:
        raise StreamBroken(f"{file.path!r} ended after {count} of {expected} bytes", hint=AGAIN)


class _translated:
    """The border: failures of `obstore` become ours."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        from obstore import exceptions as theirs

        if not isinstance(exc, theirs.BaseError | OSError):
            return
        if isinstance(exc, theirs.NotFoundError | FileNotFoundError):
            raise NotFound(f"there is no {self._what}", hint="check bucket and key") from exc
        if isinstance(exc, theirs.PreconditionError):
            raise Changed(f"{self._what} has changed", hint=AGAIN) from exc
        if isinstance(exc, theirs.PermissionDeniedError | theirs.UnauthenticatedError):
            raise UpstreamRefused(f"S3 refuses {self._what}", hint=_KEYS) from exc
        first = str(exc).strip().splitlines()[0][:300]
        raise UpstreamError(f"S3 cannot give {self._what}: {first}", hint=_KEYS) from exc
