"""The child side of the `mistralrs` engine: it draws tokens by itself, our endpoint tells of them.

Knows: mistralrs' runner and its streams. Does not know: HTTP, requests' JSON. Templates are
rendered by our endpoint: the runner is given a template that writes the message as it is.

It takes tokens for special by their looks and leaves `<tool_call>` and `<think>` out of what it
writes, and calls of its own reading come with a grammar that is not the model's. So it is given a
tokenizer in which those tokens have other names, which we put into prompts and turn back in answers
(`ALIASES`).

What it does that other engines do not: a text without a BOS gets one if the tokenizer's file says
so, in chats too; and white space at the beginning of an answer is left out. A text completion gets
that back from the log-probabilities of the first token, a chat does not.

Its methods may not be called in two threads at once ("Already borrowed"), so requests are sent one
after another; the streams they give are read in a thread each. A stream that is dropped stops.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_runner_router.models.pick import split_names

from . import hub, serving
from .api import Api
from .asked import Asked
from .reading import CALL, CALL_END, THINK, THINK_END
from .refusal import Refusal, too_long, unsupported
from .run import Emitted, Finish, Running, timed, used
from .session import Loaded, Order, Pair, Session
from .stops import Stops
from .vocabulary import HubVocabulary

IDENTITY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
ALMOST = 0.9999999
"""One, for a bound that the engine shall not take for none."""
ALIASES = {
    CALL: "[[llmrr_call]]",
    CALL_END: "[[llmrr_call_end]]",
    THINK: "[[llmrr_think]]",
    THINK_END: "[[llmrr_think_end]]",
}
"""What the engine knows these tokens by."""
DTYPES = ("auto", "f32", "f16", "bf16")


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Load the model and serve it; does not return."""
    serving.serve(order, tell, MistralModel, MistralApi)


class Prompt(list[int]):
    """Tokens that remember the text they were made from."""

    text: str


class TextVocabulary(HubVocabulary):
    """A vocabulary whose tokens remember their text, which is what the engine takes."""

    def encode(self, text: str, *, begin: bool) -> list[int]:
        """See `session.Vocabulary`."""
        found = Prompt(super().encode(text, begin=begin))
        found.text = text
        return found


