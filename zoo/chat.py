"""ChatML text of a conversation: what `chat_template.jinja` renders, for the trainer.

Knows roles, tools and the two forms of messages. Knows no tasks and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from zoo.sample import Tool, Turn
from zoo.tasks.structured import parse_call

GENERATION_PROMPT = "<|im_start|>assistant\n"
END = "<|im_end|>"


def system_text(system: str, tools: Sequence[Tool]) -> str:
    """The system turn; empty when there is neither a prompt nor a tool."""
    if not system and not tools:
        return ""
    lines = [system] if system else []
    if tools:
        lines += ["<tools>", *(_signature(tool) for tool in tools), "</tools>"]
    return "<|im_start|>system\n" + "\n".join(lines) + f"{END}\n"


def _signature(tool: Tool) -> str:
    described = f": {tool.description}" if tool.description else ""
    return f"{tool.name}({tool.parameter}){described}"


def turn_text(turn: Turn) -> str:
    """One turn, closed."""
    if turn.role == "tool":
        return f"<|im_start|>user\n<tool_response>\n{turn.content}\n</tool_response>{END}\n"
    return f"<|im_start|>{turn.role}\n{turn.content}{END}\n"


def prompt_text(system: str, tools: Sequence[Tool], turns: Sequence[Turn]) -> str:
    """The whole prompt, up to where the model speaks."""
    return system_text(system, tools) + "".join(map(turn_text, turns)) + GENERATION_PROMPT


def openai_messages(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """The turns as an OpenAI client sends them; tool-call text becomes `tool_calls`."""
    messages: list[dict[str, object]] = []
    for turn in turns:
        call = parse_call(turn.content) if turn.role == "assistant" else None
        if call is not None:
            function = {"name": call[0], "arguments": json.dumps(call[1], ensure_ascii=False)}
            calls = [{"id": "call_1", "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls})
        elif turn.role == "tool":
            messages.append({"role": "tool", "tool_call_id": "call_1", "content": turn.content})
        else:
            messages.append({"role": turn.role, "content": turn.content})
    return messages


def openai_tools(tools: Sequence[Tool]) -> list[dict[str, object]]:
    """The tools as an OpenAI client sends them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {tool.parameter: {"type": "string"}},
                    "required": [tool.parameter],
                },
            },
        }
        for tool in tools
    ]
