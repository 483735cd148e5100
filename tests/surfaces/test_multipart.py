"""Forms: what comes out of any cut of them, and what is no form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_runner_router.errors import BadRequest
from llm_runner_router.surfaces.multipart import (
    MAX_HEAD,
    MAX_PARTS,
    Data,
    Parser,
    Part,
    boundary_of,
)

FORM = (
    b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b"--xyz\r\ncontent-type: text/plain\r\n"
    b'content-disposition: form-data; name="file"; filename="C:\\dir\\a%22b.jsonl"\r\n\r\n'
    b"one\r\n--xy\r\n-\r\r\n--\r\n--xyz\r\n"
    b'Content-Disposition: form-data; name="empty"\r\n\r\n\r\n--xyz--\r\nepilogue'
)


def read(*pieces: bytes, boundary: str = "xyz") -> list[tuple[Part, bytes]]:
    parser = Parser(boundary)
    found: list[tuple[Part, bytes]] = []
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, Data):
                part, data = found.pop()
                found.append((part, data + event.data))
            else:
                found.append((event, b""))
    parser.end()
    return found


WHOLE = [
    (Part("purpose", None), b"batch"),
    (Part("file", 'a"b.jsonl'), b"one\r\n--xy\r\n-\r\r\n--"),
    (Part("empty", None), b""),
]


def test_a_form_in_one_piece_and_byte_by_byte() -> None:
    assert read(FORM) == WHOLE
    assert read(*(FORM[i : i + 1] for i in range(len(FORM)))) == WHOLE


@pytest.mark.parametrize("at", range(len(FORM)))
def test_every_cut_gives_the_same(at: int) -> None:
    assert read(FORM[:at], FORM[at:]) == WHOLE


@pytest.mark.parametrize("at", range(0, len(FORM) - len("--\r\nepilogue"), 7))
def test_what_is_cut_off_is_refused(at: int) -> None:
    with pytest.raises(BadRequest, match="ends too early"):
        read(FORM[:at])


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_content_comes_back(content: bytes, size: int) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\n' + content + b"\r\n--b--"
    pieces = [form[i : i + size] for i in range(0, len(form), size)]
    if b"\r\n--b" not in b"\r\n" + content:
        assert read(*pieces, boundary="b") == [(Part("f", None), content)]


HEAD = b"--xyz\r\n"
NAMED = b'Content-Disposition: form-data; name="a"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (b'{"a": 1}', "does not begin with the boundary"),
        (b"--xyy\r\n", "does not begin with the boundary"),
        (HEAD + b"Content-Type: text/plain\r\n\r\nx\r\n--xyz--", "no content-disposition"),
        (HEAD + b"Content-Disposition: form-data\r\n\r\nx\r\n--xyz--", "no name"),
        (HEAD + b'Content-Disposition: attachment; name="a"\r\n\r\n', "no name"),
        (HEAD + b"Content-Transfer-Encoding: base64\r\n" + NAMED, "without an encoding"),
        (HEAD + b"\xff\xfe: \xff\r\n\r\n", "not UTF-8"),
        (HEAD + b"a" * (MAX_HEAD + 1), "headers of a part"),
        (HEAD + NAMED + b"--xyz?\r\n", "followed by something else"),
        ((HEAD + NAMED) * (MAX_PARTS + 1), "over 32 parts"),
    ],
)
def test_what_is_no_form(form: bytes, what: str) -> None:
    with pytest.raises(BadRequest, match=what):
        read(form)


def test_the_boundary_of_a_content_type() -> None:
    assert boundary_of("multipart/form-data; boundary=ab'c") == "ab'c"
    assert boundary_of('Multipart/Form-Data; charset=utf-8; Boundary="a b"') == "a b"
    for wrong in ("application/json", "multipart/form-data", "multipart/form-data; boundary="):
        assert boundary_of(wrong) is None
    assert boundary_of("multipart/form-data; boundary=" + "a" * 71 + "x") != "a" * 72
