"""Runs `probe.py` and gives its answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROBE = Path(__file__).with_name("probe.py")


def ask(gguf: Path, **order: Any) -> dict[str, Any]:
    """The probe's answer; fails with the engine's own words."""
    answer = gguf.with_name(f"{gguf.name}.answer")
    process = subprocess.run(
        [sys.executable, str(PROBE), str(gguf), str(answer)],
        input=json.dumps(order).encode(),
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=40,
    )
    log = process.stderr.decode("utf-8", "replace")
    assert answer.is_file(), f"the engine did not answer:\n{log[-3000:]}"
    found: dict[str, Any] = json.loads(answer.read_bytes())
    answer.unlink()
    return found
