"""``tidings sub`` against a real server, and against servers that refuse, vanish and speak in aliases."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tidings.cli import connection

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.01)


def subscribed(peer: Any, properties: str = "", session_present: bool = False) -> bytes:
    """Take CONNECT and SUBSCRIBE, accept both; the body of SUBSCRIBE."""
    peer.receive()
    size = len(properties.replace(" ", "")) // 2
    peer.send(f"20 {size + 3:02x} {int(session_present):02x} 00 {size:02x} {properties}")
    kind, body = peer.receive()
    assert kind == 0x82
    peer.send(f"90 04 {body[:2].hex()} 00 02")
    return bytes(body)


def publish(topic: str, payload: str, packet_id: int = 0, properties: str = "", qos: int = 0, retain: int = 0) -> str:
    """A PUBLISH 5.0 in hex."""
    body = bytes([0, len(topic)]) + topic.encode() + (packet_id.to_bytes(2, "big") if qos else b"")
    body += bytes([len(bytes.fromhex(properties))]) + bytes.fromhex(properties) + payload.encode()
    return f"{0x30 | qos << 1 | retain:02x} {len(body):02x} {body.hex()}"


@pytest.mark.parametrize("version", ["5", "311", "31"])
def test_payloads_are_printed_one_a_line(subscriber: Any, pub: Any, topic: str, version: str) -> None:
    listening = subscriber("-t", topic, "-C", "2", "-V", version)
    pub("-t", topic, "-l", "-q", "1", stdin=b"one\n\ntwo\n")  # an empty payload prints nothing, but counts
    result = listening.finish()
    assert (result.code, result.out) == (0, b"one\n")


def test_topics_are_printed_on_request(subscriber: Any, pub: Any, topic: str) -> None:
    listening = subscriber("-t", f"{topic}/+", "-C", "2", "-v", "-q", "1")
    pub("-t", f"{topic}/a", "-m", "one")
    pub("-t", f"{topic}/b", "-n")
    assert listening.finish().out == f"{topic}/a one\n{topic}/b (null)\n".encode()


def test_several_filters_and_filters_to_leave_out(subscriber: Any, pub: Any, topic: str) -> None:
    filters = ("-t", f"{topic}/a/#", "-t", f"{topic}/b", "-T", f"{topic}/a/+/x")
    listening = subscriber(*filters, "-C", "2", "-v")
    for name in ("a/1/x", "a/1/y", "c", "b"):
        pub("-t", f"{topic}/{name}", "-m", "p")
    assert listening.finish().out == f"{topic}/a/1/y p\n{topic}/b p\n".encode()


def test_the_filter_may_be_in_the_url(tidings: Any, pub: Any, server: int, topic: str) -> None:
    pub("-t", f"{topic}/a", "-m", "x", "-r", "-q", "1")
    result = tidings("sub", "-L", f"mqtt://{HOST}:{server}/{topic}/#", "-C", "1", "-W", "10")
    assert (result.code, result.out) == (0, b"x\n")


def test_retained_messages_can_be_left_out_or_be_the_only_ones(subscriber: Any, sub: Any, pub: Any, topic: str) -> None:
    pub("-t", f"{topic}/r", "-m", "retained", "-r", "-q", "1")
    listening = subscriber("-t", f"{topic}/#", "-R", "-C", "1")
    only = subscriber("-t", f"{topic}/#", "--retained-only", "-v")
    pub("-t", f"{topic}/n", "-m", "new", "-q", "1")
    assert listening.finish().out == b"new\n"
    result = only.finish()
    assert (result.code, result.out) == (0, f"{topic}/r retained\n".encode())
    assert sub("-t", f"{topic}/#", "--retain-handling", "never", "-W", "0.2").code == 27


def test_retained_messages_are_removed_on_request_but_not_those_left_out(sub: Any, pub: Any, topic: str) -> None:
    for name in ("a", "b", "c"):
        pub("-t", f"{topic}/{name}", "-m", name, "-r", "-q", "1")
    result = sub("-t", f"{topic}/#", "--remove-retained", "-T", f"{topic}/b", "-C", "2")
    assert (result.code, sorted(result.out.split())) == (0, [b"a", b"c"])
    assert sub("-t", f"{topic}/#", "-C", "1").out == b"b\n"
    assert sub("-t", f"{topic}/a", "-t", f"{topic}/c", "-W", "0.2").code == 27


def test_the_retain_flag_is_kept_as_published_on_request(subscriber: Any, pub: Any, topic: str) -> None:
    kept = subscriber("-t", topic, "--retain-as-published", "-C", "1", "-F", "%r")
    cleared = subscriber("-t", topic, "-C", "1", "-F", "%r")
    pub("-t", topic, "-m", "x", "-r")
    assert (kept.finish().out, cleared.finish().out) == (b"1\n", b"0\n")


def test_it_ends_after_the_subscription_on_request(sub: Any, topic: str) -> None:
    assert sub("-t", topic, "-E") == (0, b"", "")


def test_time_runs_out_with_exit_code_27(sub: Any, topic: str) -> None:
    assert sub("-t", topic, "-W", "0.1") == (27, b"", "Error: timed out\n")
    assert sub("-t", topic, "-W", "0.1", "--quiet") == (27, b"", "")


def test_a_kept_session_delivers_what_came_while_it_was_away(sub: Any, pub: Any, topic: str) -> None:
    session = ("-c", "-i", topic.replace("/", ""), "-t", topic, "-q", "1")
    assert sub(*session, "-E").code == 0
    pub("-t", topic, "-l", "-q", "1", stdin=b"one\ntwo\nthree\n")
    assert sub(*session, "-C", "1").out == b"one\n"
    assert sub(*session, "-C", "2").out == b"two\nthree\n"  # -C 1 left them unacknowledged
    assert sub(*session, "-U", topic, "-E").code == 0
    pub("-t", topic, "-m", "four", "-q", "1")
    assert sub("-i", topic.replace("/", ""), "-t", f"{topic}/other", "-q", "1", "-W", "0.2").code == 27


def test_unsubscribing_alone_ends_when_it_is_acknowledged(sub: Any, topic: str) -> None:
    assert sub("-U", topic).code == 0


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ((), "give a topic filter"),
        (("-t", "a/#/b"), "no topic filter"),
        (("-t", "a", "-T", "#a"), "-T: '#a'"),
        (("-t", "a", "-R", "--retained-only"), "nothing to print"),
        (("-t", "a", "-F", "%z"), "'%z' is no sequence"),
        (("-t", "a", "-F", "%t", "--json"), "exclude each other"),
        (("-t", "a", "-V", "311", "--retain-handling", "new"), "need MQTT 5"),
        (("-t", "a", "-C", "0"), "'-C'"),
        (("-t", "a", "--policy", "newest"), "not one of: all, latest"),
        (("-t", "a", "--policy", "latest", "-V", "311"), "--policy needs MQTT 5"),
        (("-t", "a", "-D", "publish", "user-property", "a", "b"), "the commands are connect, will, subscribe"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tidings: Any, args: tuple[str, ...], problem: str) -> None:
    result = tidings("sub", *args)
    assert (result.code, result.out, result.err.count("\n")) == (2, b"", 1)
    assert problem in result.err


def test_properties_of_the_subscription_are_sent(tidings: Any, scripted: Any) -> None:
    seen: list[bytes] = []

    def watch(peer: Any) -> None:
        seen.append(subscribed(peer))
        assert peer.receive()[0] == 0xE0

    port = scripted(watch)
    told = (
        "-D",
        "subscribe",
        "user-property",
        "tidings-policy",
        "latest",
        "-D",
        "subscribe",
        "subscription-identifier",
        "7",
    )
    assert tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-E", *told).code == 0
    assert b"\x26\x00\x0etidings-policy\x00\x06latest" in seen[0]
    assert b"\x0b\x07" in seen[0]


def test_a_policy_is_asked_for(tidings: Any, scripted: Any) -> None:
    seen: list[bytes] = []

    def watch(peer: Any) -> None:
        seen.append(subscribed(peer))
        assert peer.receive()[0] == 0xE0

    assert tidings("sub", "-h", HOST, "-p", scripted(watch), "-t", "a", "-E", "--policy", "sample=2").code == 0
    assert b"\x26\x00\x0etidings-policy\x00\x08sample=2" in seen[0]


@pytest.mark.parametrize(("version", "suback"), [("5", "90 04 {} 00 87"), ("311", "90 03 {} 80")])
def test_a_refused_subscription_ends_with_its_code(tidings: Any, scripted: Any, version: str, suback: str) -> None:
    def refuse(peer: Any) -> None:
        peer.receive()
        peer.send("20 03 00 00 00" if version == "5" else "20 02 00 00")
        peer.send(suback.format(peer.receive()[1][:2].hex()))
        assert peer.receive()[0] == 0xE0

    port = scripted(refuse)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a/#", "-V", version)
    code, name = (135, "Not authorized") if version == "5" else (128, "Unspecified error")
    assert (result.code, result.err) == (code, f"Error: not subscribed to a/#: {name} ({code})\n")


def test_a_partly_refused_subscription_goes_on_and_is_not_forgotten(tidings: Any, scripted: Any) -> None:
    def refuse_second(peer: Any) -> None:
        peer.accept()
        peer.send(f"90 05 {peer.receive()[1][:2].hex()} 00 00 9e")
        peer.send(publish("a", "x"))
        assert peer.receive()[0] == 0xE0

    port = scripted(refuse_second)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-t", "$share/g/b", "-C", "1")
    assert (result.code, result.out) == (158, b"x\n")
    assert result.err == "Error: not subscribed to $share/g/b: Shared subscription not supported (158)\n"


@pytest.mark.clause("5.0 MQTT-3.3.2-10")
def test_topic_aliases_are_resolved(tidings: Any, scripted: Any) -> None:
    def alias(peer: Any) -> None:
        subscribed(peer)
        for topic, number in (("a/b", "01"), ("c", "02"), ("", "01"), ("d", "01"), ("", "01"), ("", "02")):
            peer.send(publish(topic, "x", properties=f"23 00{number}"))
        assert peer.receive()[0] == 0xE0

    port = scripted(alias)
    told = ("-D", "connect", "topic-alias-maximum", "9")
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "#", "-C", "6", "-F", "%t %A", *told)
    assert result.out == b"a/b 1\nc 2\na/b 1\nd 1\nd 1\nc 2\n"


@pytest.mark.parametrize("left", [1, 3])
def test_nothing_is_acknowledged_after_the_last_message_wanted(tidings: Any, scripted: Any, left: int) -> None:
    acknowledged: list[bytes] = []

    def send_five(peer: Any) -> None:
        subscribed(peer)
        peer.send(" ".join(publish("a", f"{each}", each, qos=1) for each in range(1, 6)))
        while (packet := peer.receive())[0] == 0x40:
            acknowledged.append(packet[1])
        assert packet[0] == 0xE0

    port = scripted(send_five)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-q", "1", "-C", str(left))
    assert result.out == b"".join(b"%d\n" % each for each in range(1, left + 1))
    assert acknowledged == [bytes([0, each]) for each in range(1, left + 1)]


def test_a_message_right_behind_the_last_one_wanted_is_not_acknowledged(tidings: Any, scripted: Any) -> None:
    acknowledged: list[tuple[int, bytes]] = []

    def send(peer: Any) -> None:
        subscribed(peer)
        peer.send(" ".join(publish("a", f"{each}", each, qos=2) for each in range(1, 21)))
        for each in range(1, 21):
            assert peer.receive() == (0x50, bytes([0, each]))
        # With messages held, paho reads several packets in a row.
        peer.send("62 02 0001" + publish("a", "x", 99, qos=1) + "62 02 0002" + "62 02 0003")
        while (packet := peer.receive())[0] != 0xE0:
            acknowledged.append(packet)

    port = scripted(send)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-q", "2", "-C", "1")
    assert (result.code, result.out, acknowledged) == (0, b"1\n", [(0x70, b"\0\1")])


def test_a_regained_connection_subscribes_again(tidings: Any, scripted: Any) -> None:
    def once(peer: Any) -> None:
        subscribed(peer)
        peer.send(publish("a", "one"))

    def busy(peer: Any) -> None:
        peer.receive()
        peer.send("20 03 00 89 00")
        peer.receive()

    def again(peer: Any) -> None:
        subscribed(peer)
        peer.send(publish("a", "two"))
        assert peer.receive()[0] == 0xE0

    port = scripted(once, busy, again)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-C", "2")
    assert (result.code, result.out) == (0, b"one\ntwo\n")
    assert "connection lost; trying again" in result.err
    assert "refused: Server busy (137); trying again" in result.err


def test_a_session_that_the_server_kept_is_not_subscribed_again(tidings: Any, scripted: Any) -> None:
    def once(peer: Any) -> None:
        subscribed(peer)
        peer.send(publish("a", "one"))

    def resume(peer: Any) -> None:
        peer.receive()
        peer.send("20 03 01 00 00" + publish("a", "two"))
        assert peer.receive()[0] == 0xE0

    port = scripted(once, resume)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "-C", "2", "-c", "-i", "me")
    assert (result.code, result.out) == (0, b"one\ntwo\n")


def test_credentials_that_became_wrong_are_not_tried_again(tidings: Any, scripted: Any) -> None:
    def refuse(peer: Any) -> None:
        peer.receive()
        peer.send("20 03 00 86 00")
        peer.receive()

    port = scripted(subscribed, refuse)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a")
    assert result.code == 134
    assert result.err.endswith(f"Error: {HOST}:{port}: refused: Bad user name or password (134)\n")


def test_a_server_that_accepts_and_drops_meets_growing_pauses(
    tidings: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    real = connection.backoff_s

    def recorded(attempt: int, chance: float) -> float:
        waits.append(real(attempt, chance))
        return 0.0

    monkeypatch.setattr(connection, "BACKOFF_FIRST_S", 0.5)
    monkeypatch.setattr(connection, "backoff_s", recorded)
    port = scripted(*[lambda peer: peer.accept() and None] * 9)
    result = tidings("sub", "-h", HOST, "-p", port, "-t", "a", "--reconnect-tries", "8")
    assert result.code == 1
    assert len(waits) == 8
    assert all(0.25 * 2**n <= wait <= 0.5 * 2**n for n, wait in enumerate(waits[:6]))
    assert all(15 <= wait <= 30 for wait in waits[6:])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well_with_disconnect(subscriber: Any, topic: str, number: int) -> None:
    listening = subscriber("-t", topic)
    listening.process.send_signal(number)
    result = listening.finish()
    assert (result.code, result.out) == (0, b"")
    assert "Sending DISCONNECT" in result.err
    assert "Traceback" not in result.err


def test_a_signal_before_the_first_connection_is_an_interruption(background: Any, scripted: Any) -> None:
    ready: list[Any] = []

    def silent(peer: Any) -> None:
        peer.receive()
        ready[0].process.send_signal(signal.SIGINT)
        peer.receive()

    port = scripted(silent)
    ready.append(background("sub", "-h", HOST, "-p", port, "-t", "a"))
    result = ready[0].finish()
    assert (result.code, result.err) == (130, "Error: interrupted\n")


def test_a_reader_that_leaves_ends_it_quietly(pub: Any, server: int, topic: str) -> None:
    program = Path(sys.executable).with_name("tidings")
    pub("-t", f"{topic}/1", "-m", "first", "-r", "-q", "1")
    shell = f"'{program}' sub -h {HOST} -p {server} -t '{topic}/#' -W 20 | head -1; echo ${{PIPESTATUS[0]}}"
    process = subprocess.Popen(["bash", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    while process.poll() is None:
        pub("-t", f"{topic}/2", "-m", "more", "-q", "1")  # until one of them meets the closed pipe
    out, err = process.communicate()
    assert (out, err) == (b"0\n", b"")


def test_a_message_that_could_not_be_printed_is_not_acknowledged(background: Any, scripted: Any) -> None:
    acknowledged: list[int] = []

    def send(peer: Any) -> None:
        subscribed(peer)
        ready[0].process.stdout.close()
        peer.send(publish("a", "x", 1, qos=1))
        acknowledged.append(peer.receive()[0])

    ready: list[Any] = []
    port = scripted(send)
    ready.append(background("sub", "-h", HOST, "-p", port, "-t", "a", "-q", "1"))
    assert ready[0].process.wait(10) == 0
    assert ready[0].process.stderr.read() == b""
    ready[0].process.stdout = None
    assert acknowledged == [0xE0]


def test_json_lines_have_every_property(sub: Any, pub: Any, topic: str) -> None:
    told = ("-D", "publish", "message-expiry-interval", "100", "-D", "publish", "user-property", "k", "v")
    pub("-t", topic, "-m", "x", "-r", "-q", "1", *told)
    line = json.loads(
        sub("-t", topic, "-C", "1", "-q", "1", "--json", "-D", "subscribe", "subscription-identifier", "5").out
    )
    assert line.pop("tst")
    assert line.pop("mid") > 0
    assert (
        line.pop("properties").items()
        >= {
            "user-properties": [["k", "v"]],
            "subscription-identifier": [5],
        }.items()
    )
    assert line == {"topic": topic, "qos": 1, "retain": 1, "payloadlen": 1, "payload": "x"}
