"""`python -m attacks FOLDER`: write every attack below FOLDER, with a list of what must be said."""

from __future__ import annotations

import sys
from pathlib import Path

from . import all_attacks, write


def main(folder: Path) -> None:
    """Write the attacks and `EXPECTED.tsv`: path, words of the refusal, where it was seen."""
    rows = []
    for attack in all_attacks(folder.resolve() / "IT-RAN"):
        path = write(attack, folder / attack.name)
        rows.append(f"{path.relative_to(folder)}\t{attack.error}\t{attack.source}\n")
    (folder / "EXPECTED.tsv").write_text("".join(rows), "utf-8")
    sys.stdout.write(f"{len(rows)} attacks in {folder}\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m attacks FOLDER")
    main(Path(sys.argv[1]))
