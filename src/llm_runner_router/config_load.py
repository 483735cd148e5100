"""Settings from a file, the environment and flags → one `Config`; later ones win.

    defaults < file < environment < flags

Knows: where a setting may be said, how people write sizes and durations, and how to say in one
line what is wrong, where, and what was probably meant. Does not know: what settings do, or how
entries hang together (`config_check.py`).
"""

from __future__ import annotations

import logging
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Struct

from . import config_litellm, config_yaml, home, units
from .config import Config, Secret
from .config_check import check, meant
from .config_foreign import Foreign
from .config_yaml import Path as Where
from .errors import ConfigError

FILE = "llmrr.yaml"
PREFIX = "LLMRR_"
SHORT = {"HOST": ("server", "host"), "PORT": ("server", "port")}
"""Variables without a section in their name."""
_log = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|^os\.environ/([A-Za-z_][A-Za-z0-9_]*)$")


def load(path: Path | None, env: Mapping[str, str], flags: Mapping[str, object]) -> Config:
    """The configuration of this start.

    Args:
        path: the file that was asked for with `--config`; None looks where `find_file` says.
        env: the environment. The file of another program may hold secrets or set variables itself;
            they are put in, as that program would do.
        flags: dotted name of a setting (`server.port`) to its value; None means not given.

    Raises:
        ConfigError: one line with the place, the setting and the problem, and a hint.
    """
    path = find_file(path, env)
    data: dict[str, Any] = {}
    where: Callable[[Where], str] = _dotted
    if path is not None:
        data, where, foreign = read(path, env)
        if foreign is not None:
            _take(foreign, path, env)
    said: dict[Where, str] = {}
    for source in (*_from_env(env), *_from_flags(flags)):
        _merge(data, source)
        said.update(source.lines)
    try:
        config = msgspec.convert(data, Config)
    except msgspec.ValidationError as exc:  # every value was checked where it came from
        raise ConfigError(f"the configuration does not fit together: {exc}") from exc

    def place(at: Where) -> str:
        by = next((said[at[:n]] for n in range(len(at), 0, -1) if at[:n] in said), None)
        return by or where(at)

    check(config, place, lambda: home.stored_names(home.find(env).models))
    return config


def find_file(path: Path | None, env: Mapping[str, str]) -> Path | None:
    """`path`, else `LLMRR_CONFIG`, else `./llmrr.yaml`, else the one in the data folder, or None.

    Raises:
        ConfigError: the file that was asked for does not exist.
    """
    asked = str(path) if path is not None else env.get(f"{PREFIX}CONFIG", "").strip()
    if asked:
        found = Path(asked).expanduser()
        if not found.exists():
            by = "" if path is not None else f" (from {PREFIX}CONFIG)"
            raise ConfigError(
                f"the configuration file `{found}` does not exist{by}",
                hint="`llmrr config init` writes one",
            )
        return found
    for candidate in (Path(FILE), home.find(env).config):
        if candidate.exists():
            return candidate
    return None


def read(
    path: Path, env: Mapping[str, str]
) -> tuple[dict[str, Any], Callable[[Where], str], Foreign | None]:
    """The checked settings of one file as plain data, a function from setting to place, and what
    the file became if it is one of another program's.

    Raises:
        ConfigError: the file cannot be read, or a key or a value is wrong.
    """
    return _read(text_of(path), str(path), env)


def check_text(data: bytes, label: str, env: Mapping[str, str]) -> Config:
    """The configuration that a file with this content would be, without environment or flags.

    Raises:
        ConfigError: it cannot be used.
    """
    plain, where, _ = _read(data, label, env)
    config = msgspec.convert(plain, Config)
    check(config, where, lambda: home.stored_names(home.find(env).models))
    return config


def _read(
    data: bytes, label: str, env: Mapping[str, str]
) -> tuple[dict[str, Any], Callable[[Where], str], Foreign | None]:
    raw, lines = config_yaml.parse(data, label)
    foreign = None
    if config_litellm.MARK in raw:
        foreign = config_litellm.convert(raw, lines, label, env)
        raw, lines = foreign.settings, foreign.lines

    def where(at: Where) -> str:
        known = at
        while known and known not in lines:
            known = known[:-1]
        line = f":{lines[known]}" if known in lines else ""
        return f"{label}{line}: " + _dotted(at)

    return _Reader(where).value(raw, Config, ()), where, foreign


