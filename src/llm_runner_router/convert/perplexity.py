"""How well a model foretells a text: its perplexity, measured with the real engine.

Knows: the process that runs the model (`native.py`), its owner is here; what the sums mean. Does
not know: the engine's functions.

The engine's HTTP server has no probabilities of a prompt's tokens, so the text is decoded by the
engine's own C functions, and the probabilities are taken from the logits. Contexts of 512 tokens,
each scored in its second half, as llama.cpp's `llama-perplexity` does: the figures compare.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from llm_runner_router.errors import EngineError, ModelFileError

if TYPE_CHECKING:
    from .base import Tick
    from .native import Result


class Perplexity(Struct, frozen=True):
    """What was measured."""

    value: float
    """exp of the mean of −ln p; 1 is certainty, the size of the vocabulary is knowing nothing."""
    error: float
    """Standard error of `value`."""
    tokens: int
    """Tokens that were scored."""
    context: int


def measure(
    model: Path,
    text: str,
    *,
    context: int = 512,
    chunks: int = 0,
    threads: int = 1,
    tick: Tick | None = None,
    deadline: float = 24 * 3600,
) -> Perplexity:
    """The perplexity of `model` on `text`; arguments as of `imatrix.compute`.

    Raises:
        ModelFileError: the engine does not load the model.
        EngineError: the engine's library cannot be used, or failed.
    """
    found = ask(
        model, text, context=context, chunks=chunks, threads=threads, tick=tick, deadline=deadline
    )
    mean = found.nll / found.tokens
    spread = max(0.0, found.squares / found.tokens - mean * mean)
    value = math.exp(mean) if mean < 700 else math.inf
    error = value * math.sqrt(spread / max(1, found.tokens - 1))
    return Perplexity(value, error, found.tokens, found.context)


def ask(
    model: Path,
    text: str,
    *,
    context: int = 512,
    chunks: int = 0,
    threads: int = 1,
    imatrix: Path | None = None,
    tick: Tick | None = None,
    deadline: float = 24 * 3600,
) -> Result:
    """Run the model over the text in a process that ends with this call.

    Raises:
        ModelFileError: the engine does not load the model.
        EngineError: it failed, died or took longer than `deadline` seconds.
    """
    from .native import Job

    job = Job(str(model), text, context, chunks, threads, str(imatrix) if imatrix else "")
    command = [sys.executable, "-m", f"{__package__}.native"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=_environment(),
    ) as child:  # fmt: skip
        late = threading.Timer(deadline, child.kill)
        complaints: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(child.stderr, complaints))
        late.start()
        reader.start()
        try:
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(job) + b"\n")
            child.stdin.flush()
            answer = _answer(child, tick)
        except BrokenPipeError:
            answer = None
        finally:
            late.cancel()
            child.kill()
            child.wait()
            reader.join()
    if answer is None:
        words = b" ".join(complaints).decode("utf-8", "replace").split()
        raise EngineError(
            f"the process that ran `{model.name}` died: {' '.join(words)[-400:] or 'no reason'}",
            hint="look for lack of memory; a smaller `--threads` needs less",
        )
    return answer


def _answer(child: subprocess.Popen[bytes], tick: Tick | None) -> Result | None:
    """The last line that the process says; None if it died before."""
    from .native import Result

    assert child.stdout is not None
    for line in child.stdout:
        said: Mapping[str, Any] = msgspec.json.decode(line)
        if "result" in said:
            return msgspec.convert(said["result"], Result)
        if "error" in said:
            kind = ModelFileError if said["file"] else EngineError
            raise kind(said["error"], hint=said["hint"], code=said["code"])
        if tick is not None:
            tick(said["done"], said["total"], "")
    return None


def _drain(pipe: Any, kept: list[bytes]) -> None:
    """Read all, keep the last few lines."""
    for line in pipe:
        kept.append(line)
        del kept[:-8]


def _environment() -> dict[str, str]:
    """Ours, with this package on the path and waiting threads that do not spin."""
    found = dict(os.environ)
    root = str(Path(__file__).parents[2])
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (root, found.get("PYTHONPATH", ""))))
    found.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return found
