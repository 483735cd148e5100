"""The contracts everything rests on: references, deltas, errors, prices, messages."""

from __future__ import annotations

import re
import string
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from llm_runner_router import errors, types
from llm_runner_router.deltas import Collector, collect, prime
from llm_runner_router.errors import BadRequest, ConnectFailed, RunnerError, StreamBroken
from llm_runner_router.refs import Ref, parse
from llm_runner_router.testing import FakeEmbedder, FakeTarget, deltas_of
from llm_runner_router.types import (
    Delta,
    Embedder,
    ImagePart,
    ImageURL,
    Message,
    Origin,
    Price,
    Target,
    TextPart,
    ToolCallDelta,
    Usage,
    Wire,
)

# ---------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("zoo:tiny-math", Ref("zoo", "tiny-math")),
        ("file:/models/a.gguf", Ref("file", "/models/a.gguf")),
        ("file:///models/a.gguf", Ref("file", "/models/a.gguf")),
        ("./a.gguf", Ref("file", "./a.gguf")),
        ("../b/a.safetensors", Ref("file", "../b/a.safetensors")),
        ("~/a.gguf", Ref("file", "~/a.gguf")),
        ("a.gguf", Ref("file", "a.gguf")),
        ("hf:org/repo", Ref("hf", "org/repo")),
        ("hf:org/repo@main#q4_k_m", Ref("hf", "org/repo", revision="main", quant="q4_k_m")),
        ("hf:org/repo:model.gguf", Ref("hf", "org/repo", file="model.gguf")),
        ("hf:org/repo:Q4_K_M", Ref("hf", "org/repo", quant="Q4_K_M")),
        ("huggingface.co/org/repo", Ref("hf", "org/repo")),
        ("hf.co/org/repo:Q4_K_M", Ref("hf", "org/repo", quant="Q4_K_M")),
        ("hf.co/org/repo:latest", Ref("hf", "org/repo")),
        ("huggingface:org/repo", Ref("hf", "org/repo")),
        ("hf://org/repo@refs/pr/1", Ref("hf", "org/repo", revision="refs/pr/1")),
        ("hf:org/repo:sub/a.gguf", Ref("hf", "org/repo", file="sub/a.gguf")),
        ("https://huggingface.co/org/repo", Ref("hf", "org/repo")),
        ("https://hf.co/org/repo/tree/v2", Ref("hf", "org/repo", revision="v2")),
        (
            "https://huggingface.co/org/repo/resolve/main/sub/a.gguf?download=true",
            Ref("hf", "org/repo", file="sub/a.gguf"),
        ),
        ("ollama:qwen3", Ref("ollama", "qwen3")),
        ("ollama:qwen3:4b", Ref("ollama", "qwen3", revision="4b")),
        ("ollama:library/qwen3:4b", Ref("ollama", "qwen3", revision="4b")),
        ("ollama://user/model:v1.5-q4_0", Ref("ollama", "user/model", revision="v1.5-q4_0")),
        ("ollama:host:5000/user/m:t", Ref("ollama", "host:5000/user/m", revision="t")),
        ("https://ollama.com/library/qwen3:4b", Ref("ollama", "qwen3", revision="4b")),
        ("https://host/a/b.gguf?x=1", Ref("url", "https://host/a/b.gguf?x=1")),
        ("http://127.0.0.1:8000/m.gguf", Ref("url", "http://127.0.0.1:8000/m.gguf")),
        (
            "https://huggingface.co/datasets/org/x",
            Ref("url", "https://huggingface.co/datasets/org/x"),
        ),
        ("s3://bucket/folder/", Ref("s3", "bucket/folder/")),
        ("s3://bucket/a/b.gguf", Ref("s3", "bucket/a/b.gguf")),
        (".", Ref("file", ".")),
        ("/models/folder", Ref("file", "/models/folder")),
        ("openai/gpt-4o-mini", Ref("provider", "gpt-4o-mini", provider="openai")),
        ("openai:gpt-4o-mini", Ref("provider", "gpt-4o-mini", provider="openai")),
        (
            "openrouter/meta-llama/llama-3.1-8b:free",
            Ref("provider", "meta-llama/llama-3.1-8b:free", provider="openrouter"),
        ),
        ("tiny", Ref("name", "tiny")),
        ("tiny.gguf.gz", Ref("file", "tiny.gguf.gz")),
        ("tiny.tgz", Ref("file", "tiny.tgz")),
        ("  tiny  ", Ref("name", "tiny")),
    ],
)
def test_references(text: str, ref: Ref) -> None:
    assert parse(text) == ref
    assert parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "a\nb",
        "\x00",
        "zoo:",
        "file:",
        "hf:repo",
        "openai/",
        "https://",
        "http:///a",
        "s3://b",
        "s3://",
        "ollama:",
        "ollama:a b",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(BadRequest):
        parse(text)


