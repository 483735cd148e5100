"""The house rules that a program can check, by reading the source. See STYLE.md."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "llm_runner_router"
FOLDERS = ("src", "tests", "bench", "zoo", "scripts", "examples")

FILE_LINES = 600
FUNCTION_LINES = 80
IMPORT_MODULES = 250
IMPORT_MIB = 30

PURE = (
    "refs.py",
    "deltas.py",
    "convert/plan.py",
    "engine/scheduler.py",
    "engine/evict.py",
    "engine/fit.py",
    "engine/threads.py",
    "engine/adapting.py",
    "engine/llamacpp.py",
    "engine/endpoint.py",
    "engine/runners/asked.py",
    "engine/runners/reading.py",
    "engine/runners/stops.py",
    "strategies/choose.py",
    "strategies/failures.py",
    "strategies/pick.py",
    "strategies/stats.py",
    "strategies/tasks.py",
    "surfaces/openai_*.py",
    "providers/dialects/*.py",
)
"""Decisions and codecs: no clock, no chance, no waiting; these are handed in."""

# Character classes, so that these lines do not match themselves.
PRIVATE = re.compile(
    r"(?<![\w.])/wor[k]/|(?<![\w.])/roo[t]/|/User[s]/\w|py[p]i\.org|python[h]osted"
    r"|registry\.np[m]js|index\.crate[s]|proxy\.golan[g]"
)
"""Paths of somebody's machine, and hosts that the machine's own settings must name."""


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(found) > 50, f"only {len(found)} files were found below {ROOT}"
    return sorted(found)


SOURCES = sources()
TREES = {path: ast.parse(path.read_bytes(), str(path)) for path in SOURCES}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------- size


def largest(sizes: dict[str, int], limit: int) -> str:
    ten = sorted(sizes.items(), key=lambda pair: -pair[1])[:10]
    return f"at most {limit} lines; the ten largest:\n" + "\n".join(
        f"  {lines:5}  {name}" for name, lines in ten
    )


def test_files_are_short() -> None:
    sizes = {named(path): path.read_bytes().count(b"\n") for path in SOURCES}
    assert max(sizes.values()) <= FILE_LINES, largest(sizes, FILE_LINES)


def test_functions_are_short() -> None:
    sizes = {
        f"{named(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert max(sizes.values()) <= FUNCTION_LINES, largest(sizes, FUNCTION_LINES)


# ---------------------------------------------------------------- what the source may say


def test_every_file_says_what_it_knows() -> None:
    silent = [
        named(path)
        for path, tree in TREES.items()
        if path.is_relative_to(PACKAGE) and tree.body and not ast.get_docstring(tree)
    ]
    assert silent == [], "modules without a docstring"


def broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(
        kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
        for kind in kinds
    )


def passes_on(handler: ast.ExceptHandler) -> bool:
    """Whether it ends by raising what it caught."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_a_broad_except_gives_its_reason() -> None:
    without = []
    for path, tree in TREES.items():
        lines = path.read_text("utf-8").splitlines()
        without += [
            f"{named(path)}:{node.lineno}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler) and broad(node) and not passes_on(node)
            if "#" not in lines[node.lineno - 1]
        ]
    assert without == [], "`except Exception:  # the reason` is the form, or re-raise"


def test_an_ignored_type_gives_its_reason() -> None:
    mark = re.compile(r"#\s*type:\s*ignore(\[[\w, -]+\])?(?P<reason>.*)$")
    without = [
        f"{named(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if (found := mark.search(line)) and "re.compile" not in line
        if found.group(1) is None or len(found.group("reason").strip(" #")) < 4
    ]
    assert without == [], "`# type: ignore[code]  # the reason` is the form"


def impure(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in ("time", "random", "datetime"):
                    yield f"line {node.lineno}: import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module == "random" and alias.name == "Random":
                    continue  # the type of an argument
                if node.module in ("time", "random", "datetime"):
                    yield f"line {node.lineno}: from {node.module} import {alias.name}"
                if node.module == "asyncio" and alias.name == "sleep":
                    yield f"line {node.lineno}: from asyncio import sleep"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) == ("asyncio", "sleep"):
                yield f"line {node.lineno}: asyncio.sleep"


@pytest.mark.parametrize("pattern", PURE)
def test_pure_files_have_no_clock_no_chance_and_do_not_wait(pattern: str) -> None:
    paths = sorted(PACKAGE.glob(pattern))
    assert paths, f"no file matches {pattern!r}; was it moved?"
    found = {named(path): list(impure(TREES[path])) for path in paths}
    assert not any(found.values()), f"hand it in as an argument: {found}"


def test_the_check_of_purity_finds_something() -> None:
    code = "import time\nfrom random import choice, Random\nasyncio.sleep(1)\n"
    assert len(list(impure(ast.parse(code)))) == 3


def tracked() -> list[Path]:
    """What git would publish."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=30).stdout
    return [ROOT / name for name in output.decode().split("\0") if name]


def test_nothing_private_is_published() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # weights, or deleted and not yet committed
        found += [
            f"{named(path)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if PRIVATE.search(line)
        ]
    assert found == [], "paths of a machine, or hosts of a registry"


# ---------------------------------------------------------------- names and imports


def exported() -> Iterator[str]:
    """Modules of the package that say what they export."""
    for path, tree in TREES.items():
        if not path.is_relative_to(PACKAGE):
            continue
        for node in tree.body:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
            ):
                parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
                yield ".".join(part for part in parts if part != "__init__")


def test_everything_exported_is_there() -> None:
    modules = list(exported())
    assert "llm_runner_router" in modules
    for name in modules:
        module = importlib.import_module(name)
        missing = [member for member in module.__all__ if not hasattr(module, member)]
        assert missing == [], f"{name}.__all__ promises what is not there"


WATCHED_IMPORT = """
import os, resource, sys
before = len(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
home = os.path.realpath(sys.argv[1])
sys.path.insert(0, os.path.dirname(home))  # this tree, wherever another one is installed
places = [os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, home)]
bad = []
sys.path.insert(0, os.path.dirname(home))  # this tree, wherever another one is installed

def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        bad.append(event)
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        bad.append(event)
    elif event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if not any(path == place or path.startswith(place + os.sep) for place in places):
            bad.append(f"open {path}")

sys.addaudithook(watch)
import llm_runner_router
scale = 1 if sys.platform == "darwin" else 1024
after = len(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after[0], (after[1] - before[1]) * scale, *bad, sep="\\n")
"""


def test_the_import_is_cheap_and_touches_nothing() -> None:
    output = subprocess.run(
        [sys.executable, "-I", "-c", WATCHED_IMPORT, str(PACKAGE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.splitlines()
    modules, size, *bad = output
    assert int(modules) <= IMPORT_MODULES
    assert int(size) <= IMPORT_MIB * 1024 * 1024
    assert bad == [], "importing the package must not connect, start or read anything else"
