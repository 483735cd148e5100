"""Every hostile file in `attacks/` is refused with the words that belong to it; none runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attacks import Attack, all_attacks, write

from llm_runner_router.errors import ModelFileError
from llm_runner_router.models.detect import detect

MARKER = Path("/tmp/no-such-folder-of-llmrr/marker")
ATTACKS = {attack.name: attack for attack in all_attacks(MARKER)}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused(tmp_path: Path, name: str) -> None:
    attack = ATTACKS[name]
    path = write(attack, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelFileError) as caught:
        detect(path).describe(path)
    assert attack.error in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert sorted(tmp_path.rglob("*")) == before


def running(folder: Path) -> list[tuple[Attack, Path, Path]]:
    """The pickles that run when unpickled, each with a marker of its own."""
    found = []
    for name in [a.name for a in ATTACKS.values() if a.runs and a.name.startswith("plain-")]:
        marker = folder / f"{name}.ran"
        attack = next(a for a in all_attacks(marker) if a.name == name)
        found.append((attack, write(attack, folder), marker))
    return found


def test_the_programs_in_them_are_real_and_we_do_not_run_them(tmp_path: Path) -> None:
    attacks = running(tmp_path)
    assert len(attacks) >= 8
    for attack, path, marker in attacks:
        with pytest.raises(ModelFileError):
            detect(path).describe(path)
        assert not marker.exists(), f"{attack.name} ran"
    # The control: what the standard library does with the same files, one after the other.
    program = (
        "import pickle, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: pickle.loads(open(name, 'rb').read())\n"
        "    except Exception: pass\n"
    )
    names = [str(path) for _, path, _ in attacks]
    command = [sys.executable, "-I", "-c", program, *names]
    subprocess.run(command, check=True, timeout=50, capture_output=True)
    silent = [attack.name for attack, _, marker in attacks if not marker.exists()]
    assert silent == [], "these attacks are none: unpickling them runs nothing"


def test_they_can_be_written_to_try_them_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "attacks", str(tmp_path / "out")]
    root = Path(__file__).parents[3]
    subprocess.run(command, check=True, timeout=50, cwd=root, capture_output=True)
    rows = (tmp_path / "out" / "EXPECTED.tsv").read_text().splitlines()
    assert len(rows) == len(ATTACKS)
    assert all((tmp_path / "out" / row.split("\t")[0]).exists() for row in rows)
