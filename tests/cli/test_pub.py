"""``tidings pub`` against a real server, and against servers that refuse, vanish and stall."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidings.cli import connection
from tidings.cli import pub as pub_module

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.01)


def received(sub: Any, topic: str, *args: str) -> bytes:
    result = sub("-t", topic, "-C", "1", *args)
    assert result.code == 0, result.err
    out: bytes = result.out
    return out


@pytest.mark.parametrize("version", ["5", "311", "31"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_a_message_is_published_in_every_version_and_qos(
    pub: Any, sub: Any, topic: str, version: str, qos: str
) -> None:
    result = pub("-t", topic, "-m", "hello", "-q", qos, "-r", "-V", version)
    assert (result.code, result.out, result.err) == (0, b"", "")
    assert received(sub, topic, "-q", "2", "-F", "%t %q %r %p") == f"{topic} {qos} 1 hello\n".encode()


def test_the_payload_is_a_file_or_all_of_stdin_or_nothing(pub: Any, sub: Any, topic: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2
    (tmp_path / "content").write_bytes(content)
    assert pub("-t", topic, "-f", str(tmp_path / "content"), "-r").code == 0
    assert received(sub, topic, "-N") == content
    assert pub("-t", topic, "-s", "-r", stdin=content[::-1]).code == 0
    assert received(sub, topic, "-N") == content[::-1]
    assert pub("-t", topic, "-n", "-r", "-q", "1").code == 0
    assert sub("-t", topic, "-W", "0.3").code == 27


def test_bytes_on_the_command_line_are_published_as_they_are(pub: Any, sub: Any, topic: str) -> None:
    assert pub("-t", topic, "-r", "-m", os.fsdecode(b"a\xff\xfe")).code == 0
    assert received(sub, topic, "-N") == b"a\xff\xfe"


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_each_line_of_stdin_is_a_message(pub: Any, subscriber: Any, topic: str, qos: str) -> None:
    listening = subscriber("-t", topic, "-q", "2", "-C", "5", "-F", "<%p>")
    assert pub("-t", topic, "-q", qos, "-l", stdin=b"a\n\nb\r\n" + b"\xff" * 100_000 + b"\nlast").code == 0
    result = listening.finish()
    assert result.code == 0
    assert result.out == b"<a>\n<>\n<b\r>\n<" + b"\xff" * 100_000 + b">\n<last>\n"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    pub: Any, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pub_module, "LARGEST_PAYLOAD_BYTES", 100_000)
    result = pub("-t", topic, "-l", stdin=b"short\n" + b"x" * 1_000_000)
    assert (result.code, result.err) == (1, "Error: line 2: longer than 100,000 bytes\n")


def test_no_line_is_no_message_and_no_error(pub: Any, topic: str) -> None:
    assert pub("-t", topic, "-l", "-q", "1").code == 0


def test_lines_are_published_as_they_come(background: Any, subscriber: Any, server: int, topic: str) -> None:
    listening = subscriber("-t", topic)
    publishing = background("pub", "-h", HOST, "-p", str(server), "-t", topic, "-l")
    for line in (b"first\n", b"second\n"):
        publishing.process.stdin.write(line)
        publishing.process.stdin.flush()
        assert listening.process.stdout.readline() == line
    assert publishing.finish().code == 0


def test_a_message_is_repeated_on_a_time_grid(pub: Any, subscriber: Any, topic: str) -> None:
    listening = subscriber("-t", topic, "-C", "3")
    assert pub("-t", topic, "-m", "x", "--repeat", "3", "--repeat-delay", "0.02").code == 0
    assert listening.finish().out == b"x\nx\nx\n"


def test_properties_reach_the_subscriber_in_order(pub: Any, sub: Any, topic: str) -> None:
    told = [
        "content-type text/plain",
        "response-topic r/t",
        "user-property b 1",
        "user-property a 2",
        "user-property b 3",
    ]
    properties = [word for each in told for word in ("-D", "publish", *each.split())]
    assert pub("-t", topic, "-m", "x", "-r", *properties).code == 0
    assert received(sub, topic, "-F", "%C %R %P") == b"text/plain r/t b:1 a:2 b:3\n"


def test_the_topic_may_be_in_the_url(tidings: Any, sub: Any, server: int, topic: str) -> None:
    assert tidings("pub", "-L", f"mqtt://{HOST}:{server}/{topic}", "-m", "x", "-r").code == 0
    assert received(sub, topic) == b"x\n"


def test_options_come_from_the_environment(
    tidings: Any, sub: Any, server: int, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOST": HOST, "PORT": str(server), "PUB_TOPIC": topic, "PUB_RETAIN": "1"}.items():
        monkeypatch.setenv(f"TIDINGS_{name}", value)
    assert tidings("pub", "-m", "x").code == 0
    assert received(sub, topic) == b"x\n"


def test_json_lines_are_published_as_they_were_received(pub: Any, sub: Any, subscriber: Any, topic: str) -> None:
    told = ["content-type é", "user-property b 1", "user-property a 2", "user-property b 3"]
    properties = [word for each in told for word in ("-D", "publish", *each.split())]
    assert pub("-t", topic, "-r", "-q", "1", "-m", os.fsdecode(b"\xff\n"), *properties).code == 0
    line = received(sub, topic, "-q", "2", "--json")
    assert pub("-t", topic, "-n", "-r", "-q", "1").code == 0
    assert pub("--json", stdin=b"\n" + line + b"\n").code == 0
    again = received(sub, topic, "-q", "2", "--json")
    drop_time = slice(line.index(b'"topic"'), None)
    assert again[drop_time] == line[drop_time]
    assert b'"user-properties":[["b","1"],["a","2"],["b","3"]]' in line


def test_a_line_that_is_no_message_ends_pub_after_those_before_it(pub: Any, sub: Any, topic: str) -> None:
    good = b'{"payload":"good"}\n'
    result = pub("-t", topic, "-r", "-q", "2", "--json", stdin=good + b'{"qos": 7}\n' + good)
    assert (result.code, result.err) == (1, "Error: line 2: qos is 0, 1 or 2, not 7\n")
    assert received(sub, topic) == b"good\n"


def test_properties_in_json_lines_need_mqtt_5(pub: Any, topic: str) -> None:
    result = pub("-t", topic, "--json", "-V", "311", stdin=b'{"properties":{"content-type":"x"}}')
    assert (result.code, result.err) == (1, "Error: line 1: properties need MQTT 5; leave out -V\n")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "give one of -m"),
        (("-t", "a"), "give one of -m"),
        (("-t", "a", "-m", "x", "-n"), "give one of -m"),
        (("-m", "x"), "give a topic"),
        (("-t", "", "-m", "x"), "the topic is empty"),
        (("-t", "a/#", "-m", "x"), "has a wildcard"),
        (("-t", "a", "-l", "--repeat", "2"), "for one message"),
        (("-t", "a", "-m", "x", "-q", "3"), "'-q'"),
        (
            ("-t", "a", "-m", "x", "-D", "subscribe", "user-property", "a", "b"),
            "the commands are connect, will, publish",
        ),
        (("-t", "a", "-f", "/nonexistent"), "does not exist"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tidings: Any, args: tuple[str, ...], problem: str) -> None:
    result = tidings("pub", *args)
    assert (result.code, result.out, result.err.count("\n")) == (2, b"", 1)
    assert problem in result.err


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(tidings: Any) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = str(listener.getsockname()[1])
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x")
    assert (result.code, result.err) == (1, f"Error: {HOST}:{port}: Connection refused\n")
    assert tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x", "--quiet").err == ""


@pytest.mark.parametrize(
    ("version", "connack", "code", "words"),
    [
        ("5", "20 03 00 87 00", 135, "Not authorized (135)"),
        ("5", "20 0b 00 86 08 1f 0005 7374 6f70 21", 134, "Bad user name or password: stop! (134)"),
        ("5", "20 02 00 01", 132, "try -V 311"),
        ("311", "20 02 00 01", 1, "return code 1"),
        ("311", "20 02 00 02", 2, "(2)"),
        ("311", "20 02 00 05", 5, "Not authorized (5)"),
        ("31", "20 02 00 04", 4, "Bad user name or password (4)"),
    ],
)
def test_a_refused_connection_exits_with_the_code_of_the_server(
    tidings: Any, scripted: Any, version: str, connack: str, code: int, words: str
) -> None:
    def refuse(peer: Any) -> None:
        peer.receive()
        peer.send(connack)
        peer.receive()

    port = scripted(refuse)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x", "-V", version)
    assert result.code == code
    assert result.err.count("\n") == 1
    assert words in result.err


def test_a_server_that_hangs_up_on_mqtt_5_is_told_apart(tidings: Any, scripted: Any) -> None:
    port = scripted(lambda peer: peer.receive())
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x")
    assert (result.code, result.err) == (
        1,
        f"Error: {HOST}:{port}: closed without CONNACK; if the server does not speak MQTT 5, try -V 311\n",
    )


def test_a_server_that_never_answers_is_given_up(tidings: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNACK_WITHIN_S", 0.05)
    port = scripted(lambda peer: (peer.receive(), peer.receive()))
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x")
    assert (result.code, result.err) == (1, f"Error: {HOST}:{port}: no CONNACK within 0.05 s\n")


def test_a_timeout_is_exit_code_27(tidings: Any, scripted: Any) -> None:
    def stall(peer: Any) -> None:
        peer.accept()
        peer.publish_id()
        assert peer.receive()[0] == 0xE0

    port = scripted(stall)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "x", "-q", "1", "-W", "0.1")
    assert (result.code, result.err) == (27, "Error: timed out\n")


def test_a_refused_publication_is_reported_and_the_others_go_on(tidings: Any, scripted: Any) -> None:
    def refuse_second(peer: Any) -> None:
        peer.accept()
        for reason in ("", "87", "97", ""):
            packet_id = peer.publish_id().hex()
            peer.send(f"40 {'03' if reason else '02'} {packet_id} {reason}")
        assert peer.receive()[0] == 0xE0

    port = scripted(refuse_second)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-l", stdin=b"1\n2\n3\n4\n")
    assert result.code == 135  # the first refusal
    assert result.err == (
        "Error: not published to a: Not authorized (135)\nError: not published to a: Quota exceeded (151)\n"
    )


@pytest.mark.clause("5.0 MQTT-4.3.3-4")
def test_a_pubrec_that_refuses_is_not_answered_with_pubrel(tidings: Any, scripted: Any) -> None:
    def refuse(peer: Any) -> None:
        peer.accept()
        peer.send(f"50 08 {peer.publish_id().hex()} 99 04 1f 0001 21")
        assert peer.receive()[0] == 0xE0

    port = scripted(refuse)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "2", "-m", "x")
    assert (result.code, result.err) == (153, "Error: not published to a: Payload format invalid: ! (153)\n")


def test_a_pubrel_repeated_for_a_finished_message_is_no_refusal(tidings: Any, scripted: Any) -> None:
    packet_ids: list[str] = []

    def lose_pubcomp(peer: Any) -> None:
        peer.accept()
        packet_ids.append(peer.publish_id().hex())
        peer.send(f"50 02 {packet_ids[0]}")
        assert peer.receive()[0] == 0x62

    def know_nothing(peer: Any) -> None:
        peer.receive()
        peer.send("20 03 01 00 00")
        assert peer.receive()[0] == 0x62
        peer.send(f"70 03 {packet_ids[0]} 92")
        assert peer.receive()[0] == 0xE0

    port = scripted(lose_pubcomp, know_nothing)
    assert tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "2", "-m", "x", "-x", "60").code == 0


def test_a_lost_connection_is_regained_and_the_message_sent_again(tidings: Any, scripted: Any) -> None:
    def lose(peer: Any) -> None:
        peer.accept()
        peer.publish_id()

    def keep(peer: Any) -> None:
        peer.accept()
        assert peer.sock.recv(1, socket.MSG_PEEK) == b"\x3a"  # QoS 1 with DUP
        peer.send(f"40 02 {peer.publish_id().hex()}")
        assert peer.receive()[0] == 0xE0

    port = scripted(lose, keep)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-m", "x")
    assert result.code == 0
    assert result.err == f"{HOST}:{port}: connection lost; trying again in 0.0 s\n"


def test_attempts_to_regain_a_connection_end(tidings: Any, scripted: Any) -> None:
    def lose(peer: Any) -> None:
        peer.accept()
        peer.publish_id()

    port = scripted(lose, lambda peer: peer.receive(), lambda peer: peer.receive())
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-m", "x", "--reconnect-tries", "2")
    assert result.code == 1
    assert result.err.endswith(f"Error: {HOST}:{port}: connection lost; not regained\n")
    assert result.err.count("trying again") == 2


@pytest.mark.parametrize(
    ("reason", "words"), [("8e", "Session taken over (142)"), ("98", "Administrative action (152)")]
)
def test_a_server_that_sends_us_away_for_good_is_not_tried_again(
    tidings: Any, scripted: Any, reason: str, words: str
) -> None:
    def send_away(peer: Any) -> None:
        peer.accept()
        peer.publish_id()
        peer.send(f"e0 01 {reason}")

    port = scripted(send_away)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-m", "x")
    assert result.code == int(reason, 16)
    assert result.err == f"Error: {HOST}:{port}: disconnected by the server: {words}\n"


@pytest.mark.clause("5.0 MQTT-3.3.4-7")
def test_no_more_messages_are_under_way_than_the_server_takes(tidings: Any, scripted: Any) -> None:
    def take_two(peer: Any) -> None:
        peer.accept("21 0002")
        for _ in range(5):
            waiting = [peer.publish_id().hex(), peer.publish_id().hex()]
            peer.sock.settimeout(0.05)
            with pytest.raises(TimeoutError):
                peer.receive()
            peer.sock.settimeout(10)
            for each in waiting:
                peer.send(f"40 02 {each}")
        assert peer.receive()[0] == 0xE0

    port = scripted(take_two)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-l", stdin=b"x\n" * 10)
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("connack", "args", "code", "words"),
    [
        ("24 01", ("-q", "2"), 155, "takes QoS 1 at most"),
        ("25 00", ("-r",), 154, "keeps no retained messages"),
        ("27 00000010", ("-q", "1"), 149, "its packet has 17 bytes and the server takes 16"),
        ("22 0002", ("-D", "publish", "topic-alias", "3"), 148, "no such topic alias"),
        ("", ("-D", "publish", "topic-alias", "3"), 148, "no such topic alias"),
    ],
)
@pytest.mark.clause("5.0 MQTT-3.2.2-11", "5.0 MQTT-3.2.2-14", "5.0 MQTT-3.2.2-15", "5.0 MQTT-3.2.2-17")
@pytest.mark.clause("5.0 MQTT-3.2.2-18")
def test_what_the_server_does_not_take_is_not_sent(
    tidings: Any, scripted: Any, connack: str, args: tuple[str, ...], code: int, words: str
) -> None:
    def take_nothing(peer: Any) -> None:
        peer.accept(connack)
        assert peer.receive()[0] == 0xE0

    port = scripted(take_nothing)
    result = tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "123456789", *args)
    assert result.code == code
    assert words in result.err


def test_a_packet_of_just_the_size_that_the_server_takes_is_sent(tidings: Any, scripted: Any) -> None:
    def take(peer: Any) -> None:
        peer.accept("27 00000011")
        peer.send(f"40 02 {peer.publish_id().hex()}")
        assert peer.receive()[0] == 0xE0

    port = scripted(take)
    assert tidings("pub", "-h", HOST, "-p", port, "-t", "a", "-m", "123456789", "-q", "1").code == 0


def test_stdin_is_not_read_further_than_the_server_follows(background: Any, scripted: Any) -> None:
    seen: list[int] = []

    def stall(peer: Any) -> None:
        peer.accept()
        for _ in range(20):
            peer.publish_id()
        peer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.receive()  # the window is full
        seen.append(1)
        peer.sock.settimeout(10)
        peer.receive()

    port = scripted(stall)
    publishing = background("pub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-l")
    stdin = publishing.process.stdin
    os.set_blocking(stdin.fileno(), False)
    written = 0
    while not seen:
        try:
            written += os.write(stdin.fileno(), b"0123456789\n" * 1000)
        except BlockingIOError:
            continue
    # What the pipe holds, and what one read takes: not what we would still like to write.
    assert written <= 4 * 65_536
    publishing.process.send_signal(signal.SIGTERM)
    result = publishing.finish()
    assert result.code == 1
    assert result.err == "Error: interrupted; not acknowledged: 20, and not all was sent\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_line_mode_well_if_everything_was_acknowledged(
    background: Any, subscriber: Callable[..., Any], server: int, topic: str, number: int
) -> None:
    listening = subscriber("-t", topic, "-C", "1", "-q", "1")
    publishing = background("pub", "-h", HOST, "-p", str(server), "-t", topic, "-q", "1", "-l", "-d")
    publishing.process.stdin.write(b"x\n")
    publishing.process.stdin.flush()
    publishing.wait_for("Received PUBACK")
    publishing.process.send_signal(number)
    result = publishing.finish()
    assert (result.code, "Sending DISCONNECT" in result.err) == (0, True)
    assert listening.finish().out == b"x\n"


def test_the_will_is_published_when_a_signal_ends_the_program(
    background: Any, subscriber: Any, server: int, topic: str
) -> None:
    listening = subscriber("-t", topic, "-C", "1", "-F", "%p %C")
    will = ("--will-topic", topic, "--will-payload", "gone", "-D", "will", "content-type", "text/plain")
    publishing = background("pub", "-h", HOST, "-p", str(server), "-t", f"{topic}/x", "-l", "-d", *will)
    publishing.wait_for("Received CONNACK")
    publishing.process.send_signal(signal.SIGINT)
    assert publishing.finish().code == 0
    assert listening.finish().out == b"gone text/plain\n"


def test_debugging_talks_on_stderr(pub: Any, topic: str) -> None:
    result = pub("-t", topic, "-m", "x", "-d")
    assert result.out == b""
    assert "Sending PUBLISH" in result.err
