"""The gateway as a user starts it: `llmrr serve` with a configuration, in a process of its own.

Knows: the command line, the configuration's shape, the key. Does not know what is measured.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from . import proc, wire
from .load import Load

KEY = "bench-0123456789abcdef0123456789abcdef"
START_SECONDS = 30.0
VARIABLE = "BENCH_MOCK_API_KEY"


def command() -> list[str]:
    """The `llmrr` of this interpreter's environment."""
    script = Path(sys.executable).with_name("llmrr")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "from llm_runner_router.cli import main; main()"]


class Gateway:
    """A running `llmrr serve`; a context manager, after which it and its files are gone.

    Args:
        config: the configuration, as the YAML file would hold it.
        first: the model whose first answer ends the cold start; None: `/healthz` does.

    Raises:
        BenchError: it does not start or does not answer; its own message is in the text.
    """

    def __init__(self, config: Mapping[str, object], first: str | None = "gpt") -> None:
        self.home = Path(tempfile.mkdtemp(prefix="llmrr-bench-"))
        self.port = proc.free_port()
        path = self.home / "llmrr.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        serve = ["serve", "--config", str(path), "--port", str(self.port), "--quiet"]
        env = {"LLMRR_HOME": str(self.home / "home"), "LLMRR_API_KEY": KEY, VARIABLE: "mock-key"}
        try:
            self.child = proc.Child([*command(), *serve], env=env, name="llmrr serve")
        except proc.BenchError:
            shutil.rmtree(self.home, ignore_errors=True)
            raise
        try:
            request = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
            if first is not None:
                request = self.load(wire.request_body(first, size=4096).decode()).request(0)
            answered = proc.wait_answer(self.port, request, START_SECONDS, self.child)
        except proc.BenchError:
            self.stop()
            raise
        self.cold_start = answered - self.child.began
        """Seconds from the start of the process to the first answer."""
        self.start_cpu = proc.cpu_seconds(self.pid)
        """CPU seconds it has used for that: what the cold start takes on an idle machine."""

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.child.pid

    def load(self, body: str, **kwargs: object) -> Load:
        """A load on this gateway, with its key."""
        headers = {"authorization": f"Bearer {KEY}"}
        return Load(port=self.port, body=body, headers=headers, **kwargs)  # type: ignore[arg-type]  # named like the fields

    def stop(self) -> float:
        """End it; returns the seconds that took."""
        began = time.perf_counter()
        self.child.stop()
        shutil.rmtree(self.home, ignore_errors=True)
        return time.perf_counter() - began


def remote_config(upstream: int, models: tuple[str, ...]) -> dict[str, object]:
    """A configuration that serves `models` from the mock upstream; all else is default."""
    url = f"http://127.0.0.1:{upstream}/v1"
    return {
        "providers": {"mock": {"base_url": url, "api_key": f"${{{VARIABLE}}}"}},
        "models": {model: f"mock/{model}" for model in models},
    }
