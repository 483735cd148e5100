"""What the gateway adds: latency, CPU time, memory, streams; beside the upstream alone.

Knows: which loads to put on both, in turns, and how to sum up. Does not know how the gateway is
built. Auth and record are on, as by default. CPU time is the gateway process's own (all threads).
The upstream alone has no proxy whose CPU could be compared; there "without us" is the smallest
proxy on the same HTTP stack (`stacks/`): what is above it, the product costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from statistics import median

import msgspec
from msgspec import Struct

from . import proc, wire
from .gateway import Gateway, remote_config
from .load import Load, Result
from .report import Row, Section

SIZE = 4096
"""Bytes of a request body: a system prompt and some turns."""
CHUNKS = wire.Script(200, 0.005)
"""For CPU per chunk: pieces far enough apart that each is read on its own."""
SMOOTH = wire.Script(75, 0.04)
"""For smooth streams: 25 pieces a second for three seconds."""
STREAMS = (32, 64, 128, 256, 512)
STALL = 0.1
"""Seconds that the p99 gap between two events may grow over direct."""


class Pair(Struct):
    """The same load on the upstream alone and through the gateway."""

    direct: Result
    ours: Result
    cpu: float
    """CPU seconds of the gateway meanwhile."""
    floor: float = 0.0
    """CPU seconds that the smallest proxy used for the same."""


class Rig:
    """Upstream, load generator, gateway and smallest proxy, together."""

    def __init__(
        self, upstream: int, loader: proc.Loader, gateway: Gateway, floor: tuple[proc.Child, int]
    ) -> None:
        self.upstream = upstream
        self.loader = loader
        self.gateway = gateway
        self.floor, self.floor_port = floor
        self.errors: list[str] = []

    def pair(self, name: str, load: Load, *, floor: bool = False) -> Pair:
        """Put a load on both, direct first; with `floor` on the smallest proxy too."""
        direct = self._good(name, "direct", msgspec.structs.replace(load, port=self.upstream))
        through = self.gateway.load(load.body)
        ours = msgspec.structs.replace(load, port=through.port, headers=through.headers)
        start = proc.cpu_seconds(self.gateway.pid)
        result = self._good(name, "gateway", ours)
        pair = Pair(direct, result, proc.cpu_seconds(self.gateway.pid) - start)
        if floor:
            start = proc.cpu_seconds(self.floor.pid)
            least = msgspec.structs.replace(load, port=self.floor_port)
            self._good(name, "smallest proxy", least)
            pair.floor = proc.cpu_seconds(self.floor.pid) - start
        return pair

    def _good(self, name: str, where: str, load: Load) -> Result:
        result = self.loader.run(load)
        self.errors += [f"{name}, {where}: {n} × {what}" for what, n in result.errors.items()]
        if not result.ok:
            raise proc.BenchError(f"{name}: no good answer, {where}: {result.errors}")
        return result


def _smallest_proxy(upstream: int) -> tuple[proc.Child, int]:
    port = proc.free_port()
    url = f"http://127.0.0.1:{upstream}/v1/chat/completions"
    command = proc.python("bench.stacks.serve", "uvicorn", "bare", url, str(port))
    child = proc.Child(command, name="smallest proxy")
    try:
        request = Load(port, wire.request_body("gpt").decode()).request(0)
        proc.wait_answer(port, request, proc.START_SECONDS, child)
    except proc.BenchError:
        child.stop()
        raise
    return child, port


def plain(connections: int, requests: int) -> Load:
    """A closed loop of plain requests."""
    return Load(
        port=0,
        body=wire.request_body("gpt", size=SIZE).decode(),
        connections=connections,
        requests=requests,
        warmup=max(connections, 20),
        text=wire.ANSWER,
    )


def streams(script: wire.Script, n: int, ramp: float) -> Load:
    """`n` streams at once, started within `ramp` seconds."""
    return Load(
        port=0,
        body=wire.request_body(script.model, size=SIZE, stream=True).decode(),
        connections=n,
        requests=n,
        ramp=ramp,
        stream=True,
        text=script.text,
        timeout=script.chunks * script.gap + ramp + 20,
    )


def measure(*, quick: bool = False) -> Section:
    """All of it."""
    rounds, scale = (2, 0.3) if quick else (5, 1.0)
    rows: list[Row] = []
    failures: list[str] = []
    upstream, port = proc.start_upstream()
    config = remote_config(port, ("gpt", CHUNKS.model, SMOOTH.model))
    with upstream, proc.Loader() as loader:
        _attempt(failures, rows, lambda: [_cold_start(config, 2 if quick else 5)])
        floor = _smallest_proxy(port)
        with floor[0], Gateway(config) as gateway:
            rig = Rig(port, loader, gateway, floor)
            idle = proc.rss(gateway.pid)
            rows.append(Row("memory of the idle gateway (RSS)", idle / 2**20, "MiB", 80))
            steps: tuple[Callable[[], Sequence[Row]], ...] = (
                lambda: _latency(rig, rounds, int(1000 * scale)),
                lambda: _cpu(rig, rounds, int(2000 * scale)),
                lambda: _chunks(rig, rounds, int(32 * scale)),
                lambda: _rate(rig, rounds, int(4000 * scale)),
                lambda: [_smooth(rig, STREAMS[:3] if quick else STREAMS)],
            )
            for step in steps:
                _attempt(failures, rows, step)
            after = proc.rss(gateway.pid)
            rows.append(Row("memory after all that (RSS)", after / 2**20, "MiB"))
            failures += rig.errors
    return Section("overhead", tuple(rows), tuple(dict.fromkeys(failures)))


def _attempt(failures: list[str], rows: list[Row], step: Callable[[], Sequence[Row]]) -> None:
    """Take the rows of a step; one that fails does not end the others."""
    try:
        rows += step()
    except proc.BenchError as exc:
        failures.append(str(exc))


def _cold_start(config: dict[str, object], times: int) -> Row:
    found: list[float] = []
    cpu: list[float] = []
    for _ in range(times):
        with Gateway(config) as gateway:
            found.append(gateway.cold_start)
            cpu.append(gateway.start_cpu)
    note = f"{min(found):.2f}…{max(found):.2f} s; of that CPU time {median(cpu):.2f} s"
    return Row("cold start to first remote answer", median(found), "s", 1.0, note=note)


def _latency(rig: Rig, rounds: int, requests: int) -> list[Row]:
    pairs = [rig.pair("1 connection", plain(1, requests)) for _ in range(rounds)]
    rows = []
    for name, goal in (("p50", 400.0), ("p99", 1000.0)):
        pick = attrgetter(f"latency.{name}")
        added = median(pick(p.ours) - pick(p.direct) for p in pairs) * 1e6
        direct = median(pick(p.direct) for p in pairs) * 1e6
        note = f"direct {direct:.0f} µs"
        rows.append(Row(f"added latency, 1 connection, {name}", added, "µs", goal, note=note))
    return rows


def _cpu(rig: Rig, rounds: int, requests: int) -> list[Row]:
    load = plain(16, requests)
    work = requests + load.warmup
    pairs = [rig.pair("16 connections", load, floor=True) for _ in range(rounds)]
    each = [p.cpu / work * 1e6 for p in pairs]
    floor = median(p.floor for p in pairs) / work * 1e6
    note = f"{SIZE} B body, {min(each):.0f}…{max(each):.0f}"
    return [Row("CPU per plain request", median(each), "µs", 250, floor, note=note)]


def _chunks(rig: Rig, rounds: int, n: int) -> list[Row]:
    found: list[float] = []
    floor: list[float] = []
    short = plain(16, 400)
    for _ in range(rounds):
        request = rig.pair("16 connections", short, floor=True)
        pair = rig.pair(f"{n} streams", streams(CHUNKS, n, CHUNKS.gap), floor=True)
        # A stream costs what a request costs, and its chunks.
        share = n / (short.requests + short.warmup)
        found.append((pair.cpu - request.cpu * share) / pair.ours.events * 1e6)
        floor.append((pair.floor - request.floor * share) / pair.ours.events * 1e6)
    note = f"{n} streams, {min(found):.0f}…{max(found):.0f}"
    return [Row("CPU per relayed chunk", median(found), "µs", 60, median(floor), note=note)]


def _rate(rig: Rig, rounds: int, requests: int) -> list[Row]:
    pairs = [rig.pair("64 connections", plain(64, requests)) for _ in range(rounds)]
    ours = median(p.ours.rate for p in pairs)
    direct = median(p.direct.rate for p in pairs)
    note = "load generator and upstream take their share of the cores"
    return [Row("requests/s, 64 connections", ours, "", 3000, direct, "more", note=note)]


def _smooth(rig: Rig, counts: Sequence[int]) -> Row:
    best, notes = 0, []
    for n in counts:
        pair = rig.pair(f"{n} streams", streams(SMOOTH, n, 1.0))
        added = pair.ours.gaps.p99 - pair.direct.gaps.p99
        notes.append(f"{n}: {added * 1e3:+.0f} ms")
        if pair.ours.errors or added > STALL:
            break
        best = n
    note = f"{1 / SMOOTH.gap:.0f} chunks/s each; p99 gap over direct {', '.join(notes)}"
    return Row("smooth concurrent streams", best, "", 256, better="more", note=note)
