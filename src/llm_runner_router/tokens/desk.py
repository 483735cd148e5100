"""Tokens of local models for surfaces and the command line: in threads, bounded, without weights.

Knows: which file belongs to a name, tokenizers, chat templates. Does not know: wires, engines.
The rest of `tokens/` is imported when it is first used: most servers are never asked.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from llm_runner_router.errors import BadRequest
from llm_runner_router.models.info import LocalModel
from llm_runner_router.types import Tokenized, TokenizeRequest

if TYPE_CHECKING:
    from .base import Tokenizer
    from .templates import Renderer

MAX_TEXT: Final = 2_000_000
"""Characters of one text: about two seconds of work, and more than any model reads."""
MAX_IDS: Final = 2_000_000
AT_ONCE: Final = 2
"""Threads at work; what is asked beyond that waits."""


class TokenDesk:
    """Tokenizers by model name.

    Args:
        find: the local model of a name; raises UnknownModel or Unsupported.
    """

    def __init__(self, find: Callable[[str], LocalModel]) -> None:
        self._find = find
        self._places = asyncio.Semaphore(AT_ONCE)
        self._lock = threading.Lock()
        self._renderer: Renderer | None = None

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """See `Gateway.tokenize`."""
        if len(request.text or "") > MAX_TEXT:
            raise BadRequest(
                f"the text has more than {MAX_TEXT} characters",
                hint="send it in parts",
                param="input",
            )
        model = self._find(request.model)
        async with self._places:
            return await asyncio.to_thread(self._tokenize, model, request)

    async def detokenize(self, model: str, ids: Sequence[int]) -> str:
        """See `Gateway.detokenize`."""
        if len(ids) > MAX_IDS:
            raise BadRequest(f"more than {MAX_IDS} ids", hint="send them in parts", param="tokens")
        found = self._find(model)
        async with self._places:
            return await asyncio.to_thread(_text, found, ids)

    def tokenizer(self, name: str) -> Tokenizer:
        """The tokenizer of the local model `name`; reads its file, so not for the event loop.

        Raises:
            UnknownModel, Unsupported, ModelFileError
        """
        return _tokenizer(self._find(name))

    async def aclose(self) -> None:
        """End the process that renders chat templates, if there is one."""
        with self._lock:
            renderer, self._renderer = self._renderer, None
        if renderer is not None:
            await asyncio.to_thread(renderer.close)

    def _tokenize(self, model: LocalModel, request: TokenizeRequest) -> Tokenized:
        tokenizer = _tokenizer(model)
        if request.text is not None:
            around = None if request.around else False
            ids = tokenizer.encode(request.text, special=request.special, add_bos=around)
        else:
            ids = self._prompt(tokenizer, model, request)
        pieces = tuple(tokenizer.piece(id) for id in ids)
        return Tokenized(model.name, tuple(ids), pieces, model.info.context)

    def _prompt(
        self, tokenizer: Tokenizer, model: LocalModel, request: TokenizeRequest
    ) -> list[int]:
        from .counting import prompt_ids
        from .templates import choose, plain, plain_tools, read_templates

        own = read_templates(model.path) if model.template is None else {}
        template = model.template or choose(own, tools=bool(request.tools))
        if template is None:
            raise BadRequest(
                f"`{model.name}` has no chat template, so messages mean nothing to it",
                hint="send a text",
                param="messages",
            )
        return prompt_ids(
            tokenizer,
            template,
            plain(request.messages),
            plain_tools(request.tools),
            renderer=self._rendering(),
            add_generation_prompt=request.add_generation_prompt,
        )

    def _rendering(self) -> Renderer:
        from .templates import Renderer

        with self._lock:
            if self._renderer is None:
                self._renderer = Renderer()
            return self._renderer


def _tokenizer(model: LocalModel) -> Tokenizer:
    from .load import load

    return load(model.path)


def _text(model: LocalModel, ids: Sequence[int]) -> str:
    return _tokenizer(model).decode(ids, skip_special=False)
