"""The pages that a runner's weights lie in. Pure.

Knows: one setting of glibc's allocator. Does not know: processes, engines.

Decoding reads all weights once per token, which in pages of 4 KiB costs a look-up in the page table
every few nanoseconds. With `glibc.malloc.hugetlb=1` the allocator asks the kernel for pages of
2 MiB (`madvise`; it then has them where `transparent_hugepage` is `madvise`, Debian's and Ubuntu's
default, or `always`). 140 M weights of Q4_K_M through the gateway decoded 6 % faster than llama.cpp
alone; without such pages it was 5 to 14 % slower (bench/LOG.md). `fit.PAGES` is what they take.
Elsewhere the variable means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from .base import RUNNERS

VARIABLE = "GLIBC_TUNABLES"
RUNNERS_WITH = frozenset({f"{RUNNERS}.llamacpp"})
"""Runners that gain by it; of the others it was not measured."""
_HUGE = "glibc.malloc.hugetlb"


def variables(environ: Mapping[str, str], runner: str) -> dict[str, str]:
    """What the module `runner` is started with beside `environ`; what was set there stays."""
    if runner not in RUNNERS_WITH:
        return {}
    given = environ.get(VARIABLE, "")
    if _HUGE in given:
        return {VARIABLE: given}
    return {VARIABLE: ":".join(filter(None, (given, f"{_HUGE}=1")))}
