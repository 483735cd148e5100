"""Reads a pickle without unpickling it: our own small interpreter with an allow-list.

Knows: the opcodes that `torch.save` writes and the few functions that describe tensors. Does not
know: anything else; every other opcode and every other name is refused, and named in the refusal.
Nothing is ever imported, looked up or called: a name in a pickle is compared with a table here.

What comes out are plain containers, numbers and texts, and the values below. Bounded: steps, bytes
and copies are counted, keys are texts and numbers only (hashing a tuple of shared tuples takes
exponential time), and nothing recurses.

Opcodes: the standard library's `pickletools` documents them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from ._files import Bad

MAX_STEPS: Final = 2_000_000
"""Opcodes in one pickle: a model of 131 thousand tensors would take 8 million, but models of more
than a few thousand are split over files; this many take about half a second."""
MAX_COPIED: Final = 64 * 1024 * 1024
"""Bytes that functions may copy, all together."""
MAX_TAKEN: Final = 64 * 1024 * 1024
"""Bytes that one pickle may have: in the older form it stands in a file of any size."""
ELEMENT: Final = 128
"""Bytes that an element takes in the dictionary or set that a function makes of it."""
MAX_NAME: Final = 256
MAX_LONG: Final = 64


class Global(Struct, frozen=True):
    """A name from a module, which is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(Struct, frozen=True):
    """A stretch of numbers somewhere in the file: its key, how many, and of which type."""

    key: str
    dtype: str | None
    """None: bytes, whose type the tensor says."""
    count: int
    start: int = 0
    """The first element, where it is a part of the storage of that key."""
    whole: int = 0
    """Elements of the whole storage of that key."""


class View(Struct, frozen=True):
    """A tensor: the elements of a storage that belong to it. Strides count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Opaque:
    """A value that nobody needs: a device, a hook's table."""


DTYPES: Final[dict[str, str]] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "complex64": "C64", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
"""`torch`'s types of numbers."""
_STORAGES: Final[dict[str, str | None]] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": None,
}  # fmt: skip
_SETS: Final = ("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset")
_KNOWN: Final = frozenset(
    [f"torch.{name}" for name in (*DTYPES, *_STORAGES, "Size", "device")]
    + [f"torch._utils._rebuild_{n}" for n in ("tensor", "tensor_v2", "tensor_v3", "parameter")]
    + ["torch.storage.UntypedStorage", "collections.OrderedDict", "_codecs.encode", *_SETS]
)
HINT: Final = (
    "take it in another format (`.safetensors`, `.gguf`); or, if you trust its maker, save its"
    " weights alone: `torch.save(model.state_dict(), FILE)`"
)
_MARK: Final = object()


