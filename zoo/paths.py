"""Where the zoo keeps its files, relative to the repository."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
MODELS = HERE / "models"
CHECKPOINTS = HERE / "checkpoints"
SHIPPED = HERE.parent / "src" / "llm_runner_router" / "zoo"
CARDS = SHIPPED / "cards.json"
