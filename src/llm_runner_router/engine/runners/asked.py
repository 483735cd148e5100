"""What a request to a runner asks for, read from its JSON. Pure.

Knows: the fields of OpenAI's API and those that llama.cpp's server adds. Does not know: models.
Fields that nobody here knows are ignored, as every OpenAI-compatible server does.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from llm_runner_router.engine.adapting import MAX_STOP, MAX_STOPS
from llm_runner_router.engine.references import moved

from . import grammar
from .reading import CALL, CALL_END
from .refusal import Refusal, unsupported
from .sampling import Settings

MAX_ALTERNATIVES = 50
RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 1e6),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("repeat_penalty", 1e-6, 1e6),
    ("repetition_penalty", 1e-6, 1e6),
    ("presence_penalty", -1e6, 1e6),
    ("frequency_penalty", -1e6, 1e6),
    ("repeat_last_n", -1, 1e9),
    ("seed", -(2**63), 2**63 - 1),
)
"""Fields, and the least and greatest value that means something."""
ELSEWHERE: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "top_n_sigma": (-1, 0),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "samplers": (),
    "suffix": ("",),
    "best_of": (1,),
    "echo": (False,),
    "n_probs": (0,),
    "min_keep": (0, 1),
    "adaptive_target": (-1,),
}
"""Fields that llama.cpp or OpenAI know and that would change the answer, with the values that do
not: with others they are refused, as an answer without them would not be what was asked for."""


class Body(Struct):
    """The body of a chat or text completion."""

    messages: list[dict[str, Any]] | None = None
    prompt: Any = None
    """A text, a list of tokens, or a list of one of these."""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float | bool] | list[tuple[int, float | bool]] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    n: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    ignore_eos: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    repeat_last_n: int | None = None
    lora: list[dict[str, Any]] | None = None


class Asked(Struct, frozen=True):
    """A request, checked."""

    settings: Settings
    stops: tuple[str, ...]
    limit: int | None
    """Tokens of the answer at most; None is to the end of the context."""
    stream: bool
    usage: bool
    """The stream ends with the usage."""
    alternatives: int | None
    """Tokens whose probabilities are told beside the drawn one's; None tells none."""
    ignore_end: bool
    grammar: str | None
    messages: list[dict[str, Any]] | None
    prompt: str | list[int] | None
    tools: list[dict[str, Any]]
    forced: bool
    """The answer is a call."""
    variables: dict[str, Any]
    """Given to the template."""
    one_call: bool = False
    """Of calls that the model may write, the first ends the answer."""
    adapters: tuple[tuple[str | int, float], ...] = ()
    """LoRA adapters and their weights."""


_decoder = msgspec.json.Decoder(Body)


def read(body: bytes, *, chat: bool, tagged: bool) -> Asked:
    """A request from its bytes.

    Args:
        chat: it has messages; else a prompt.
        tagged: the model's template writes calls between `<tool_call>` tags.

    Raises:
        Refusal: it is not such a request; says which field.
    """
    try:
        asked = _decoder.decode(body)
    except msgspec.ValidationError as exc:
        words, _, where = str(exc).partition(" - at `$.")
        raise Refusal(words, param=where.rstrip("`") or None) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Refusal(f"the body is not JSON: {exc}") from exc
    if chat and not asked.messages:
        raise Refusal("`messages` is missing or empty", param="messages")
    if asked.n not in (None, 1):
        raise unsupported("one choice at a time is given here", "n")
    _check_ranges(asked)
    _check_others(body)
    tools = asked.tools or []
    forced, rules = _rules(asked, tools, tagged)
    if asked.tool_choice == "none":
        tools = []
    return Asked(
        settings=_settings(asked),
        stops=_stops(asked.stop),
        limit=_limit(asked),
        stream=asked.stream,
        usage=bool((asked.stream_options or {}).get("include_usage")),
        alternatives=_alternatives(asked),
        ignore_end=asked.ignore_eos,
        grammar=rules,
        messages=[_message(m, i) for i, m in enumerate(asked.messages or [])] if chat else None,
        prompt=None if chat else _prompt(asked.prompt),
        tools=tools,
        forced=forced,
        variables=_variables(asked.chat_template_kwargs or {}),
        adapters=_adapters(asked.lora or []),
        one_call=bool(tools) and asked.parallel_tool_calls is False,
    )


def _check_ranges(asked: Body) -> None:
    for name, low, high in RANGES:
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:
            raise Refusal(f"`{name}` is from {low:g} to {high:g}, not {value}", param=name)


def _check_others(body: bytes) -> None:
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    for name, neutral in ELSEWHERE.items():
        if name in fields:
            value = msgspec.json.decode(fields[name])
            if value is not None and value not in neutral:
                raise unsupported(f"this engine does not know `{name}`", name)