class Pickle:
    """An interpreter over `data`, which may hold several pickles one after the other."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self.at = 0
        self.storages: dict[str, Storage] = {}
        """Every storage that was named, by its key."""
        self._steps = 0
        self._copied = 0
        self._taken = 0

    def load(self) -> Any:
        """The value of the pickle at the current place, which moves behind it.

        Raises:
            Bad: it is cut short, too large, or holds an opcode or a name that is not allowed.
        """
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        while True:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise Bad(f"its pickle has more than {MAX_STEPS} steps")
            code = self._take(1)
            if code == b".":
                break
            act = _ACTS.get(code)
            if act is None:
                raise Bad(f"its pickle has the opcode {_name(code)}, which no weights need", HINT)
            try:
                act(self)
            except (IndexError, KeyError, ValueError, TypeError):
                raise Bad(f"its pickle is damaged at byte {self.at}") from None
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise Bad("its pickle does not end with one value")
        return self._stack.pop()

    # ------------------------------------------------------------ reading

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise Bad(f"its pickle ends inside a value, at byte {len(self._data)}")
        self._taken += size
        if self._taken > MAX_TAKEN:
            raise Bad(f"its description has more than {MAX_TAKEN} bytes")
        found = self._data[self.at : end]
        self.at = end
        return found

    def _number(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self._take(size), "little", signed=signed)

    def _line(self) -> str:
        end = self._data.find(b"\n", self.at, self.at + MAX_NAME)
        if end < 0:
            raise Bad(f"its pickle has a name of more than {MAX_NAME} bytes")
        found = self._take(end - self.at)
        self.at += 1
        return found.decode("utf-8", "replace")

    # ------------------------------------------------------------ values

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def long(self, width: int) -> None:
        size = self._number(width)
        if size > MAX_LONG:
            raise Bad(f"its pickle has an integer of {size} bytes")
        self.push(self._number(size, signed=True))

    def text(self, width: int, *, exact: bool = True) -> None:
        found = self._take(self._number(width))
        self.push(found.decode("utf-8", "strict" if exact else "replace"))

    def raw(self, width: int) -> None:
        self.push(self._take(self._number(width)))

    def frame(self) -> None:
        if self._number(8) > len(self._data) - self.at:
            raise Bad("its pickle claims a frame that is longer than the file")

    def proto(self) -> None:
        version = self._number(1)
        if version > 5:
            raise Bad(f"its pickle has the protocol {version}, not up to 5")

    # ------------------------------------------------------------ stack and memo

    def since_mark(self) -> list[Any]:
        stack = self._stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                found = stack[at + 1 :]
                del stack[at:]
                return found
        raise IndexError("no mark")

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise IndexError("a mark")
        return value

    def top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise IndexError("a mark")
        return value

    def tuple_of(self, count: int) -> None:
        found = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(found)))

    def put(self, key: int) -> None:
        self._memo[key] = self.top()

    def get(self, width: int) -> None:
        self.push(self._memo[self._number(width)])

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise TypeError("no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise TypeError("no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not set:
            raise TypeError("no set")
        target.update(_key(item) for item in items)

    # ------------------------------------------------------------ names and calls

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        found = Global(module[:MAX_NAME], name[:MAX_NAME])
        if str(found) not in _KNOWN:
            raise Bad(
                f"its pickle names `{_shown(found)}`, which no weights need;"
                " loading it with `pickle` would run that",
                HINT,
            )
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.named(module, name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(function, Global):
            raise Bad("its pickle calls something that is no name")
        make = _CALLS.get(str(function))
        if make is None:
            raise Bad(f"its pickle calls `{_shown(function)}`, which is nothing to call")
        self._copied += sum(_cost(argument) for argument in arguments)
        if self._copied > MAX_COPIED:
            raise Bad(f"its pickle copies more than {MAX_COPIED} bytes")
        self.push(make(*arguments))

    def build(self) -> None:
        """Attributes for an object: `state_dict()` hangs versions on its dictionary."""
        state = self.pop()
        if type(self.top()) is not dict or type(state) is not dict or set(state) != {"_metadata"}:
            raise Bad("its pickle sets attributes of an object, which no weights need", HINT)

    def persistent(self) -> None:
        storage = _storage(self.pop())
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.whole) != (storage.dtype, storage.whole):
            raise Bad(f"its pickle describes the storage {storage.key[:80]!r} in two ways")
        self.push(storage)


def _key(value: Any) -> str | int | float | bytes | None:
    """A key: nothing whose hash takes longer than reading it did."""
    if value is None or type(value) in (str, int, float, bool, bytes):
        found: str | int | float | bytes | None = value
        return found
    raise Bad(f"its pickle has a {type(value).__name__} for a key")


def _cost(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return ELEMENT * len(value) if isinstance(value, list | tuple | set) else 1


def _shown(name: Global) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(name))[:120]


def _name(code: bytes) -> str:
    """What `pickletools` calls an opcode; it is imported only to say so."""
    import pickletools

    text = code.decode("latin-1")
    return next((f"`{op.name}`" for op in pickletools.opcodes if op.code == text), repr(code))


# ---------------------------------------------------------------- what may be called


def _storage(value: Any) -> Storage:
    """From a persistent id: ("storage", type, key, device, count[, part of another one])."""
    if type(value) is not tuple or not 5 <= len(value) <= 6 or value[0] != "storage":
        raise Bad("its pickle refers to something outside that is no storage")
    kind, key, count = value[1], value[2], value[4]
    name = kind.name if isinstance(kind, Global) else ""
    if name not in _STORAGES:
        raise Bad(f"its pickle has a storage of the unknown type `{name or '?'}`")
    if type(key) is not str or not _size(count):
        raise Bad("its pickle has a storage without a key or a size")
    part = value[5] if len(value) == 6 else None
    if part is None:
        return Storage(key, _STORAGES[name], count, 0, count)
    if type(part) is not tuple or len(part) != 3 or not all(map(_size, part[1:])):
        raise Bad("its pickle has a storage that is a damaged part of another one")
    start, length = part[1], part[2]
    if start + length > count:
        raise Bad("its pickle has a storage that reaches out of another one")
    return Storage(key, _STORAGES[name], length, start, count)


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View:
    return _view(storage, offset, shape, strides, None)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any,
    *rest: Any,
) -> View:  # fmt: skip
    if not isinstance(dtype, Global) or dtype.module != "torch" or dtype.name not in DTYPES:
        raise Bad("its pickle has a tensor of an unknown type")
    return _view(storage, offset, shape, strides, DTYPES[dtype.name])


def _view(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None) -> View:
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise Bad("its pickle has a tensor without a storage or a shape")
    kind = dtype or storage.dtype
    if kind is None:
        raise Bad("its pickle has a tensor without a type")
    if len(shape) != len(strides) or len(shape) > 16:
        raise Bad(f"its pickle has a tensor of {len(shape)} sizes and {len(strides)} strides")
    if not all(map(_size, (offset, *shape, *strides))):
        raise Bad("its pickle has a tensor whose sizes or strides are no counts")
    return View(storage, kind, offset, shape, strides)


def _parameter(data: Any, *rest: Any) -> View:
    if not isinstance(data, View):
        raise Bad("its pickle has a parameter that is no tensor")
    return data


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) not in (list, tuple):
        raise TypeError("no pairs")
    return {_key(key): value for key, value in pairs}


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise TypeError("no text")
    return text.encode(encoding)


def _shape(sizes: Any = ()) -> tuple[Any, ...]:
    if type(sizes) not in (tuple, list):
        raise TypeError("no sizes")
    return tuple(sizes)


def _set(items: Any = ()) -> set[Any]:
    if type(items) not in (list, tuple):
        raise TypeError("no list")
    return {_key(item) for item in items}


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _shape,
    "torch.device": lambda *rest: _Opaque(),
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    **dict.fromkeys(_SETS, _set),
}

_ACTS: Final[dict[bytes, Callable[[Pickle], object]]] = {
    b"\x80": Pickle.proto,
    b"\x95": Pickle.frame,
    b"(": lambda p: p.push(_MARK),
    b"0": lambda p: p.pop(),
    b"1": lambda p: p.since_mark(),
    b"2": lambda p: p.push(p.top()),
    b"N": lambda p: p.push(None),
    b"\x88": lambda p: p.push(True),
    b"\x89": lambda p: p.push(False),
    b"J": lambda p: p.push(p._number(4, signed=True)),
    b"K": lambda p: p.push(p._number(1)),
    b"M": lambda p: p.push(p._number(2)),
    b"\x8a": lambda p: p.long(1),
    b"\x8b": lambda p: p.long(4),
    b"G": lambda p: p.push(struct.unpack(">d", p._take(8))[0]),
    b"X": lambda p: p.text(4),
    b"\x8c": lambda p: p.text(1),
    b"\x8d": lambda p: p.text(8),
    b"U": lambda p: p.text(1, exact=False),
    b"T": lambda p: p.text(4, exact=False),
    b"B": lambda p: p.raw(4),
    b"C": lambda p: p.raw(1),
    b"\x8e": lambda p: p.raw(8),
    b")": lambda p: p.push(()),
    b"t": lambda p: p.push(tuple(p.since_mark())),
    b"\x85": lambda p: p.tuple_of(1),
    b"\x86": lambda p: p.tuple_of(2),
    b"\x87": lambda p: p.tuple_of(3),
    b"]": lambda p: p.push([]),
    b"l": lambda p: p.push(p.since_mark()),
    b"a": lambda p: p.extend([p.pop()]),
    b"e": lambda p: p.extend(p.since_mark()),
    b"}": lambda p: p.push({}),
    b"s": lambda p: p.set_items([p.pop(), p.pop()][::-1]),
    b"u": lambda p: p.set_items(p.since_mark()),
    b"\x8f": lambda p: p.push(set()),
    b"\x90": lambda p: p.add_items(p.since_mark()),
    b"\x91": lambda p: p.push(frozenset(_key(i) for i in p.since_mark())),
    b"q": lambda p: p.put(p._number(1)),
    b"r": lambda p: p.put(p._number(4)),
    b"\x94": lambda p: p.put(len(p._memo)),
    b"h": lambda p: p.get(1),
    b"j": lambda p: p.get(4),
    b"c": lambda p: p.named(p._line(), p._line()),
    b"\x93": Pickle.stack_global,
    b"R": Pickle.reduce,
    b"b": Pickle.build,
    b"Q": Pickle.persistent,
}
