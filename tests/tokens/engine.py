"""A process that loads GGUF files and asks the engine's own routes: what the tests compare with.

Run as a script: argument 1 is a file of jobs, argument 2 where the answers go. A job is
`{"path", "calls": [[route, body], …]}`; its answers are the bodies that came back.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HANGING = 90
"""Seconds after which the process tells where it stands, and ends."""
SEPARATOR = -1
"""Between texts of one `/tokenize`: the route takes ids among texts and gives them back as is."""


def ask(jobs: list[dict[str, Any]], folder: Path) -> list[list[Any]]:
    """The engine's answers to `jobs`, from one process that is gone afterwards."""
    order, answers = folder / "jobs.json", folder / "answers.json"
    order.write_text(json.dumps(jobs), "utf-8")
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), str(order), str(answers)],
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:].decode("utf-8", "replace")
    found: list[list[Any]] = json.loads(answers.read_text("utf-8"))
    return found


def tokenized(texts: list[str], **options: bool) -> list[Any]:
    """The call that encodes every one of `texts`; `apart` reads its answer."""
    content = [part for text in texts for part in (text, SEPARATOR)]
    return ["/tokenize", {"content": content, "add_special": False, **options}]


def apart(answer: dict[str, list[int]]) -> list[list[int]]:
    """The ids of each text."""
    found: list[list[int]] = [[]]
    for id in answer["tokens"]:
        if id == SEPARATOR:
            found.append([])
        else:
            found[-1].append(id)
    return found[:-1]


def main() -> None:
    """Answer the jobs."""
    import xllamacpp

    faulthandler.dump_traceback_later(HANGING, exit=True)
    answers, servers = [], []
    for job in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        params = xllamacpp.CommonParams()
        params.model.path = job["path"]
        params.n_ctx, params.warmup = 64, False
        for name, value in job.get("params", {}).items():
            setattr(params, name, value)
        server = xllamacpp.Server(params)
        place = urlsplit(server.listening_address)
        http = HTTPConnection(place.hostname or "", place.port, timeout=60)
        found = []
        for route, body in job["calls"]:
            http.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
            found.append(json.loads(http.getresponse().read().decode("utf-8", "replace")))
        answers.append(found)
        http.close()
        # They end with the process: no test depends on how the engine takes one down.
        servers.append(server)
    Path(sys.argv[2]).write_text(json.dumps(answers), "utf-8")
    os._exit(0)


if __name__ == "__main__":
    main()