class MistralModel:
    """See `session.Loaded`. Options: `dtype`; `isq`, a quantisation such as `q4k` or `q8_0`;
    `adapters`, LoRA adapters by name.

    Args:
        order: names a Hugging Face folder or a GGUF file.

    Raises:
        Refusal: it wants code of its own, or an option is not known.
    """

    def __init__(self, order: Order) -> None:
        library: Any = import_module("mistralrs")
        path = Path(order.model)
        self.library = library
        self._sending = Lock()
        dtype = str(order.options.get("dtype", "f32"))
        if dtype not in DTYPES:
            raise Refusal(f"`dtype` is one of {', '.join(DTYPES)}, not {dtype!r}")
        kind = getattr(library.ModelDType, dtype.title() if dtype == "auto" else dtype.upper())
        is_file = path.suffix == ".gguf"
        path = path if is_file else hub.folder_of(order.model)
        if not is_file:
            hub.refuse_code(path)
        self.variables: dict[str, Any] = {} if is_file else hub.variables(path)
        own = order.options.get("template") if is_file else hub.template(path)
        self.template = order.template or own
        self.vocabulary = TextVocabulary(path)
        self.adapters = _adapters(order.options.get("adapters"))
        self.tags = False
        """Tags of calls that the model writes can be seen."""
        self.aliases: dict[str, str] = {}
        """Tags, and what the engine knows them by."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "identity.jinja").write_text(IDENTITY)
            which = self._which(path, folder, kind)
            self._runner: Any = library.Runner(
                which=which,
                max_seqs=order.slots,
                prefix_cache_n=order.slots,
                token_source="none",
                jinja_explicit=str(folder / "identity.jinja"),
                in_situ_quant=order.options.get("isq"),
            )

    def _which(self, path: Path, scratch: Path, dtype: Any) -> Any:
        """What to load, in the engine's words."""
        kinds = self.library.Which
        loras = [self.library.LoraAdapter(name, at) for name, at in self.adapters.items()]
        with_loras = {"adapters": loras} if loras else {}
        if not path.is_dir():
            return kinds.GGUF(
                quantized_model_id=str(path.parent),
                quantized_filename=list(split_names(path.name)),
                dtype=dtype,
                **with_loras,
            )
        kind = kinds.Lora if loras else kinds.Plain
        changed = understood(path)
        if any(tag in (self.template or "") for tag in ALIASES):
            tokenizer, aliases = without_tags(path)
            self.tags = {CALL, CALL_END} <= aliases.keys()
            if aliases:
                changed["tokenizer.json"] = tokenizer
                self.aliases = aliases
        return kind(model_id=str(linked(path, scratch, changed)), dtype=dtype, **with_loras)

    def stream(self, text: str, **wanted: Any) -> Any:
        """The chunks of an answer to `text` as it stands, but for `ALIASES`.

        Raises:
            Refusal: the engine refuses the request; says why.
        """
        try:
            with self._sending:
                return self._runner.send_chat_completion_request(
                    self.library.ChatCompletionRequest(
                        messages=self.named(text),
                        model="default",
                        stream=True,
                        **wanted,
                    )
                )
        except ValueError as exc:
            raise Refusal(str(exc)[:2000]) from exc

    def named(self, text: str, *, back: bool = False) -> str:
        """A text with the engine's names of the tags, or `back` with ours."""
        for tag, alias in self.aliases.items():
            text = text.replace(alias, tag) if back else text.replace(tag, alias)
        return text

    def session(self) -> Session:
        """Not with this engine.

        Raises:
            Refusal: always.
        """
        raise Refusal("mistralrs gives no logits", status=500)

    def embed(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Not with this engine.

        Raises:
            Refusal: always.
        """
        raise Refusal("mistralrs gives no embeddings of this model", type="unsupported_parameter")

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Not with this engine.

        Raises:
            Refusal: always.
        """
        raise Refusal("this model does not rerank", type="unsupported_parameter")


def _adapters(given: Any) -> dict[str, str]:
    """The option `adapters`: names and folders.

    Raises:
        Refusal: it is something else, or a folder has no adapter.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Refusal("the option `adapters` maps names to folders with `adapter_config.json`")
    for name, path in given.items():
        if not (Path(str(path)).expanduser() / "adapter_config.json").is_file():
            raise Refusal(f"`{path}` of the adapter {name!r} has no `adapter_config.json`")
    return {str(name): str(Path(str(path)).expanduser()) for name, path in given.items()}


def understood(path: Path) -> dict[str, Any]:
    """By their names, files of the folder in a form that the engine can read, where it cannot.

    Since version 5 transformers writes `rope_parameters`; the engine asks for `rope_theta`.
    """
    config = hub.read_json(path / "config.json")
    rope = config.get("rope_parameters")
    if "rope_theta" in config or not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", rope)
    return {"config.json": config}


def without_tags(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The folder's `tokenizer.json` with `ALIASES`, and those of them that are tokens of it."""
    tokenizer = hub.read_json(path / "tokenizer.json")
    added = {one["content"]: one for one in tokenizer.get("added_tokens") or ()}
    aliases = {tag: alias for tag, alias in ALIASES.items() if tag in added}
    vocabulary = (tokenizer.get("model") or {}).get("vocab")
    for tag, alias in aliases.items():
        added[tag] |= {"content": alias, "special": False}
        if isinstance(vocabulary, dict) and tag in vocabulary:
            vocabulary[alias] = vocabulary.pop(tag)
    if isinstance(vocabulary, list):  # of pieces with their scores
        for piece in vocabulary:
            piece[0] = aliases.get(piece[0], piece[0])
    return tokenizer, aliases


def linked(path: Path, scratch: Path, changed: dict[str, Any]) -> Path:
    """The folder itself, or one of links in `scratch` with other contents of some files."""
    if not changed:
        return path
    folder = scratch / path.name
    folder.mkdir()
    for one in path.iterdir():
        if one.name not in changed:
            (folder / one.name).symlink_to(one.absolute())
    for name, content in changed.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return folder


class MistralApi(Api):
    """The endpoint with answers that the engine draws."""

    forces_tags = False

    def __init__(self, loaded: Loaded, order: Order) -> None:
        super().__init__(loaded, order)
        assert isinstance(loaded, MistralModel)
        self._model = loaded
        self.tags = loaded.tags
        self._turns = _threads(order)

    @asynccontextmanager
    async def _running(
        self, asked: Asked, tokens: list[int], shown: frozenset[str]
    ) -> AsyncIterator[Running]:
        if len(tokens) >= self._order.context:
            raise too_long(len(tokens), self._order.context)
        self._check_adapters(asked.adapters)
        if not isinstance(tokens, Prompt):
            raise unsupported("mistralrs takes a prompt as text, not as tokens", "prompt")
        run = MistralRun(self._model, asked, tokens, self._order.context)
        try:
            yield run
        finally:
            run.close()

    def _check_adapters(self, wanted: tuple[tuple[str | int, float], ...]) -> None:
        """Raise `Refusal` for what cannot be had."""
        if len(wanted) > 1 or any(scale != 1.0 for _, scale in wanted):
            raise unsupported("mistralrs takes one LoRA adapter, with a scale of 1", "lora")
        for name, _ in wanted:
            if name not in self._model.adapters:
                known = ", ".join(self._model.adapters) or "none"
                raise Refusal(
                    f"there is no LoRA adapter {name!r}; there are: {known}", param="lora"
                )


def _threads(order: Order) -> Any:
    from .turns import Turns

    return Turns(order.slots * 2)


class MistralRun:
    """See `run.Running`: one stream of the engine, and our stop sequences on its text.

    Args:
        model: opens the stream.
        asked: what the answer shall be.
        prompt: its tokens, with their text.
        context: tokens of prompt and answer at most.
    """

    def __init__(self, model: MistralModel, asked: Asked, prompt: Prompt, context: int) -> None:
        self._model = model
        self._asked = asked
        self._prompt = prompt
        room = context - len(prompt)
        self._limit = room if asked.limit is None else min(asked.limit, room)
        self._stops = Stops(asked.stops)
        self._chunks: Any = None
        self._held: list[dict[str, Any]] = []
        self._usage: Any = None
        self._began = time.monotonic()
        self._read = self._ended = 0.0
        self.drawn: list[str] = []
        self.finish: Finish | None = "length" if asked.limit == 0 else None

    def advance(self) -> Emitted | None:
        """Wait for the next token, and what may be shown after it."""
        if self._chunks is None:
            self._chunks = iter(self._model.stream(self._prompt.text, **self._wanted()))
        try:
            chunk = next(self._chunks)
        except StopIteration:
            return self._end("stop")
        self._read = self._read or time.monotonic()
        self._usage = chunk.usage or self._usage
        choice = chunk.choices[0]
        text = self._shown(choice.delta.content or "")
        if not self.drawn and choice.logprobs is not None:
            text = _blank(choice.logprobs) + text
        if text or choice.logprobs is not None:
            self.drawn.append(text)
        if self._asked.alternatives is not None and choice.logprobs is not None:
            self._held.append(self._told(choice.logprobs, self._asked.alternatives))
        shown = self._stops.feed(text)
        if self._stops.found:
            return self._end("stop", shown)
        if choice.finish_reason is not None:
            length = choice.finish_reason == "length"
            return self._end("length" if length else "stop", shown)
        return self._emit(shown)

    def _shown(self, text: str) -> str:
        return self._model.named(text, back=True)

    def _wanted(self) -> dict[str, Any]:
        """The request's settings in the engine's words."""
        asked, settings = self._asked, self._asked.settings
        wanted: dict[str, Any] = {
            "max_tokens": self._limit,
            "temperature": settings.temperature,
            # Without one it takes the likeliest, whatever the temperature.
            "top_k": settings.top_k or self._model.vocabulary.size,
            # It takes a bound of 0 or 1 for none, and with no `top_p` leaves `min_p` out as well.
            "top_p": min(max(settings.top_p, 1 - ALMOST), ALMOST),
            "min_p": min(settings.min_p, ALMOST),
            "repetition_penalty": settings.repeat_penalty,
            "presence_penalty": settings.presence_penalty,
            "frequency_penalty": settings.frequency_penalty,
            "logit_bias": {t: max(-1e9, b) for t, b in settings.bias.items()} or None,
            "ignore_eos": asked.ignore_end,
        }
        if asked.alternatives is not None or asked.prompt is not None:
            # The engine gives at least one.
            wanted |= {"logprobs": True, "top_logprobs": max(1, asked.alternatives or 0)}
        if asked.adapters:
            wanted["adapter"] = asked.adapters[0][0]
        if asked.grammar is not None:
            wanted |= {"grammar": asked.grammar, "grammar_type": "lark"}
        return wanted

    def _told(self, found: Any, count: int) -> dict[str, Any]:
        """OpenAI's record of a token; the engine does not tell the drawn one's number."""
        piece = self._model.vocabulary.piece
        best = [
            {
                "id": one.token,
                "token": piece(one.token).decode("utf-8", "replace"),
                "bytes": list(piece(one.token)),
                "logprob": max(float(one.logprob), -1e4),
            }
            for one in found.top_logprobs[:count]
        ]
        token = self._shown(found.token)
        raw = token.encode() if token != found.token else found.bytes or token.encode()
        return {
            "token": token,
            "bytes": list(raw),
            "logprob": max(float(found.logprob), -1e4),
            "top_logprobs": best,
        }

    def _end(self, finish: Finish, text: str = "") -> Emitted | None:
        self.finish, self._ended = finish, time.monotonic()
        if not self._stops.found:
            text += self._stops.end()
        return self._emit(text, last=True)

    def _emit(self, text: str, *, last: bool = False) -> Emitted | None:
        if not text and not (last and self._held):
            return None
        told, self._held = self._held, []
        return Emitted(text, told)

    def close(self) -> None:
        """Leave the stream; the engine stops computing."""
        self._chunks = None

    # ------------------------------------------------------------ accounts

    def usage(self) -> dict[str, Any]:
        """OpenAI's `usage`: the engine's own where it ended by itself."""
        prompt, cached, drawn = self._counts()
        return used(prompt, cached, drawn)

    def timings(self) -> dict[str, Any]:
        """What llama.cpp's server calls `timings`, by our clock."""
        prompt, cached, drawn = self._counts()
        ended = self._ended or time.monotonic()
        read = self._read or ended
        return timed(cached, prompt - cached, read - self._began, drawn, ended - read)

    def _counts(self) -> tuple[int, int, int]:
        if self._usage is None:
            return len(self._prompt), 0, len(self.drawn)
        details = self._usage.prompt_tokens_details
        cached = 0 if details is None else int(details.cached_tokens)
        return int(self._usage.prompt_tokens), cached, int(self._usage.completion_tokens)


def _blank(told: Any) -> str:
    """The white space that a token begins with."""
    text = bytes(told.bytes or b"").decode("utf-8", "replace")
    return text[: len(text) - len(text.lstrip())]