WORD = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=12)
REFS = st.one_of(
    st.builds(Ref, st.just("zoo"), WORD),
    st.builds(lambda name: Ref("file", f"/models/{name}.gguf"), WORD),
    st.builds(
        lambda org, repo, revision, part: Ref("hf", f"{org}/{repo}", revision=revision, **part),
        WORD,
        WORD,
        st.none() | WORD,
        st.just({})
        | st.builds(lambda quant: {"quant": quant}, WORD)
        | st.builds(lambda file: {"file": f"{file}.gguf"}, WORD),
    ),
    st.builds(
        lambda provider, model: Ref("provider", model, provider=provider),
        WORD.filter(lambda word: word[0] != "-"),
        WORD,
    ),
    st.builds(Ref, st.just("name"), WORD),
    st.builds(
        lambda name, tag: Ref("ollama", name, revision=tag),
        WORD.filter(lambda word: word[0] != "-"),
        st.none() | WORD.filter(lambda word: word[0] != "-"),
    ),
    st.builds(lambda host, path: Ref("url", f"https://{host}/{path}"), WORD, WORD),
    st.builds(lambda bucket, key: Ref("s3", f"b{bucket.lower()}1/{key}"), WORD, WORD),
)


@given(REFS)
def test_what_is_written_is_read_back(ref: Ref) -> None:
    assert parse(str(ref)) == ref


@given(
    st.text(max_size=30)
    | st.text("ab/:@#.~ ", max_size=12)
    | st.builds(
        lambda scheme, rest: scheme + rest,
        st.sampled_from(
            ["zoo:", "file:", "hf:", "hf.co/", "https://", "https://hf.co/", "ollama:", "s3://"]
        ),
        st.text("ab/:@#.~ ", max_size=12),
    )
)
@settings(max_examples=500)
def test_any_text_is_a_reference_or_a_bad_request(text: str) -> None:
    try:
        ref = parse(text)
    except BadRequest:
        return
    assert ref.name
    assert parse(str(ref)) == ref


# ---------------------------------------------------------------- deltas


async def stream(deltas: Sequence[Delta], error: Exception | None = None) -> AsyncIterator[Delta]:
    for delta in deltas:
        yield delta
    if error is not None:
        raise error


async def test_prime_waits_for_the_first_delta_and_loses_none() -> None:
    deltas = deltas_of("one two three")
    assert [d async for d in await prime(stream(deltas))] == list(deltas)


async def test_prime_reads_one_delta_only() -> None:
    read: list[int] = []

    async def counted() -> AsyncIterator[Delta]:
        for i in range(5):
            read.append(i)
            yield Delta(text=str(i))

    primed = await prime(counted())
    assert read == [0]
    assert (await anext(primed)).text == "0"
    assert read == [0]
    assert (await anext(primed)).text == "1"
    assert read == [0, 1]


async def test_an_error_before_the_first_delta_comes_out_of_prime() -> None:
    with pytest.raises(ConnectFailed):
        await prime(stream((), ConnectFailed("down")))
    with pytest.raises(StreamBroken, match="before the first delta"):
        await prime(stream(()))


async def test_an_error_after_it_comes_out_of_the_stream() -> None:
    primed = await prime(stream(deltas_of("one", finish=None), ConnectFailed("cut")))
    assert (await anext(primed)).text == "one"
    with pytest.raises(ConnectFailed):
        await anext(primed)


async def test_collect_adds_up() -> None:
    origin = Origin("a", "b")
    answer = await collect(
        stream(
            [
                Delta(role="assistant", text="Hel", origin=origin),
                Delta(index=1, reasoning="hm", refusal="no"),
                Delta(text="lo", logprobs=Raw(b"[1]")),
                Delta(tool_calls=(ToolCallDelta(0, id="x", name="add", arguments='{"a"'),)),
                Delta(tool_calls=(ToolCallDelta(1, id="y", name="sub"),)),
                Delta(tool_calls=(ToolCallDelta(0, arguments=": 1}"),)),
                Delta(finish="tool_calls"),
                Delta(index=1, finish="stop", usage=Usage(3, 4), timings=Raw(b"{}")),
            ]
        )
    )
    first, second = answer.choices
    assert (first.text, first.finish, first.logprobs) == ("Hello", "tool_calls", (Raw(b"[1]"),))
    assert [(c.id, c.name, c.arguments) for c in first.tool_calls] == [
        ("x", "add", '{"a": 1}'),
        ("y", "sub", ""),
    ]
    assert (second.index, second.reasoning, second.refusal) == (1, "hm", "no")
    assert (answer.text, answer.usage, answer.origin) == ("Hello", Usage(3, 4), origin)
    assert answer.timings == Raw(b"{}")


async def test_collect_raises_what_the_stream_raises() -> None:
    with pytest.raises(StreamBroken):
        await collect(stream(deltas_of("one"), StreamBroken("cut")))


