"""Chat templates that stand in for a model's own, kept in the store beside the model's files.

Knows: where they lie (a content of the store that the model's entry names), when one holds. Does
not know: templates (`tokens/check.py` finds better ones), engines. A model's own file is never
changed.
"""

from __future__ import annotations

import hashlib
import secrets
import time

from msgspec.structs import replace

from llm_runner_router.errors import BadRequest, ModelFileError
from llm_runner_router.home import write_atomic

from .blobs import Store
from .info import LocalModel, templated
from .manifest import Override, Stored


def digest(template: str | None) -> str:
    """What `Override.replaces` says of a template; empty for none."""
    return hashlib.sha256(template.encode()).hexdigest() if template else ""


def find(store: Store, name: str) -> Override | None:
    """The override that is kept for `name`, whether it holds or not.

    Raises:
        ModelFileError: the store's entry is damaged.
    """
    try:
        stored = store.get(name)
    except BadRequest:  # a path that is too long for a name in the store
        return None
    return None if stored is None else stored.template


def text_of(store: Store, name: str, override: Override) -> str:
    """The template itself.

    Raises:
        ModelFileError: it is gone or damaged.
    """
    try:
        raw = store.blob(override.sha256).read_bytes()
        text = raw.decode()
    except (OSError, UnicodeDecodeError):
        raw, text = b"", ""
    if hashlib.sha256(raw).hexdigest() != override.sha256:
        raise ModelFileError(
            f"the chat template that stands in for the one of `{name}` is gone or damaged",
            hint=f"`llmrr verify --undo-repair {name}` forgets it",
        )
    return text


def applied(model: LocalModel, store: Store) -> LocalModel:
    """`model` with the template that stands in for its own, if one is kept and still holds.

    Raises:
        ModelFileError: it is damaged.
    """
    override = find(store, model.name)
    if override is None or override.replaces != digest(model.info.chat_template):
        return model
    return templated(model, text_of(store, model.name, override))


def put(store: Store, stored: Stored, own: str | None, template: str, why: str) -> Override:
    """Use `template` in place of `own`, the model's template, from the next load on.

    Args:
        stored: the model; if the store has no such name, it gets it.

    Raises:
        BadRequest: its name cannot be one in the store.
        ModelFileError, OSError: its files are gone, or the store cannot be written.
    """
    store.check_name(stored.name)
    before = stored.template
    if before is not None:
        only = before.only
    else:
        only = stored.name if store.get(stored.name) is None else ""
    found = Override(digest(template), digest(own), why, time.time(), only)
    with store.pulling():  # nothing is collected before the name means it
        store.partial.mkdir(parents=True, exist_ok=True)
        draft = store.partial / f"{found.sha256}.{secrets.token_hex(4)}.adopted"
        write_atomic(draft, template.encode(), 0o644)
        try:
            store.commit(draft, found.sha256)
        finally:
            draft.unlink(missing_ok=True)
        store.put(replace(stored, template=found))
    return found


def drop(store: Store, name: str) -> Override | None:
    """Use the model's own template again; what was kept, or None if nothing was.

    Raises:
        ModelFileError, OSError: as `put`.
    """
    override = find(store, name)
    stored = None if override is None else store.get(name)
    if override is None or stored is None:
        return None
    if override.only == name:
        store.remove(name)
    else:
        store.put(replace(stored, template=None))
    return override
