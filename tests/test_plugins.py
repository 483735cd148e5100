"""Finding objects by kind and name: our own files, and entry points of other distributions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_runner_router import plugins
from llm_runner_router.errors import ConfigError
from llm_runner_router.strategies import fallback
from llm_runner_router.surfaces import openai_chat

MODULE = "llmrr_test_plugin"


def install(folder: Path, entries: str, code: str = "class Loudest: ...\n") -> None:
    """A distribution as an installer would leave it: a module and its metadata."""
    (folder / f"{MODULE}.py").write_text(code)
    info = folder / "llmrr_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmrr-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entries)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path, as if it were site-packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop(MODULE, None)
    importlib.invalidate_caches()


def test_our_own_files() -> None:
    assert plugins.load("strategies", "fallback") is fallback
    assert plugins.load("surfaces", "openai-chat") is openai_chat, "a `-` is a `_` in the file"


def test_an_entry_point(site: Path) -> None:
    install(site, f"[llm_runner_router.strategies]\nloudest = {MODULE}:Loudest\n")
    assert "loudest" in plugins.names("strategies")
    assert MODULE not in sys.modules, "it was imported before anyone asked for it"
    found = plugins.load("strategies", "loudest")
    assert found is sys.modules[MODULE].Loudest
    with pytest.raises(ConfigError):
        plugins.load("surfaces", "loudest")


def test_our_own_files_come_first(site: Path) -> None:
    install(site, f"[llm_runner_router.strategies]\nfallback = {MODULE}:Loudest\n")
    assert plugins.load("strategies", "fallback") is fallback


def test_the_nearest_names() -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.load("strategies", "falback")
    assert "no 'falback' among the strategies" in caught.value.message
    assert "fallback" in str(caught.value.hint)


def test_private_modules_and_paths_are_no_names() -> None:
    for name in ("__init__", "../app", "fallback.Fallback", "", "."):
        with pytest.raises(ConfigError):
            plugins.load("strategies", name)


def test_no_such_kind() -> None:
    for kind in ("nonsense", "nonsense.deep", "errors"):
        with pytest.raises(ConfigError, match="no kind of plugin"):
            plugins.load(kind, "x")


def test_a_plugin_that_breaks(site: Path) -> None:
    install(site, f"[llm_runner_router.strategies]\nloudest = {MODULE}:Loudest\n", "1 / 0\n")
    with pytest.raises(
        ConfigError, match=r"'loudest' .* of 'llmrr-test' cannot be loaded"
    ) as caught:
        plugins.load("strategies", "loudest")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_file_of_ours_that_needs_more(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "needy.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.setattr("llm_runner_router.strategies.__path__", [str(site)])
    monkeypatch.setattr(
        "llm_runner_router.strategies.__spec__.submodule_search_locations", [str(site)]
    )
    with pytest.raises(ConfigError, match="needs the package 'a_package_that_nobody_has'"):
        plugins.load("strategies", "needy")