def test_a_collector_can_be_asked_at_any_time() -> None:
    collector = Collector()
    assert collector.answer().choices == ()
    assert collector.answer().text == ""
    body = Wire("openai_chat", "body", b"{}")
    collector.add(Delta(text="a", wire=body))
    collector.add(Delta(text="b", wire=Wire("openai_chat", "event", b"{}")))
    assert (collector.answer().text, collector.answer().wire) == ("ab", body)


PIECES = st.lists(
    st.builds(
        Delta,
        index=st.integers(0, 2),
        text=st.text(max_size=4),
        reasoning=st.text(max_size=4),
    ),
    max_size=20,
)


@given(PIECES)
def test_nothing_is_lost_between_deltas_and_answer(pieces: list[Delta]) -> None:
    collector = Collector()
    for piece in pieces:
        collector.add(piece)
    answer = collector.answer()
    for choice in answer.choices:
        mine = [piece for piece in pieces if piece.index == choice.index]
        assert choice.text == "".join(piece.text for piece in mine)
        assert choice.reasoning == "".join(piece.reasoning for piece in mine)
    assert [c.index for c in answer.choices] == sorted({piece.index for piece in pieces})


# ---------------------------------------------------------------- errors

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RunnerError)
}


def drawn() -> dict[str, tuple[str | None, int, str]]:
    """The tree of the docstring: name to (parent, status, the rest of its line)."""
    found: dict[str, tuple[str | None, int, str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^([ │├└─]*)([A-Z]\w+) +(\d{3}|status)(.*)$", line)
        if match is None:
            continue
        branch, name, status, rest = match.groups()
        depth = len(branch.rstrip()) and (len(branch) - 4) // 3
        parent = path[depth - 1] if depth else None
        path[depth:] = [name]
        found[name] = (parent, 500 if status == "status" else int(status), rest)
    return found


def test_the_drawing_of_the_errors_is_complete() -> None:
    assert set(drawn()) == set(KINDS)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "RunnerError"])
def test_the_drawing_of_the_errors_is_true(name: str) -> None:
    kind = KINDS[name]
    parent, status, rest = drawn()[name]
    assert kind.__mro__[1].__name__ == parent
    assert kind.status == status
    words = rest.split()
    if any(word.endswith("_error") or word == "request_too_large" for word in words):
        assert kind.type in words
    code = re.search(r"\((\w+)\)", rest)
    if code is not None:
        assert kind.default_code == code.group(1)
    told = [word for word in words if word in ("yes", "no")]
    if len(told) == 2:
        assert [kind.retryable, kind.elsewhere] == [word == "yes" for word in told]
    elif told:
        assert kind.elsewhere == (told == ["yes"])
    elif parent is not None:  # nothing told: as the parent
        assert (kind.retryable, kind.elsewhere) == (
            KINDS[parent].retryable,
            KINDS[parent].elsewhere,
        )


def test_an_error_says_what_and_what_next() -> None:
    error = errors.RateLimited("slow down", hint="wait", target="a", retry_after=3)
    assert str(error) == "slow down (hint: wait)"
    assert str(errors.RateLimited("slow down")) == "slow down"
    assert (error.code, error.status, error.retry_after) == ("rate_limit_exceeded", 429, 3)
    assert errors.RateLimited("x", code="mine").code == "mine"


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("price", "usage", "dollars"),
    [
        (Price(), Usage(1000, 1000), 0.0),
        (Price(2.0, 8.0), Usage(1_000_000, 500_000), 6.0),
        (Price(2.0, 8.0), Usage(1_000_000, 0, cached_tokens=1_000_000), 2.0),
        (Price(2.0, 8.0, cached=0.5), Usage(1_000_000, 0, cached_tokens=400_000), 1.4),
        (Price(2.0, 8.0, cached=0.0), Usage(1_000_000, 0, cached_tokens=1_000_000), 0.0),
    ],
)
def test_what_a_usage_costs(price: Price, usage: Usage, dollars: float) -> None:
    assert price.cost(usage) == pytest.approx(dollars)


def test_the_text_of_a_message() -> None:
    parts = (TextPart("a"), ImagePart(ImageURL("data:")), TextPart("b"))
    assert Message("user", parts).text == "ab"
    assert Message("user", "ab").text == "ab"
    assert Message("assistant").text == ""


def test_usage_adds_up() -> None:
    assert Usage(3, 4, cached_tokens=2, reasoning_tokens=1).total_tokens == 7


def test_every_value_is_frozen() -> None:
    kinds = [
        kind
        for kind in vars(types).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind is not msgspec.Struct
    ]
    assert len(kinds) > 20
    assert [kind.__name__ for kind in kinds if not kind.__struct_config__.frozen] == []


def test_the_protocols_can_be_asked_for() -> None:
    assert isinstance(FakeTarget("a"), Target)
    assert isinstance(FakeEmbedder("a"), Embedder)
    assert not isinstance(FakeTarget("a"), Embedder)
