"""`llmrr verify`: are the files still what they were?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
from .group import Verb
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
@click.option("--deep", is_flag=True, help="Look at tensors, numbers, tokenizer and template.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(
    models: tuple[str, ...],
    signature: Path | None,
    public_key: Path | None,
    identity: str,
    issuer: str,
    deep: bool,
    as_json: bool,
) -> int:
    """Hash the files of MODELs again and compare, of all in the store without any.

    With --public-key or --identity, also see that exactly these files were signed by that key or
    person (OpenSSF model signing; the extra `signing`).

    With --deep, MODEL may be any file or folder; tensors are compared with each other, all numbers
    are looked at, and the tokenizer and the chat template are tried.

    Exit code 1 if one is damaged or missing.
    """
    store = opened()
    results = []
    asked = signed.Signature(signature, public_key, identity, issuer)
    names = models or tuple(store.names())
    for found in deeply(names, store) if deep else verified(names, store):
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


def deeply(models: tuple[str, ...], store: Store) -> Iterator[Verified]:
    """Each model, hashed where its digests are known, then looked at.

    Raises:
        RunnerError: there is no such model.
    """
    from .deep import deep
    from .inspect import located

    for model in models:
        path = located(model)
        known = stored_name(model, store) in store.names() or locate_other(model) is not None
        hashed = next(verified((model,), store)) if known else Verified(model)
        yield replace(hashed, findings=tuple(deep(path)))


def _other(other: Found) -> Verified:
    """A model of another program, by the hash in its name."""
    if other.digest is None:
        return Verified(other.name, problem=f"{other.owner} keeps no digest of it")
    found = hash_file(other.path, other.digest)[other.digest.algorithm]
    wrong = "" if found == other.digest.hex else f"has {found} instead of {other.digest}"
    checked = Checked(other.path.name, other.path, other.size, not wrong, wrong)
    return Verified(other.name, (checked,))


def _print(result: Verified) -> None:
    for file in result.files:
        word = output.paint("ok", "ok") if file.ok else output.paint("damaged", "fail")
        tail = f": {file.place} {file.problem}" if file.problem else ""
        print(f"{word}  {output.line(result.name)}  {output.line(file.path)}  ", end="")
        print(f"{format_size(file.size)}{output.line(tail)}")
    for finding in result.findings:
        word = output.paint(finding.state, "ok" if finding.state == "ok" else "fail")
        print(f"{word.ljust(4)} {finding.check.ljust(10)} {output.line(finding.detail)}")
    if result.problem:
        problem = output.line(f"{result.name}: {result.problem}")
        print(f"{output.paint('damaged', 'fail')}  {problem}")
    if result.problem or not all(file.ok for file in result.files):
        output.note("hint", f"`llmrr pull {result.name}` brings it again")
