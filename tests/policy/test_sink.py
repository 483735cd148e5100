"""The files of records: complete, private, bounded, one per day."""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path

import msgspec
import pytest

from llm_runner_router.policy.record import RequestRecord
from llm_runner_router.policy.sink import FileSink

DAY = 86_400.0
NOON = 1_700_000_000.0 - 1_700_000_000.0 % DAY + DAY / 2  # 2023-11-14 12:00 UTC


def record(i: int) -> RequestRecord:
    return RequestRecord(id=f"r{i}", time=NOON, asked="m", status=200, total_ms=1.0)


def lines(path: Path) -> list[RequestRecord]:
    return [msgspec.json.decode(x, type=RequestRecord) for x in path.read_bytes().splitlines()]


def no_thread() -> bool:
    return all(thread.name != "records" for thread in threading.enumerate())


def test_everything_is_on_disk_after_close(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "records", wall=lambda: NOON)
    for i in range(500):
        sink.put(record(i))
    sink.close()
    (path,) = (tmp_path / "records").iterdir()
    assert path.name == "2023-11-14.jsonl"
    assert [r.id for r in lines(path)] == [f"r{i}" for i in range(500)]
    assert sink.state().written == 500
    assert sink.state().dropped == 0
    assert no_thread()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_second_run_appends_and_mends_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "2023-11-14.jsonl"
    path.write_bytes(msgspec.json.encode(record(0)) + b'\n{"id":"ha')
    sink = FileSink(tmp_path, wall=lambda: NOON)
    sink.put(record(1))
    sink.close()
    got = path.read_bytes().splitlines()
    assert got[1] == b'{"id":"ha'
    assert msgspec.json.decode(got[2], type=RequestRecord).id == "r1"


def test_a_day_has_its_file_and_old_files_go(tmp_path: Path) -> None:
    for name in ("2023-11-01.jsonl", "2023-11-13.jsonl", "2023-11-14.txt", "9999-99-99.jsonl"):
        (tmp_path / name).write_text("")
    sink = FileSink(tmp_path, keep_days=7, wall=lambda: NOON)
    sink.put(record(0))
    sink.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "2023-11-13.jsonl",
        "2023-11-14.jsonl",
        "2023-11-14.txt",
        "9999-99-99.jsonl",
    ]


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    sink = FileSink(tmp_path, max_queue=3, wall=lambda: NOON)
    # The writer gathers for a moment before it takes anything, so the queue fills up here.
    for i in range(10):
        sink.put(record(i))
    sink.close()
    state = sink.state()
    assert state.written + state.dropped == 10
    assert state.dropped > 0
    assert len(sink.records(100)) == 10, "memory keeps what the disk did not get"
    sink.put(record(11))
    assert sink.state().dropped == state.dropped + 1, "after closing, too"


def test_prompts_are_bounded_by_size_and_not_remembered(tmp_path: Path) -> None:
    sink = FileSink(tmp_path, max_bytes=10_000, wall=lambda: NOON)
    for i in range(3):
        sink.put(msgspec.structs.replace(record(i), prompt="x" * 4_000))
    assert [r.prompt for r in sink.records(9)] == [None, None, None]
    sink.close()
    assert sink.state().written == 2
    assert sink.state().dropped == 1
    lines = (tmp_path / "2023-11-14.jsonl").read_bytes().splitlines()
    assert [len(msgspec.json.decode(line)["prompt"]) for line in lines] == [4_000, 4_000]


def test_a_disk_that_refuses_is_said_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    sink = FileSink(tmp_path / "file" / "records", wall=lambda: NOON)
    with caplog.at_level(logging.WARNING):
        sink.put(record(0))
        sink.close()
    assert sink.state().dropped == 1
    assert sink.state().error
    assert len(caplog.records) == 1


def test_the_newest_come_first_and_only_so_many(tmp_path: Path) -> None:
    sink = FileSink(None, recent=3)
    for i in range(5):
        sink.put(record(i))
    assert [r.id for r in sink.records(2)] == ["r4", "r3"]
    assert [r.id for r in sink.records(9)] == ["r4", "r3", "r2"]
    assert sink.records(0) == []
    sink.close()
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_was_never_used_leaves_nothing(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "records")
    sink.close()
    assert list(tmp_path.iterdir()) == []
