"""Pickles that run a program when unpickled, in every way the opcodes allow, and some that hang."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from .attack import Attack

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
MACHINE = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."


_RUN = {
    "reduce-os-system", "reduce-posix", "reduce-eval", "reduce-exec-2", "reduce-subprocess",
    "stack-global", "stack-global-through-memo", "inst", "obj", "before-a-broken-end",
}  # fmt: skip
"""Those whose program the standard library's `pickle.load` really runs."""


def text(value: str) -> bytes:
    """A text as the opcode `BINUNICODE` pushes it."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(module: str, name: str) -> bytes:
    """A name as the opcode `GLOBAL` looks it up."""
    return f"c{module}\n{name}\n".encode()


def archive(pickle: bytes, storages: dict[str, bytes] | None = None, top: str = "archive") -> bytes:
    """The zip form of a PyTorch file with this description."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr(f"{top}/data.pkl", pickle)
        zipped.writestr(f"{top}/byteorder", b"little")
        for key, content in (storages or {"0": bytes(16)}).items():
            zipped.writestr(f"{top}/data/{key}", content)
        zipped.writestr(f"{top}/version", b"3\n")
    return buffer.getvalue()


def tensor(
    *,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
    key: str = "0",
    count: int = 4,
) -> bytes:
    """The opcodes of one tensor."""
    return (
        named("torch._utils", "_rebuild_tensor_v2")
        + b"(("
        + text("storage")
        + named("torch", kind)
        + text(key)
        + text("cpu")
        + number(count)
        + b"tQ"
        + number(offset)
        + b"("
        + b"".join(map(number, shape))
        + b"t("
        + b"".join(map(number, strides))
        + b"t\x89"
        + named("collections", "OrderedDict")
        + b")RtR"
    )


def number(value: int) -> bytes:
    """An integer of any size, as `LONG1` pushes it."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def weights(inner: bytes) -> bytes:
    """A dictionary with one entry."""
    return b"\x80\x02}" + text("a") + inner + b"s."


def older(description: bytes) -> bytes:
    """The older form of a PyTorch file, without storages."""
    return MAGIC + VERSION + MACHINE + description + b"\x80\x02]."


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """The opcodes that call a name with up to two arguments."""
    return (
        named(module, name) + b"".join(arguments) + (b")", b"\x85", b"\x86")[len(arguments)] + b"R"
    )


def stacked(module: str, name: str) -> bytes:
    """A name as the opcode `STACK_GLOBAL` looks it up."""
    return text(module) + text(name) + b"\x93"


Row = tuple[bytes, str, str]
"""The opcodes behind the protocol's, words of the refusal, where such an attack was seen."""
_DENY = "deny-lists that lacked it"
_COPYREG = "the registry of `copyreg`"


def _programs(marker: Path) -> dict[str, Row]:
    touch = text(f"touch '{marker}'")
    code = text(f"open({str(marker)!r}, 'w').close()")
    memo = text("system") + b"\x94" + text("os") + b"\x940h\x01h\x00\x93"
    ordered = call("collections", "OrderedDict")
    return {
        "reduce-os-system": (call("os", "system", touch) + b".", "`os.system`", _DENY),
        "reduce-posix": (call("posix", "system", touch) + b".", "`posix.system`", _DENY),
        "reduce-eval": (call("builtins", "eval", code) + b".", "`builtins.eval`", _DENY),
        "reduce-exec-2": (call("__builtin__", "exec", code) + b".", "`__builtin__.exec`", _DENY),
        "reduce-subprocess": (
            call("subprocess", "getoutput", touch) + b".",
            "`subprocess.getoutput`",
            _DENY,
        ),
        "stack-global": (
            stacked("os", "system") + touch + b"\x85R.",
            "`os.system`",
            "scanners that looked for GLOBAL only",
        ),
        "stack-global-through-memo": (
            memo + touch + b"\x85R.",
            "`os.system`",
            "picklescan: arguments of STACK_GLOBAL taken from the memo",
        ),
        "inst": (b"(" + touch + b"ios\nsystem\n.", "opcode `INST`", _DENY),
        "obj": (b"(" + named("os", "system") + touch + b"o.", "`os.system`", _DENY),
        "newobj": (named("os", "system") + touch + b"\x85\x81.", "`os.system`", _DENY),
        "newobj-ex": (
            named("subprocess", "Popen") + touch + b"\x85}\x92.",
            "`subprocess.Popen`",
            _DENY,
        ),
        "build": (ordered + b"}" + text("update") + text("x") + b"sb.", "sets attributes", ""),
        "extension-1": (b"\x82\x01)R.", "opcode `EXT1`", _COPYREG),
        "extension-2": (b"\x83\x01\x01)R.", "opcode `EXT2`", _COPYREG),
        "extension-4": (b"\x84\x01\x01\x01\x01)R.", "opcode `EXT4`", _COPYREG),
        "persistent-text": (b"Pos.system\n.", "opcode `PERSID`", ""),
        "persistent-other": (text("/etc/passwd") + b"Q.", "refers to something outside", ""),
        "nested-pickle": (
            call("pickle", "loads", b"C\x04\x80\x02N.") + b".",
            "`pickle.loads`",
            "picklescan: nested pickles",
        ),
        "torch-load": (call("torch", "load", text("x")) + b".", "`torch.load`", "a second file"),
        "torch-hub": (
            call("torch.hub", "load", text("org/repo")) + b".",
            "`torch.hub.load`",
            "fickling: functions of trusted packages",
        ),
        "dotted-name": (
            stacked("torch", "serialization.os.system") + touch + b"\x85R.",
            "`torch.serialization.os.system`",
            "fickling: attributes of trusted modules",
        ),
        "dotted-allowed-name": (
            stacked("collections", "OrderedDict.fromkeys") + b")R.",
            "`collections.OrderedDict.fromkeys`",
            "",
        ),
        "two-dots": (
            stacked("torch._utils.", "_rebuild_tensor_v2") + b")R.",
            "`torch._utils.._rebuild_tensor_v2`",
            "",
        ),
        "getattr": (call("builtins", "getattr", b"N", text("x")) + b".", "`builtins.getattr`", ""),
        "numpy-load": (call("numpy", "load", text("x")) + b".", "`numpy.load`", ""),
        "model-class": (
            named("transformers", "LlamaModel") + b")\x81}b.",
            "`transformers.LlamaModel`",
            "",
        ),
        "call-a-type": (call("torch", "float16") + b".", "nothing to call", ""),
        "call-a-text": (text("os.system") + touch + b"\x85R.", "no name", ""),
        "before-a-broken-end": (
            call("os", "system", touch) + b"\xff\xff",
            "`os.system`",
            "nullifAI",
        ),
    }


