"""`llmrr pull`: bring models to this machine."""

from __future__ import annotations

from pathlib import Path

import click

from llm_runner_router import refs
from llm_runner_router.units import format_size

from . import output, pulling, signed
from .group import Verb


@click.command("pull", cls=Verb)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@click.option("--name", metavar="NAME", help="Keep it under this name (for one MODEL).")
@click.option("--force", is_flag=True, help="The name may mean another model so far.")
@signed.options
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="What is here now, as JSON.")
def command(  # noqa: PLR0913 - one per option
    models: tuple[str, ...],
    name: str | None,
    signature: Path | None,
    public_key: Path | None,
    identity: str,
    issuer: str,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Download MODELs: `hf:org/repo`, `hf:org/repo#Q4_K_M`, `ollama:name:tag`, `https://…`, `s3://…`.

    A download that was stopped goes on where it was; what is on this machine already is linked,
    not fetched. Every file is compared with the digest its source gives. Files of Hugging Face go
    to its own cache, all others to the store. Tokens come from HF_TOKEN, proxies from HTTPS_PROXY;
    LLMRR_OFFLINE=1 forbids all of it.
    """
    if name is not None and len(models) > 1:
        raise click.UsageError("`--name` is for one model", click.get_current_context())
    if name is not None:
        refs.plain(name)
    asked = signed.Signature(signature, public_key, identity, issuer)
    accept = asked.check if asked.wanted else None
    pulled = [
        pulling.pull(refs.parse(model), name=name, quiet=quiet, accept=accept, replace=force)
        for model in models
    ]
    if as_json:
        output.json(pulled)
        return 0
    for stored in pulled:
        print(f"{output.line(stored.name)}  {format_size(stored.size)}")
    return 0
