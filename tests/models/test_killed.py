"""Pulls that are killed, meet each other, or find a disk that is full or cannot be written.

Whatever happens, a name means whole and right files, and a plain pull afterwards puts all right.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from llm_runner_router.errors import RunnerError, Unavailable
from llm_runner_router.models.discard import prune
from llm_runner_router.models.manifest import Stored
from llm_runner_router.testing import FakeHub, Fault

from .rigging import Rig

WEIGHTS = {f"model-0000{n}-of-00002.safetensors": Random(n).randbytes(600_000) for n in (1, 2)}
CONFIG = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
ONE = Random(9).randbytes(4_000_000)

CHILD = """
import asyncio, os, signal, sys
from llm_runner_router.models.download import Downloader, Silent
from llm_runner_router.models.pull import Puller
from llm_runner_router.refs import parse

left = int(sys.argv[2])
SEEN = ("open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.truncate", "os.remove",
        "os.chmod", "os.rmdir", "pwrite")

def touched(event, args):
    global left
    if event not in SEEN or (event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR))):
        return
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)

write = os.pwrite
def pwrite(*args):  # has no event of its own; half of it is written when it is killed
    if left == 1:
        write(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
    touched("pwrite", ())
    return write(*args)

class Told(Silent):
    def say(self, line):
        print(line, flush=True)

async def main():
    puller = Puller(os.environ, Told())
    os.pwrite = pwrite
    sys.addaudithook(touched)
    await puller.pull(parse(sys.argv[1]))

before = left
asyncio.run(main())
print("touched", before - left, flush=True)
"""


def child(rig: Rig, text: str, kill_at: int = 0) -> subprocess.Popen[str]:
    """A process that pulls, and is killed before the `kill_at`th change of the disk; 0: never."""
    command = [sys.executable, "-c", CHILD, text, str(kill_at or 10**9)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(rig),
    )


def environ(rig: Rig) -> dict[str, str]:
    """What a process of this machine sees; the tests' own cache of the Hub is not its."""
    others = {name: value for name, value in os.environ.items() if name != "HF_HUB_CACHE"}
    return {**others, **rig.environ}


def sound(rig: Rig, text: str, expected: dict[str, bytes]) -> bool:
    """Whether the model has its name; fails if anything under any name is not what it should be."""
    store = rig.puller().store
    for name in store.names():
        stored = store.get(name)
        assert stored is not None
        assert {f.path: store.place(f).read_bytes() for f in stored.files} == expected
        assert store.path_of(stored).exists()
    for blob in store.blobs.glob("*"):
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    snapshots = Path(rig.environ["HF_HOME"]).glob("hub/models--*/snapshots/*/*")
    for link in snapshots:
        if not link.name.startswith("."):
            assert link.read_bytes() == expected[link.name], "other programs would read this"
    return bool(store.names())


def serve(hub: FakeHub, kind: str) -> tuple[str, dict[str, bytes]]:
    if kind == "hub":
        hub.repo("org/name", {**WEIGHTS, **CONFIG})
        return "hf:org/name", {**WEIGHTS, **CONFIG}
    return hub.put("one.gguf", ONE), {"one.gguf": ONE}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["hub", "store"])
