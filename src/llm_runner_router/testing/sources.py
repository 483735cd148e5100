"""What every `Source` must do, whatever hub it speaks to.

Knows: the contract in `models/sources/__init__.py`. Does not know: any hub; whoever calls brings a
source and a reference to something it has.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from llm_runner_router.errors import RunnerError

if TYPE_CHECKING:  # the layers: models are above this package
    from llm_runner_router.models.sources import Source
    from llm_runner_router.refs import Ref

PATIENCE = 20.0
"""Seconds after which a step counts as stuck."""


async def check_source(source: Source, ref: Ref, missing: Ref) -> None:
    """See that `source` keeps its contract.

    Args:
        source: the source; it is closed at the end.
        ref: a model it has, with at least one file of three bytes or more.
        missing: a reference of the right kind to a model it does not have.

    Raises:
        AssertionError: says what it does wrong.
    """
    async with asyncio.timeout(PATIENCE):
        manifest = await source.manifest(ref)
        assert manifest == await source.manifest(ref), "two manifests of one model differ"
        assert manifest.files, "the manifest has no files"
        for file in manifest.files:
            await _gives_the_whole(source, file)
        large = max(manifest.files, key=lambda file: file.size or 0)
        await _gives_parts(source, large)
        await _can_be_left(source, large)
        await _does_not_invent(source, missing)
        await source.close()
        await source.close()
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == [], f"tasks still run: {left}"


async def _read(source: Source, file: Any, start: int = 0, end: int | None = None) -> bytes:
    async with source.open(file, start, end) as pieces:
        got = [bytes(piece) async for piece in pieces]
    assert all(got), "an empty piece is no piece"
    return b"".join(got)


async def _gives_the_whole(source: Source, file: Any) -> None:
    data = await _read(source, file)
    if file.size is not None:
        assert len(data) == file.size, f"{file.path}: {len(data)} bytes instead of {file.size}"
    if file.digest is not None and file.digest.algorithm == "sha256":
        found = hashlib.sha256(data).hexdigest()
        assert found == file.digest.hex, f"{file.path}: the digest is that of something else"


async def _gives_parts(source: Source, file: Any) -> None:
    whole = await _read(source, file)
    assert len(whole) >= 3, "bring a model with a file of three bytes or more"
    half = len(whole) // 2
    for start, end in ((0, half), (half, None), (1, len(whole) - 1), (len(whole) - 1, None)):
        part = await _read(source, file, start, end)
        assert part == whole[start:end], f"bytes {start} to {end} are others than in the whole"


async def _can_be_left(source: Source, file: Any) -> None:
    async with source.open(file):
        pass
    async with source.open(file) as pieces:
        await anext(pieces)


async def _does_not_invent(source: Source, missing: Ref) -> None:
    problem: RunnerError | None = None
    try:
        await source.manifest(missing)
    except RunnerError as exc:
        problem = exc
    assert problem is not None, f"there is a manifest of `{missing}`, which does not exist"
    assert problem.hint, f"the error has no hint: {problem}"
