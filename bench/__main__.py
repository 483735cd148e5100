"""`python -m bench`: run the benchmarks, print the table, add it to the log."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from . import facts, report
from .proc import BenchError

SECTIONS = {
    "import": "bench.import_time",
    "overhead": "bench.overhead",
    "dialects": "bench.dialects",
    "local": "bench.local",
    "memory": "bench.memory",
    "runner": "bench.runner",
    "quantize": "bench.quantize",
    "download": "bench.download",
}
"""Benchmark to its module; each has `measure(quick=…)`."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 unless something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--only",
        metavar="NAMES",
        default=",".join(SECTIONS),
        help=f"comma-separated: {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds; for trying things out")
    parser.add_argument("--no-log", action="store_true", help="print only")
    args = parser.parse_args(argv)
    names = [name.strip() for name in args.only.split(",") if name.strip()]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(unknown)}")
    found = facts.gather()
    when = datetime.datetime.now(datetime.UTC)
    print(found.line(), flush=True)
    sections = [run(name, quick=args.quick) for name in names]
    if not args.no_log:
        report.append(report.entry(sections, found, when))
        print(f"\nadded to {report.LOG.relative_to(report.LOG.parent.parent)}")
    return 1 if any(section.failures for section in sections) else 0


def run(name: str, *, quick: bool) -> report.Section:
    """Run one benchmark and print it; what fails is part of what it found."""
    print(f"\n{name} …", flush=True)
    try:
        measure: Callable[..., report.Section] = import_module(SECTIONS[name]).measure
        section = measure(quick=quick)
    except BenchError as exc:
        section = report.Section(name, (), (str(exc),))
    if section.rows:
        print(report.table(section.rows))
    for failure in section.failures:
        print(f"failed: {failure}")
    return section


if __name__ == "__main__":
    sys.exit(main())
