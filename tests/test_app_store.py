"""The store as a running gateway changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_runner_router.app_store import AppStore
from llm_runner_router.convert import cache
from llm_runner_router.convert.base import Options
from llm_runner_router.errors import UnknownModel
from llm_runner_router.home import Home
from llm_runner_router.models.blobs import Store
from llm_runner_router.models.manifest import Stored, StoredFile, hash_file


async def test_what_was_made_of_a_model_stays_while_a_copy_of_it_has_a_name(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    store, shelf = Store(home.models), AppStore(home, {"HF_HUB_CACHE": str(tmp_path / "hub")})
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    file = StoredFile(source.name, 7, hash_file(source)["sha256"], str(source))
    store.put(Stored("one", "path", (file,), main=source.name))
    made = cache.cached(home, source, "gguf", Options(), lambda target: target.write_bytes(b"made"))
    await shelf.copy("one", "two")
    await shelf.delete("one")
    assert made.read_bytes() == b"made"
    with pytest.raises(UnknownModel):
        await shelf.delete("one")
    await shelf.delete("two")
    assert not made.exists()
    assert source.exists(), "another program's"
