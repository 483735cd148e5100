"""The demonstration behind `make demo`: a real server, real models, the `openai` client.

Starts `llmrr serve` on a free port with a temporary data folder, asks questions of different
kinds through the OpenAI API with streaming, shows who answered and why, checks each answer, and
stops the server. Exits 1 if any step failed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openai import OpenAI

BOLD, DIM, GREEN, RED, END = (
    ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m")
    if sys.stdout.isatty()
    else ("", "", "", "", "")
)
START_DEADLINE = 60.0  # seconds the server may take to come up

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}

Check = Callable[[str], bool]


def is_person(text: str) -> bool:
    """The JSON that was asked for, with the right values."""
    return bool(json.loads(text) == {"name": "Anna", "age": 31, "city": "Oslo"})


QUESTIONS: list[tuple[str, str, dict[str, Any], Check]] = [
    ("arithmetic", "What is 12 + 30?", {}, lambda t: "42" in t),
    ("text", "Reverse the word lemon.", {}, lambda t: "nomel" in t),
    ("facts", "What is the capital of France?", {}, lambda t: "Paris" in t),
    ("story", "Tell me a short story about a cat.", {}, lambda t: "cat" in t.lower()),
    (
        "extraction into JSON",
        "Extract name, age and city as JSON: Anna is 31 years old and lives in Oslo.",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": PERSON},
            }
        },
        is_person,
    ),
]


class Failed(Exception):
    """A step of the demonstration did not work."""


class Server:
    """`llmrr serve` as a child process with its own data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._log = (home / "serve.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llm_runner_router", "serve", "--port", "0"],
            env={**os.environ, "LLMRR_HOME": str(home)},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ready(self) -> tuple[str, str]:
        """Base URL and key, once the server answers."""
        state = self.home / "server.json"
        deadline = time.monotonic() + START_DEADLINE
        while not state.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"the server did not start:\n{self.log()}")
            time.sleep(0.02)
        url = json.loads(state.read_text())["url"]
        return f"{url}/v1", (self.home / "key").read_text().strip()

    def log(self) -> str:
        """What the server printed."""
        return (self.home / "serve.log").read_text(errors="replace")

    def stop(self) -> int:
        """Stop as Ctrl-C would; the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -9
        finally:
            self._log.close()


def ask(client: OpenAI, messages: list[Any], **options: Any) -> tuple[str, list[Any]]:
    """Stream one answer, print it as it comes, then who gave it and why."""
    started = time.perf_counter()
    raw = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        max_tokens=160,
        **options,
    )
    text, usage = "", None
    calls: list[Any] = []
    first = 0.0
    print("  ", end="")
    for chunk in raw.parse():
        first = first or time.perf_counter()
        usage = chunk.usage or usage
        for choice in chunk.choices:
            piece = choice.delta.content or ""
            text += piece
            print(piece, end="", flush=True)
            calls += choice.delta.tool_calls or []
    if usage is None:
        raise Failed("the stream ended without usage")
    call = join_calls(calls)
    if call:
        print(f"calls {call[0]}({call[1]})", end="")
    print()
    kept = record(client, raw.headers["x-request-id"])
    print(
        f"{DIM}  {kept['target']} · {kept['reason']}\n"
        f"  first token {1000 * (first - started):.0f} ms · {usage.completion_tokens} tokens, "
        f"{kept.get('tokens_per_second') or 0:.0f} tokens/s · ${kept['cost']:.6f}{END}"
    )
    return text, calls


def record(client: OpenAI, request_id: str) -> dict[str, Any]:
    """What the server kept of a request: who answered, why, at what cost."""
    url = f"{str(client.base_url).removesuffix('/v1/')}/llmrr/records"
    for _ in range(50):  # the record is written when the stream has ended on the server's side
        kept: list[dict[str, Any]] = client.get(f"{url}?limit=10", cast_to=list)
        for row in kept:
            if row["id"] == request_id:
                return row
        time.sleep(0.02)
    raise Failed(f"the server kept no record of {request_id}")


def join_calls(calls: list[Any]) -> tuple[str, str, str] | None:
    """Name, arguments and id of the streamed tool call, if there was one."""
    if not calls:
        return None
    arguments = "".join(c.function.arguments or "" for c in calls if c.function)
    return calls[0].function.name, arguments, calls[0].id


def use_a_tool(client: OpenAI) -> bool:
    """A tool call, the tool's real result, and the answer in words."""
    question = "Use the calculator: what is 345 * 27?"
    print(f"\n{BOLD}tool call{END}: {question}")
    messages: list[Any] = [{"role": "user", "content": question}]
    _, calls = ask(client, messages, tools=[CALCULATOR])
    call = join_calls(calls)
    if call is None or call[0] != "calculator":
        return False
    left, sign, right = parse_expression(json.loads(call[1])["expression"])
    result = {"+": left + right, "-": left - right, "*": left * right}[sign]
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call[2],
                    "type": "function",
                    "function": {"name": call[0], "arguments": call[1]},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call[2], "content": str(result)},
    ]
    text, _ = ask(client, messages, tools=[CALCULATOR])
    return result == 345 * 27 and "9315" in text.replace(",", "")


def parse_expression(text: str) -> tuple[int, str, int]:
    """`345 * 27` as two numbers and a sign."""
    for sign in "+-*":
        left, found, right = text.partition(sign)
        if found:
            return int(left), sign, int(right)
    raise Failed(f"the model asked for {text!r}, which this calculator cannot read")


def run(client: OpenAI) -> list[str]:
    """Ask everything; the kinds that went wrong."""
    names = ", ".join(model.id for model in client.models.list())
    print(f"models: {names}")
    wrong = []
    for kind, question, options, check in QUESTIONS:
        print(f"\n{BOLD}{kind}{END}: {question}")
        text, _ = ask(client, [{"role": "user", "content": question}], **options)
        if not check(text):
            wrong.append(kind)
    if not use_a_tool(client):
        wrong.append("tool call")
    return wrong


def main() -> int:
    """Run the demonstration; the exit code."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llmrr-demo-") as folder:
        server = Server(Path(folder))
        try:
            url, key = server.ready()
            print(f"server: {url} (ready after {time.perf_counter() - began:.2f} s)")
            with OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:
                wrong = run(client)
        except Exception as error:  # any failure at all is the demonstration's failure
            print(f"\n{RED}failed{END}: {error}\n--- the server's own words ---\n{server.log()}")
            return 1
        finally:
            code = server.stop()
    print(f"\nserver stopped with exit code {code}; nothing is left running")
    if code != 0 or wrong:
        print(f"{RED}failed{END}: {', '.join(wrong) or 'the server did not stop cleanly'}")
        return 1
    print(f"{GREEN}all answers are right{END} ({time.perf_counter() - began:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
