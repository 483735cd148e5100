"""Hugging Face and Ollama: the real protocols, their shared caches, and other programs' files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

from llm_runner_router.errors import (
    BadRequest,
    BadResponse,
    NotFound,
    RunnerError,
    UnknownModel,
    UpstreamRefused,
)
from llm_runner_router.models.blobs import KEEP_PARTIAL
from llm_runner_router.models.discard import prune, remove
from llm_runner_router.models.download import ATTEMPTS
from llm_runner_router.models.found import everything, locate
from llm_runner_router.models.resolve import ZOO, ensure, resolve
from llm_runner_router.refs import parse
from llm_runner_router.testing import Fault

from .rigging import Rig

MATH = (ZOO / "tiny-math.gguf").read_bytes()
CHAT = (ZOO / "tiny-chat.gguf").read_bytes()
BYTES = Random(4).randbytes(5000)


def hub(rig: Rig) -> Path:
    return Path(rig.environ["HF_HOME"]) / "hub"


# ---------------------------------------------------------------- Hugging Face


async def test_what_we_pull_others_find(rig: Rig) -> None:
    commit = rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH, "README.md": b"#"})
    stored = await rig.pull("hf:org/name")
    assert stored.revision == commit
    theirs = hf_hub_download("org/name", "m-Q8_0.gguf", cache_dir=hub(rig), local_files_only=True)
    assert Path(theirs) == rig.puller().store.path_of(stored)
    report = scan_cache_dir(hub(rig))
    assert not report.warnings
    (repo,) = report.repos
    assert (repo.repo_id, repo.size_on_disk) == ("org/name", len(MATH))
    assert repo.refs["main"].commit_hash == commit
    assert not list(rig.puller().store.blobs.glob("*")), "nothing is kept twice"


async def test_the_library_brings_what_it_loads(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH})
    await ensure("hf:org/name", environ=rig.environ)
    assert resolve(parse("hf:org/name"), environ=rig.environ).path.read_bytes() == MATH
    before = len(rig.hub.asked)
    for name in ("hf:org/name", "zoo:tiny-math", "mine", "", "./a.gguf"):
        await ensure(name, environ=rig.environ)
    assert len(rig.hub.asked) == before


async def test_what_others_pulled_we_use(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH, "config.json": b"{}"})
    snapshot_download("org/name", cache_dir=hub(rig), endpoint=rig.hub.url)
    before = len(rig.hub.requests("/cdn/"))
    model = resolve(parse("hf:org/name"), environ=rig.environ)
    assert model.info.architecture == "llama"
    assert model.path.is_relative_to(hub(rig))
    stored = await rig.pull("hf:org/name")
    assert len(rig.hub.requests("/cdn/")) == before, "it was fetched again"
    assert not stored.files[0].ours
    remove(stored.name, rig.puller().store, rig.puller().hub)
    assert resolve(parse("hf:org/name"), environ=rig.environ) == model


async def test_what_we_pulled_we_remove_whole(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH, "m-F16.gguf": CHAT})
    await rig.pull("hf:org/name#q8_0")
    await rig.pull("hf:org/name#f16")
    store, cache = rig.puller().store, rig.puller().hub
    assert remove("hf:org/name#Q8_0", store, cache).bytes == len(MATH)
    assert resolve(parse("hf:org/name#f16"), environ=rig.environ).info.name
    assert remove("hf:org/name#F16", store, cache).bytes == len(CHAT)
    assert not scan_cache_dir(hub(rig)).warnings
    assert not list(hub(rig).glob("models--*"))


async def test_what_a_stopped_pull_brought_is_ours_all_the_same(rig: Rig) -> None:
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    rig.hub.repo("org/name", {names[0]: BYTES, names[1]: BYTES[::-1], "config.json": b"{}"})
    rig.hub.fault(names[1], Fault("500", times=ATTEMPTS))
    with pytest.raises(RunnerError):
        await rig.pull("hf:org/name")
    stored = await rig.pull("hf:org/name")
    assert all(file.ours for file in stored.files)
    store, cache = rig.puller().store, rig.puller().hub
    assert not list(store.partial.glob("brought-*"))
    assert remove(stored.name, store, cache).bytes == stored.size
    assert not list(hub(rig).glob("models--*"))


async def test_unfinished_downloads_of_the_shared_cache_are_cleaned(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH})
    rig.hub.repo("org/other", {"m-Q8_0.gguf": CHAT})
    await rig.pull("hf:org/other")
    rig.hub.fault("m-Q8_0.gguf", Fault("cut", times=100, after=70_000))
    with pytest.raises(RunnerError):
        await rig.pull("hf:org/name")
    store, cache = rig.puller().store, rig.puller().hub
    drafts = list(cache.repo("org/name").glob("blobs/*"))
    assert {draft.suffix for draft in drafts} == {".part", ".journal"}
    last = max(draft.stat().st_mtime for draft in drafts)
    with cache.lock("org/name", drafts[0].stem):
        assert prune(store, cache, now=last + KEEP_PARTIAL + 60).files == 0
    assert prune(store, cache, now=last + KEEP_PARTIAL - 60).files == 0
    assert prune(store, cache, now=last + KEEP_PARTIAL + 60).files == 2
    assert not cache.repo("org/name").exists()
    assert resolve(parse("hf:org/other"), environ=rig.environ).path.read_bytes() == CHAT


async def test_a_name_that_cannot_be_kept_is_told_before_the_download(rig: Rig) -> None:
    url = rig.hub.put("/files/" + "x" * 200 + ".gguf", MATH)
    with pytest.raises(BadRequest, match="cannot be a name") as caught:
        await rig.pull(url)
    assert "--name" in (caught.value.hint or "")
    assert not rig.hub.asked


async def test_file_names_as_long_as_they_can_be(rig: Rig) -> None:
    name = "ß" * 120 + "-Q8_0.gguf"
    rig.hub.repo("org/name", {name: MATH})
    stored = await rig.pull("hf:org/name#q8_0")
    assert rig.content(stored) == MATH


@pytest.mark.parametrize(
    "text", ["hf:../..", "hf:org/..", "hf:./a", "ollama:../x", "ollama:../../x", "hf:a\\b/c"]
)
def test_no_reference_climbs(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text)


async def test_a_folder_comes_whole(rig: Rig) -> None:
    files = {
        "model.safetensors": BYTES,
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "modeling.py": b"raise SystemExit",
    }
    rig.hub.repo("org/name", files)
    stored = await rig.pull("hf:org/name")
    folder = rig.puller().store.path_of(stored)
    assert folder.is_dir()
    assert {p.name for p in folder.iterdir()} == set(files) - {"modeling.py"}
    assert (folder / "config.json").read_bytes() == files["config.json"]


async def test_small_files_are_compared_too(rig: Rig) -> None:
    rig.hub.repo("org/name", {"model.safetensors": BYTES, "config.json": b'{"a": 1}'})
    rig.hub.fault("config.json", Fault("flip", times=9, after=3))
    with pytest.raises(BadResponse, match="git"):
        await rig.pull("hf:org/name")


async def test_revisions_and_what_there_is_not(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH})
    rig.hub.repo("org/name", {"m-Q8_0.gguf": CHAT}, revision="v2")
    await rig.pull("hf:org/name")
    await rig.pull("hf:org/name@v2")
    main = resolve(parse("hf:org/name"), environ=rig.environ)
    assert main.path.read_bytes() == MATH
    assert resolve(parse("hf:org/name@v2"), environ=rig.environ).path.read_bytes() == CHAT
    with pytest.raises(NotFound, match="'v3'"):
        await rig.pull("hf:org/name@v3")
    with pytest.raises(NotFound, match="or it is private"):
        await rig.pull("hf:org/none")
    with pytest.raises(NotFound, match="there is no Q4_K_M"):
        await rig.pull("hf:org/name#q4_k_m")
    with pytest.raises(UnknownModel, match="on this machine") as caught:
        resolve(parse("hf:org/name#q4_k_m"), environ=rig.environ)
    assert "llmrr pull hf:org/name#q4_k_m" in (caught.value.hint or "")


async def test_a_damaged_cached_file_is_brought_again(rig: Rig) -> None:
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH})
    stored = await rig.pull("hf:org/name")
    path = rig.puller().store.path_of(stored)
    blob = path.resolve()
    blob.write_bytes(MATH[:-1] + b"\xff")
    await rig.pull("hf:org/name")
    assert path.read_bytes() == MATH
    assert any("is damaged" in line for line in rig.notes.lines)


async def test_a_hostile_list_writes_nothing(rig: Rig, tmp_path: Path) -> None:
    rig.hub.repo("org/name", {"../../evil.gguf": MATH})
    with pytest.raises(BadResponse, match="must not be written"):
        await rig.pull("hf:org/name")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if "evil" in name]


# ---------------------------------------------------------------- Ollama


async def test_a_model_of_ollama(rig: Rig) -> None:
    layers = {"model": MATH, "template": b"{{ .Prompt }}", "params": b"{}", "license": b"MIT"}
    digest = rig.hub.image("library/tiny", layers)
    stored = await rig.pull("ollama:tiny")
    assert f"sha256:{stored.files[0].sha256}" == digest
    path = rig.puller().store.path_of(stored)
    beside = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    assert beside == {
        "model.gguf": MATH,
        "template": b"{{ .Prompt }}",
        "params.json": b"{}",
        "LICENSE": b"MIT",
    }
    assert resolve(parse("ollama:tiny"), environ=rig.environ).info.architecture == "llama"
    with pytest.raises(NotFound):
        await rig.pull("ollama:tiny:7b")


async def test_a_registry_that_wants_a_token(rig: Rig) -> None:
    rig.hub.token, rig.hub.login = "registry-token", True
    rig.hub.image("user/tiny", {"model": MATH}, tag="v1")
    stored = await rig.pull("ollama:user/tiny:v1")
    assert rig.content(stored) == MATH
    for asked in rig.hub.requests("/cdn/"):
        assert "authorization" not in asked.headers


@pytest.mark.parametrize(
    "digest", ["sha256:../../../etc/passwd", "sha256-../x", "sha512:" + "0" * 128, ""]
)
async def test_hostile_digests_are_refused(rig: Rig, digest: str) -> None:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 3}
    rig.hub.manifest("library/evil", {"schemaVersion": 2, "layers": [layer]})
    with pytest.raises(BadResponse, match="not a digest"):
        await rig.pull("ollama:evil")


async def test_a_manifest_without_a_model(rig: Rig) -> None:
    rig.hub.manifest("library/empty", {"schemaVersion": 2, "layers": []})
    with pytest.raises(NotFound, match="has no model in it"):
        await rig.pull("ollama:empty")
    rig.hub.manifest("library/odd", {"layers": "none"})
    with pytest.raises(BadResponse, match="gives no manifest"):
        await rig.pull("ollama:odd")


async def test_a_registry_that_refuses(rig: Rig) -> None:
    rig.hub.login = True  # and gives an empty token, which opens nothing
    rig.hub.image("library/tiny", {"model": MATH})
    with pytest.raises(UpstreamRefused) as caught:
        await rig.pull("ollama:tiny")
    assert caught.value.hint


# ---------------------------------------------------------------- others' files, in place


def ollama_has(root: Path, name: str, data: bytes, *, host: str = "registry.ollama.ai") -> Path:
    """A model as Ollama keeps it."""
    digest = hashlib.sha256(data).hexdigest()
    blob = root / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    user, _, last = name.rpartition("/")
    stem, _, tag = last.partition(":")
    at = root / "manifests" / host / (user or "library") / stem / (tag or "latest")
    at.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    content = {"schemaVersion": 2, "layers": [{**layer, "size": len(data)}]}
    at.write_text(json.dumps(content))
    return blob


def test_others_models_are_listed_and_run_where_they_are(rig: Rig, tmp_path: Path) -> None:
    blob = ollama_has(tmp_path / "ollama", "tiny:1m", MATH)
    ollama_has(tmp_path / "ollama", "user/other", CHAT, host="hf.co")
    studio = tmp_path / ".lmstudio/models/org/studio/s-Q8_0.gguf"
    studio.parent.mkdir(parents=True)
    shutil.copy(ZOO / "tiny-math.gguf", studio)
    cached = tmp_path / "llama.cpp/org_cpp_c-Q8_0.gguf"
    cached.parent.mkdir()
    shutil.copy(ZOO / "tiny-chat.gguf", cached)

    found = {one.name: (one.owner, one.path) for one in everything(rig.environ)}
    assert found == {
        "ollama:tiny:1m": ("Ollama", blob),
        "ollama:hf.co/user/other:latest": ("Ollama", blob.parent / _sha(CHAT)),
        f"file:{studio}": ("LM Studio", studio),
        f"file:{cached}": ("llama.cpp", cached),
    }
    for name in found:
        assert resolve(parse(name), environ=rig.environ).info.architecture == "llama"
    for text, path in (
        ("ollama:tiny:1m", blob),
        ("hf:org/studio#q8_0", studio),
        ("hf:org/cpp", cached),
    ):
        assert resolve(parse(text), environ=rig.environ).path == path
    assert locate(parse("ollama:tiny"), rig.environ) is None


def _sha(data: bytes) -> str:
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


async def test_a_content_that_ollama_has_is_linked(rig: Rig, tmp_path: Path) -> None:
    ollama_has(tmp_path / "ollama", "tiny", MATH)
    rig.hub.repo("org/name", {"m-Q8_0.gguf": MATH})
    rig.hub.image("library/mine", {"model": MATH})
    for text in ("hf:org/name", "ollama:mine"):
        assert rig.content(await rig.pull(text)) == MATH
    assert rig.hub.requests("/cdn/") == []


def test_damaged_stores_of_others_are_passed_over(rig: Rig, tmp_path: Path) -> None:
    blob = ollama_has(tmp_path / "ollama", "tiny", MATH)
    manifest = tmp_path / "ollama/manifests/registry.ollama.ai/library/bad/latest"
    manifest.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"layers": [{"digest": "sha256:../../x", "mediaType": 3}]}'):
        manifest.write_text(text)
        assert [one.name for one in everything(rig.environ)] == ["ollama:tiny:latest"]
    blob.write_bytes(b"short")
    assert everything(rig.environ) == []
    (tmp_path / "hf/hub/models--org--name/snapshots").mkdir(parents=True)
    (tmp_path / "hf/hub/models--org--name/refs").mkdir()
    (tmp_path / "hf/hub/models--org--name/refs/main").write_text("not a commit")
    assert everything(rig.environ) == []
