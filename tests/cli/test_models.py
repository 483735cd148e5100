"""The verbs about models on this machine, as a person types them, against a server like the Hub."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tests.convert import adapters

from llm_runner_router.cli import output
from llm_runner_router.cli.pulling import Lines
from llm_runner_router.convert import cache
from llm_runner_router.convert.base import Options
from llm_runner_router.home import find
from llm_runner_router.models.resolve import ZOO
from llm_runner_router.testing import FakeHub, Fault

from .conftest import LLMRR, Result, Run, in_a_process

MATH = (ZOO / "tiny-math.gguf").read_bytes()
CHAT = (ZOO / "tiny-chat.gguf").read_bytes()
MIB = 1 << 20
HUB = Path(__file__).parents[2] / "zoo" / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A server with a repository and a registry's image, and this machine's folders, empty."""
    with FakeHub() as served:
        served.repo("org/tiny", {"t-Q8_0.gguf": MATH, "t-F16.gguf": CHAT}, tags=["license:mit"])
        served.image("library/tiny", {"model": CHAT, "template": b"{{ .Prompt }}"})
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("LLMRR_OLLAMA_REGISTRY", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_CACHE")
        monkeypatch.setenv("HOME", str(tmp_path))
        yield served


def test_a_model_comes_goes_and_is_told(hub: FakeHub, llmrr: Run) -> None:
    pulled = llmrr("pull", "hf:org/tiny")
    assert pulled.code == 0, pulled.err
    for line in ("pulling manifest hf:org/tiny", "verifying sha256 t-Q8_0.gguf", "success"):
        assert line in pulled.err.splitlines()
    assert pulled.out.startswith("hf:org/tiny  ")
    assert "hf:org/tiny" in llmrr("ls").out
    shown = json.loads(llmrr("show", "hf:org/tiny", "--json").out)
    assert shown["stored"]["files"][0]["sha256"] == hashlib.sha256(MATH).hexdigest()
    text = llmrr("show", "hf:org/tiny").out
    assert "chose Q8_0 of 2 files: there is no Q4_K_M" in text
    removed = llmrr("rm", "hf:org/tiny")
    assert re.fullmatch(r"removed hf:org/tiny, [\d.]+ KiB freed\n", removed.out)
    gone = llmrr("show", "hf:org/tiny")
    assert gone.code == 1
    assert "`llmrr pull hf:org/tiny`" in gone.err


def test_pulling_again_fetches_nothing(hub: FakeHub, llmrr: Run) -> None:
    llmrr("pull", "ollama:tiny")
    before = len(hub.requests("/cdn/"))
    again = llmrr("pull", "ollama:tiny")
    assert "model.gguf is here already" in again.err
    assert len(hub.requests("/cdn/")) == before


def test_names_are_given_and_taken(hub: FakeHub, llmrr: Run, tmp_path: Path) -> None:
    assert llmrr("pull", "ollama:tiny", "--name", "mine", "-q").err == ""
    assert llmrr("cp", "mine", "other").code == 0
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "a.gguf")
    assert llmrr("cp", str(tmp_path / "a.gguf"), "file").code == 0
    (tmp_path / "a.gguf").unlink()
    listed = json.loads(llmrr("ls", "--all", "--json").out)
    assert {row["name"] for row in listed} == {"mine", "other", "file"}
    for row in listed:
        assert Path(row["path"]).exists()
    for bad in ("zoo:x", "a/b", "a:b", "x.gguf"):
        refused = llmrr("cp", "mine", bad)
        assert (refused.code, "reads as a reference" in refused.err) == (1, True), refused
    assert "has 'other' already" in llmrr("cp", "mine", "other").err
    assert "did you mean `mine`" in llmrr("rm", "mines").err
    assert llmrr("rm", "mine", "other", "file").code == 0
    assert "the store is empty" in llmrr("verify").out


