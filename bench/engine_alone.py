"""The engine without us: xllamacpp's own server in a process, for comparison.

`python -m bench.engine_alone MODEL SLOTS CONTEXT [THREADS BATCH_THREADS]` prints `{"port": N}` when
the model is loaded and serves until its standard input closes. Without threads the engine's own
default holds. Environment variables such as `OMP_WAIT_POLICY` are the caller's.
"""

from __future__ import annotations

import json
import sys
from urllib.parse import urlsplit


def main(model: str, slots: int, context: int, threads: list[int]) -> None:
    """Load and serve."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = slots
    params.n_ctx = slots * context
    params.ui = False
    params.verbosity = 0
    params.model_alias = {"alone"}
    params.cors_origins = "null"
    if threads:
        params.cpuparams.n_threads, params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(json.dumps({"port": urlsplit(server.listening_address).port}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4:6]])
