"""Orders that do not look at the question: random, in turn, least loaded.

Use them for replicas of one model, where any target answers equally well. Each gives all options
in the order in which to try them. Knows names and counts; does not know targets or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random

from .stats import TargetStats


def at_random(options: Sequence[str], rng: Random) -> list[str]:
    """A fair shuffle."""
    return rng.sample(list(options), len(options))


def in_turn(options: Sequence[str], turn: int) -> list[str]:
    """Rotated by `turn`, which the caller counts up."""
    start = turn % len(options)
    return [*options[start:], *options[:start]]


def least_loaded(
    options: Sequence[str],
    snapshot: Callable[[str], TargetStats],
    rng: Random,
    cached: Mapping[str, int] | None = None,
) -> list[str]:
    """Fewest requests in flight first, of equals the one that has most of the prompt (`cached`).

    Other ties are broken by chance, or one target would get all.
    """
    mixed, has = at_random(options, rng), cached or {}
    return sorted(mixed, key=lambda name: (snapshot(name).in_flight, -has.get(name, 0)))
