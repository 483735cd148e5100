"""Thousands of damaged models per format: read or refused within a second, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .fuzzing import SOUND

ROOT = Path(__file__).parents[3]
FORMATS = pytest.mark.parametrize("name", SOUND)


def fuzzed(name: str, first: int, count: int) -> dict[str, Any]:
    pytest.importorskip("resource")
    command = [sys.executable, "-m", "tests.models.formats.fuzzing", name, str(first), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(600)  # a busy machine; it is about one second of work
@FORMATS
def test_two_hundred(name: str) -> None:
    found = fuzzed(name, 0, 200)
    assert 0 < found["accepted"] < found["read"], "every damage, or none, was refused"


@pytest.mark.long
@pytest.mark.timeout(600)
@FORMATS
def test_two_thousand(name: str) -> None:
    found = fuzzed(name, 1000, 2000)
    assert 0 < found["accepted"] < found["read"]
