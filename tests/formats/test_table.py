"""The page of formats and engines says what happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from .table import PAGE, made


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.timeout(600)
async def test_the_page_says_what_happens(tmp_path: Path) -> None:
    assert await made(tmp_path) == PAGE.read_text(), "`python -m tests.formats.table` writes it"
