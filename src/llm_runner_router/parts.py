"""What a conversation is made of: messages, their parts, calls of tools, tools.

Knows: the words of OpenAI's chat format, which most of these values have, and what other dialects
can say beyond it. Does not know: any wire format as a whole. `types.py` gives all of them on.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Raw, Struct

GOOGLE = "google:"
OPENAI = "openai:"
"""What the signatures of Google's models, and the sealed thoughts of OpenAI's, begin with here, so
that no other provider is shown them. Those of Anthropic's models are as they came."""
SIGNERS = (GOOGLE, OPENAI)

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class TextPart(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="text"):
    """A piece of text inside a message."""

    text: str
    cache_control: dict[str, Any] | None = None
    """Anthropic's mark that the prompt up to here is worth caching, as it came."""


class ImageURL(Struct, frozen=True, omit_defaults=True):
    """Where an image is: an `https:` or `data:` URL, and how closely to look at it."""

    url: str
    detail: str | None = None


class ImagePart(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="image_url"):
    """An image inside a message."""

    image_url: ImageURL
    cache_control: dict[str, Any] | None = None


class InputAudio(Struct, frozen=True):
    """Base64 audio and its container format (`wav`, `mp3`)."""

    data: str
    format: str


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Sound inside a message."""

    input_audio: InputAudio


class FileData(Struct, frozen=True, omit_defaults=True):
    """A document: its bytes as a `data:` URL, where it is, or what the provider calls it."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None
    file_url: str | None = None
    """An `https:` URL (not in OpenAI's chat format)."""


class FilePart(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="file"):
    """A document inside a message: PDF or text."""

    file: FileData
    cache_control: dict[str, Any] | None = None
    citations: bool = False
    """The answer is to say which of its words come from here."""


class ThinkingPart(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="thinking"):
    """What an assistant thought in an earlier turn, with the provider's signature."""

    thinking: str
    signature: str | None = None


class RedactedPart(Struct, frozen=True, tag_field="type", tag="redacted_thinking"):
    """What an assistant thought in an earlier turn, which only its provider can read."""

    data: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    """An earlier refusal of the model, repeated by the client."""

    refusal: str


class ForeignPart(Struct, frozen=True, tag_field="type", tag="foreign"):
    """A piece that only the dialect it came in knows, such as the result of a provider's search.

    What it holds is in the request's own bytes (`RequestWire`).
    """

    kind: str


Part = (
    TextPart
    | ImagePart
    | AudioPart
    | FilePart
    | RefusalPart
    | ThinkingPart
    | RedactedPart
    | ForeignPart
)


class ToolCall(Struct, frozen=True):
    """A finished tool call. `arguments` is JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str
    cache_control: dict[str, Any] | None = None
    signature: str | None = None
    """The provider's proof of the thoughts that led to the call; it begins with `GOOGLE`."""


class Message(Struct, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False
    """With the role `tool`: the call failed, and the content says why."""
    cache_control: dict[str, Any] | None = None
    """With the role `tool`: see `TextPart`."""

    @property
    def text(self) -> str:
        """The text of this turn, its parts joined; images and audio are left out."""
        if isinstance(self.content, str):
            return self.content
        return "".join(p.text for p in self.content or () if isinstance(p, TextPart))


class Tool(Struct, frozen=True):
    """A function the model may call. `parameters` is a JSON Schema, kept as it came."""

    name: str
    description: str | None = None
    parameters: Raw | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    kind: str | None = None
    """A tool that the provider runs itself, by the type its dialect gives it; what it is told is
    in the request's own bytes."""
