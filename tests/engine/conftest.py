"""What the tests of engines share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .locally import Locally


@pytest.fixture(scope="module")
def local() -> Iterator[Locally]:
    """Local models with two slots; those of a file share it. Some files have one of their own."""
    local = Locally(slots=2)
    yield local
    local.close()
