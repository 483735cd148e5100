"""Quotas and limits from made-up `/proc` and `/sys` trees, and the load from made-up times."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from llm_runner_router.engine.devices import CpuTimes, LoadMeter, Machine, look
from llm_runner_router.testing import FakeClock

GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_no_groups_no_limits(tmp_path: Path) -> None:
    found = look(root=tmp_path)
    assert found.quota is None
    assert found.memory > 0
    assert 0 < found.available <= found.memory
    assert found.cores >= 1


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4.0),
        ({"a/b/cpu.max": "800000 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ({"a/b/cpu.max": "max 100000\n", "cpu.max": "200000 100000\n"}, 2.0),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "nonsense"}, None),
        ({"a/b/cpu.max": "-1 100000"}, None),
        ({"cpu.max": "300000 100000\n"}, 3.0),
    ],
)
def test_version_2_any_ancestor_limits(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    found = {"proc/self/cgroup": "0::/a/b\n"}
    found |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    assert look(root=tree(tmp_path, found)).quota == quota


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, mount: str) -> None:
    base = f"sys/fs/cgroup/{mount}"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/docker/x\n2:cpuset:/\n",
            f"{base}/cpu.cfs_quota_us": "-1\n",
            f"{base}/cpu.cfs_period_us": "100000\n",
            f"{base}/docker/x/cpu.cfs_quota_us": "250000\n",
            f"{base}/docker/x/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB // 2}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"cache 5\ntotal_inactive_file {GIB // 4}\n",
        },
    )
    found = look(root=tmp_path)
    assert found.quota == 2.5
    assert found.memory == GIB
    assert found.available <= GIB - GIB // 4


def test_a_group_that_lies_outside_the_mount(tmp_path: Path) -> None:
    """Inside a container the path is the host's, and the mount's root is the group itself."""
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../kubepods/pod1\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/memory.current": "0\n",
        },
    )
    found = look(root=tmp_path)
    assert (found.quota, found.memory) == (2.0, GIB)


def test_the_load_of_others_leaves_out_the_runners() -> None:
    clock = FakeClock()
    times = CpuTimes(all=100.0, own={7: 10.0, 8: 0.0})
    asked: list[list[int]] = []

    def read(own: Iterable[int]) -> CpuTimes:
        asked.append(list(own))
        return times

    meter = LoadMeter(clock, read)
    guess = meter.busy
    assert meter.sample([7, 8]) == guess, "one look says nothing"
    clock.advance(2)
    times = CpuTimes(all=106.0, own={7: 13.0, 8: 1.0})
    assert meter.sample([7, 8]) == pytest.approx(1.0)  # (6 - 3 - 1) s in 2 s
    assert meter.usage == {7: 1.5, 8: 0.5}
    assert meter.others(7) == pytest.approx(1.5), "another runner counts for this one"
    assert meter.others(None) == pytest.approx(3.0)
    assert asked == [[7, 8], [7, 8]]
    clock.advance(1)
    times = CpuTimes(all=106.5, own={9: 0.25})
    assert meter.sample([9]) == pytest.approx(0.25), "a new process counts from its start"
    assert meter.age == 0


def test_the_real_load_can_be_read() -> None:
    clock = FakeClock()
    meter = LoadMeter(clock)
    meter.sample([1 << 30])
    clock.advance(1)
    assert meter.sample([1 << 30]) >= 0.0
    assert meter.usage == {}, "a process that is not there uses nothing"


def test_cores_are_never_less_than_one() -> None:
    assert Machine(1, 1, 0.01, GIB, GIB).cores == 1
