"""A file server on this machine that stands in for the Hub: as fast as the kernel sends a file.

Run as `python -m bench.files FOLDER`; prints one line of JSON with its port and leaves when its
input closes. Knows: the few routes of the Hub that a pull takes, byte ranges, `sendfile`, and how
to be no faster than a network (`--rate`). Does not know: who asks. Every connection has a thread,
which sleeps in the kernel while the file goes out, so that the server takes next to no time from
whoever is measured. `llm_runner_router.testing.FakeHub` keeps its files in memory and looks at
every piece: it is for faults, and not for speed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPO = "bench/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STEP = 1 << 20
"""Bytes sent between two looks at the clock, where there is a rate."""


class Server(ThreadingHTTPServer):
    """Serves the files of one folder as one repository."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, rate: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.rate = rate
        """Bytes per second for all connections together; 0 for as fast as it goes."""
        self.digests = {path.name: _sha256(path) for path in folder.iterdir()}
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, count: int) -> None:
        """Wait until `count` more bytes may go out; the connections share the rate."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.rate
            pause = self._free_at - now
        time.sleep(pause)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith(f"/api/models/{REPO}"):
            self._facts()
        elif name in self.server.digests:
            self._file(name)
        else:
            self.send_error(404)

    def _facts(self) -> None:
        rows = []
        for name, sha256 in self.server.digests.items():
            size = (self.server.folder / name).stat().st_size
            lfs = {"sha256": sha256, "size": size, "pointerSize": 134}
            rows.append({"rfilename": name, "size": size, "lfs": lfs})
        facts = {"id": REPO, "sha": COMMIT, "tags": [], "siblings": rows}
        body = json.dumps(facts).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, name: str) -> None:
        size = (self.server.folder / name).stat().st_size
        start, end, status = 0, size, 200
        head = {"ETag": f'"{self.server.digests[name]}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), int(last) + 1 if last else size, 206
            head["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(status, {**head, "Content-Length": str(end - start)})
        self.wfile.flush()
        try:
            with (self.server.folder / name).open("rb") as file:
                self._send(file.fileno(), start, end)
        except OSError:  # whoever asked has left
            self.close_connection = True

    def _send(self, handle: int, at: int, end: int) -> None:
        out = self.connection.fileno()
        while at < end:
            step = min(end - at, STEP if self.server.rate else end - at)
            self.server.wait(step)
            if hasattr(os, "sendfile"):
                at += os.sendfile(out, handle, at, step)
            else:
                os.lseek(handle, at, os.SEEK_SET)
                data = os.read(handle, min(step, STEP))
                self.connection.sendall(data)
                at += len(data)

    def _head(self, status: int, head: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=0.0, help="bytes per second")
    args = parser.parse_args()
    server = Server(args.folder, args.rate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
