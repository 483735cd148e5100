"""The child side of llama.cpp: its own server, inside xllamacpp, is the endpoint.

Knows: xllamacpp. Does not know: requests; no Python runs per token. Importing this module imports
the engine, which is what a spare process has done before it is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import xllamacpp
import xllamacpp.xllamacpp as _library


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load `order["params"]` and serve; does not return."""
    params, unknown = build_params(xllamacpp, order["params"])
    server = xllamacpp.Server(params)
    tell({"event": "listening", "address": server.listening_address, "unknown": unknown})
    threading.Event().wait()


def leave() -> None:
    """Wait until the engine has written its log; called before the process ends.

    Its server logs from a thread of its own, and the last lines (or all of a short life) would be
    lost with it. The functions are llama.cpp's `common_log_main` and `common_log_flush` under the
    names that C++ gives them; a build without them loses those lines.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(_library.__file__)
        main, flush = library._Z15common_log_mainv, library._Z16common_log_flushP10common_log
        main.restype, main.argtypes = ctypes.c_void_p, []
        flush.restype, flush.argtypes = None, [ctypes.c_void_p]
        flush(main())


def build_params(module: Any, wanted: dict[str, Any]) -> tuple[Any, list[str]]:
    """The engine's parameters from dotted names; also those names it does not have.

    The engine's names change between monthly releases without notice, so each is checked. A value
    `{"enum": [TYPE, NAME]}` names a member of one of its enumerations,
    `{"enums": [TYPE, [NAME…]]}` a list of them; `{"set": […]}` is a set; `{"objects": [TYPE,
    [[ARGUMENT…]…]]}` is a list of objects of one of its classes.
    """
    params = module.CommonParams()
    unknown: list[str] = []
    for name, value in wanted.items():
        *path, last = name.split(".")
        holder = params
        for step in path:
            holder = getattr(holder, step, None)
        if holder is None or not hasattr(holder, last):
            unknown.append(name)
            continue
        if isinstance(value, dict) and "enum" in value:
            kind, member = value["enum"]
            value = getattr(getattr(module, kind), member)
        elif isinstance(value, dict) and "enums" in value:
            kind, members = value["enums"]
            value = [getattr(getattr(module, kind), member) for member in members]
        elif isinstance(value, dict) and "objects" in value:
            kind, each = value["objects"]
            value = [getattr(module, kind)(*arguments) for arguments in each]
        elif isinstance(value, dict) and "set" in value:
            value = set(value["set"])
        setattr(holder, last, value)
    return params, unknown
