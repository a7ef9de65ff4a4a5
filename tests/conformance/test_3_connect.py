"""Chapter 3.1: CONNECT as a packet: what is accepted, what is refused, and how."""

import pytest

from tidings.broker.codec.packets import Connack, Connect, Disconnect, Publish, Will

from .wire import VERSIONS, Wire, frame

clause = pytest.mark.clause

FULL = {
    4: "10 L s:MQTT 04 ee 003c s:a s:w s:bye s:user s:pw",
    5: "10 L s:MQTT 05 ee 003c 00 s:a 00 s:w s:bye s:user s:pw",
}

# every row breaks the format of CONNECT
# fmt: off
MALFORMED = [
    pytest.param("10 L s:MQTT 04 03 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-3"), id="3.1.1 reserved flag"),
    pytest.param("10 L s:MQTT 04 06 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-9"), id="3.1.1 will missing"),
    pytest.param("10 L s:MQTT 04 06 003c s:a s:w", marks=clause("3.1.1 MQTT-3.1.2-9"), id="3.1.1 no will message"),
    pytest.param("10 L s:MQTT 04 02 003c s:a s:w s:bye", marks=clause("3.1.1 MQTT-3.1.2-11"), id="3.1.1 will, no flag"),
    pytest.param("10 L s:MQTT 04 0a 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-13"), id="3.1.1 QoS 1, no will"),
    pytest.param("10 L s:MQTT 04 12 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-13"), id="3.1.1 QoS 2, no will"),
    pytest.param("10 L s:MQTT 04 1e 003c s:a s:w s:bye", marks=clause("3.1.1 MQTT-3.1.2-14"), id="3.1.1 will QoS 3"),
    pytest.param("10 L s:MQTT 04 22 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-15"), id="3.1.1 retain, no will"),
    pytest.param("10 L s:MQTT 04 02 003c s:a s:user", marks=clause("3.1.1 MQTT-3.1.2-18"), id="3.1.1 user, no flag"),
    pytest.param("10 L s:MQTT 04 82 003c s:a", marks=clause("3.1.1 MQTT-3.1.2-19"), id="3.1.1 no user name"),
    pytest.param("10 L s:MQTT 04 82 003c s:a s:user s:pw", marks=clause("3.1.1 MQTT-3.1.2-20"), id="3.1.1 pw, no flag"),
    pytest.param("10 L s:MQTT 04 c2 003c s:a s:user", marks=clause("3.1.1 MQTT-3.1.2-21"), id="3.1.1 no password"),
    pytest.param("10 L s:MQTT 04 42 003c s:a s:pw", marks=clause("3.1.1 MQTT-3.1.2-22"), id="3.1.1 pw, no user"),
    pytest.param("10 L s:MQTT 04 02 003c", marks=clause("3.1.1 MQTT-3.1.3-3"), id="3.1.1 client id missing"),
    pytest.param("10 L s:MQTT 05 03 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-3"), id="5.0 reserved flag"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-9"), id="5.0 will missing"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a 00", marks=clause("5.0 MQTT-3.1.2-9"), id="5.0 no will topic"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a 00 s:w", marks=clause("5.0 MQTT-3.1.2-9"), id="5.0 payload missing"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a s:w s:bye", marks=clause("5.0 MQTT-3.1.2-9"), id="5.0 no properties"),
    pytest.param("10 L s:MQTT 05 0a 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-11"), id="5.0 will QoS 1, no will"),
    pytest.param("10 L s:MQTT 05 12 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-11"), id="5.0 will QoS 2, no will"),
    pytest.param("10 L s:MQTT 05 1e 003c 00 s:a 00 s:w s:bye", marks=clause("5.0 MQTT-3.1.2-12"), id="5.0 will QoS 3"),
    pytest.param("10 L s:MQTT 05 22 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-13"), id="5.0 will retain, no will"),
    pytest.param("10 L s:MQTT 05 02 003c 00 s:a s:user", marks=clause("5.0 MQTT-3.1.2-16"), id="5.0 user, no flag"),
    pytest.param("10 L s:MQTT 05 82 003c 00 s:a", marks=clause("5.0 MQTT-3.1.2-17"), id="5.0 no user name"),
    pytest.param("10 L s:MQTT 05 82 003c 00 s:a s:user s:pw", marks=clause("5.0 MQTT-3.1.2-18"), id="5.0 pw, no flag"),
    pytest.param("10 L s:MQTT 05 c2 003c 00 s:a s:user", marks=clause("5.0 MQTT-3.1.2-19"), id="5.0 no password"),
    pytest.param("10 L s:MQTT 05 02 003c 00", marks=clause("5.0 MQTT-3.1.3-3"), id="5.0 client id missing"),
    pytest.param("10 L s:MQTT 05 02 003c P 11 00000001 11 00000001 . s:a", id="5.0 session expiry twice"),
    pytest.param("10 L s:MQTT 05 02 003c P 21 0000 . s:a", id="5.0 receive maximum 0"),
    pytest.param("10 L s:MQTT 05 02 003c P 27 00000000 . s:a", id="5.0 maximum packet size 0"),
    pytest.param("10 L s:MQTT 05 02 003c P 19 02 . s:a", id="5.0 request response information 2"),
    pytest.param("10 L s:MQTT 05 02 003c P 17 02 . s:a", id="5.0 request problem information 2"),
    pytest.param("10 L s:MQTT 05 02 003c P 16 b:00 . s:a", id="5.0 authentication data without method"),
    pytest.param("10 L s:MQTT 05 02 003c P 23 0001 . s:a", id="5.0 property of another packet"),
    pytest.param("10 L s:MQTT 05 02 003c P 7f 00 . s:a", id="5.0 unknown property"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a P 01 02 . s:w s:bye", id="5.0 will payload format 2"),
    pytest.param("10 L s:MQTT 05 06 003c 00 s:a P 11 00000001 . s:w s:bye", id="5.0 no will property"),
]
# fmt: on