async def test_a_pull_that_is_killed_anywhere_leaves_no_wrong_name(rig: Rig, kind: str) -> None:
    text, expected = serve(rig.hub, kind)
    with child(rig, text) as whole:
        out, err = whole.communicate(timeout=30)
        assert whole.returncode == 0, err
    touched = int(out.split()[-1])
    assert touched > 20, "there is something to be killed at"
    assert sound(rig, text, expected)
    named = 0
    for seed in range(5):
        rig.environ |= {"LLMRR_HOME": f"{rig.environ['HOME']}/home{seed}",
                        "HF_HOME": f"{rig.environ['HOME']}/hf{seed}"}  # fmt: skip
        rng = Random(seed)
        for kill_at in (rng.randint(1, touched), rng.randint(1, touched // 2)):
            with child(rig, text, kill_at) as killed:
                killed.communicate(timeout=30)
                assert killed.returncode in (-signal.SIGKILL, 0), (
                    "it was not as far the second time"
                )
            named += sound(rig, text, expected)
        stored = await rig.pull(text)
        assert sound(rig, text, expected)
        check_tidy(rig, stored)
    assert named < 10, "no kill came before the name"


@pytest.mark.timeout(120)
async def test_what_is_written_last_leaves_nothing_either(rig: Rig) -> None:
    """Links, branches and names are small, and written by drafts, too."""
    rig.hub.repo("org/name", {"m-Q8_0.gguf": ONE[:9000]})
    expected = {"m-Q8_0.gguf": ONE[:9000]}
    with child(rig, "hf:org/name") as whole:
        touched = int(whole.communicate(timeout=30)[0].split()[-1])
    left: set[str] = set()
    for kill_at in range(touched - 11, touched + 1):
        rig.environ |= {"LLMRR_HOME": f"{rig.environ['HOME']}/home{kill_at}",
                        "HF_HOME": f"{rig.environ['HOME']}/hf{kill_at}"}  # fmt: skip
        with child(rig, "hf:org/name", kill_at) as killed:
            killed.communicate(timeout=30)
        sound(rig, "hf:org/name", expected)
        left |= {path.parts[-2] for path in drafts(rig)}
        stored = await rig.pull("hf:org/name")
        check_tidy(rig, stored)
    assert left >= {"names", "refs"}, "none of the drafts was there when it was killed"


def drafts(rig: Rig) -> list[Path]:
    roots = (Path(rig.environ["LLMRR_HOME"]), Path(rig.environ["HF_HOME"]))
    found = [path for root in roots for path in root.rglob(".*")]
    return [path for path in found if path.name != ".locks"]


def check_tidy(rig: Rig, stored: Stored) -> None:
    """Nothing is left of the killed ones that `prune` would not find, and `rm` frees all."""
    store, hub = rig.puller().store, rig.puller().hub
    prune(store, hub, now=4e9)
    assert list(store.partial.glob("*")) == []
    left = [p for p in hub.path.glob("models--*/blobs/*") if p.suffix]
    assert left == []
    blobs = [*store.blobs.glob("*"), *hub.path.glob("models--*/blobs/*")]
    assert len(blobs) == len(stored.files), "something is there that no name means"
    assert drafts(rig) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["hub", "store"])
def test_two_processes_bring_a_model_once(rig: Rig, kind: str) -> None:
    text, expected = serve(rig.hub, kind)
    spoiled = next(iter(expected))
    rig.hub.fault(spoiled, Fault("hold", after=100_000))
    with child(rig, text) as first, child(rig, text) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        said: dict[int, list[str]] = {1: [], 2: []}
        streams = {1: first.stdout, 2: second.stdout}
        waits = kind == "hub"  # a web address may give each of them something else
        if waits:
            _until_one_waits(streams, said)
        rig.hub.gate.set()
        outs = [process.communicate(timeout=30) for process in (first, second)]
        assert [p.returncode for p in (first, second)] == [0, 0], outs
    assert sound(rig, text, expected)
    if waits:
        asked = rig.hub.requests("/cdn/")
        assert len(asked) == len(WEIGHTS), "each content came once"


def _until_one_waits(streams: dict[int, Any], said: dict[int, list[str]]) -> None:
    """Read what both say until one of them waits for the other."""
    import selectors

    with selectors.DefaultSelector() as ready:
        for number, stream in streams.items():
            ready.register(stream, selectors.EVENT_READ, number)
        while True:
            there = ready.select(timeout=30)
            assert there, said
            for key, _ in there:
                said[key.data].append(streams[key.data].readline())
                if "another process is bringing" in said[key.data][-1]:
                    return


# ---------------------------------------------------------------- a disk that refuses

REFUSED = (
    *("open", "pwrite", "write", "replace", "rename", "link", "symlink", "mkdir", "truncate"),
    *("fsync", "utime"),
)
"""Functions of `os` that a full disk makes fail."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["hub", "store"])
async def test_a_disk_that_fails_at_any_call(
    rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, expected = serve(rig.hub, kind)
    home = Path(rig.environ["HOME"])
    failures = 0
    for fail_at in range(1, 1000, 3 if kind == "hub" else 1):
        rig.environ |= {"LLMRR_HOME": str(home / f"h{fail_at}"),
                        "HF_HOME": str(home / f"f{fail_at}")}  # fmt: skip
        calls = [0]
        with monkeypatch.context() as patched:
            for name in REFUSED:
                patched.setattr(os, name, refusing(name, home, calls, fail_at))
            problem = await problem_of(rig.pull(text))
        if problem is not None:
            failures += 1
            assert isinstance(problem, Unavailable), problem
            assert "No space left on device" in problem.message
            assert problem.hint
        sound(rig, text, expected)
        if calls[0] < fail_at:
            break
        await rig.pull(text)
        assert sound(rig, text, expected)
    else:
        pytest.fail("it never came through")
    assert failures > 20


async def problem_of(pull: Awaitable[Stored]) -> RunnerError | None:
    try:
        await pull
    except RunnerError as exc:
        return exc
    return None


def refusing(name: str, home: Path, calls: list[int], fail_at: int) -> Callable[..., Any]:
    """The function of `os`, which fails as the `fail_at`th of all that change the disk."""
    real = getattr(os, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        reads = name == "open" and not (args[1] & (os.O_WRONLY | os.O_RDWR))
        if not reads:
            calls[0] += 1
            if calls[0] == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    return call


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))
sys.argv = ["llmrr", *sys.argv[1:]]
runpy.run_module("llm_runner_router", run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are a matter of POSIX")
def test_a_file_that_may_not_be_so_large(rig: Rig) -> None:
    text, _ = serve(rig.hub, "store")
    done = subprocess.run([sys.executable, "-c", LIMITED, "pull", text], capture_output=True,
                          text=True, timeout=30, env=environ(rig))  # fmt: skip
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "hint: no file may be so large here: see `ulimit -f`" in done.stderr
    assert "Traceback" not in done.stderr
    assert rig.puller().store.names() == []


# ---------------------------------------------------------------- a real small file system

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
"""Lets anybody mount a file system that is seen by its own processes alone (Linux)."""


def can_mount() -> bool:
    try:
        return subprocess.run(
            [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, timeout=10
        ).returncode == 0  # fmt: skip
    except OSError:
        return False


mounts = pytest.mark.skipif(not can_mount(), reason="needs user namespaces with mounts")

FULL = """
import asyncio, json, os, sys
from pathlib import Path
from llm_runner_router.errors import RunnerError
from llm_runner_router.models import download, pull
from llm_runner_router.models.download import Downloader, Silent
from llm_runner_router.refs import parse

download.SPARE = pull.SPARE = 1 << 20
disk, text, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
full = disk / "others"

def fill():
    if full.exists():
        return
    with full.open("wb", buffering=0) as file:  # somebody else takes what is left
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass

class Other(Silent):
    came = 0
    def say(self, line):
        if line.startswith(when):
            fill()
    def advance(self, name, count):
        self.came += count
        if when == "half" and self.came > 300_000:
            fill()

async def main():
    try:
        await pull.Puller(os.environ, Other()).pull(parse(text))
        error = None
    except RunnerError as exc:
        error = [exc.message, exc.hint]
    names = pull.Puller(os.environ).store.names()
    full.unlink(missing_ok=True)
    stored = await pull.Puller(os.environ).pull(parse(text))
    store = pull.Puller(os.environ).store
    whole = {f.path: len(store.place(f).read_bytes()) for f in stored.files}
    ok = all(one.ok for one in store.verify(stored))
    print(json.dumps({"error": error, "names": names, "whole": whole, "ok": ok}))

asyncio.run(main())
"""


def in_small_disk(
    rig: Rig, disk: Path, options: str, *command: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that sees a file system of its own at `disk`."""
    disk.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", script, str(disk), *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=environ(rig),
    )