@pytest.mark.engine
def test_a_stored_name_answers_everywhere(hub: FakeHub, tmp_path: Path) -> None:
    ran = in_a_process("run", "hf:org/tiny", "2+3=", stdin="")
    assert ran.code == 0, ran.err
    assert "success" in ran.err
    again = in_a_process("run", "hf:org/tiny", "2+3=", stdin="")
    assert (again.out, again.err) == (ran.out, "")
    assert in_a_process("cp", "hf:org/tiny", "mine").code == 0
    assert in_a_process("run", "mine", "2+3=", stdin="").out == ran.out
    config = tmp_path / "llmrr.yaml"
    config.write_text("models: {served: {target: mine}}\n")
    asked = in_a_process("run", "served", "2+3=", "--config", str(config), stdin="")
    assert asked.out == ran.out, asked.err


@pytest.mark.engine
def test_run_takes_an_adapter_by_its_name_or_with_a_scale(tmp_path: Path) -> None:
    sea = adapters.make(HUB / "tiny-math", tmp_path / "sea", seed=1, size=0.5)
    config = tmp_path / "llmrr.yaml"
    config.write_text(f"models: {{m: {{target: 'zoo:tiny-math', adapters: {{sea: '{sea}'}}}}}}\n")

    def run(model: str, *more: str) -> Result:
        options = ("--temperature", "0", "--max-tokens", "8", "--config", str(config))
        return in_a_process("run", model, "What is 2+3?", *options, *more, stdin="")

    plain, other = run("m"), run("m+sea")
    assert plain.code == other.code == 0, plain.err + other.err
    assert plain.out != other.out
    assert run("m", "--lora", "sea").out == other.out
    assert run("m", "--lora", "sea=0").out == plain.out
    assert run("zoo:tiny-math", "--lora", str(sea)).out == other.out, "one that is not configured"
    assert run("m", "--lora", f"{sea}=0").out == plain.out
    for wrong, words in (("lake", "there are: `sea`"), ("sea=much", "'much' is no number")):
        refused = run("m", "--lora", wrong)
        assert refused.code > 0
        assert words in refused.err
    listed = in_a_process("ls", "--json", "--config", str(config)).out
    assert '"m+sea"' in listed


@pytest.mark.engine
def test_an_adapter_comes_from_a_hub_as_a_model_does(
    hub: FakeHub, llmrr: Run, tmp_path: Path
) -> None:
    sea = adapters.make(HUB / "tiny-math", tmp_path / "sea", seed=1, size=0.5)
    hub.repo("org/sea", {path.name: path.read_bytes() for path in sea.iterdir()})
    gguf = tmp_path / "lake-lora-f16.gguf"
    base = ("--base", str(ZOO / "tiny-math.gguf"))
    assert llmrr("convert", str(sea), str(gguf), *base).code == 0
    hub.repo("org/lake", {gguf.name: gguf.read_bytes()})
    config = tmp_path / "llmrr.yaml"
    config.write_text(
        "models:\n  m: {target: 'zoo:tiny-math',"
        " adapters: {sea: 'hf:org/sea', lake: 'hf:org/lake', kept: mine}}\n"
    )

    def run(model: str) -> Result:
        options = ("--temperature", "0", "--max-tokens", "8", "--config", str(config))
        return in_a_process("run", model, "What is 2+3?", *options, stdin="")

    assert llmrr("pull", "hf:org/lake", "--name", "mine").code == 0
    missing = run("m")
    assert missing.code == 1
    assert "the adapter `sea` of `m`: `hf:org/sea` is not on this machine" in missing.err
    assert "`llmrr pull hf:org/sea`" in missing.err
    for name in ("hf:org/sea", "hf:org/lake"):
        assert llmrr("pull", name).code == 0, name
    answers = [run(name) for name in ("m", "m+sea", "m+lake", "m+kept")]
    plain, *others = [answer.out for answer in answers]
    assert plain, answers[0].err
    assert len(set(others)) == 1, "all are the same adapter"
    assert others[0] not in ("", plain)


def convert(path: str, mix: str) -> Path:
    """Something that counts as made of the model at `path`."""
    home, options = find(os.environ), Options(quantize=mix)
    work = lambda target: target.write_bytes(b"x" * 2048)  # noqa: E731
    return cache.cached(home, Path(path), "gguf", options, work)