def _settings(asked: Body) -> Settings:
    given = {
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "min_p": asked.min_p,
        "repeat_penalty": asked.repeat_penalty or asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
        "seed": None if asked.seed is None or asked.seed < 0 else asked.seed,
        "last": asked.repeat_last_n,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return Settings(**chosen, bias=_bias(asked.logit_bias))


def _bias(given: dict[str, float | bool] | list[tuple[int, float | bool]] | None) -> dict[int, Any]:
    pairs = given.items() if isinstance(given, dict) else given or ()
    try:
        # llama.cpp: `false` forbids the token.
        return {int(k): float("-inf") if v is False else float(v) for k, v in pairs}
    except ValueError as exc:
        raise Refusal("`logit_bias` maps token numbers to numbers", param="logit_bias") from exc


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stops) > MAX_STOPS:
        raise Refusal(f"at most {MAX_STOPS} stop sequences are taken", param="stop")
    for i, stop in enumerate(stops):
        if len(stop) > MAX_STOP:
            words = f"a stop sequence has at most {MAX_STOP} characters, this one has {len(stop)}"
            raise Refusal(words, param=f"stop[{i}]")
    return stops


def _limit(asked: Body) -> int | None:
    for value in (asked.max_completion_tokens, asked.max_tokens, asked.n_predict):
        if value is not None:
            return value if value >= 0 else None
    return None


def _alternatives(asked: Body) -> int | None:
    """Chat says `logprobs: true, top_logprobs: 3`, completions say `logprobs: 3`."""
    if asked.logprobs is None or asked.logprobs is False:
        return None
    count = asked.top_logprobs or 0 if asked.logprobs is True else asked.logprobs
    if not 0 <= count <= MAX_ALTERNATIVES:
        raise Refusal(f"0 to {MAX_ALTERNATIVES} alternatives are told", param="top_logprobs")
    return count


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt and all(isinstance(t, int) for t in prompt):
        return list(prompt)
    raise Refusal("`prompt` is one text, or one list of tokens", param="prompt")


def _message(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message as templates want it: content is text, arguments are objects."""
    if not isinstance(message.get("role"), str):
        raise Refusal("a message needs a `role`", param=f"messages[{index}].role")
    message = dict(message)
    content = message.get("content")
    if isinstance(content, list):
        texts = []
        for k, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text":
                raise unsupported("only text is taken here", f"messages[{index}].content[{k}]")
            texts.append(str(part.get("text") or ""))
        message["content"] = "".join(texts)
    elif content is None:
        message["content"] = ""
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [
            _call(call, f"messages[{index}].tool_calls[{k}]") for k, call in enumerate(calls)
        ]
    return message


def _call(call: Any, path: str) -> dict[str, Any]:
    try:
        function = dict(call["function"])
        if isinstance(function.get("arguments"), str):
            function["arguments"] = msgspec.json.decode(function["arguments"] or "{}")
        return {**call, "function": function}
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as exc:
        raise Refusal(f"a call that cannot be read: {exc}", param=path) from exc


def _variables(given: dict[str, Any]) -> dict[str, Any]:
    for name in ("messages", "tools"):
        if name in given:
            where = f"chat_template_kwargs.{name}"
            raise Refusal(f"the template gets the `{name}` of the request", param=where)
    return given


def _adapters(given: list[dict[str, Any]]) -> tuple[tuple[str | int, float], ...]:
    try:
        return tuple(
            (one["name"] if "name" in one else one["id"], float(one.get("scale", 1.0)))
            for one in given
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise Refusal("`lora` is a list of `{name, scale}`", param="lora") from exc


# ---------------------------------------------------------------- what the answer must look like


def _rules(asked: Body, tools: list[dict[str, Any]], tagged: bool) -> tuple[bool, str | None]:
    """Whether the answer is a forced call, and the grammar that it must keep to."""
    choice = asked.tool_choice
    if choice not in (None, "auto", "none"):
        if isinstance(choice, dict):
            name = (choice.get("function") or {}).get("name")
            tools = [t for t in tools if (t.get("function") or {}).get("name") == name]
        if not tools:
            raise Refusal("`tool_choice` asks for a call of no tool there is", param="tool_choice")
        return True, _forced(tools, tagged)
    if asked.grammar is not None:
        return False, grammar.of_text(asked.grammar)
    if asked.json_schema is not None:
        return False, grammar.of_schema(asked.json_schema)
    form = asked.response_format or {}
    match form.get("type"):
        case None | "text":
            return False, None
        case "json_object":
            return False, grammar.of_schema(form.get("schema") or {"type": "object"})
        case "json_schema":
            schema = (form.get("json_schema") or {}).get("schema")
            if not isinstance(schema, dict):
                raise Refusal(
                    "a JSON Schema is an object here", param="response_format.json_schema.schema"
                )
            return False, grammar.of_schema(schema)
    raise unsupported(f"no such format: {form.get('type')!r}", "response_format.type")


def _forced(tools: list[dict[str, Any]], tagged: bool) -> str:
    calls = []
    for i, tool in enumerate(tools):
        function = tool.get("function") or {}
        arguments = function.get("parameters") or {"type": "object"}
        place = f"#/anyOf/{i}/properties/arguments"
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.get("name")},
                    "arguments": moved(arguments, place),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    before, after = (f"{CALL}\n", f"\n{CALL_END}") if tagged else ("", "")
    return grammar.of_schema({"anyOf": calls}, before, after)
