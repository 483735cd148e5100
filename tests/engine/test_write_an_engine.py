"""The example of `docs/how-to/write-an-engine.md`, run as it stands there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import msgspec
import pytest

from llm_runner_router.config import Engine, Secret
from llm_runner_router.deltas import collect
from llm_runner_router.engine.local import LocalTarget
from llm_runner_router.engine.residency import Residency
from llm_runner_router.engine.select import engine_names, load_engine
from llm_runner_router.models.resolve import resolve
from llm_runner_router.providers.http import HttpClient
from llm_runner_router.providers.remote import RemoteTarget
from llm_runner_router.refs import parse
from llm_runner_router.types import Call, Request, Sampling

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "how-to" / "write-an-engine.md"
FILE = re.compile(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", re.DOTALL)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's package, as an installer would leave it."""
    page = PAGE.read_text("utf-8")
    files = dict(FILE.findall(page))
    assert set(files) == {"parrot.py", "parrot_runner.py"}
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    (entries,) = re.findall(r'entry-points\."([\w.]+)"\]\n(\w+) = "(\w+)"', page)
    info = tmp_path / "parrot-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parrot\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(*entries))
    monkeypatch.syspath_prepend(str(tmp_path))
    invalidate_caches()
    yield tmp_path
    sys.modules.pop("parrot", None)


@pytest.mark.engine
async def test_the_pages_engine_answers(site: Path) -> None:
    assert "parrot" in engine_names()
    assert load_engine("parrot").NAME == "parrot"
    assert "parrot_runner" not in sys.modules, "the child's side is for the child"
    known = resolve(parse("zoo:tiny-general"))
    model = msgspec.structs.replace(
        known, name="echo", path=ROOT / "zoo" / "models" / "tiny-general", engine="parrot"
    )
    paths = os.pathsep.join((str(site), *filter(None, [os.environ.get("PYTHONPATH")])))
    environ = {**os.environ, "PYTHONPATH": paths}
    async with (
        HttpClient() as client,
        Residency(Engine(spare=False), environ=environ) as residency,
    ):
        target = LocalTarget(
            "echo",
            model,
            residency,
            lambda endpoint: RemoteTarget(
                name="echo",
                base_url=endpoint.base_url,
                api_key=Secret(endpoint.api_key),
                model=endpoint.model,
                client=client,
            ),
        )
        text = "A parrot says what it hears. "
        request = Request(
            model="echo", prompt=text, sampling=Sampling(temperature=0.0, stop=("hears",))
        )
        async with target.open(request, Call(id="test", started=0.0)) as deltas:
            answer = await collect(deltas)
        (row,) = residency.status()
    assert answer.text == "A parrot says what it "
    assert (row.engine, row.from_spare) == ("parrot", False)