def text_of(path: Path) -> bytes:
    """The content of a configuration file; a byte more than the limit if it is longer.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(config_yaml.MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read `{path}`: {exc.strerror}") from exc


def _take(foreign: Foreign, path: Path, env: Mapping[str, str]) -> None:
    """Set the variables of another program's file, and say how much of it has no counterpart."""
    if foreign.environment:
        if not isinstance(env, MutableMapping):
            raise ConfigError(
                f"`{path}` sets variables, and this environment cannot be changed",
                hint=f"`llmrr migrate {path}` writes a configuration without secrets in it",
            )
        env.update(foreign.environment)
    if foreign.lost:
        count = len(foreign.lost)
        what = "1 setting has" if count == 1 else f"{count} settings have"
        _log.warning("%s: %s no counterpart here; `llmrr migrate %s` tells", path, what, path)


def secret(text: str, env: Mapping[str, str], setting: str) -> Secret:
    """The value behind `${NAME}` or `os.environ/NAME`; several `${NAME}` may stand in a text.

    Args:
        setting: the setting the text stands in, for the message.

    Raises:
        ConfigError: a variable is not set; the message names it, never a value.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = env.get(name, "").strip()
        if not found:
            raise ConfigError(
                f"{setting} wants the variable `{name}`, which is not set",
                hint=f"export {name}=… before the start, or remove the setting",
            )
        return found

    return Secret(_VARIABLE.sub(value, text))


def wanted_variables(config: Config) -> Iterator[tuple[str, str]]:
    """The variables the configuration names as secrets, each with the setting that names it."""
    for name, provider in config.providers.items():
        texts: dict[Where, str] = {("headers", h): v for h, v in provider.headers.items()}
        texts["api_key",] = provider.api_key or ""
        for at, text in texts.items():
            for match in _VARIABLE.finditer(text):
                yield match[1] or match[2], _dotted(("providers", name, *at))


def check_secrets(config: Config, env: Mapping[str, str]) -> None:
    """See that every variable the configuration names is set; the server starts only then.

    Raises:
        ConfigError: as `secret`, for the first one missing.
    """
    for variable, setting in wanted_variables(config):
        secret(f"${{{variable}}}", env, setting)


# ---------------------------------------------------------------- environment and flags


class _Source:
    """Settings from one variable or flag: nested data, and the place of each for messages."""

    def __init__(self, label: str, data: dict[str, Any]) -> None:
        self.data = data
        self.lines: dict[Where, str] = {}
        self.label = label


def variables() -> dict[str, Where]:
    """Every environment variable that is a setting, with the setting; mappings have none."""
    names: dict[str, Where] = {PREFIX + short: path for short, path in SHORT.items()}
    for section, hint in typing.get_type_hints(Config, include_extras=True).items():
        if _is_struct(hint):
            for field, kind in typing.get_type_hints(hint, include_extras=True).items():
                if get_origin(kind) is not dict:
                    names[f"{PREFIX}{section}_{field}".upper()] = (section, field)
        elif get_origin(hint) is not dict:
            names[f"{PREFIX}{section}".upper()] = (section,)
    return names


def _from_env(env: Mapping[str, str]) -> Iterable[_Source]:
    known = variables()
    short = {PREFIX + name for name in SHORT}
    sections = {f"{PREFIX}{path[0]}_".upper() for path in known.values() if len(path) == 2}
    # the long name wins over the short one, so that the result does not hang on their order
    for name in sorted(env, key=lambda n: (n not in short, n)):
        if not name.startswith(PREFIX) or not env[name].strip():
            continue
        if name in known:
            yield _single(name, known[name], env[name].strip())
        elif any(name.startswith(section) for section in sections):
            raise ConfigError(f"unknown variable `{name}`{meant(name, known)}")


def _from_flags(flags: Mapping[str, object]) -> Iterable[_Source]:
    for name, value in flags.items():
        if value is None or value == ():
            continue
        path = tuple(name.split("."))
        yield _single(f"--{path[-1].replace('_', '-')}", path, value)


def _single(label: str, path: Where, value: object) -> _Source:
    hint: Any = Config
    for part in path:
        hint = typing.get_type_hints(hint, include_extras=True)[str(part)]
    where = f"{label}: {_dotted(path)}"
    if isinstance(value, str):
        value = _from_text(value, hint)
    done = _Reader(lambda _: where).value(value, hint, path)
    for part in reversed(path):
        done = {part: done}
    source = _Source(label, done)
    source.lines[path] = where
    return source


def _from_text(text: str, hint: Any) -> object:
    """What a variable's text means for a setting of type `hint`; text again if nothing fits."""
    if any(get_origin(h) is tuple for h in _options(hint)):
        return [part.strip() for part in text.split(",") if part.strip()]
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if hint is bool:
        return words.get(text.lower(), text)
    for number in (int, float):
        if any(_bare(h) in (int, float) for h in _options(hint)):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _merge(data: dict[str, Any], source: _Source) -> None:
    for key, value in source.data.items():
        if isinstance(value, dict):
            data[key] = {**data.get(key, {}), **value}
        else:
            data[key] = value


