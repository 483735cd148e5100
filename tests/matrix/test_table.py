"""Nothing is lost in silence, and the page of dialects says what happens."""

from __future__ import annotations

import pytest

from llm_runner_router.providers import dialects

from .features import PROBES, Outcome, probe
from .pairs import DIALECTS
from .table import PAGE, page


@pytest.mark.timeout(240)
async def test_every_feature_arrives_or_is_noted_and_the_page_says_so() -> None:
    found: dict[tuple[str, str, str], Outcome] = {}
    for way_in in DIALECTS:
        for feature in PROBES:
            for way_out in DIALECTS:
                outcome = await probe(feature, way_in, way_out)
                assert outcome.state != "lost", f"{feature}, {way_in} → {way_out}: {outcome.why}"
                found[feature, way_in, way_out] = outcome
    right = PAGE.read_text("utf-8")
    assert page(found) == right, "run `python -m tests.matrix.table`, and look at what changed"


def test_every_dialect_of_upstreams_is_in_the_matrix() -> None:
    from llm_runner_router.providers.hosts import find

    hosts = [find(name) for name, _ in DIALECTS.values()]
    assert {host.dialect for host in hosts if host} == set(dialects.DIALECTS)
