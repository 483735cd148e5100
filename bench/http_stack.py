"""Which HTTP server and client carry the hot path best: the same proxy on each, in one run.

Knows: the candidates, what is measured of them. Does not know the product. Rounds are interleaved
and medians taken, so that a busy machine slows all of them alike. Results: decision 001.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from . import proc, wire
from .load import Load

CANDIDATES = (
    ("uvicorn", "pyreqwest"),
    ("uvicorn", "aiohttp"),
    ("uvicorn", "bare"),
    ("granian-rsgi", "pyreqwest"),
    ("granian-asgi", "pyreqwest"),
    ("granian-rsgi", "aiohttp"),
    ("granian-rsgi", "bare"),
    ("bare", "pyreqwest"),
    ("bare", "bare"),
)
_NEEDED = ("uvicorn", "httptools", "uvloop", "pyreqwest", "msgspec", "granian", "aiohttp")
_HELP = """some candidates are not installed in {python}: {missing}
hint: python3 -m venv /tmp/bench-env
      /tmp/bench-env/bin/pip install -r bench/requirements.txt
      {here} -m bench.http_stack --python /tmp/bench-env/bin/python"""

SPEAKING = wire.Script(400, 0.01)
THINKING = wire.Script(400, 0.01, think=3.0)
GONE = 1.5
"""Seconds within which the upstream must see that the client has left."""


class Sizes(Struct, frozen=True):
    """How much of everything."""

    rounds: int = 5
    requests: int = 1500
    connections: int = 16
    streams: int = 32
    script: wire.Script = wire.Script(200, 0.005)


class Figures(Struct):
    """What is known of one candidate; times in seconds, sizes in bytes."""

    name: str
    cold: list[float] = []
    rss_idle: int = 0
    rss_after: int = 0
    plain_cpu: list[float] = []
    chunk_cpu: list[float] = []
    rate: list[float] = []
    p50: list[float] = []
    p99: list[float] = []
    left: list[float] = []
    """From the client's leaving mid-stream to the upstream connection's end; −1: not in time."""
    early: list[float] = []
    """The same when the client leaves before the upstream has begun to answer."""
    errors: int = 0


def missing(python: str) -> list[str]:
    """The modules that the interpreter at `python` lacks."""
    code = (
        "import importlib.util, sys\n"
        "print(*[name for name in sys.argv[1:] if not importlib.util.find_spec(name)])"
    )
    command = [python, "-c", code, *_NEEDED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.split() if done.returncode == 0 else list(_NEEDED)


def _start(python: str, server: str, client: str, upstream: int) -> tuple[proc.Child, int, float]:
    port = proc.free_port()
    url = f"http://127.0.0.1:{upstream}/v1/chat/completions"
    command = [python, "-m", "bench.stacks.serve", server, client, url, str(port)]
    child = proc.Child(command, name=f"{server} + {client}")
    try:
        request = Load(port=port, body=wire.request_body("gpt").decode()).request(0)
        cold = proc.wait_answer(port, request, proc.START_SECONDS, child) - child.began
    except proc.BenchError:
        child.stop()
        raise
    return child, port, cold


def measure(python: str, sizes: Sizes, candidates: Sequence[tuple[str, str]]) -> list[Figures]:
    """Measure all candidates, round after round."""
    upstream, upstream_port = proc.start_upstream()
    started: list[tuple[proc.Child, int, Figures]] = []
    with upstream, proc.Loader() as loader:
        try:
            for server, client in candidates:
                figures = Figures(f"{server} + {client}")
                for _ in range(2):  # thrown away but for the time it took
                    child, _, cold = _start(python, server, client, upstream_port)
                    figures.cold.append(cold)
                    child.stop()
                child, port, cold = _start(python, server, client, upstream_port)
                figures.cold.append(cold)
                figures.rss_idle = proc.rss(child.pid)
                started.append((child, port, figures))
            for i in range(sizes.rounds + 1):
                for child, port, figures in started:
                    _round(loader, child, port, figures, sizes, counted=i > 0)
            for child, port, figures in started:
                figures.rss_after = proc.rss(child.pid)
                figures.left = [_leave(port, upstream_port, SPEAKING) for _ in range(3)]
                figures.early = [_leave(port, upstream_port, THINKING) for _ in range(3)]
        finally:
            for child, _, _ in started:
                child.stop()
    return [figures for _, _, figures in started]


def _round(
    loader: proc.Loader,
    child: proc.Child,
    port: int,
    figures: Figures,
    sizes: Sizes,
    *,
    counted: bool,
) -> None:
    plain = Load(
        port=port,
        body=wire.request_body("gpt", size=4096).decode(),
        connections=sizes.connections,
        requests=sizes.requests,
        text=wire.ANSWER,
        timeout=30,
    )
    script = sizes.script
    stream = Load(
        port=port,
        body=wire.request_body(script.model, size=4096, stream=True).decode(),
        connections=sizes.streams,
        requests=sizes.streams,
        ramp=script.gap,
        stream=True,
        text=script.text,
        timeout=30,
    )
    before = proc.cpu_seconds(child.pid)
    result = loader.run(plain)
    between = proc.cpu_seconds(child.pid)
    streamed = loader.run(stream)
    after = proc.cpu_seconds(child.pid)
    figures.errors += sum(result.errors.values()) + sum(streamed.errors.values())
    if not counted or not result.ok or not streamed.ok:
        return
    per_request = (between - before) / result.ok
    figures.plain_cpu.append(per_request)
    figures.rate.append(result.rate)
    figures.p50.append(result.latency.p50)
    figures.p99.append(result.latency.p99)
    # A stream costs what a request costs, and its chunks.
    chunks = streamed.events
    figures.chunk_cpu.append((after - between - per_request * streamed.ok) / chunks)


def _leave(port: int, upstream: int, script: wire.Script) -> float:
    """Ask for a stream, leave, and wait until the upstream sees its connection end.

    The client leaves after the first event, or after 100 ms if the upstream thinks first.
    """
    before = _left_early(upstream)
    request = Load(port=port, body=wire.request_body(script.model, stream=True).decode()).request(0)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        if script.think:
            time.sleep(0.1)
        while not script.think and b"data:" not in client.recv(65536):
            pass
    began = time.perf_counter()
    while time.perf_counter() - began < GONE:
        if _left_early(upstream) > before:
            return time.perf_counter() - began
        time.sleep(0.005)
    return -1.0


def _left_early(upstream: int) -> int:
    with socket.create_connection(("127.0.0.1", upstream), timeout=10) as client:
        client.sendall(b"GET /stats HTTP/1.1\r\nhost: mock\r\n\r\n")
        answer = client.recv(65536)
    return int(json.loads(answer.partition(b"\r\n\r\n")[2])["left_early"])


def table(all_figures: Sequence[Figures]) -> str:
    """The figures as a Markdown table, cheapest plain request first."""
    names = (
        "server + client",
        "CPU µs/request",
        "CPU µs/chunk",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "left mid-stream: closed after ms",
        "left before the answer: closed after ms",
        "cold start s",
        "RSS idle MiB",
        "RSS after MiB",
        "errors",
    )
    lines = [f"| {' | '.join(names)} |", "|---" + "|--:" * (len(names) - 1) + "|"]
    for f in sorted(all_figures, key=lambda f: median(f.plain_cpu or [9e9])):
        cells = (
            f.name,
            f"{median(f.plain_cpu or [0]) * 1e6:.0f}",
            f"{median(f.chunk_cpu or [0]) * 1e6:.1f}",
            f"{median(f.rate or [0]):.0f}",
            f"{median(f.p50 or [0]) * 1e3:.1f}",
            f"{median(f.p99 or [0]) * 1e3:.1f}",
            _gone(f.left),
            _gone(f.early),
            f"{median(f.cold):.2f}",
            f"{f.rss_idle / 2**20:.0f}",
            f"{f.rss_after / 2**20:.0f}",
            str(f.errors),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gone(times: Sequence[float]) -> str:
    return "no" if min(times, default=-1.0) < 0 else f"{median(times) * 1e3:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.http_stack", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="interpreter with the candidates")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    args = parser.parse_args(argv)
    lacking = missing(args.python)
    candidates = [c for c in CANDIDATES if not _needs(c) & set(lacking)]
    if lacking:
        help_ = _HELP.format(python=args.python, missing=", ".join(lacking), here=sys.executable)
        print(help_, file=sys.stderr)
    if not candidates:
        return 1
    sizes = Sizes(rounds=2, requests=400) if args.quick else Sizes()
    print(table(measure(args.python, sizes, candidates)))
    return 0


def _needs(candidate: tuple[str, str]) -> set[str]:
    server, client = candidate
    names = {server.partition("-")[0], client, "uvloop", "httptools", "msgspec"}
    return names - {"bare"}


if __name__ == "__main__":
    sys.exit(main())
