"""What the tests of model files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_runner_router.testing import FakeHub

from .rigging import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A server and an empty machine."""
    with FakeHub() as hub:
        yield Rig(hub, tmp_path)
