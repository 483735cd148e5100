"""`python -m llm_runner_router` is `llmrr`, for where the command is not on the path."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
