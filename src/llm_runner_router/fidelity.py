"""What became of a request's parameters on the way to a target of another kind.

Knows: how it is noted, and that a strict request loses nothing. Does not know: any dialect.
"""

from __future__ import annotations

from .errors import Unsupported
from .types import Mark, Request, Tool


class Receipt:
    """Notes what became of the parameters of one request; those not noted were honoured."""

    __slots__ = ("marks",)

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        """By path, as the error of a bad request would name the parameter."""

    def translated(self, param: str, how: str) -> None:
        """It is said in another way that may not mean quite the same."""
        self.marks[param] = Mark("translated", how)

    def emulated(self, param: str, how: str) -> None:
        """The upstream does not have it; something that it has does nearly the same."""
        self.marks[param] = Mark("emulated", how)

    def dropped(self, param: str, why: str) -> None:
        """The upstream does not have it, and it was left out."""
        self.marks[param] = Mark("dropped", why)

    def check(self, request: Request) -> None:
        """Hold a strict request to its word.

        Raises:
            Unsupported: something was dropped; names the parameters.
        """
        if not request.strict:
            return
        lost = {name: mark for name, mark in self.marks.items() if mark.fate == "dropped"}
        if lost:
            first = next(iter(lost))
            told = "; ".join(f"`{name}`: {mark.how}" for name, mark in list(lost.items())[:8])
            raise Unsupported(
                f"the target would leave out what was asked for ({told})",
                param=first,
                hint="leave it out yourself, or ask without `strict`",
            )


def own_tools(request: Request, receipt: Receipt) -> list[Tool]:
    """The tools that the client runs; those that a provider of another dialect runs are noted."""
    found = []
    for i, tool in enumerate(request.tools):
        if tool.kind is None:
            found.append(tool)
        else:
            receipt.dropped(f"tools[{i}]", f"`{tool.kind[:80]}` runs at its own provider only")
    return found