def _hangs() -> dict[str, Row]:
    laughs = b")" + b"2\x86" * 60
    again = named("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R0"
    return {
        "shared-key": (b"}" + laughs + b"Ns.", "a tuple for a key", "billion laughs"),
        "shared-in-set": (b"\x8f(" + laughs + b"\x90.", "a tuple for a key", "billion laughs"),
        "long-text": (b"\x8d" + b"\xff" * 7 + b"\x0f.", "ends inside", ""),
        "long-frame": (b"\x95" + b"\xff" * 7 + b"\x0f.", "frame", ""),
        "long-integer": (b"\x8b\xff\xff\xff\x7f.", "integer of", ""),
        "protocol-9": (b"\x80\x09N.", "protocol 9", ""),
        "many-steps": (b"N0" * 1_100_000 + b"N.", "more than 2000000 steps", ""),
        "copies": (text("x" * 1_000_000) + b"q\x00" + again * 100 + b"N.", "copies more", ""),
        "no-mark": (b"t.", "damaged", ""),
        "pop-from-nothing": (b"0.", "damaged", ""),
        "mark-as-value": (b"(.", "does not end with one value", ""),
        "unknown-memo": (b"h\x07.", "damaged", ""),
        "in-itself": (b"]q\x00h\x00a.", "no tensors", ""),
        "ends-early": (b"N", "ends inside", ""),
    }


def _tensors() -> dict[str, Row]:
    reads = "out-of-bounds reads"
    wide, square = ((2**40,), (0,)), ((2**30, 2**30), (0, 0))
    return {
        "no-storage": (weights(tensor(key="9")), "'9', which is missing", ""),
        "storage-outside": (weights(tensor(key="../../../etc/passwd")), "which is missing", ""),
        "storage-large": (weights(tensor(count=2**40)), "claims 1099511627776 elements", ""),
        "view-outside": (weights(tensor(offset=1)), "reaches out", reads),
        "view-far-outside": (weights(tensor(offset=2**61)), "reaches out", reads),
        "stride-outside": (weights(tensor(strides=(2,))), "reaches out", reads),
        "negative-offset": (weights(tensor(offset=-1)), "no counts", reads),
        "negative-stride": (weights(tensor(strides=(-1,))), "no counts", reads),
        "expanded": (weights(tensor(shape=wide[0], strides=wide[1])), "more than once", "memory"),
        "square": (weights(tensor(shape=square[0], strides=square[1])), "more than once", "memory"),
        "no-stride": (weights(tensor(shape=(2, 2))), "2 sizes and 1 strides", ""),
        "unknown-storage": (weights(tensor(kind="QInt8Storage")), "`torch.QInt8Storage`", ""),
    }


def attacks(marker: Path) -> Iterator[Attack]:
    """Each program alone, in the zip form and in the older one; the rest in the zip form."""
    for name, (opcodes, error, source) in _programs(marker).items():
        runs, pickle = name in _RUN, b"\x80\x04" + opcodes
        if name == "reduce-exec-2":
            pickle = b"\x80\x02" + opcodes  # only that protocol translates Python 2's names
        yield Attack.file(f"zip-{name}.pt", archive(pickle), error, runs=runs, source=source)
        yield Attack.file(f"older-{name}.pt", older(pickle), error, runs=runs, source=source)
        yield Attack.file(f"plain-{name}.pkl", pickle, error, runs=runs, source=source)
    for name, (opcodes, error, source) in (_hangs() | _tensors()).items():
        pickle = opcodes if opcodes[:1] == b"\x80" else b"\x80\x04" + opcodes
        yield Attack.file(f"zip-{name}.pt", archive(pickle), error, source=source)
