"""Messages to one prompt, by the model's chat template.

Knows: how `tokens.templates` renders: in a process of its own, with limits, as templates come with
model files. Does not know: Jinja, tokens.
"""

from __future__ import annotations

from typing import Any

from llm_runner_router.errors import BadRequest, RunnerError
from llm_runner_router.tokens.templates import Renderer

from .refusal import Refusal

PLAIN = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content"
    " or '') + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""ChatML, for a model without a template; llama.cpp takes the same."""


class ChatTemplate:
    """A template. The process that renders it is started at the first use and ends with ours.

    Args:
        source: the Jinja text; None is ChatML.
        variables: `bos_token` and `eos_token`, where the model has them.
    """

    def __init__(self, source: str | None, variables: dict[str, Any]) -> None:
        self.source = source or PLAIN
        self._bos = str(variables.get("bos_token") or "")
        self._eos = str(variables.get("eos_token") or "")
        self._renderer = Renderer()

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], extra: dict[str, Any]
    ) -> str:
        """The prompt, with the beginning of the answer. Blocks; safe in any thread.

        Raises:
            Refusal: the template refuses these messages, or fails on them.
        """
        try:
            return self._renderer.render(
                self.source, messages, tools, bos=self._bos, eos=self._eos, extra=extra
            )
        except BadRequest as exc:
            raise Refusal(exc.message, param="messages") from exc
        except RunnerError as exc:
            raise Refusal(exc.message, status=500, type="server_error") from exc

    def close(self) -> None:
        """End the process."""
        self._renderer.close()
