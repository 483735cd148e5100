"""Merging neighbours, best pair first: the loop that byte-pair and SentencePiece encoding share.

Knows: symbols and an order of pairs. Does not know: vocabularies, bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush


def merge(symbols: Sequence[str], order: Callable[[str, str], float | None]) -> list[str]:
    """Join neighbours while any pair may be joined: least `order` first, then the leftmost.

    Args:
        symbols: one character each, or whatever is not divided.
        order: how early a pair is joined; None for never.

    Takes time proportional to n log n for n symbols.
    """
    parts: list[str] = list(symbols)
    before = list(range(-1, len(parts) - 1))
    after = [*range(1, len(parts)), -1]
    heap: list[tuple[float, int, int, int]] = []
    for right in range(1, len(parts)):
        rank = order(parts[right - 1], parts[right])
        if rank is not None:
            size = len(parts[right - 1]) + len(parts[right])
            heap.append((rank, right - 1, right, size))
    heapify(heap)

    def offer(left: int, right: int) -> None:
        rank = order(parts[left], parts[right])
        if rank is not None:
            heappush(heap, (rank, left, right, len(parts[left]) + len(parts[right])))

    while heap:
        _, left, right, size = heappop(heap)
        # An entry is stale when either side was joined with something else since.
        if not parts[left] or not parts[right] or len(parts[left]) + len(parts[right]) != size:
            continue
        parts[left] += parts[right]
        parts[right] = ""
        following = after[left] = after[right]
        if following >= 0:
            before[following] = left
            offer(left, following)
        if before[left] >= 0:
            offer(before[left], left)
    return [part for part in parts if part]
