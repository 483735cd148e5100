"""Name to object for a kind: a file in our own folder, else an installed package's entry point.

Knows: folders of this package and entry points. Does not know: what an object must offer; that is
the contract of its kind, checked by `llm_runner_router.testing`. Nothing is imported before it is
asked for, and no table has to be edited to add a file.

A kind is the path of a folder below this package, for example `strategies` or
`providers.dialects`; its entry point group is `llm_runner_router.<kind>`. A built-in object is the
module of that name; an entry point gives whatever it names.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from .errors import ConfigError

_ROOT = __name__.rpartition(".")[0]


def load(kind: str, name: str) -> Any:
    """The object called `name`; a `-` in a name is a `_` in its file. Our own files come first.

    Raises:
        ConfigError: no such name (with the nearest ones), or it cannot be imported.
    """
    file = name.replace("-", "_")
    if file in own(kind):
        return _imported(f"{_ROOT}.{kind}.{file}", kind, name)
    # Loading the machinery of entry points takes longer than most of our modules.
    from importlib.metadata import entry_points

    for point in entry_points(group=f"{_ROOT}.{kind}", name=name):
        try:
            return point.load()
        except Exception as exc:  # foreign code may raise anything while it is imported
            package = point.dist.name if point.dist else point.value
            raise ConfigError(
                f"the plugin {name!r} ({kind}) of {package!r} cannot be loaded: {exc}",
                hint=f"pip install --upgrade {package}",
            ) from exc
    near = get_close_matches(name, names(kind), n=3, cutoff=0.5) or names(kind)
    raise ConfigError(
        f"there is no {name!r} among the {kind}", hint="known: " + (", ".join(near) or "none")
    )


def names(kind: str) -> list[str]:
    """Every name that `load` knows, sorted; nothing is imported for it.

    Raises:
        ConfigError: there is no such kind.
    """
    from importlib.metadata import entry_points

    return sorted({*own(kind), *(p.name for p in entry_points(group=f"{_ROOT}.{kind}"))})


def own(kind: str) -> set[str]:
    """Names of the public modules in our folder of that kind.

    Raises:
        ConfigError: there is no such kind.
    """
    try:
        spec = find_spec(f"{_ROOT}.{kind}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"there is no kind of plugin called {kind!r}")
    found = iter_modules(spec.submodule_search_locations)
    return {module.name for module in found if not module.name.startswith("_")}


def _imported(module: str, kind: str, name: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"{name!r} ({kind}) needs the package {exc.name!r}, which is not installed",
            hint="pip install 'llm-runner-router[all]'",
        ) from exc