@clause(
    "3.1.1 MQTT-3.1.4-1",
    "3.1.1 MQTT-3.2.2-6",
    "3.1.1 MQTT-3.1.2-11",
    "5.0 MQTT-3.1.4-1",
    "5.0 MQTT-4.13.1-1",
    "3.1.1 MQTT-4.8.0-1",
)
@pytest.mark.parametrize("packet", MALFORMED)
def test_malformed_connect_is_refused(wire: Wire, packet: str) -> None:
    client = wire.open(4 if "MQTT 04" in packet else 5)
    client.send(packet)
    client.assert_refused(0x81, 0x82)


@clause("3.1.1 MQTT-3.1.4-1", "5.0 MQTT-3.1.4-1")
@VERSIONS
def test_connect_cut_short_anywhere_is_refused(wire: Wire, version: int) -> None:
    body = frame(FULL[version])[2:]
    for length in range(len(body)):
        client = wire.open(version)
        client.send(bytes([0x10, length]) + body[:length])
        client.assert_refused(0x81, 0x82, 0x84)


@clause("3.1.1 MQTT-3.1.4-1", "5.0 MQTT-3.1.4-1")
@VERSIONS
def test_connect_with_bytes_left_over_is_refused(wire: Wire, version: int) -> None:
    client = wire.open(version)
    client.send(FULL[version] + " 00")
    client.assert_refused(0x81)


