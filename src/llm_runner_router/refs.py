"""References to models: one grammar, one parser, nothing else parses names.

    zoo:tiny-math                      a built-in model
    file:/models/a.gguf, ./a.gguf      a file on disk (any path with a separator and a suffix)
    hf:org/repo[@rev][#quant|:file]    Hugging Face
    openai/gpt-4o-mini, openai:gpt-4o-mini     a model of a configured provider
    tiny                               a name from the configuration

Pure: no file system, no configuration. Whether a name exists is for the resolver to say.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct

from .errors import BadRequest

Kind = Literal["zoo", "file", "hf", "provider", "name"]

_FILE_SUFFIXES = (".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth", ".json")
_HF = re.compile(r"([^/:@#]+/[^/:@#]+)(?:@([^:#]+))?(?:#([^:@#]+)|:([^:#]+))?")
_PROVIDER = re.compile(r"\w[\w.+-]*")
_HF_PREFIXES = ("hf:", "huggingface:", "hf.co/", "huggingface.co/")


class Ref(Struct, frozen=True):
    """A parsed reference.

    `name` is what follows the scheme: the zoo name, the path, `org/repo`, the provider's model
    name, or the plain name. `provider` is set for kind `provider` only.
    """

    kind: Kind
    name: str
    provider: str | None = None
    revision: str | None = None
    file: str | None = None
    quant: str | None = None

    def __str__(self) -> str:
        """The canonical spelling; `parse(str(ref)) == ref`."""
        match self.kind:
            case "name":
                return self.name
            case "provider":
                return f"{self.provider}/{self.name}"
            case _:
                tail = f"@{self.revision}" if self.revision else ""
                tail += f"#{self.quant}" if self.quant else ""
                tail += f":{self.file}" if self.file else ""
                # `file://x` reads as `x`, so a path with two slashes in front needs two more.
                head = "//" if self.kind == "file" and self.name.startswith("//") else ""
                return f"{self.kind}:{head}{self.name}{tail}"


def parse(text: str) -> Ref:
    """Parse a reference.

    Raises:
        BadRequest: empty, or with control characters, or a scheme without a name.
    """
    text = text.strip()
    if not text or any(ord(c) < 32 for c in text):
        raise BadRequest(f"not a model reference: {text!r}", hint="for example `zoo:tiny-chat`")
    for prefix in _HF_PREFIXES:
        if text.startswith(prefix):
            return _parse_hf(text.removeprefix(prefix), text)
    if text.startswith("zoo:"):
        return Ref("zoo", _named(text.removeprefix("zoo:"), text))
    if text.startswith("file:"):
        return Ref("file", _named(text.removeprefix("file:").removeprefix("//"), text))
    if text.startswith(("/", "./", "../", "~")) or text.endswith(_FILE_SUFFIXES):
        return Ref("file", text)
    return _parse_provider(text)


def _named(name: str, whole: str) -> str:
    if not name:
        raise BadRequest(f"the reference {whole!r} names nothing", hint="see `llmrr ls`")
    return name


def _parse_hf(rest: str, whole: str) -> Ref:
    found = _HF.fullmatch(rest)
    if found is None:
        raise BadRequest(
            f"{whole!r} is not `hf:org/repo[@revision][#quant|:file]`",
            hint="for example hf:org/repo#q4_k_m",
        )
    repo, revision, quant, file = found.groups()
    if file and "." not in file:
        quant, file = file, None  # the habit org/repo:Q4_K_M
    return Ref("hf", repo, revision=revision, file=file, quant=quant)


def _parse_provider(text: str) -> Ref:
    cut = min((i for i in (text.find("/"), text.find(":")) if i > 0), default=-1)
    if cut < 0 or not _PROVIDER.fullmatch(text[:cut]):
        return Ref("name", text)
    return Ref("provider", _named(text[cut + 1 :].lstrip(":"), text), provider=text[:cut])