def test_conversions_are_told_and_go_with_their_model(
    hub: FakeHub, llmrr: Run, tmp_path: Path
) -> None:
    llmrr("pull", "ollama:tiny", "-q")
    assert "CONVERTED" not in llmrr("ls", "--all").out
    (row,) = json.loads(llmrr("ls", "--all", "--json").out)
    made = [convert(row["path"], mix) for mix in ("Q8_0", "Q4_0")]
    shutil.copy(ZOO / "tiny-math.gguf", tmp_path / "a.gguf")
    elsewhere = convert(str(tmp_path / "a.gguf"), "Q8_0")

    rows = json.loads(llmrr("ls", "--all", "--json").out)
    assert [(row["name"], row["converted"], row["owner"]) for row in rows] == [
        ("ollama:tiny", 4096, "store"),
        (f"file:{elsewhere}", 0, "conversions"),
    ]
    text = llmrr("ls", "--all").out
    assert re.search(r"ollama:tiny +[\d.]+ \w+ +4.0 KiB +store", text)
    shown = llmrr("show", "ollama:tiny").out
    assert all(str(path) in shown for path in made)
    assert "gguf Q4_0" in shown
    facts = json.loads(llmrr("show", "ollama:tiny", "--json").out)
    assert {one["path"] for one in facts["conversions"]} == {str(path) for path in made}

    assert json.loads(llmrr("prune", "--json").out)["conversions"] == 0
    removed = llmrr("rm", "ollama:tiny")
    assert removed.out.startswith("removed ollama:tiny and 2 conversions of it, ")
    assert [path.exists() for path in (*made, elsewhere)] == [False, False, True]
    (tmp_path / "a.gguf").write_bytes(MATH[:-1] + b"?")
    assert llmrr("prune").out == "0 files and 1 conversion deleted, 2.0 KiB freed\n"
    assert not elsewhere.exists()


def test_a_conversion_stays_while_a_name_means_its_source(hub: FakeHub, llmrr: Run) -> None:
    llmrr("pull", "ollama:tiny", "-q")
    llmrr("cp", "ollama:tiny", "mine")
    (row, _) = json.loads(llmrr("ls", "--all", "--json").out)
    made = convert(row["path"], "Q8_0")
    llmrr("rm", "ollama:tiny")
    assert made.exists()
    assert "1 conversion of it" in llmrr("rm", "mine").out
    assert not made.exists()


def test_damage_is_found_and_repaired(hub: FakeHub, llmrr: Run) -> None:
    llmrr("pull", "ollama:tiny", "-q")
    assert llmrr("verify").code == 0
    (row,) = json.loads(llmrr("ls", "--all", "--json").out)
    path = Path(row["path"])
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff\x00\xff")
    found = llmrr("verify", "ollama:tiny")
    assert found.code == 1
    assert "damaged  ollama:tiny  model.gguf" in found.out
    assert "llmrr pull ollama:tiny" in found.err
    assert llmrr("pull", "ollama:tiny", "-q").code == 0
    assert llmrr("verify", "ollama:tiny").code == 0