@clause("3.1.1 MQTT-3.1.3-1", "5.0 MQTT-3.1.3-1", "3.1.1 MQTT-3.1.4-4", "5.0 MQTT-3.1.4-5")
@VERSIONS
def test_payload_fields_are_read_in_their_order(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("w")
    client = wire.open(version)
    client.send(FULL[version])
    assert client.expect(Connack).reason == 0
    client.drop()
    message = watcher.expect(Publish)
    assert (message.topic, message.payload) == ("w", b"bye")


@clause("5.0 MQTT-3.1.2-19", "5.0 MQTT-3.1.2-16")
def test_password_without_user_name_is_legal_in_version_5(wire: Wire) -> None:
    client = wire.open(5)
    client.send("10 L s:MQTT 05 42 003c 00 s:a s:pw")
    assert client.expect(Connack).reason == 0


@clause("3.1.1 MQTT-3.1.0-1", "5.0 MQTT-3.1.0-1", "5.0 MQTT-3.14.0-1", "5.0 MQTT-3.2.0-1")
@pytest.mark.parametrize(
    "packet",
    [
        pytest.param("30 L s:t 00 78", id="PUBLISH"),
        pytest.param("82 L 0001 00 s:t 00", id="SUBSCRIBE"),
        pytest.param("c0 00", id="PINGREQ"),
        pytest.param("e0 00", id="DISCONNECT"),
        pytest.param("f0 00", id="AUTH"),
        pytest.param("20 02 0000", id="CONNACK"),
        pytest.param("474554202f20485454502f312e310d0a", id="HTTP"),
        pytest.param("1603010200010001fc0303", id="TLS hello"),
    ],
)
def test_first_packet_other_than_connect_closes_without_an_answer(wire: Wire, packet: str) -> None:
    client = wire.open(5)
    client.send(packet)
    assert client.closed
    assert client.receive_bytes() == b""


@clause("3.1.1 MQTT-3.1.0-2", "5.0 MQTT-3.1.0-2", "5.0 MQTT-3.2.0-2", "5.0 MQTT-4.13.1-1")
@VERSIONS
def test_second_connect_closes_the_connection(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send(wire.connect_packet("a", version))
    client.assert_dropped(0x82)


NAMES = ["mqtt", "MQTX", "MQTTS", "MQT", "MQIsdp", ""]


@clause("3.1.1 MQTT-3.1.2-1")
@pytest.mark.parametrize("name", NAMES)
def test_other_protocol_name_is_refused(wire: Wire, name: str) -> None:
    client = wire.open(4)
    client.send(f"10 L s:{name} 04 02 003c s:a")
    assert client.closed
    assert client.receive_bytes() in (b"", frame("20 02 00 01"))


@clause("5.0 MQTT-3.1.2-1")
@pytest.mark.parametrize("name", NAMES)
def test_other_protocol_name_is_refused_in_version_5(wire: Wire, name: str) -> None:
    client = wire.open(5)
    client.send(f"10 L s:{name} 05 02 003c 00 s:a")
    client.assert_refused(0x84)


@clause("3.1.1 MQTT-3.1.2-2", "3.1.1 MQTT-3.2.2-4", "3.1.1 MQTT-3.2.2-5")
@pytest.mark.parametrize("level", ["00", "01", "02", "03"])
def test_older_protocol_level_is_answered_with_return_code_1(wire: Wire, level: str) -> None:
    client = wire.open(4)
    client.send(f"10 L s:MQTT {level} 02 003c s:a")
    assert client.receive_bytes() == frame("20 02 00 01")
    assert client.closed


@clause("5.0 MQTT-3.1.2-2", "5.0 MQTT-3.2.2-7", "5.0 MQTT-4.13.2-1")
@pytest.mark.parametrize("level", ["06", "07", "7f", "85", "ff"])
def test_newer_protocol_level_is_answered_and_closed(wire: Wire, level: str) -> None:
    client = wire.open(5)
    client.send(f"10 L s:MQTT {level} 02 003c 00 s:a")
    assert client.closed
    assert client.expect(Connack).reason == 0x84


@clause("3.1.1 MQTT-3.1.2-9", "3.1.1 MQTT-3.1.2-14", "5.0 MQTT-3.1.2-9", "5.0 MQTT-3.1.2-12")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_will_at_every_qos_is_accepted(wire: Wire, version: int, qos: int) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("w", qos=2)
    wire.connect("a", version, will=Will("w", b"bye", qos)).drop()
    assert watcher.expect(Publish).qos == qos


@clause("3.1.1 MQTT-3.1.3-5", "5.0 MQTT-3.1.3-5")
@pytest.mark.parametrize(
    "client_id",
    ["0", "a", "Z", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ0123456"],
)
@VERSIONS
def test_client_ids_of_1_to_23_letters_and_digits_are_accepted(wire: Wire, version: int, client_id: str) -> None:
    assert wire.connect(client_id, version).connack.reason == 0


@clause("3.1.1 MQTT-3.1.3-6")
def test_clients_without_a_client_id_get_different_ones(wire: Wire) -> None:
    first, second = wire.connect("", 4), wire.connect("", 4)
    first.send("c0 00")
    second.send("c0 00")
    assert not first.closed
    assert not second.closed


@clause("3.1.1 MQTT-3.1.3-7", "3.1.1 MQTT-3.1.3-8", "3.1.1 MQTT-3.1.3-9", "3.1.1 MQTT-3.2.2-4", "3.1.1 MQTT-3.2.2-5")
def test_empty_client_id_without_clean_session_is_answered_with_return_code_2(wire: Wire) -> None:
    client = wire.open(4)
    client.send("10 L s:MQTT 04 00 003c 0000")
    assert client.receive_bytes() == frame("20 02 00 02")
    assert client.closed


@clause("5.0 MQTT-3.1.3-6", "5.0 MQTT-3.1.3-7", "5.0 MQTT-3.2.2-16")
@pytest.mark.parametrize("clean_start", [True, False])
def test_client_without_a_client_id_is_told_the_one_it_gets(wire: Wire, clean_start: bool) -> None:
    ids = [
        wire.connect("", clean_start=clean_start).connack.properties["assigned_client_identifier"] for _ in range(10)
    ]
    assert all(ids)
    assert len(set(ids)) == 10


@clause("5.0 MQTT-3.2.2-16", "5.0 MQTT-3.1.3-6", "3.1.1 MQTT-3.1.3-6")
@VERSIONS
def test_assigned_client_id_is_none_that_a_session_has(wire: Wire, version: int) -> None:
    named = wire.connect("assigned-1", version)  # what the id maker of these tests comes up with first
    nameless = wire.connect("", version)
    assert not named.closed
    assert nameless.connack.properties.get("assigned_client_identifier") != "assigned-1"


@clause("5.0 MQTT-3.1.3-7", "5.0 MQTT-3.1.3-2")
def test_assigned_client_id_works_as_if_the_client_had_sent_it(wire: Wire) -> None:
    client = wire.connect("", session_expiry_interval=100)
    client.subscribe("t", qos=1)
    assigned = client.connack.properties["assigned_client_identifier"]
    client.drop()
    again = wire.connect(assigned, clean_start=False, session_expiry_interval=100)
    assert again.connack.session_present
    assert "assigned_client_identifier" not in again.connack.properties


@clause("3.1.1 MQTT-3.1.3-2", "5.0 MQTT-3.1.3-2")
@VERSIONS
def test_session_belongs_to_exactly_one_client_id(wire: Wire, version: int) -> None:
    wire.connect("abc", version, clean_start=False, session_expiry_interval=100).drop()
    for other in ("ab", "abcd", "ABC", "abc "):
        assert not wire.connect(other, version, clean_start=False).connack.session_present
    assert wire.connect("abc", version, clean_start=False).connack.session_present


@clause("3.1.1 MQTT-3.1.4-2", "5.0 MQTT-3.1.4-3")
@pytest.mark.parametrize(("old", "new"), [(4, 4), (5, 5), (4, 5), (5, 4)])
def test_connecting_with_a_client_id_in_use_takes_the_session_over(wire: Wire, old: int, new: int) -> None:
    first = wire.connect("a", old)
    second = wire.connect("a", new)
    first.assert_dropped(0x8E)
    second.send("c0 00")
    assert not second.closed


@clause("3.1.1 MQTT-3.1.4-5", "5.0 MQTT-3.1.4-6", "3.1.1 MQTT-3.2.2-5", "5.0 MQTT-3.2.2-7")
@pytest.mark.parametrize(
    ("version", "refused", "publish"),
    [
        (4, "10 L s:MQTT 04 00 003c 0000", "30 L s:t 78"),
        (5, "10 L s:MQTT 05 02 003c P 15 s:unknown . s:a", "30 L s:t 00 78"),
        (5, "10 L s:MQTT 05 03 003c 00 s:a", "30 L s:t 00 78"),
    ],
)
def test_nothing_that_follows_a_refused_connect_is_processed(
    wire: Wire, version: int, refused: str, publish: str
) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("t")
    client = wire.open(version)
    client.send(frame(refused) + frame(publish))
    client.send(publish)
    assert client.closed
    assert watcher.receive() == []


@clause("3.1.1 MQTT-3.1.4-4", "5.0 MQTT-3.1.4-5", "5.0 MQTT-3.2.0-1", "3.1.1 MQTT-3.2.0-1", "5.0 MQTT-3.2.0-2")
@VERSIONS
def test_what_follows_connect_in_one_piece_is_served_after_the_connack(wire: Wire, version: int) -> None:
    client = wire.open(version)
    client.send(wire.connect_packet("a", version), frame("c0 00"), frame("c0 00"))
    assert [type(packet).__name__ for packet in client.receive()] == ["Connack", "Pingresp", "Pingresp"]


@clause("3.1.1 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-22", "5.0 MQTT-3.2.2-22")
@pytest.mark.parametrize("keep_alive", [1, 10, 60, 600])
@VERSIONS
def test_silent_client_is_closed_after_one_and_a_half_keep_alives(wire: Wire, version: int, keep_alive: int) -> None:
    client = wire.connect("a", version, keep_alive=keep_alive)
    assert "server_keep_alive" not in client.connack.properties
    wire.advance(1.5 * keep_alive - 0.1)
    assert not client.closed
    wire.advance(0.2 + 0.1 * keep_alive)
    client.assert_dropped(0x8D)


@clause("3.1.1 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-22")
@pytest.mark.parametrize(
    "packet",
    [
        pytest.param("c0 00", id="PINGREQ"),
        pytest.param("32 L s:t 0001 00", id="PUBLISH"),
        pytest.param("40 02 0007", id="PUBACK"),
    ],
)
@VERSIONS
def test_any_packet_keeps_the_connection_alive(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version, keep_alive=10)
    for _ in range(5):
        wire.advance(14)
        client.send(packet)
    assert not client.closed


@clause("3.1.1 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-22")
@VERSIONS
def test_part_of_a_packet_does_not_keep_the_connection_alive(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, keep_alive=10)
    client.send("30")
    wire.advance(10)
    client.send("7f")
    wire.advance(7)
    assert client.closed


@clause("3.1.1 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-22")
@VERSIONS
def test_keep_alive_0_never_closes(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, keep_alive=0)
    wire.advance(10 * 86_400)
    assert not client.closed


@clause("3.1.1 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-22", "3.1.1 MQTT-3.1.2-8", "5.0 MQTT-3.1.2-8")
@VERSIONS
def test_keep_alive_timeout_publishes_the_will(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher", version, keep_alive=0)
    watcher.subscribe("w")
    wire.connect("a", version, keep_alive=10, will=Will("w", b"bye"))
    wire.advance(17)
    assert watcher.expect(Publish).payload == b"bye"


@clause("5.0 MQTT-3.1.2-28")
def test_response_information_is_not_sent_to_who_did_not_ask(wire: Wire) -> None:
    assert "response_information" not in wire.connect("a").connack.properties
    assert "response_information" not in wire.connect("a", request_response_information=0).connack.properties


@clause("5.0 MQTT-3.1.2-29")
def test_without_problem_information_only_connack_and_disconnect_explain_themselves(wire: Wire) -> None:
    client = wire.connect("a", request_problem_information=0)
    client.send("82 L 0001 00 s:$share/g/ 00 s:a/#/b 00 s:ok 00")
    client.send("a2 L 0002 00 s:nothing")
    client.send("32 L s:nobody 0003 00 78", "34 L s:nobody 0004 00 78", "62 02 0004", "62 02 0099", "50 02 0099")
    received = client.receive()
    assert received
    for packet in received:
        if not isinstance(packet, Disconnect):
            assert "reason_string" not in packet.properties  # type: ignore[union-attr]
            assert "user_property" not in packet.properties  # type: ignore[union-attr]


@clause("3.1.1 MQTT-7.0.0-2")
@pytest.mark.parametrize("version", [4, 5])
def test_plain_connect_without_any_extension_is_served(wire: Wire, version: int) -> None:
    client = wire.open(version)
    client.send(Connect("plain", version))
    assert client.expect(Connack).reason == 0
