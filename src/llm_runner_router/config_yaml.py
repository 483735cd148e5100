"""YAML text → plain data, with the line every value came from.

Knows: YAML's safe subset and what makes a file dangerous or ambiguous (duplicate keys, keys that
are not text, aliases that grow or loop, size). Does not know: what any key means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ConfigError

if TYPE_CHECKING:
    import yaml

Path = tuple[str | int, ...]
"""Where a value stands: keys of mappings, positions in lists."""

MAX_BYTES = 1024 * 1024
MAX_VALUES = 50_000
"""Values after aliases are expanded; a few lines of nested aliases could make billions."""


def parse(data: bytes, label: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """Read one YAML document: its data, and path → line (from 1). Empty text is an empty mapping.

    Args:
        data: UTF-8 text.
        label: what to call the file in messages.

    Raises:
        ConfigError: not YAML, not a mapping, a key twice, or too large; with file and line.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{label}: {len(data):,} bytes; a configuration may have {MAX_BYTES:,}")
    import yaml  # here: without a file nothing pays for it

    try:
        text = data.decode("utf-8-sig")
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return {}, {}
            walk = _Walk(label)
            walk.visit(node, ())
            value = loader.construct_document(node)
        finally:
            loader.dispose()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{label}: not UTF-8 text (byte {exc.start})") from exc
    except yaml.MarkedYAMLError as exc:
        raise ConfigError(_syntax(exc, label)) from exc
    except (yaml.YAMLError, ValueError) as exc:
        raise ConfigError(f"{label}: not YAML: {' '.join(str(exc).split())}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{label}: nested too deeply") from exc
    if not isinstance(value, dict):
        raise ConfigError(f"{label}:1: the file must be a mapping (`key: value`)")
    return value, walk.lines


def _syntax(exc: yaml.MarkedYAMLError, label: str) -> str:
    mark = exc.problem_mark or exc.context_mark
    line = f":{mark.line + 1}" if mark is not None else ""
    problem = exc.problem or exc.context or "cannot be read"
    if "\\t" in problem:
        problem += " (YAML wants spaces, not tabs)"
    return f"{label}{line}: not YAML: {problem}"


class _Walk:
    """Goes once through the composed nodes: lines, duplicate keys, growth, loops."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: dict[Path, int] = {}
        self._open: set[int] = set()
        self._count = 0

    def visit(self, node: yaml.Node, path: Path) -> None:
        import yaml

        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._count += 1
        if self._count > MAX_VALUES:
            raise ConfigError(f"{self.label}:{line}: more than {MAX_VALUES:,} values")
        if id(node) in self._open:
            raise ConfigError(f"{self.label}:{line}: an alias that contains itself")
        self._open.add(id(node))
        if isinstance(node.value, list):
            if isinstance(node, yaml.MappingNode):
                self._mapping(node, path)
            else:
                for index, child in enumerate(node.value):
                    self.visit(child, (*path, index))
        self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: Path) -> None:
        import yaml

        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                self.visit(value, path)
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                shown = f"`{key.value}`" if isinstance(key, yaml.ScalarNode) else "this one"
                raise ConfigError(
                    f"{self.label}:{line}: keys must be text, and {shown} is not",
                    hint="put the key in quotes",
                )
            if key.value in seen:
                raise ConfigError(
                    f"{self.label}:{line}: `{key.value}` stands here a second time "
                    f"(first in line {seen[key.value]})"
                )
            seen[key.value] = line
            self.lines[(*path, key.value)] = line
            self.visit(value, (*path, key.value))
