"""Messages to one prompt, by the model's chat template.

Knows: Jinja as `transformers` sets it up. Does not know: tokens. Templates come with model files,
so they run in Jinja's sandbox, in a process that holds nothing but the model.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .refusal import Refusal

MAX_PROMPT = 64 * 1024 * 1024
"""Characters a template may write."""
PLAIN = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content"
    " or '') + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, for a model without a template; llama.cpp takes the same."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: the Jinja text; None is ChatML.
        variables: given to it beside the messages.

    Raises:
        Refusal: it is not valid Jinja.
    """

    def __init__(self, source: str | None, variables: dict[str, Any]) -> None:
        self.source = source or PLAIN
        self._variables = variables
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(self.source)
        except TemplateError as exc:
            raise Refusal(f"the model's chat template is not valid: {exc}", status=500) from exc

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], **variables: Any
    ) -> str:
        """The prompt, with the beginning of the answer.

        Raises:
            Refusal: the template refuses these messages, or fails on them.
        """
        values = {
            "add_generation_prompt": True,
            **self._variables,
            "tools": tools or None,
            **variables,
        }
        try:
            pieces, length = [], 0
            for piece in self._template.generate(messages=messages, **values):
                length += len(piece)
                if length > MAX_PROMPT:
                    raise Refusal("the chat template writes without an end", status=500)
                pieces.append(piece)
            return "".join(pieces)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as exc:
            raise Refusal(
                f"the model's chat template does not take these messages: {exc}", param="messages"
            ) from exc


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    """As `transformers` has it: not escaped for HTML, which Jinja's own is."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)
