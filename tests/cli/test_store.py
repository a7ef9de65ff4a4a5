"""``tidings store``: what it says about sound, damaged and missing stores."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tidings.broker import Config, Message
from tidings.broker.codec.packets import Will
from tidings.broker.core.ports import Queued, Received, Released, RetainedSet, SessionSaved
from tidings.broker.core.session import SessionRecord
from tidings.broker.core.topics import Grant
from tidings.broker.store.sqlite import SqliteStore
from tidings.broker.store.unwritten import Unwritten
from tidings.cli.main import main

GRANT = Grant(1, identifiers=(4,))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one session that is owed two messages, and a retained one."""
    record = SessionRecord(
        "c", 60, None, False, {"t/#": GRANT}, Will("gone", b"bye", 1, True, {"will_delay_interval": 5}), 1.5, 0, 3
    )
    texts = [b"text", b"\xff\x00", b"three"]
    messages = [Message("t/1", text, 2, sender="p", properties={"content_type": "x"}) for text in texts]
    opened = SqliteStore(tmp_path, Config())
    unwritten = Unwritten({})
    unwritten.add(
        [
            SessionSaved(record),
            Queued("c", 1, messages, GRANT),
            Released("c", 3, messages[2]),
            Received("c", 9),
            RetainedSet(Message("r", b"kept", 0, True)),
        ]
    )
    unwritten.write(opened._database)
    opened.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["store", *map(str, args)])
    out, err = capsys.readouterr()
    return code, out, err


def change(directory: Path, statement: str) -> None:
    with sqlite3.connect(directory / "tidings.db") as database:
        database.execute(statement)
    database.close()


def test_a_sound_store_is_ok(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "check", store) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("statement", "trouble"),
    [
        ("DELETE FROM messages WHERE id = 2", "1 rows of owed without their message"),
        ("DELETE FROM sessions", "1 subscriptions without their session"),
        ("DELETE FROM grants", "1 rows of owed without their options"),
        ("DELETE FROM owed", "1 rows of messages that nobody is owed, or with a wrong number of owners"),
        ("UPDATE retained SET message = 77", "1 retained topics without their message"),
        ("UPDATE messages SET body = CAST(body || x'00' AS BLOB) WHERE id = 2", "message 2 is damaged: "),
        ("UPDATE sessions SET will = x'01'", "will of client 'c' is damaged"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    store: Path, capsys: pytest.CaptureFixture[str], statement: str, trouble: str
) -> None:
    change(store, statement)
    code, out, _ = run(capsys, "check", store)
    assert code == 1
    assert any(line.startswith(trouble) for line in out.splitlines()), out


def test_a_damaged_page_is_reported(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "tidings.db"
    with sqlite3.connect(path) as database:
        page = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'owed'").fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    database.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)
    code, out, _ = run(capsys, "check", store)
    assert code == 1
    assert "damaged" in out or "Tree" in out
    code, _, err = run(capsys, "export", store)
    assert code == 1
    assert "the database is damaged" in err


@pytest.mark.parametrize("command", ["check", "stats", "export"])
def test_a_directory_without_a_store_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, out, err = run(capsys, command, tmp_path)
    assert (code, out) == (1, "")
    assert err == f"Error: {tmp_path}: no tidings.db there; is it the data directory of a broker?\n"
    assert list(tmp_path.iterdir()) == []


def test_stats_count_what_is_there(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = json.loads(run(capsys, "stats", "--json", store)[1])
    expected = {
        "sessions": 1,
        "subscriptions": 1,
        "messages": 3,
        "owed": 2,
        "retained": 1,
        "released": 1,
        "incoming": 1,
    }
    assert {name: numbers[name] for name in expected} == expected
    text = run(capsys, "stats", store)[1]
    assert "owed                           2\n" in text


def test_export_names_what_it_cannot_read_and_goes_on(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(store / "tidings.db") as database:
        body = bytearray(database.execute("SELECT body FROM messages WHERE id = 2").fetchone()[0])
        body[20] ^= 0xFF  # in the first of three
        database.execute("UPDATE messages SET body = ? WHERE id = 2", (body,))
    database.close()
    code, out, err = run(capsys, "export", store)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["kind"] for line in lines] == ["session", "damaged", "owed", "retained"]
    assert (lines[1]["client_id"], lines[1]["seq"]) == ("c", 1)
    assert "its checksum does not match" in lines[1]["trouble"]
    assert (code, err) == (1, "Error: messages that cannot be read: 1\n")


def test_export_says_everything(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "export", store)
    assert code == 0
    session, first, second, retained = (json.loads(line) for line in out.splitlines())
    expected: dict[str, Any] = {
        "kind": "session",
        "client_id": "c",
        "expiry_s": 60,
        "expires_at": None,
        "connected": False,
        "seq": 3,
        "released": [3],
        "incoming_qos2": [9],
        "will": {"topic": "gone", "qos": 1, "retain": True, "due_at": 1.5, "payload": "bye"},
    }
    assert {name: session[name] for name in expected} == expected
    assert session["subscriptions"]["t/#"]["qos"] == 1
    assert session["subscriptions"]["t/#"]["identifiers"] == [4]
    assert (first["kind"], first["seq"], first["payload"], first["granted_qos"]) == ("owed", 1, "text", 1)
    assert first["properties"] == {"content_type": "x"}
    assert (second["seq"], second["payload_base64"]) == (2, "/wA=")
    assert (retained["kind"], retained["topic"], retained["payload"]) == ("retained", "r", "kept")
