"""`/v1/tokenize` and `/v1/detokenize`: which fields mean what, and what comes back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces import tokenize
from llm_runner_router.types import Tokenized


def asked(**fields: Any) -> tokenize.Asked:
    return tokenize.decode(msgspec.json.encode({"model": "m", **fields}))


@pytest.mark.parametrize(
    ("name", "special", "around"),
    [("input", False, False), ("text", False, False), ("content", True, False),
     ("prompt", True, True)],
)  # fmt: skip
def test_every_clients_own_field_has_its_habits(name: str, special: bool, around: bool) -> None:
    request = asked(**{name: "hi"}).request
    assert (request.text, request.special, request.around) == ("hi", special, around)
    changed = asked(**{name: "hi"}, parse_special=not special, add_special=not around).request
    assert (changed.special, changed.around) == (not special, not around)
    assert asked(**{name: ""}).request.text == "", "an empty text is a text"


def test_a_conversation_with_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    talk = [{"role": "user", "content": "hi"}]
    request = asked(messages=talk, tools=tools, add_generation_prompt=False).request
    assert (request.text, request.messages[0].text, request.tools[0].name) == (None, "hi", "f")
    assert not request.add_generation_prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "input"), ({"input": "a", "text": "b"}, "input"), ({"input": 1}, "input"),
     ({"input": "a", "messages": [{"role": "user", "content": "b"}]}, "input"),
     ({"messages": [{"role": "king"}]}, "messages[0].role"), ({"messages": []}, "messages"),
     ({"input": "a", "model": ""}, "model"), ({"prompt": ["a"]}, "prompt")],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert caught.value.param == param


def test_tokens_as_every_client_wants_them() -> None:
    found = Tokenized("zoo:m", (7, 8), (b"a", b"\xc3"), context=512)
    plain = msgspec.json.decode(tokenize.encode(found, asked(input="aü")))
    assert plain == {
        "object": "tokenized",
        "model": "m",
        "count": 2,
        "max_model_len": 512,
        "tokens": [7, 8],
    }
    pieces = msgspec.json.decode(tokenize.encode(found, asked(input="aü", with_pieces=True)))
    assert pieces["tokens"] == [{"id": 7, "piece": "a"}, {"id": 8, "piece": [0xC3]}]
    strings = msgspec.json.decode(
        tokenize.encode(found, asked(prompt="aü", return_token_strs=True))
    )
    assert strings["token_strs"] == ["a", "\ufffd"]


def test_ids_become_text_under_three_names() -> None:
    assert tokenize.decode_ids(b'{"model":"m","tokens":[1,2]}') == ("m", [1, 2])
    text = msgspec.json.decode(tokenize.encode_text("m", "hi"))
    assert text == {"model": "m", "text": "hi", "content": "hi", "prompt": "hi"}
    for body in (
        b'{"model":"m"}',
        b'{"model":"m","tokens":["a"]}',
        b'{"model":"m","tokens":[1.5]}',
    ):
        with pytest.raises(BadRequest):
            tokenize.decode_ids(body)
