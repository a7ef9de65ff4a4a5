"""The password file: what it holds, who may read it, and what is refused by line."""

import base64
import logging
import os
import stat
import threading
from pathlib import Path

import pytest
from amqtt.contexts import BaseContext
from amqtt.plugins.authentication import FileAuthPlugin

from tidings.broker import ConfigError
from tidings.broker.access.users import (
    MIN_ROUNDS,
    User,
    new_user,
    parse_user,
    put_user,
    read_users,
    remove_user,
)

HASH = "$argon2id$v=19$m=65536,t=3,p=4$MIIRqgvgQbgj220jfp0MPA$YfwJSVjtjSU0zzV/P3S9nnQ/USre2wvJMjfCIjrTQbg"
KEY = base64.b64encode(bytes(32)).decode()


def scram(name: str = "alice", password: str = "pencil") -> User:
    return new_user(name, password, scram=True, rounds=MIN_ROUNDS)


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_password_is_known_by_its_argon2_hash_which_amqtt_reads_too(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    put_user(path, new_user("alice", "s3cret ☂"))
    (user,) = read_users(path).values()
    assert user.hash.startswith("$argon2id$")
    assert "s3cret" not in path.read_text()
    assert user.matches("s3cret ☂".encode())
    assert not user.matches(b"s3cret")
    assert not user.matches(b"\xff")
    assert "argon2" not in repr(user)
    context = BaseContext()
    context.logger = logging.getLogger("amqtt")
    context.config = FileAuthPlugin.Config(password_file=path)
    plugin = FileAuthPlugin(context)
    assert plugin._users == {"alice": user.hash}
    assert plugin.pwd_hasher.verify("s3cret ☂", plugin._users["alice"])


def test_keys_for_scram_know_a_password_that_is_sent_too(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    put_user(path, scram())
    (user,) = read_users(path).values()
    assert user.scram is not None
    assert user.scram.rounds == MIN_ROUNDS
    assert user.matches(b"pencil")
    assert not user.matches(b"Pencil")
    assert not user.matches(b"")
    assert not user.matches("\u0007".encode())  # no password has it


def test_a_new_file_is_for_its_owner_and_keeps_what_else_it_has(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    assert put_user(path, scram("alice"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    text = path.read_text()
    path.write_text(f"# ours\n\n{text}")
    assert put_user(path, scram("bob"))
    assert not put_user(path, scram("alice", "another"))
    lines = path.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["# ours", "", "alice", "bob"]
    assert read_users(path)["alice"].matches(b"another")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert remove_user(path, "alice")
    assert not remove_user(path, "alice")
    assert list(read_users(path)) == ["bob"]
    assert [each.name for each in tmp_path.iterdir()] == ["passwords"]


def test_those_who_change_it_at_once_lose_nobody(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    users = [scram(f"u{number}") for number in range(16)]
    threads = [threading.Thread(target=put_user, args=(path, user)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read_users(path)) == {user.name for user in users}


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "passwords", "", mode)
    with pytest.raises(ConfigError, match="others may read or change it; chmod 600"):
        read_users(path)
    path.chmod(0o640)
    assert read_users(path) == {}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alice", "expected NAME:HASH; 'tidings user add' writes such lines"),
        (":x", "the user name is empty"),
        ("alice:secret", "the hash of 'alice' is neither argon2 nor SCRAM-SHA-256"),
        ("alice:$6$salt$hash", "neither argon2 nor"),
        ("alice:$argon2id$v=19$m=65536", "the argon2 hash of 'alice' is damaged"),
        (f"alice:SCRAM-SHA-256$4096:c2FsdA==${KEY}:{KEY}", "the SCRAM-SHA-256 keys of 'alice' are damaged"),
        (f"alice:SCRAM-SHA-256$4095:{KEY}${KEY}:{KEY}", "are damaged"),
        (f"alice:SCRAM-SHA-256$1000001:{KEY}${KEY}:{KEY}", "are damaged"),
        (f"alice:SCRAM-SHA-256$4096:{KEY}${KEY}:c2FsdA==", "are damaged"),
        (f"alice:SCRAM-SHA-256$4096:{KEY}${KEY}:====", "are damaged"),
        (f"bob:{HASH}", "user 'bob' is there already"),
        (f"a\tb:{HASH}", "no colon, control characters"),
    ],
)
def test_a_wrong_line_is_named_without_its_secret(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path / "passwords", f"# users\nbob:{HASH}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_users(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_users(path)
    path.write_bytes(b"# a\nalice:\xff\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"passwords:2: expected UTF-8 text, got byte 0xff"):
        read_users(path)
    with pytest.raises(ConfigError, match=r"passwords:2"):
        put_user(path, scram())
    assert path.read_bytes() == b"# a\nalice:\xff\n"
    with pytest.raises(ConfigError, match="cannot be changed: No such file"):
        remove_user(tmp_path / "none", "alice")


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a ", "a\nb", "a\0b", "a" * 65_536])
def test_names_that_the_file_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="user name"):
        new_user(name, "x")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "+", "$SYS", "alice@example.org", "ünï"])
def test_any_other_name_is_a_name_and_touches_no_other_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "passwords"
    put_user(path, scram(name))
    assert list(read_users(path)) == [name]
    assert [each.name for each in tmp_path.iterdir()] == ["passwords"]


def test_passwords_that_cannot_be_used_are_refused() -> None:
    for password in ("", "x" * 65_536):
        with pytest.raises(ValueError, match=r"the password is empty|a password has at most"):
            new_user("alice", password, scram=True)
    with pytest.raises(ValueError, match="RFC 4013"):
        new_user("alice", "a\u0007", scram=True)
    with pytest.raises(ValueError, match="would send the user name"):
        new_user("ﬁsh", "x", scram=True)
    with pytest.raises(ValueError, match="rounds are from"):
        new_user("alice", "x", scram=True, rounds=100)


def test_the_keys_are_those_that_postgresql_would_keep() -> None:
    """A user made elsewhere: the example of RFC 7677."""
    line = (
        "user:SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ=="
        "$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert parse_user(line).matches(b"pencil")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_the_mode_is_that_of_the_file_that_was_read(tmp_path: Path) -> None:
    """Not that of a link to it."""
    path = write(tmp_path / "real", "", 0o644)
    link = tmp_path / "passwords"
    link.symlink_to(path)
    with pytest.raises(ConfigError, match="others may read"):
        read_users(link)
