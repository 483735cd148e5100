"""References to models: one grammar, one parser, nothing else parses names.

    zoo:tiny-math                      a built-in model
    file:/models/a.gguf, ./a.gguf      a file or a folder on disk (any path that looks like one)
    hf:org/repo[@rev][#quant|:file]    Hugging Face; also hf.co/org/repo:Q4_K_M, huggingface:…
    ollama:name[:tag]                  Ollama's registry; also ollama:user/name:tag
    https://host/path/model.gguf       a file at an address
    s3://bucket/key                    an object, or a folder when the key ends with a slash
    openai/gpt-4o-mini, openai:gpt-4o-mini     a model of a configured provider
    tiny                               a name from the configuration or from the store

Addresses of the two hubs' own pages read as what they show: `https://huggingface.co/org/repo`,
`https://huggingface.co/org/repo/blob/main/a.gguf`, `https://ollama.com/library/qwen3:4b`.

Pure: no file system, no configuration. Whether a name exists is for the resolver to say.
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from .errors import BadRequest

Kind = Literal["zoo", "file", "hf", "ollama", "url", "s3", "provider", "name"]

REMOTE: frozenset[Kind] = frozenset({"hf", "ollama", "url", "s3"})
"""Kinds that `llmrr pull` can bring to this machine."""

_FILE_SUFFIXES = (
    *(".gguf", ".safetensors", ".onnx", ".bin", ".pt", ".pth", ".json"),
    *(".zip", ".tar", ".tgz", ".txz", ".gz", ".xz", ".bz2", ".zst"),
)
_HF = re.compile(r"([^/:@#]+/[^/:@#]+)(?:@([^:#]+))?(?:#([^:@#]+)|:([^:#]+))?")
_HF_PAGE = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/:@#?]+/[^/:@#?]+)"
    r"(?:/(?:blob|resolve|raw)/([^/:@#?]+)/([^:#?]+)|/tree/([^/:@#?]+))?/?(?:\?download=true)?"
)
_OLLAMA = re.compile(
    r"((?:[\w.-]+(?::\d+)?/)?(?:[\w.-]+/)?[\w][\w.-]*)(?::([\w][\w.-]*))?", re.ASCII
)
_OLLAMA_PAGE = re.compile(r"https?://(?:www\.)?ollama\.com/(?:library/)?([^:#?]+(?::[\w.-]+)?)/?")
_PROVIDER = re.compile(r"\w[\w.+-]*")
_HF_PREFIXES = ("hf://", "hf:", "huggingface://", "huggingface:", "hf.co/", "huggingface.co/")
_OLLAMA_PREFIXES = ("ollama://", "ollama:")
_URL = re.compile(r"https?://[^\s/?#]+(/[^\s]*)?")
_S3 = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]/[^\s#?]+")


class Ref(Struct, frozen=True):
    """A parsed reference.

    `name` is what follows the scheme: the zoo name, the path, `org/repo`, the model of Ollama's
    registry, the whole address, `bucket/key`, the provider's model name, or the plain name.
    `provider` is set for kind `provider` only. `revision` is a branch, tag or commit; of Ollama's
    registry it is the tag.
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
            case "name" | "url":
                return self.name
            case "provider":
                return f"{self.provider}/{self.name}"
            case "s3":
                return f"s3://{self.name}"
            case "ollama":
                return f"ollama:{self.name}" + (f":{self.revision}" if self.revision else "")
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
    if text.startswith(("http://", "https://")):
        return _parse_address(text)
    for prefix in _HF_PREFIXES:
        if text.startswith(prefix):
            return _parse_hf(text.removeprefix(prefix), text)
    for prefix in _OLLAMA_PREFIXES:
        if text.startswith(prefix):
            return _parse_ollama(text.removeprefix(prefix), text)
    if text.startswith("s3://"):
        return _parse_s3(text)
    if text.startswith("zoo:"):
        return Ref("zoo", _named(text.removeprefix("zoo:"), text))
    if text.startswith("file:"):
        return Ref("file", _named(text.removeprefix("file:").removeprefix("//"), text))
    if text in (".", "..") or text.startswith(("/", "./", "../", "~")):
        return Ref("file", text)
    return Ref("file", text) if text.endswith(_FILE_SUFFIXES) else _parse_provider(text)


def plain(name: str) -> str:
    """`name` if it reads as a plain name and as nothing else.

    Raises:
        BadRequest: it would be a reference, so nobody could ask for it by this name.
    """
    ref = parse(name)
    if ref.kind != "name" or ref.name != name or "/" in name or ":" in name:
        raise BadRequest(
            f"{name!r} cannot be a name: it reads as a reference",
            hint="letters, digits, `-`, `_` and `.`, for example `my-model`",
        )
    return name


def _named(name: str, whole: str) -> str:
    if not name:
        raise BadRequest(f"the reference {whole!r} names nothing", hint="see `llmrr ls`")
    return name


def _parse_hf(rest: str, whole: str) -> Ref:
    found = _HF.fullmatch(rest)
    if (
        found is None
        or not all(part.strip() == part for part in found.groups() if part)
        or _climbs(found[1])
    ):
        raise BadRequest(
            f"{whole!r} is not `hf:org/repo[@revision][#quant|:file]`",
            hint="for example hf:org/repo#q4_k_m",
        )
    repo, revision, quant, file = found.groups()
    if file and "." not in file:
        # The habit org/repo:Q4_K_M; `:latest` comes from people used to Ollama and means nothing.
        quant, file = (None if file == "latest" else file), None
    return Ref("hf", repo, revision=revision, file=file, quant=quant)


def _parse_ollama(rest: str, whole: str) -> Ref:
    found = _OLLAMA.fullmatch(rest)
    if found is None or _climbs(found[1]):
        raise BadRequest(
            f"{whole!r} is not `ollama:name[:tag]`", hint="for example ollama:qwen3:4b"
        )
    name, tag = found.groups()
    return Ref("ollama", name.removeprefix("library/"), revision=tag)


def _parse_address(text: str) -> Ref:
    page = _HF_PAGE.fullmatch(text)
    if page is not None:
        repo, revision, file, tree = page.groups()
        if repo.partition("/")[0] not in ("datasets", "spaces", "api", "models", ".", ".."):
            return Ref("hf", repo, revision=_unless_main(revision or tree), file=file)
    page = _OLLAMA_PAGE.fullmatch(text)
    if page is not None and _OLLAMA.fullmatch(page[1]):
        return _parse_ollama(page[1], text)
    try:
        sound = _URL.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:  # brackets, or a port, that are none
        sound = False
    if not sound:
        raise BadRequest(f"{text!r} is no address", hint="for example https://host/model.gguf")
    return Ref("url", text)


def _climbs(name: str) -> bool:
    """Whether a name with slashes would lead out of the folder that is named after it."""
    return "\\" in name or any(part in (".", "..") for part in name.split("/"))


def _unless_main(revision: str | None) -> str | None:
    return None if revision == "main" else revision


def _parse_s3(text: str) -> Ref:
    name = text.removeprefix("s3://")
    if _S3.fullmatch(name) is None:
        raise BadRequest(
            f"{text!r} is not `s3://bucket/key`", hint="for example s3://models/a.gguf"
        )
    return Ref("s3", name)


def _parse_provider(text: str) -> Ref:
    cut = min((i for i in (text.find("/"), text.find(":")) if i > 0), default=-1)
    if cut < 0 or not _PROVIDER.fullmatch(text[:cut]):
        return Ref("name", text)
    return Ref("provider", _named(text[cut + 1 :].lstrip(":"), text), provider=text[:cut])
