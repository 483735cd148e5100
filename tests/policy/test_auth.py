"""The key: how it is made, kept, found and compared."""

from __future__ import annotations

import os
import random
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_runner_router.errors import ConfigError, Unauthenticated
from llm_runner_router.home import Home
from llm_runner_router.policy.auth import PREFIX, VARIABLE, Key, Keys, ensure_key, find_key

GOOD = "llmrr-0123456789"


def keys(*values: str) -> Keys:
    return Keys(*(Key(v, name=f"k{i}", source="test") for i, v in enumerate(values)))


def test_a_key_is_made_once_private_and_found_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "new" / "home")
    assert find_key(home, {}) is None
    key = ensure_key(home, {})
    value = key.secret.reveal()
    assert value.startswith(PREFIX)
    assert len(value) > 30
    assert home.key.read_text().strip() == value
    assert ensure_key(home, {}).secret.reveal() == value
    if os.name == "posix":
        assert stat.S_IMODE(home.key.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert [p.name for p in home.path.iterdir()] == ["key"], "no draft is left behind"


def test_of_many_that_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: ensure_key(home, {}).secret.reveal(), range(16)))
    assert len(set(made)) == 1


def test_the_variable_comes_first_and_makes_no_file(tmp_path: Path) -> None:
    home = Home(tmp_path)
    key = ensure_key(home, {VARIABLE: f" {GOOD} "})
    assert (key.secret.reveal(), key.name) == (GOOD, "env")
    assert not home.key.exists()


@pytest.mark.parametrize("value", ["short", "with space in it", "schlüssel-schlüssel", "x" * 600])
def test_unusable_keys_are_refused_without_being_shown(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_key(Home(tmp_path), {VARIABLE: value})
    assert value not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    ensure_key(home, {})
    home.key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        find_key(home, {})


def test_a_key_file_with_something_else_in_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.key.write_bytes(b"\xff\xfe\x00")
    home.key.chmod(0o600)
    with pytest.raises(ConfigError, match="does not hold a key"):
        find_key(home, {})


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError):
        ensure_key(Home(tmp_path / "file" / "home"), {})


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer " + GOOD.encode()},
        {b"authorization": b"bearer  " + GOOD.encode() + b" "},
        {b"x-api-key": GOOD.encode()},
        {b"api-key": GOOD.encode()},
        {b"authorization": b"Bearer wrong", b"x-api-key": GOOD.encode()},
    ],
)
def test_every_header_clients_use(headers: dict[bytes, bytes]) -> None:
    assert keys("another-key", GOOD).authenticate(headers) == "k1"


def test_no_key_and_a_wrong_key_are_told_apart() -> None:
    with pytest.raises(Unauthenticated) as none:
        keys(GOOD).authenticate({})
    assert none.value.code == "missing_api_key"
    with pytest.raises(Unauthenticated) as wrong:
        keys(GOOD).authenticate({b"x-api-key": b"nope"})
    assert wrong.value.code == "invalid_api_key"
    assert GOOD not in str(wrong.value)


def test_nobody_gets_in_where_there_is_no_key() -> None:
    with pytest.raises(Unauthenticated):
        keys().authenticate({b"x-api-key": b""})


def test_ten_thousand_hostile_headers_are_all_refused() -> None:
    rng = random.Random(7)
    guard = keys(GOOD)
    good = GOOD.encode()
    pieces = [
        good,
        good[:-1],
        good[1:],
        b"Bearer",
        b"Basic",
        b" ",
        b"\x00",
        b"'",
        b" OR 1=1",
        b"\xff",
    ]
    names = [b"authorization", b"x-api-key", b"api-key", b"Authorization", b"x-forwarded-user"]
    for _ in range(10_000):
        value = b"".join(rng.choice(pieces) for _ in range(rng.randint(0, 4)))
        name = rng.choice(names)
        shown = value[7:] if value[:7].lower() == b"bearer " else b""
        right = (shown if name == b"authorization" else value).strip() == good
        if right and name in (b"authorization", b"x-api-key", b"api-key"):
            continue
        with pytest.raises(Unauthenticated):
            guard.authenticate({name: value})


def test_a_key_never_shows_itself() -> None:
    key = Key(GOOD, name="n", source="s")
    assert GOOD not in f"{key!r} {key.secret!r} {key.secret}"