# ---------------------------------------------------------------- reading by type


class _Reader:
    """Plain data → checked plain data, following the types; the first problem is raised.

    `msgspec.convert` alone reports a path without the keys of mappings and no suggestion.
    """

    def __init__(self, where: Callable[[Where], str]) -> None:
        self._where = where

    def value(self, value: Any, hint: Any, at: Where) -> Any:
        """`value` as a `hint`: units read, keys known, every part of the right type."""
        options = _options(hint)
        if value is None and type(None) in options:
            return None
        if _is_struct(_fits(value, options)):
            return self._struct(value, _fits(value, options), at)
        chosen = _fits(value, options)
        if get_origin(chosen) is dict:
            return self._dict(value, chosen, at)
        if get_origin(chosen) is tuple:
            if not isinstance(value, list | tuple):
                raise self._wrong(at, f"expected a list, got {_shown(value)}")
            inner = get_args(chosen)[0]
            return [self.value(v, inner, (*at, i)) for i, v in enumerate(value)]
        return self._leaf(value, chosen, hint, at)

    def _struct(self, value: Any, kind: type[Struct], at: Where) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(at, f"expected settings (`key: value`), got {_shown(value)}")
        hints = typing.get_type_hints(kind, include_extras=True)
        done = {}
        for key, inner in value.items():
            if key not in hints:
                raise self._wrong((*at, key), f"unknown key `{key}`{meant(key, hints)}")
            if inner is None and type(None) not in _options(hints[key]):
                continue  # a key with nothing behind it: its default
            done[key] = self.value(inner, hints[key], (*at, key))
        return done

    def _dict(self, value: Any, hint: Any, at: Where) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(at, f"expected a mapping (`name: value`), got {_shown(value)}")
        inner = get_args(hint)[1]
        return {key: self.value(v, inner, (*at, key)) for key, v in value.items()}

    def _leaf(self, value: Any, chosen: Any, hint: Any, at: Where) -> Any:
        if get_origin(chosen) is Literal:
            allowed = get_args(chosen)
            if value not in allowed:
                names = ", ".join(f"`{a}`" for a in allowed)
                near = meant(str(value), allowed)
                raise self._wrong(at, f"{_shown(value)} is not one of {names}{near}")
            return value
        unit = _unit(chosen)
        if unit and isinstance(value, str):
            value = self._measured(value, unit, at)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._wrong(at, f"expected a finite number, got {value}")
        try:
            return msgspec.convert(value, chosen)
        except msgspec.ValidationError as exc:
            problem = str(exc).split(" - at ")[0]
            problem = re.sub(r", got `\w+`$", "", problem)
            raise self._wrong(
                at, f"{problem[:1].lower()}{problem[1:]}, got {_shown(value)}"
            ) from exc

    def _measured(self, text: str, unit: str, at: Where) -> float:
        try:
            return units.parse_size(text) if unit == "bytes" else units.parse_duration(text)
        except ValueError as exc:
            examples = "`512MiB`, `4GiB`" if unit == "bytes" else "`90s`, `5m`, `1h`"
            problem = f"expected {unit} as a number or text such as {examples}"
            raise self._wrong(at, f"{problem}, got {_shown(text)}") from exc

    def _wrong(self, at: Where, problem: str) -> ConfigError:
        hint = "`llmrr config schema` and `llmrr config init` show what can be set"
        return ConfigError(f"{self._where(at)}: {problem}", hint=hint)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, options: tuple[Any, ...]) -> Any:
    """The option `value` is meant as: mappings fit Structs and dicts, everything else the rest."""
    rest = [o for o in options if o is not type(None)]
    wants_mapping = [o for o in rest if _is_struct(o) or get_origin(o) is dict]
    if wants_mapping and (isinstance(value, dict) or len(rest) == 1):
        return wants_mapping[0]
    others = [o for o in rest if o not in wants_mapping]
    return next((o for o in others if o is type(value)), others[0] if others else rest[0])


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Struct)


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _unit(hint: Any) -> str | None:
    """`seconds` or `bytes` if the type says that its number is one."""
    for meta in getattr(hint, "__metadata__", ()):
        extra = getattr(meta, "extra_json_schema", None) or {}
        if "x-unit" in extra:
            return str(extra["x-unit"])
    return None


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _dotted(at: Where) -> str:
    """`models.smart.fallback[1]`; a key with other characters stands in brackets."""
    text = ""
    for part in at:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[\w-]+", part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text