@mounts
@pytest.mark.parametrize("kind", ["hub", "store"])
@pytest.mark.parametrize("when", ["half", "verifying", "writing manifest"])
def test_a_disk_that_becomes_full(rig: Rig, tmp_path: Path, kind: str, when: str) -> None:
    text, expected = serve(rig.hub, kind)
    disk = tmp_path / "disk"
    rig.environ |= {"LLMRR_HOME": str(disk / "home"), "HF_HOME": str(disk / "hf")}
    done = in_small_disk(rig, disk, "size=16m", sys.executable, "-c", FULL, str(disk), text, when)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["whole"] == {path: len(data) for path, data in expected.items()}
    assert told["ok"]
    if when == "verifying" and told["error"] is None:
        return  # all of it was on the disk by then
    message, hint = told["error"]
    assert "No space left on device" in message
    assert "llmrr prune" in hint
    assert told["names"] == []


@mounts
def test_a_disk_that_is_too_small_is_told_first(rig: Rig, tmp_path: Path) -> None:
    text, _ = serve(rig.hub, "store")
    disk = tmp_path / "disk"
    rig.environ |= {"LLMRR_HOME": str(disk / "home")}
    command = (sys.executable, "-m", "llm_runner_router", "pull", text)
    done = in_small_disk(rig, disk, "size=16m", *command)
    assert done.returncode == 1
    assert "not enough space" in done.stderr
    assert rig.hub.requests("one.gguf") == []


@mounts
@pytest.mark.parametrize("kind", ["hub", "store"])
def test_a_store_that_cannot_be_written(rig: Rig, tmp_path: Path, kind: str) -> None:
    text, _ = serve(rig.hub, kind)
    disk = tmp_path / "disk"
    rig.environ |= {"LLMRR_HOME": str(disk / "home"), "HF_HOME": str(disk / "hf")}
    for verb in (("pull", text), ("prune",)):
        done = in_small_disk(
            rig, disk, "size=200m,ro", sys.executable, "-m", "llm_runner_router", *verb
        )
        assert done.returncode == 1, (verb, done)
        assert "Traceback" not in done.stderr
        assert "Read-only file system" in done.stderr
        assert "hint: choose folders that you can write to: `LLMRR_HOME`" in done.stderr, done
