"""``tidings user`` and ``tidings acl``: files, passwords that are no arguments, and answers with their reasons."""

import stat
from pathlib import Path
from typing import Any

import pytest

from tidings.broker.access.users import read_users

ACCESS = """\
user sensor-*
    connect as %u
    allow publish    dev/%u/#
everybody
    deny receive     dev/+/secret
    allow subscribe  dev/#
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "passwords"


def test_users_are_added_listed_and_removed(tidings: Any, path: Path) -> None:
    file = ("--file", str(path))
    added = tidings("user", "add", "alice", "--scram", "--pw-file", "-", *file, stdin=b"pencil\r\nmore\n")
    assert added == (0, b"", f"{path}: alice added (SCRAM-SHA-256)\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = tidings("user", "add", "alice", "--pw-file", "-", *file, stdin=b"pen")
    assert again == (0, b"", f"{path}: alice has a new password (argon2)\n")
    assert read_users(path)["alice"].matches(b"pen")
    assert tidings("user", "list", *file) == (0, b"alice\targon2\n", "")
    gone = tidings("user", "remove", "bob", "alice", *file)
    assert gone == (1, b"", f"Error: {path}: no user 'bob'\n")
    assert tidings("user", "list", *file) == (0, b"", "")


def test_a_password_may_come_from_a_file_or_the_environment(
    tidings: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from a file\n")
    rest = ("--scram", "--rounds", "4096", "--file", str(path))
    assert tidings("user", "add", "a", "--pw-file", str(secret), *rest).code == 0
    monkeypatch.setenv("TIDINGS_PASSWORD", "from the environment")
    assert tidings("user", "add", "b", *rest).code == 0
    users = read_users(path)
    assert users["a"].matches(b"from a file")
    assert users["b"].matches(b"from the environment")


def test_otherwise_it_is_asked_for_twice_and_not_shown(
    tidings: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["one", "two", "three", "three"])
    monkeypatch.setattr("click.termui.hidden_prompt_func", lambda text: next(answers))
    done = tidings("user", "add", "alice", "--scram", "--file", str(path))
    assert done.code == 0
    assert "do not match" in done.err
    assert "three" not in done.err
    assert read_users(path)["alice"].matches(b"three")


def test_there_is_no_way_to_give_a_password_as_an_argument(tidings: Any, path: Path) -> None:
    for option in ("--password", "-P", "--pw"):
        done = tidings("user", "add", "alice", option, "secret", "--file", str(path))
        assert done.code == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("args", "stdin", "code", "words"),
    [
        (["add", "a:b", "--pw-file", "-"], b"x", 2, "user name 'a:b': no colon"),
        (["add", "alice", "--pw-file", "-"], b"", 2, "the password is empty"),
        (["add", "alice", "--pw-file", "-"], b"\xff", 1, "the password is not UTF-8"),
        (["add", "alice", "--pw-file", "none"], b"", 1, "--pw-file none: No such file or directory"),
        (["add", "alice", "--rounds", "10", "--pw-file", "-"], b"x", 2, "--rounds"),
        (["list"], b"", 1, "cannot be read: No such file"),
        (["remove", "alice"], b"", 1, "cannot be changed: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tidings: Any, path: Path, args: list[str], stdin: bytes, code: int, words: str
) -> None:
    done = tidings("user", *args, "--file", str(path), stdin=stdin)
    assert (done.code, done.out, done.err.count("\n")) == (code, b"", 1)
    assert words in done.err
    assert not path.exists()


def test_a_name_that_an_access_file_cannot_expand_is_told(tidings: Any, path: Path) -> None:
    done = tidings("user", "add", "a/b", "--scram", "--pw-file", "-", "--file", str(path), stdin=b"x")
    assert "note: %u in an access file stands for nothing for 'a/b'" in done.err


@pytest.fixture
def access(tmp_path: Path) -> Path:
    path = tmp_path / "access"
    path.write_text(ACCESS)
    path.chmod(0o600)
    return path


def test_explain_names_the_line_that_decides(tidings: Any, access: Path) -> None:
    done = tidings("acl", "explain", "sensor-7", "dev/sensor-7/secret", "--file", str(access))
    assert done == (
        1,
        (
            f"publish   allowed  {access}:3: allow publish dev/%u/#, here dev/sensor-7/# (for user sensor-*)\n"
            f"subscribe allowed  {access}:6: allow subscribe dev/# (for everybody)\n"
            f"receive   refused  {access}:5: deny receive dev/+/secret (for everybody)\n"
        ).encode(),
        "",
    )


def test_explain_takes_one_question_and_answers_by_exit_code(tidings: Any, access: Path) -> None:
    rest = ("--file", str(access))
    assert tidings("acl", "explain", "alice", "dev/1", "--action", "subscribe", *rest).code == 0
    assert tidings("acl", "explain", "alice", "dev/1", "--action", "publish", *rest) == (
        1,
        b"publish   refused  no line fits\n",
        "",
    )
    assert tidings("acl", "explain", "", "dev/+/x", *rest).code == 0
    wrong_id = tidings("acl", "explain", "sensor-7", "dev/1", "-i", "sensor-8", *rest)
    assert wrong_id.code == 1
    assert b"'sensor-8' fits none of the 'connect as' lines" in wrong_id.out


def test_explain_refuses_questions_that_make_no_sense(tidings: Any, access: Path) -> None:
    for topic in ("a/#/b", "", "a+"):
        assert tidings("acl", "explain", "alice", topic, "--file", str(access)).code == 2
    done = tidings("acl", "explain", "alice", "a/#", "--action", "publish", "--file", str(access))
    assert (done.code, "one can only subscribe to it" in done.err) == (2, True)


def test_check_counts_or_names_every_mistake(tidings: Any, access: Path) -> None:
    assert tidings("acl", "check", "--file", str(access)) == (0, f"{access}: 4 lines\n".encode(), "")
    access.write_text(ACCESS + "allow all a/#/b\npermit\n")
    done = tidings("acl", "check", "--file", str(access))
    assert (done.code, done.out, done.err.count("\n")) == (1, b"", 2)
    assert f"{access}:7: # must be the last level" in done.err
    assert f"{access}:8: expected allow, deny" in done.err