def test_a_signature_that_is_wanted_and_not_there(hub: FakeHub, llmrr: Run, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    (tmp_path / "no.pub").write_text("no key")
    refused = llmrr("pull", "ollama:tiny", "--public-key", str(tmp_path / "no.pub"))
    assert (refused.code, "is no public key" in refused.err) == (1, True), refused
    assert llmrr("ls", "--all", "--json").out.strip() == "[]"
    refused = llmrr("pull", "ollama:tiny", "--identity", "me@example.org")
    assert "--identity-provider" in refused.err
    pem = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
    private = subprocess.run(pem, capture_output=True, check=True).stdout
    public = subprocess.run(
        ["openssl", "ec", "-pubout"], input=private, capture_output=True, check=True
    ).stdout
    (tmp_path / "key.pub").write_bytes(public)
    refused = llmrr("pull", "ollama:tiny", "--public-key", str(tmp_path / "key.pub"))
    assert "is not signed" in refused.err
    assert llmrr("pull", "ollama:tiny", "-q").code == 0
    refused = llmrr("verify", "ollama:tiny", "--public-key", str(tmp_path / "key.pub"))
    assert (refused.code, "is not signed" in refused.out) == (1, True), refused


def test_a_folder_of_its_own(hub: FakeHub, llmrr: Run, tmp_path: Path) -> None:
    llmrr("pull", "ollama:tiny", "-q")
    out = tmp_path / "out"
    assert llmrr("export", "ollama:tiny", str(out)).code == 0
    assert (out / "model.gguf").read_bytes() == CHAT
    sums = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert {path for _, path in sums} == {"model.gguf", "template"}
    for sha256, path in sums:
        assert hashlib.sha256((out / path).read_bytes()).hexdigest() == sha256
    assert "exists already" in llmrr("export", "ollama:tiny", str(out)).err


def test_an_export_that_cannot_be_written(
    hub: FakeHub, llmrr: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llmrr("pull", "ollama:tiny", "-q")

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    out = tmp_path / "out"
    result = llmrr("export", "ollama:tiny", str(out))
    assert result.code == 1
    assert f"cannot write `{out}`: No space left on device" in result.err
    assert not list(tmp_path.glob("*out*"))
    out.symlink_to(tmp_path / "nowhere")
    assert "exists already" in llmrr("export", "ollama:tiny", str(out)).err


def test_what_a_pull_cannot_do_it_says(hub: FakeHub, llmrr: Run) -> None:
    for text, words, hint in (
        ("hf:org/none", "there is no `org/none` on the Hub", "llmrr search"),
        ("hf:org/tiny#q2_k", "there is no Q2_K", "F16, Q8_0"),
        ("ollama:none", "has no model `ollama:none`", "check the spelling"),
        ("zoo:tiny-math", "is part of the package", "llmrr run zoo:tiny-math"),
        ("https://", "is no address", "https://host/model.gguf"),
    ):
        refused = llmrr("pull", text)
        assert refused.code == 1, refused
        assert words in refused.err
        assert hint in refused.err
        assert "Traceback" not in refused.err


def test_offline(hub: FakeHub, llmrr: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    llmrr("pull", "hf:org/tiny", "-q")
    monkeypatch.setenv("LLMRR_OFFLINE", "1")
    assert llmrr("show", "hf:org/tiny").code == 0
    refused = llmrr("pull", "hf:org/tiny")
    assert refused.code == 1
    assert "LLMRR_OFFLINE is set" in refused.err


# ---------------------------------------------------------------- searching


def test_a_name_is_not_taken_from_another_model(hub: FakeHub, llmrr: Run) -> None:
    assert llmrr("ls", "--all").out.startswith("no model files on this machine")
    hub.repo("org/other", {"o-Q8_0.gguf": CHAT})
    assert llmrr("pull", "hf:org/tiny", "--name", "mine", "-q").code == 0
    assert llmrr("pull", "hf:org/tiny", "--name", "mine", "-q").code == 0  # the same once more
    gets = len(hub.requests("resolve"))
    refused = llmrr("pull", "hf:org/other", "--name", "mine", "-q")
    assert refused.code != 0
    assert "another model named 'mine'" in refused.err
    assert "--force" in refused.err
    assert len(hub.requests("resolve")) == gets, "it was fetched all the same"
    shown = json.loads(llmrr("show", "mine", "--json").out)
    assert shown["stored"]["files"][0]["path"] == "t-Q8_0.gguf"
    assert llmrr("pull", "hf:org/other", "--name", "mine", "--force", "-q").code == 0
    shown = json.loads(llmrr("show", "mine", "--json").out)
    assert shown["stored"]["files"][0]["path"] == "o-Q8_0.gguf"


def test_a_search_that_reaches_nobody_says_so_at_once(
    hub: FakeHub, llmrr: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        found = llmrr("search", "tiny")
    assert found.code == 1
    assert "cannot reach the Hub for search for 'tiny'" in found.err
    assert "Retrying" not in found.err + capfd.readouterr().err


def test_a_search_tells_what_would_run(hub: FakeHub, llmrr: Run) -> None:
    held, mit = {"b-Q4_K_M.gguf": MATH}, ["license:mit"]
    hub.repo("org/tiny-big-405B", held, tags=mit, gguf={"total": 405 * 10**9}, downloads=9)
    hub.repo("org/tiny-st-1M", {"model.safetensors": MATH}, downloads=3, gated=True)
    hub.repo("org/tiny-talk", {"README.md": b"#"}, downloads=2, pipeline_tag="text-to-speech")
    found = {hit["name"]: hit for hit in json.loads(llmrr("search", "tiny", "--json").out)}
    assert list(found)[:2] == ["hf:org/tiny-big-405B", "hf:org/tiny-st-1M"]
    assert "too large: about" in found["hf:org/tiny-big-405B"]["runs"]
    assert found["hf:org/tiny-st-1M"]["bytes"] == 2 * 10**6
    assert found["hf:org/tiny-st-1M"]["runs"].endswith("gated: needs HF_TOKEN")
    assert found["hf:org/tiny-talk"]["runs"] == "no model files known here"
    assert found["hf:org/tiny"]["quant"] == "Q8_0"

    def names(*options: str) -> set[str]:
        return {hit["name"] for hit in json.loads(llmrr("search", "tiny", *options, "--json").out)}

    assert names("--fits") == {"hf:org/tiny-st-1M"}
    assert names("--license", "MIT") == {"hf:org/tiny", "hf:org/tiny-big-405B"}
    assert names("--max-size", "1GB") == {"hf:org/tiny-st-1M"}
    assert names("--task", "text-to-speech") == {"hf:org/tiny-talk"}
    assert names("--limit", "1") == {"hf:org/tiny-big-405B"}
    assert "GGUF Q4_K_M" not in llmrr("search", "tiny", "--fits").out
    assert "text-to-speech" not in llmrr("search", "tiny").out
    assert llmrr("search", "nothing-like-it").out == "nothing found\n"
    assert llmrr("search", "x", "--max-size", "big").code == 2


# ---------------------------------------------------------------- killed in the middle


def test_a_killed_download_leaves_no_name_and_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    data = Random(7).randbytes(40 * MIB)
    at = hub.put("big.bin", data)
    home = Path(os.environ["LLMRR_HOME"]) / "models"
    kept = 0
    for after in (2, 3, 2):
        hub.fault("big.bin", *[Fault("hold", after=after * MIB)] * 4)
        process = subprocess.Popen([*LLMRR, "pull", at], stderr=subprocess.DEVNULL)
        try:
            # Each of the three parts gets that much further and then waits.
            wanted = kept + 3 * after * MIB
            _until(lambda wanted=wanted: _journalled(home) >= wanted, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        hub._faults.clear()
        hub.gate.set()
        hub.gate.clear()
        kept = _journalled(home)
        assert not (home / "names").exists() or not list((home / "names").iterdir())
        assert not list((home / "blobs").glob("*"))
    before = len(hub.asked)
    done = in_a_process("pull", at)
    assert done.code == 0, done.err
    came = [a for a in hub.asked[before:] if a.method == "GET"]
    fetched = sum(_length(a.headers["range"]) for a in came)
    assert fetched <= len(data) - kept, "bytes that were there were fetched again"
    (blob,) = (home / "blobs").iterdir()
    assert blob.read_bytes() == data


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_a_hundred_times(hub: FakeHub) -> None:
    """Anywhere: while it starts, connects, writes, hashes, or gives the name."""
    rng = Random(11)
    data = rng.randbytes(24 * MIB)
    hub.repo("org/big", {"b-Q8_0.gguf": data})
    blobs = Path(os.environ["HF_HOME"]) / "hub" / "models--org--big" / "blobs"
    sha = hashlib.sha256(data).hexdigest()
    for round_ in range(100):
        hub.fault("/cdn/", *[Fault("hold", after=rng.randrange(200_000)) for _ in range(4)])
        process = subprocess.Popen(
            [*LLMRR, "pull", "hf:org/big"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 1.5))
        process.kill()
        process.wait(10)
        hub._faults.clear()
        hub.gate.set()
        hub.gate.clear()
        if (blobs / sha).exists():
            assert (blobs / sha).read_bytes() == data, round_
    done = in_a_process("pull", "hf:org/big")
    assert done.code == 0, done.err
    assert (blobs / sha).read_bytes() == data
    assert in_a_process("verify", "hf:org/big").code == 0


def _journalled(home: Path) -> int:
    """Bytes that the journal of the one unfinished download counts."""
    from llm_runner_router.models.partial import HEAD

    for journal in (home / "partial").glob("*.journal"):
        text = journal.read_bytes()
        if len(text) > HEAD:
            size = json.loads(text[:HEAD].rstrip())["part"]
            at = memoryview(text)[HEAD:].cast("q").tolist()
            return sum(position - index * size for index, position in enumerate(at))
    return 0


def _until(ready: object, process: subprocess.Popen[bytes]) -> None:
    import time

    assert callable(ready)
    end = time.monotonic() + 30
    while not ready():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "it did not get that far"
        time.sleep(0.02)


def _length(span: str) -> int:
    first, last = span.removeprefix("bytes=").split("-")
    return int(last) + 1 - int(first)


# ---------------------------------------------------------------- lines


def test_lines_tell_speed_and_time_left() -> None:
    said: list[str] = []
    now = [0.0]
    lines = Lines(said.append, lambda: now[0])
    lines.begin("a.gguf", 100 * MIB, 20 * MIB)
    for second in range(1, 5):
        now[0] = float(second * 2)
        lines.advance("a.gguf", 20 * MIB)
    lines.end("a.gguf")
    lines.begin("b.gguf", 5, 5)
    lines.end("b.gguf")
    assert said == [
        "pulling a.gguf 100.0 MiB, 20.0 MiB there already",
        "pulling a.gguf 80 %, 10.0 MiB/s, 2 s left",
        "pulled a.gguf in 8 s, 10.0 MiB/s",
        "b.gguf is here already",
    ]


def test_lines_are_safe() -> None:
    said: list[str] = []
    Lines(said.append).say("a\x1b[2Jb")
    assert said == ["a[2Jb"]


def test_names_from_strangers_stay_in_their_line(hub: FakeHub, llmrr: Run, tmp_path: Path) -> None:
    """A repository's list, and a file whose name is no UTF-8 beside other programs' models."""
    hub.repo("org/odd", {"a\x1b[2J\u202egpj.txt": b"x", "b\nerror: done": b"x"})
    told = llmrr("pull", "hf:org/odd", "-q")
    assert told.code == 1
    assert "gpj.txt" in told.err
    assert not {"\x1b", "\u202e"} & set(told.err)
    assert len(told.err.splitlines()) == 2
    repo = tmp_path / ".lmstudio/models/org/repo"
    repo.mkdir(parents=True)
    (repo / "m\n\x1b]0;x.gguf").write_bytes(MATH)
    Path(os.fsdecode(bytes(repo) + b"/\xff.gguf")).write_bytes(MATH)
    listed = llmrr("ls", "--all")
    assert listed.code == 0
    assert len(listed.out.splitlines()) == 3
    assert "\x1b" not in listed.out
    assert {f["size"] for f in json.loads(llmrr("ls", "--all", "--json").out)} == {len(MATH)}


def test_lines_lose_what_steers_and_nothing_else() -> None:
    assert output.line("a\x1b[31m\x9bb\u202ec\r\nd\te\ud800") == "a[31mbc d e\ufffd"
    assert output.line("Grüße 日本 \u200fשלום") == "Grüße 日本 \u200fשלום"


def test_who_keeps_the_files_of_a_name_that_goes(hub: FakeHub, llmrr: Run) -> None:
    llmrr("pull", "ollama:tiny", "-q")
    llmrr("cp", "ollama:tiny", "mine")
    assert "0 B freed; `mine` has the same files" in llmrr("rm", "ollama:tiny").out
    assert "0 B" not in llmrr("rm", "mine").out
    built_in = llmrr("rm", "zoo:tiny-math")
    assert built_in.code == 1
    assert "part of the package" in built_in.err
    assert "did you mean" not in built_in.err
    assert "`llmrr run zoo:tiny-math`" in llmrr("pull", "zoo:tiny-math").err


def test_what_is_secret_in_an_address_is_not_told(hub: FakeHub, llmrr: Run) -> None:
    hub.put("a.gguf", MATH)
    told = llmrr("pull", f"{hub.url}/files/a.gguf?signature=s3cret", "--name", "mine")
    assert told.code == 0
    assert "s3cret" not in told.out + told.err
    refused = llmrr("pull", hub.url.replace("//", "//me:s3cret@") + "/files/a.gguf", "--name", "b")
    assert refused.code == 1
    assert "are not sent" in refused.err
    assert "s3cret" not in refused.out + refused.err
