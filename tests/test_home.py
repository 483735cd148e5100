"""The data folder and files that appear whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llm_runner_router import home
from llm_runner_router.errors import ConfigError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_variable_names_the_folder(tmp_path: Path) -> None:
    found = home.find({"LLMRR_HOME": str(tmp_path / "a" / "b")})
    assert found.path == tmp_path / "a" / "b"
    assert not found.path.exists(), "naming a folder must not create it"
    found.create()
    assert mode(found.path) == 0o700
    found.create()


def test_without_the_variable_it_is_the_platforms_place() -> None:
    assert home.find({}).path.name == "llm-runner-router"


def test_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot create the data folder"):
        home.Home(tmp_path / "file" / "below").create()


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    home.write_atomic(path, b"one")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)
    home.write_atomic(path, b"two", 0o644)
    assert (path.read_bytes(), mode(path)) == (b"two", 0o644)
    assert os.listdir(tmp_path) == ["a"]


def test_nothing_is_left_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    with pytest.raises(OSError, match=r"."):
        home.write_atomic(tmp_path / "folder", b"data")
    assert os.listdir(tmp_path) == ["folder"]
