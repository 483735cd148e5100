"""A server of somebody else's: `python -m tests.engine.outsider PORT NAME KEY`.

It knows nothing of the gateway, its pipes or its orders; it listens where it is told to.
"""

from __future__ import annotations

import asyncio
import os
import sys

from llm_runner_router.engine.runners.api import Api
from llm_runner_router.engine.runners.http import HttpServer
from llm_runner_router.engine.runners.mock import MockModel
from llm_runner_router.engine.runners.session import Order


async def main(port: int, name: str, key: str) -> None:
    """Serve until somebody ends the process."""
    options = {"text": os.environ.get("OUTSIDER_SAYS", "outside")}
    api = Api(MockModel(options), Order("", name, key, 4, 4096, 1, 1, "chat"))
    server = HttpServer(api.routes(), key)
    await server.listen(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "broken":
        sys.exit("error: the outsider has no licence")
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
