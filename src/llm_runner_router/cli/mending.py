"""What stands in for a model's chat template: looked up, put there by a repair, taken away.

Knows: the store's overrides, what to type next. Does not know: templates (`tokens/check.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_runner_router import refs
from llm_runner_router.errors import RunnerError
from llm_runner_router.models import overrides
from llm_runner_router.models.blobs import Store
from llm_runner_router.models.deepcheck import Finding
from llm_runner_router.models.resolve import resolve

from .stored import kept, stored_name

if TYPE_CHECKING:
    from llm_runner_router.tokens.check import TemplateReport

BY_HAND: Final = (
    "next: write one to a file, and name it as `chat_template:` of the model in the configuration"
)


class Mender:
    """The override of one model.

    Args:
        model: what a person calls it.
        store: where overrides are kept.
        repair: put one there where the model's template is broken and a better one is known.
    """

    def __init__(self, model: str, store: Store, *, repair: bool) -> None:
        self._model = model
        self._store = store
        self._repair = repair
        self._name = named(model, store)
        self._kept = overrides.find(store, self._name)

    def holds(self, own: str | None) -> bool:
        """Whether something stands in for the template `own`."""
        return self._kept is not None and self._kept.replaces == overrides.digest(own)

    def text(self, own: str | None) -> str | None:
        """The template that is used: what stands in for `own`, else `own`.

        Raises:
            ModelFileError: it is damaged.
        """
        if self._kept is None or not self.holds(own):
            return own
        return overrides.text_of(self._store, self._name, self._kept)

    def told(self, own: str | None) -> str:
        """What is in use, in words; empty for the model's own template."""
        return told(self._store, self._name, own)

    def next(self, report: TemplateReport, own: str | None) -> str:
        """What to do about a template with problems, in words."""
        if report.repaired is None:
            why = f"{report.why}; " if report.why else ""
            return f"it cannot be repaired here: {why}{BY_HAND}"
        if self._repair and not self.holds(own):
            return ""
        step = f"`llmrr verify --deep --repair {self._model}` uses a better one: {report.why}"
        return BY_HAND if self.holds(own) else f"next: {step}"

    def mend(self, report: TemplateReport, own: str | None) -> Finding | None:
        """Put the better template in place, if that is wanted and there is one."""
        if not self._repair or report.ok or report.repaired is None or self.holds(own):
            return None
        try:
            stored = kept(self._model, self._store)
            overrides.put(self._store, stored, own, report.repaired, report.why)
        except RunnerError as exc:
            return Finding("repair", "skip", f"{exc.message}; {BY_HAND}")
        except OSError as exc:
            return Finding("repair", "bad", f"the store cannot be written: {exc.strerror}")
        undo = f"`llmrr verify --undo-repair {self._model}` takes it away"
        return Finding(
            "repair", "ok", f"another template is used from now on: {report.why}; {undo}"
        )


def named(model: str, store: Store) -> str:
    """The name under which the store keeps an override of `model`, also if others own its files."""
    name = stored_name(model, store)
    if name in store.names():
        return name
    try:
        return resolve(refs.parse(model), part=None).name
    except RunnerError:  # a file that cannot be read has none
        return name


def told(store: Store, name: str, own: str | None) -> str:
    """What stands in for the template `own` of the model called `name`; empty for nothing.

    Raises:
        ModelFileError: the store's entry is damaged.
    """
    kept = overrides.find(store, name)
    if kept is None:
        return ""
    if kept.replaces == overrides.digest(own):
        return f"repaired: {kept.why}"
    return (
        "its own; a repair of another template is kept, which the file had before"
        f" (`llmrr verify --undo-repair {name}` forgets it)"
    )


def undo(model: str, store: Store) -> Finding:
    """Use the model's own template again.

    Raises:
        ModelFileError: the store's entry is damaged.
    """
    if overrides.drop(store, named(model, store)) is None:
        return Finding("repair", "ok", "there was none to undo")
    return Finding("repair", "ok", "undone: the model's own chat template is used from now on")
