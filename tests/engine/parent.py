"""A process with a loaded runner and a spare, to be killed: `python -m tests.engine.parent`."""

from __future__ import annotations

import asyncio

from llm_runner_router.config import Engine
from llm_runner_router.engine.residency import Residency
from llm_runner_router.models.resolve import resolve
from llm_runner_router.refs import parse


async def main() -> None:
    """Print the process ids and wait to be killed."""
    async with Residency(Engine(wait_policy="passive")) as residency:
        await residency.load(resolve(parse("zoo:tiny-math")))
        for _ in range(1000):
            if residency.spare_pid is not None:
                break
            await asyncio.sleep(0.01)
        print(residency.status()[0].pid, residency.spare_pid, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
