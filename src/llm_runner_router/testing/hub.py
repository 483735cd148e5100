"""A server on this machine that speaks the protocols of the Hub and of Ollama's registry.

Public: whoever writes a source or uses one tests it with this. Knows: the routes that
`huggingface_hub` and Ollama use, byte ranges, redirects to another host, and how to misbehave.
Does not know: who asks. Large files of the Hub redirect to `/cdn/…` under another host name
(`localhost` for `127.0.0.1`), as the real one does.

    with FakeHub() as hub:
        hub.repo("org/name", {"model-Q8_0.gguf": data})
        hub.fault("model-Q8_0.gguf", Fault("cut", after=1000))
        …                                   # HF_ENDPOINT=hub.url
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

from msgspec import Struct

FaultKind = Literal[
    "cut",
    "short",
    "long",
    "416",
    "429",
    "500",
    "503",
    "flip",
    "silent",
    "hold",
    "no-ranges",
    "wrong-range",
    "changed",
    "loop",
    "gzip",
    "drop",
]
PIECE = 1 << 16


class Fault(Struct, frozen=True):
    """One thing that goes wrong."""

    kind: FaultKind
    """`cut`: the connection is reset after `after` bytes. `short`, `long`: the length is wrong by
    one. `flip`: the byte at `after` of the file is another one. `silent`: nothing more after
    `after` bytes. `hold`: the same until `FakeHub.gate` is set. `drop`: closed without an answer.
    `loop`: redirects to itself. A number: that status."""
    times: int = 1
    """How many answers it spoils."""
    after: int = 0
    retry_after: str = ""


class Asked(Struct, frozen=True):
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""


class _File(Struct, frozen=True):
    data: bytes
    lfs: bool

    @property
    def etag(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.data).hexdigest()
        head = b"blob %d\0" % len(self.data)
        return hashlib.sha1(head + self.data, usedforsecurity=False).hexdigest()


class _Repo(Struct, frozen=True):
    name: str
    commit: str
    files: dict[str, _File]
    facts: dict[str, Any]
    gated: bool
    private: bool


class FakeHub:
    """The server; a context manager. What it holds may be changed while it runs."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.gate = threading.Event()
        """Lets those go on who wait in a `hold`."""
        self.token = ""
        """What gated and private repositories, and the registry if `login`, want as bearer."""
        self.login = False
        self._repos: dict[tuple[str, str], _Repo] = {}
        self._plain: dict[str, bytes] = {}
        self._contents: dict[str, bytes] = {}
        self._images: dict[str, bytes] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), lambda *a: _Handler(self, *a))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn(self) -> str:
        """The same server under the other name."""
        return f"http://localhost:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering, also those who are being answered."""
        self._over.set()
        self.gate.set()
        self._server.shutdown()
        self._server.end_all()
        self._server.server_close()
        self._thread.join(10)

    # ------------------------------------------------------------ content

    def repo(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        revision: str = "main",
        small: int = 1024,
        gated: bool = False,
        private: bool = False,
        **facts: Any,
    ) -> str:
        """A repository of the Hub; its commit. Files over `small` bytes are kept as LFS does.

        `facts` are fields of the Hub's answer: `downloads`, `tags`, `pipeline_tag`, `safetensors`.
        """
        held = {path: _File(data, len(data) > small) for path, data in files.items()}
        text = json.dumps([name, sorted((p, f.etag) for p, f in held.items())])
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        made = _Repo(name, commit, held, facts, gated, private)
        with self._lock:
            self._repos[name, revision] = self._repos[name, commit] = made
            self._contents |= {f.etag: f.data for f in held.values() if f.lfs}
        return commit

    def image(self, name: str, layers: Mapping[str, bytes], *, tag: str = "latest") -> str:
        """A model of Ollama's registry, `user/name`; layers by the end of their media type."""
        rows = []
        for kind, data in layers.items():
            digest = hashlib.sha256(data).hexdigest()
            self._contents[digest] = data
            media = f"application/vnd.ollama.image.{kind}"
            rows.append({"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)})
        self.manifest(name, {"schemaVersion": 2, "layers": rows}, tag=tag)
        return str(rows[0]["digest"])

    def manifest(self, name: str, content: Mapping[str, Any], *, tag: str = "latest") -> None:
        """Any manifest, sound or not."""
        self._images[f"{name}:{tag}"] = json.dumps(content).encode()

    def put(self, path: str, data: bytes) -> str:
        """A plain file; its address. `bucket/key` is also an object of S3, at `url`/s3."""
        self._plain[path] = data
        return f"{self.url}/files/{path}"

    def fault(self, where: str, *faults: Fault) -> None:
        """Spoil answers whose path contains `where` (a large file: its own path counts, too)."""
        with self._lock:
            self._faults.setdefault(where, []).extend(faults)

    def requests(self, part: str, method: str = "GET") -> list[Asked]:
        """The requests that came for paths containing `part`."""
        return [a for a in self.asked if part in a.path and a.method == method]

    # ------------------------------------------------------------ for the handler

    def _take(self, *paths: str) -> Fault | None:
        with self._lock:
            for where, faults in self._faults.items():
                if not any(where in path for path in paths) or not faults:
                    continue
                fault = faults.pop(0)
                if fault.times > 1:
                    left = Fault(fault.kind, fault.times - 1, fault.after, fault.retry_after)
                    faults.insert(0, left)
                return fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: Callable[..., Any]) -> None:
        self._open: set[Any] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are part of the tests."""

    def end_all(self) -> None:
        for request in list(self._open):
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: FakeHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests look at `asked`."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, self.path, headers))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if path.startswith("/cdn/"):
            digest, _, name = path.removeprefix("/cdn/").partition("/")
            self._content(self.hub._contents.get(digest), path, name)
        elif path.startswith("/api/models"):
            self._api(path.removeprefix("/api/models").strip("/"), query)
        elif path.startswith("/v2/"):
            self._registry(path)
        elif path == "/token":
            self._json({"token": self.hub.token})
        elif path.startswith("/files/"):
            name = path.removeprefix("/files/")
            self._content(self.hub._plain.get(name), path, name)
        elif path.startswith("/s3/"):
            self._s3(path, query)
        elif "/resolve/" in path:
            self._resolve(path)
        else:
            self._error(404, "EntryNotFound")

    # ------------------------------------------------------------ the Hub

    def _api(self, rest: str, query: dict[str, list[str]]) -> None:
        fault = self.hub._take(f"/api/models/{rest}")
        if fault is not None and fault.kind.isdecimal():
            self._status(int(fault.kind), fault)
            return
        if not rest:
            self._json(self._search(query))
            return
        name, _, tail = rest.partition("/revision/")
        name, _, tree = name.partition("/tree/")
        found = self._repo(name, tail or tree or "main")
        if found is None:
            return
        if tree:
            rows = [_sibling(path, file, tree=True) for path, file in found.files.items()]
            self._json(rows)
            return
        self._json(_facts(found, blobs="blobs" in query))

    def _search(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        text = query.get("search", [""])[0].lower()
        task = query.get("pipeline_tag", [""])[0]
        found = {repo.name: repo for repo in self.hub._repos.values()}
        rows = [
            _facts(repo, blobs=False)
            for name, repo in found.items()
            if text in name.lower() and task in ("", repo.facts.get("pipeline_tag", ""))
        ]
        rows.sort(key=lambda row: -row.get("downloads", 0))
        return rows[: int(query.get("limit", ["20"])[0])]

    def _repo(self, name: str, revision: str) -> _Repo | None:
        named = [repo for (repo_name, _), repo in self.hub._repos.items() if repo_name == name]
        found = self.hub._repos.get((name, revision))
        bearer = self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if not named or (named[0].private and not bearer):
            self._error(401 if not named else 404, "RepoNotFound")
            return None
        if found is None:
            self._error(404, "RevisionNotFound")
            return None
        return found

    def _resolve(self, path: str) -> None:
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file_path = rest.partition("/")
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._error(403, "GatedRepo")
            return
        file = repo.files.get(file_path)
        extra = {"X-Repo-Commit": repo.commit}
        if file is None:
            self._error(404, "EntryNotFound", extra)
        elif file.lfs:
            extra |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data))}
            self._redirect(f"{self.hub.cdn}/cdn/{file.etag}/{file_path}?secret=signed", extra)
        else:
            self._content(file.data, path, file_path, {**extra, "ETag": f'"{file.etag}"'})

    # ------------------------------------------------------------ Ollama's registry

    def _registry(self, path: str) -> None:
        if self.hub.login and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            realm = f'Bearer realm="{self.hub.url}/token",service="hub",scope="pull"'
            self._status(401, extra={"WWW-Authenticate": realm})
            return
        name, kind, last = path.removeprefix("/v2/").rsplit("/", 2)
        fault = self.hub._take(path)
        if fault is not None and fault.kind.isdecimal():
            self._status(int(fault.kind), fault)
        elif kind == "manifests" and f"{name}:{last}" in self.hub._images:
            self._send(200, self.hub._images[f"{name}:{last}"], {})
        elif kind == "blobs" and last.removeprefix("sha256:") in self.hub._contents:
            digest = last.removeprefix("sha256:")
            self._redirect(f"{self.hub.cdn}/cdn/{digest}/blob", status=307)
        else:
            self._error(404, "MANIFEST_UNKNOWN")

    def _s3(self, path: str, query: dict[str, list[str]]) -> None:
        """An object, or a bucket's list as ListObjectsV2 gives it."""
        bucket, _, key = path.removeprefix("/s3/").partition("/")
        if "list-type" in query:
            self._send(200, _listing(self.hub._plain, bucket, query["prefix"][0]).encode(), {})
            return
        date = "Wed, 01 Jan 2025 00:00:00 GMT"
        self._content(self.hub._plain.get(f"{bucket}/{key}"), path, key, {"Last-Modified": date})

    # ------------------------------------------------------------ answers

    def _content(
        self, data: bytes | None, path: str, name: str, extra: Mapping[str, str] | None = None
    ) -> None:
        if data is None:
            self._error(404, "EntryNotFound")
            return
        fault = self.hub._take(path, name) if self.command == "GET" else None
        kind = fault.kind if fault else ""
        etag = f'"{hashlib.sha256(data).hexdigest()}"' if kind != "changed" else '"another"'
        head = {"ETag": etag, "Accept-Ranges": "bytes", **(extra or {})}
        if fault is not None and (kind.isdecimal() or kind in ("loop", "drop")):
            self._spoiled(fault)
            return
        start, end, status = 0, len(data), 200
        span = self.headers.get("range", "")
        wanted = self.headers.get("if-range", etag)
        if span.startswith("bytes=") and kind != "no-ranges" and wanted == etag:
            first, _, last = span.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
            if start >= len(data):
                self._status(416, extra={"Content-Range": f"bytes */{len(data)}"})
                return
            status = 206
            shift = 1 if kind == "wrong-range" else 0
            head["Content-Range"] = f"bytes {start + shift}-{end - 1}/{len(data)}"
        if kind == "no-ranges":
            head.pop("Accept-Ranges")
        if kind == "gzip":
            head["Content-Encoding"] = "gzip"
        if fault is not None and kind == "flip" and start <= fault.after < end:
            held = bytearray(data)
            held[fault.after] ^= 1
            data = bytes(held)
        length = end - start + {"short": -1, "long": 1}.get(kind, 0)
        self._head(status, {**head, "Content-Length": str(length)})
        if self.command == "GET":
            self._stream(data, start, start + length if kind == "short" else end, fault)

    def _stream(self, data: bytes, start: int, end: int, fault: Fault | None) -> None:
        stops = fault is not None and fault.kind in ("cut", "silent", "hold")
        until = min(end, start + fault.after) if fault is not None and stops else end
        view = memoryview(data)
        for at in range(start, until, PIECE):
            self.wfile.write(view[at : min(at + PIECE, until)])
        if fault is None or not stops:
            if fault is not None and fault.kind == "long":
                self._reset()
            return
        if fault.kind == "cut":
            self._reset()
            return
        (self.hub.gate if fault.kind == "hold" else self.hub._over).wait(60)
        if fault.kind == "hold" and not self.hub._over.is_set():
            for at in range(until, end, PIECE):
                self.wfile.write(view[at : min(at + PIECE, end)])

    def _spoiled(self, fault: Fault) -> None:
        if fault.kind == "loop":
            self._redirect(f"{self.hub.url}{self.path}")
        elif fault.kind == "drop":
            self._reset()
        else:
            self._status(int(fault.kind), fault)

    def _reset(self) -> None:
        """Close so that the client sees a reset, not an end."""
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, extra: Mapping[str, str] | None = None) -> None:
        self._status(status, extra={"X-Error-Code": code, **(extra or {})})

    def _status(
        self, status: int, fault: Fault | None = None, extra: Mapping[str, str] | None = None
    ) -> None:
        head = dict(extra or {})
        if fault is not None and fault.retry_after:
            head["Retry-After"] = fault.retry_after
        self._send(status, b'{"error": "no"}', {"Content-Type": "application/json", **head})

    def _redirect(
        self, to: str, extra: Mapping[str, str] | None = None, *, status: int = 302
    ) -> None:
        self._send(status, b"", {"Location": quote(to, safe=":/?&=%"), **(extra or {})})

    def _send(self, status: int, body: bytes, head: Mapping[str, str]) -> None:
        self._head(status, {**head, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, head: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()


def _facts(repo: _Repo, *, blobs: bool) -> dict[str, Any]:
    """The Hub's own description of a repository."""
    siblings = [
        _sibling(path, file) if blobs else {"rfilename": path} for path, file in repo.files.items()
    ]
    return {
        "id": repo.name,
        "modelId": repo.name,
        "sha": repo.commit,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        **repo.facts,
        "siblings": siblings,
    }


def _listing(files: Mapping[str, bytes], bucket: str, prefix: str) -> str:
    """S3's answer to a question for the objects below a prefix."""
    rows = "".join(
        f"<Contents><Key>{path.removeprefix(f'{bucket}/')}</Key><Size>{len(data)}</Size>"
        f"<LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag></Contents>"
        for path, data in sorted(files.items())
        if path.startswith(f"{bucket}/{prefix}")
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>'
        f"<Name>{bucket}</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>{rows}"
        "</ListBucketResult>"
    )


def _sibling(path: str, file: _File, *, tree: bool = False) -> dict[str, Any]:
    head = b"blob %d\0" % len(file.data)
    oid = hashlib.sha1(head + file.data, usedforsecurity=False).hexdigest()
    if tree:
        row: dict[str, Any] = {"type": "file", "path": path, "size": len(file.data), "oid": oid}
        if file.lfs:
            row["lfs"] = {"oid": file.etag, "size": len(file.data), "pointerSize": 134}
        return row
    row = {"rfilename": path, "size": len(file.data), "blobId": oid}
    if file.lfs:
        row["lfs"] = {"sha256": file.etag, "size": len(file.data), "pointerSize": 134}
    return row
