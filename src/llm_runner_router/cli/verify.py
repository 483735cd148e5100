"""`llmrr verify`: are the files still what they were?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click
import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llm_runner_router.errors import ModelFileError, UnknownModel
from llm_runner_router.models.blobs import Checked, Store
from llm_runner_router.models.deepcheck import Finding
from llm_runner_router.models.found import Found
from llm_runner_router.models.manifest import hash_file
from llm_runner_router.units import format_size

from . import output, signed
from .group import Verb, place
from .stored import kept, locate_other, opened, stored_name


class Verified(Struct, frozen=True):
    """What was found of one model."""

    name: str
    files: tuple[Checked, ...] = ()
    problem: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing is wrong; what is only odd may be meant."""
        return (
            not self.problem
            and all(file.ok for file in self.files)
            and all(finding.state != "bad" for finding in self.findings)
        )


@click.command("verify", cls=Verb)
@click.argument("models", nargs=-1, metavar="[MODEL…]")
@signed.options
@click.option(
    "--deep",
    is_flag=True,
    help="Look at tensors, numbers, tokenizer and template; ask it something.",
)
@click.option("--no-run", is_flag=True, help="With --deep: do not ask the model anything.")
@click.option("--engine", metavar="NAME", help="With --deep: ask it on this engine.")
@click.option(
    "--repair",
    is_flag=True,
    help="With --deep: put a fitting chat template in place of a broken one.",
)
@click.option("--undo-repair", is_flag=True, help="Use the model's own chat template again.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    models: tuple[str, ...],
    deep: bool,
    no_run: bool,
    engine: str | None,
    repair: bool,
    undo_repair: bool,
    as_json: bool,
    **signature: Any,
) -> int:
    """Hash the files of MODELs again and compare, of all in the store without any.

    With --public-key or --identity, also see that exactly these files were signed by that key or
    person (OpenSSF model signing; the extra `signing`).

    With --deep, MODEL may be any file or folder; tensors are compared with each other, all numbers
    are looked at, the tokenizer and the chat template are tried, and the model is asked something
    on the engine that would run it: an answer and its perplexity, vectors, or scores.

    With --deep --repair, a chat template that is broken is replaced by one that fits the model's
    vocabulary, where one is known. The file stays as it is: the other template is kept in the
    store, and used at the next load. --undo-repair takes it away.

    Exit code 1 if one is damaged or missing. What is only odd, or was skipped, is told.
    """
    store = opened()
    results = []
    asked = signed.given(signature)
    names = models or tuple(store.names())
    if not deep and (no_run or repair or engine is not None):
        raise click.UsageError("`--no-run`, `--engine` and `--repair` go with `--deep`")
    if undo_repair and (deep or not models):
        raise click.UsageError("`--undo-repair` goes with a MODEL and without `--deep`")
    if engine is not None:
        from llm_runner_router.engine.select import load_engine

        load_engine(engine)  # one that there is not says nothing of the models
    if undo_repair:
        found_now = _undone(names, store)
    elif deep:
        found_now = deeply(names, store, None if no_run else _asker(engine), repair=repair)
    else:
        found_now = verified(names, store)
    for found in found_now:
        result = _signed(found, asked, store)
        results.append(result)
        if not as_json:
            _print(result)
    if as_json:
        output.json(results)
    elif not results:
        print("the store is empty")
    return 0 if all(result.ok for result in results) else 1


def verified(models: tuple[str, ...], store: Store) -> Iterator[Verified]:
    """Each model, hashed now.

    Raises:
        UnknownModel: there is no such model, or nobody knows what it should be.
    """
    for model in models:
        name = stored_name(model, store)
        try:
            stored = store.get(name)
        except ModelFileError as exc:
            yield Verified(name, problem=exc.message)
            continue
        if stored is not None:
            yield Verified(name, tuple(store.verify(stored)))
            continue
        other = locate_other(model)
        if other is None:
            raise UnknownModel(
                f"the store has no {model!r}", hint="`llmrr ls --all` lists what is on this machine"
            )
        yield _other(other)


def _signed(result: Verified, asked: signed.Signature, store: Store) -> Verified:
    """`result`, with what is wrong with its signature if one is wanted."""
    if not asked.wanted or not result.ok:
        return result
    try:
        asked.check(kept(result.name, store), store)
    except ModelFileError as exc:
        return msgspec.structs.replace(result, problem=exc.message)
    return result


Asker = Callable[[str], Iterator[Finding]]
"""Asks the model of a reference something; what its answers say."""


def _asker(engine: str | None) -> Asker:
    from llm_runner_router.config import Config

    from . import asking

    config: Config | None = None

    def ask(name: str) -> Iterator[Finding]:
        from .deep_run import tried

        nonlocal config
        config = config or asking.load(place())
        yield from tried(name, config, engine)

    return ask


def _undone(models: tuple[str, ...], store: Store) -> Iterator[Verified]:
    from .mending import undo

    for model in models:
        yield Verified(model, findings=(undo(model, store),))


def deeply(
    models: tuple[str, ...], store: Store, ask: Asker | None = None, *, repair: bool = False
) -> Iterator[Verified]:
    """Each model, hashed where its digests are known, then looked at, and asked if `ask` is given.

    Args:
        models: names, references or paths.
        store: where digests and repairs are kept.
        ask: asks one of them something.
        repair: put another chat template in place of a broken one.

    Raises:
        RunnerError: there is no such model.
    """
    from .deep import deep
    from .inspect import located, reference
    from .mending import Mender

    for model in models:
        path = located(model)
        mender = Mender(reference(model), store, repair=repair)
        run = None if ask is None else partial(ask, reference(model))
        known = stored_name(model, store) in store.names() or locate_other(model) is not None
        hashed = next(verified((model,), store)) if known else Verified(model)
        yield replace(hashed, findings=tuple(deep(path, mender, run)))


def _other(other: Found) -> Verified:
    """A model of another program, by the hash in its name."""
    if other.digest is None:
        return Verified(other.name, problem=f"{other.owner} keeps no digest of it")
    found = hash_file(other.path, other.digest)[other.digest.algorithm]
    wrong = "" if found == other.digest.hex else f"has {found} instead of {other.digest}"
    checked = Checked(other.path.name, other.path, other.size, not wrong, wrong)
    return Verified(other.name, (checked,))


_COLOURS = {"ok": "ok", "odd": "warning", "bad": "fail", "skip": "hint"}


def _print(result: Verified) -> None:
    for file in result.files:
        word = output.paint("ok", "ok") if file.ok else output.paint("damaged", "fail")
        tail = f": {file.place} {file.problem}" if file.problem else ""
        print(f"{word}  {output.line(result.name)}  {output.line(file.path)}  ", end="")
        print(f"{format_size(file.size)}{output.line(tail)}")
    for finding in result.findings:
        word = output.paint(finding.state.ljust(4), _COLOURS[finding.state])
        print(f"{word} {finding.check.ljust(10)} {output.line(finding.detail)}")
    if result.problem:
        problem = output.line(f"{result.name}: {result.problem}")
        print(f"{output.paint('damaged', 'fail')}  {problem}")
    if result.problem or not all(file.ok for file in result.files):
        output.note("hint", f"`llmrr pull {result.name}` brings it again")
