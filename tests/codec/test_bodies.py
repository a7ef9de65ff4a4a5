"""What stands after the fixed header: hand-made bytes of every packet, and each way to get them wrong."""

import pytest

from tidings.broker.codec import Connack, Connect, Packet, Subscribe, SubscribeFilter, Will
from tidings.broker.codec.bodies import READERS, read_connect, read_version, refusal
from tidings.broker.errors import MalformedPacket, ProtocolError, UnsupportedVersion

from .examples import EXAMPLES, Example, Side, example_id
from .frames import frame

clause = pytest.mark.clause
MALFORMED, PROTOCOL, VERSION, TOPIC = 0x81, 0x82, 0x84, 0x90


def read(version: int, side: Side, line: str) -> Packet:
    """Read one frame with a short remaining length; bytes around it are noise that must not matter."""
    raw = frame(line)
    assert raw[1] == len(raw) - 2
    reader = READERS[side, version][raw[0]]
    if reader is None:
        raise refusal(raw[0], side, version)
    return reader(b"\x7f" + raw + b"\x00\x00\x00\x00", 3, len(raw) + 1)


@pytest.mark.parametrize(
    "example",
    [one for one in EXAMPLES if type(one.packet).__name__ != "Publish" and frame(one.line)[1] < 128],
    ids=example_id,
)
def test_packets_are_read_as_the_standard_writes_them(example: Example) -> None:
    assert read(example.version, example.side, example.line) == example.packet


BAD_CONNECTS = [
    pytest.param(
        "10 * s'MQTT' 06 02 0000 s'c'", VERSION, marks=clause("5.0 MQTT-3.1.2-2", "3.1.1 MQTT-3.1.2-2"), id="level 6"
    ),
    pytest.param("10 * s'MQTT' 03 02 0000 s'c'", VERSION, id="level 3 by the wrong name"),
    pytest.param("10 * s'MQTT' 84 02 0000 s'c'", VERSION, id="a bridge"),
    pytest.param("10 * s'MQIsdp' 04 02 0000 s'c'", VERSION, id="level 4 by the old name"),
    pytest.param(
        "10 * s'mqtt' 04 02 0000 s'c'", VERSION, marks=clause("5.0 MQTT-3.1.2-1", "3.1.1 MQTT-3.1.2-1"), id="name"
    ),
    pytest.param("10 * s'MQTT' 04 03 0000 s'c'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-3"), id="reserved flag, 4"),
    pytest.param("10 * s'MQTT' 05 03 0000 [] s'c'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-3"), id="reserved flag, 5"),
    pytest.param(
        "10 * s'MQTT' 04 0a 0000 s'c'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-13"), id="will QoS alone, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 12 0000 [] s'c'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-11"), id="will QoS alone, 5"
    ),
    pytest.param(
        "10 * s'MQTT' 04 22 0000 s'c'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-15"), id="will retain alone, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 22 0000 [] s'c'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-13"), id="will retain alone, 5"
    ),
    pytest.param("10 * s'MQIsdp' 03 1e 0000 s'c' s'w' s'm'", MALFORMED, id="will QoS 3, 3"),
    pytest.param(
        "10 * s'MQTT' 04 1e 0000 s'c' s'w' s'm'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-14"), id="will QoS 3, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 1e 0000 [] s'c' [] s'w' s'm'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-12"), id="will QoS 3, 5"
    ),
    pytest.param(
        "10 * s'MQTT' 04 42 0000 s'c' s'pw'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-22"), id="password alone, 4"
    ),
    pytest.param("10 * s'MQIsdp' 03 42 0000 s'c' s'pw'", MALFORMED, id="password alone, 3"),
    pytest.param("10 * s'MQTT' 04 06 0000 s'c'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-9"), id="no will, 4"),
    pytest.param("10 * s'MQTT' 05 06 0000 [] s'c'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-9"), id="no will, 5"),
    pytest.param("10 * s'MQTT' 04 82 0000 s'c'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-19"), id="no user name, 4"),
    pytest.param("10 * s'MQTT' 05 82 0000 [] s'c'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-17"), id="no user name, 5"),
    pytest.param(
        "10 * s'MQTT' 04 c2 0000 s'c' s'u'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-21"), id="no password, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 c2 0000 [] s'c' s'u'", MALFORMED, marks=clause("5.0 MQTT-3.1.2-19"), id="no password, 5"
    ),
    pytest.param(
        "10 * s'MQTT' 04 02 0000 s'c' s'u'", MALFORMED, marks=clause("3.1.1 MQTT-3.1.2-18"), id="user name unflagged, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 02 0000 [] s'c' s'u'",
        MALFORMED,
        marks=clause("5.0 MQTT-3.1.2-16"),
        id="user name unflagged, 5",
    ),
    pytest.param(
        "10 * s'MQTT' 04 82 0000 s'c' s'u' s'p'",
        MALFORMED,
        marks=clause("3.1.1 MQTT-3.1.2-20"),
        id="password unflagged, 4",
    ),
    pytest.param(
        "10 * s'MQTT' 05 82 0000 [] s'c' s'u' s'p'",
        MALFORMED,
        marks=clause("5.0 MQTT-3.1.2-18"),
        id="password unflagged, 5",
    ),
    pytest.param("10 * s'MQTT' 04 02 0000", MALFORMED, marks=clause("3.1.1 MQTT-3.1.3-3"), id="no client id, 4"),
    pytest.param("10 * s'MQTT' 05 02 0000 []", MALFORMED, marks=clause("5.0 MQTT-3.1.3-3"), id="no client id, 5"),
    pytest.param(
        "10 * s'MQTT' 04 02 0000 0001ff", MALFORMED, marks=clause("3.1.1 MQTT-3.1.3-4"), id="client id no UTF-8, 4"
    ),
    pytest.param(
        "10 * s'MQTT' 05 02 0000 [] 0001ff", MALFORMED, marks=clause("5.0 MQTT-3.1.3-4"), id="client id no UTF-8, 5"
    ),
    pytest.param(
        "10 * s'MQTT' 04 06 0000 s'c' 0001ff s'm'",
        MALFORMED,
        marks=clause("3.1.1 MQTT-3.1.3-10"),
        id="will topic no UTF-8, 4",
    ),
    pytest.param(
        "10 * s'MQTT' 05 06 0000 [] s'c' [] 0001ff s'm'",
        MALFORMED,
        marks=clause("5.0 MQTT-3.1.3-11"),
        id="will topic no UTF-8, 5",
    ),
    pytest.param(
        "10 * s'MQTT' 04 82 0000 s'c' 0001ff",
        MALFORMED,
        marks=clause("3.1.1 MQTT-3.1.3-11"),
        id="user name no UTF-8, 4",
    ),
    pytest.param(
        "10 * s'MQTT' 05 82 0000 [] s'c' 0001ff",
        MALFORMED,
        marks=clause("5.0 MQTT-3.1.3-12"),
        id="user name no UTF-8, 5",
    ),
    pytest.param("10 * s'MQTT' 04 06 0000 s'c' s'w/#' s'm'", TOPIC, id="will topic with a wildcard"),
    pytest.param("10 * s'MQTT' 04 06 0000 s'c' s'' s'm'", PROTOCOL, id="will topic empty"),
    pytest.param("10 * s'MQTT' 05 02 0000 [16 s'd'] s'c'", PROTOCOL, id="authentication data without method"),
    pytest.param("10 * s'MQTT' 05 02 0000 [21 0000] s'c'", PROTOCOL, id="receive maximum 0"),
    pytest.param("10 * s'MQTT' 05 02 0000 [18 00000001] s'c'", MALFORMED, id="will delay outside the will"),
    pytest.param(
        "10 * s'MQTT' 05 06 0000 [] s'c' [11 00000001] s'w' s'm'", MALFORMED, id="session expiry inside the will"
    ),
    pytest.param("10 * s'MQTT'", MALFORMED, id="no level"),
    pytest.param("10 00", MALFORMED, id="empty"),
]


@clause("5.0 MQTT-3.1.4-1", "3.1.1 MQTT-3.1.4-1")
@pytest.mark.parametrize(("line", "reason"), BAD_CONNECTS)
def test_a_connect_that_breaks_the_format_is_refused(line: str, reason: int) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(4, "server", line)
    assert refused.value.reason == reason
    assert isinstance(refused.value, MalformedPacket) == (reason == MALFORMED)


def test_the_refused_protocol_level_is_reported() -> None:
    for level in (0, 3, 6, 0x83, 0x84):
        raw = b"\x00\x04MQTT" + bytes((level,))
        with pytest.raises(UnsupportedVersion, match=f"level {level}") as refused:
            read_version(raw, 0, len(raw))
        assert refused.value.level == level


def test_mqtt_3_1_has_its_own_laxities() -> None:
    # user name and password flags without the fields; the reserved flag and the will flags mean nothing
    raw = frame("s'MQIsdp' 03 c2 0000 s'c'")
    assert read_connect(raw, 0, len(raw)) == Connect("c", 3, True, 0)
    raw = frame("s'MQIsdp' 03 c2 0000 s'c' s'u'")
    assert read_connect(raw, 0, len(raw)) == Connect("c", 3, True, 0, "u")
    raw = frame("s'MQIsdp' 03 3b 0000 s'c'")
    assert read_connect(raw, 0, len(raw)) == Connect("c", 3, True, 0)
    # DUP on what is repeated, spare bits beside a requested QoS, a reserved byte in CONNACK
    assert read(3, "server", "8a * 0001 s'a' f1") == Subscribe(1, [SubscribeFilter("a", 1)])
    assert read(3, "server", "aa * 0001 s'a'") == read(3, "server", "a2 * 0001 s'a'")
    assert read(3, "client", "6a 02 0001") == read(3, "client", "62 02 0001")
    assert read(3, "client", "20 02 01 00") == Connack()


def test_mqtt_5_allows_a_password_and_an_empty_will() -> None:
    raw = frame("s'MQTT' 05 46 0000 [] s'' [] s'w' 0000 s'pw'")
    assert read_connect(raw, 0, len(raw)) == Connect("", 5, True, 0, None, b"pw", Will("w"))


BAD = [
    # CONNACK
    pytest.param(4, "client", "20 02 02 00", MALFORMED, id="CONNACK flags, 4"),
    pytest.param(5, "client", "20 * 80 00 []", MALFORMED, marks=clause("5.0 MQTT-3.2.2-1"), id="CONNACK flags, 5"),
    pytest.param(
        4,
        "client",
        "20 02 01 05",
        PROTOCOL,
        marks=clause("3.1.1 MQTT-3.2.2-4"),
        id="CONNACK refusing a session present, 4",
    ),
    pytest.param(
        5,
        "client",
        "20 * 01 87 []",
        PROTOCOL,
        marks=clause("5.0 MQTT-3.2.2-6"),
        id="CONNACK refusing a session present, 5",
    ),
    pytest.param(4, "client", "20 02 00 06", PROTOCOL, id="CONNACK reserved return code"),
    pytest.param(5, "client", "20 * 00 04 []", PROTOCOL, marks=clause("5.0 MQTT-3.2.2-8"), id="CONNACK reason"),
    pytest.param(5, "client", "20 * 00 00 [16 s'd']", PROTOCOL, id="CONNACK authentication data without method"),
    pytest.param(5, "client", "20 02 00 00", MALFORMED, id="CONNACK without property length"),
    pytest.param(4, "client", "20 03 00 00 00", MALFORMED, id="CONNACK too long"),
    # acknowledgements
    pytest.param(4, "server", "40 02 0000", MALFORMED, marks=clause("3.1.1 MQTT-2.3.1-1"), id="PUBACK id 0"),
    pytest.param(4, "server", "40 03 0001 00", MALFORMED, id="PUBACK too long before 5.0"),
    pytest.param(4, "server", "50 01 00", MALFORMED, id="PUBREC cut"),
    pytest.param(5, "server", "40 03 0001 92", PROTOCOL, marks=clause("5.0 MQTT-3.4.2-1"), id="PUBACK reason"),
    pytest.param(5, "server", "50 03 0001 01", PROTOCOL, marks=clause("5.0 MQTT-3.5.2-1"), id="PUBREC reason"),
    pytest.param(5, "server", "62 03 0001 80", PROTOCOL, marks=clause("5.0 MQTT-3.6.2-1"), id="PUBREL reason"),
    pytest.param(5, "server", "70 03 0001 10", PROTOCOL, marks=clause("5.0 MQTT-3.7.2-1"), id="PUBCOMP reason"),
    pytest.param(5, "server", "40 * 0001 00 [] 00", MALFORMED, id="PUBACK too long"),
    pytest.param(5, "server", "40 * 0001 00 [11 00000000]", MALFORMED, id="PUBACK with a property of others"),
    # SUBSCRIBE
    pytest.param(4, "server", "82 02 0001", PROTOCOL, marks=clause("3.1.1 MQTT-3.8.3-3"), id="SUBSCRIBE of nothing, 4"),
    pytest.param(5, "server", "82 * 0001 []", PROTOCOL, marks=clause("5.0 MQTT-3.8.3-2"), id="SUBSCRIBE of nothing, 5"),
    pytest.param(4, "server", "82 * 0000 s'a' 00", MALFORMED, marks=clause("3.1.1 MQTT-2.3.1-1"), id="SUBSCRIBE id 0"),
    pytest.param(
        5, "server", "82 * 0000 [] s'a' 00", MALFORMED, marks=clause("5.0 MQTT-2.2.1-3"), id="SUBSCRIBE id 0, 5"
    ),
    pytest.param(
        4, "server", "82 * 0001 s'a' 03", PROTOCOL, marks=clause("3.1.1 MQTT-3.8.3-4"), id="SUBSCRIBE QoS 3, 4"
    ),
    pytest.param(5, "server", "82 * 0001 [] s'a' 03", PROTOCOL, id="SUBSCRIBE QoS 3, 5"),
    pytest.param(
        4, "server", "82 * 0001 s'a' 04", MALFORMED, marks=clause("3.1.1 MQTT-3.8.3-4"), id="SUBSCRIBE reserved bits, 4"
    ),
    pytest.param(
        5, "server", "82 * 0001 [] s'a' 40", MALFORMED, marks=clause("5.0 MQTT-3.8.3-5"), id="SUBSCRIBE bit 6"
    ),
    pytest.param(
        5, "server", "82 * 0001 [] s'a' 80", MALFORMED, marks=clause("5.0 MQTT-3.8.3-5"), id="SUBSCRIBE bit 7"
    ),
    pytest.param(5, "server", "82 * 0001 [] s'a' 30", PROTOCOL, id="SUBSCRIBE retain handling 3"),
    pytest.param(
        5, "server", "82 * 0001 [] s'$share/g/a' 04", PROTOCOL, marks=clause("5.0 MQTT-3.8.3-4"), id="no local, shared"
    ),
    pytest.param(5, "server", "82 * 0001 [0b 00] s'a' 00", PROTOCOL, id="SUBSCRIBE identifier 0"),
    pytest.param(5, "server", "82 * 0001 [0b 01 0b 02] s'a' 00", PROTOCOL, id="SUBSCRIBE identifier twice"),
    pytest.param(
        4, "server", "82 * 0001 s'' 00", PROTOCOL, marks=clause("3.1.1 MQTT-4.7.3-1"), id="SUBSCRIBE empty filter, 4"
    ),
    pytest.param(
        5, "server", "82 * 0001 [] s'' 00", PROTOCOL, marks=clause("5.0 MQTT-4.7.3-1"), id="SUBSCRIBE empty filter, 5"
    ),
    pytest.param(
        4, "server", "82 * 0001 0001ff 00", MALFORMED, marks=clause("3.1.1 MQTT-3.8.3-1"), id="SUBSCRIBE no UTF-8, 4"
    ),
    pytest.param(
        5, "server", "82 * 0001 [] 0001ff 00", MALFORMED, marks=clause("5.0 MQTT-3.8.3-1"), id="SUBSCRIBE no UTF-8, 5"
    ),
    pytest.param(4, "server", "82 * 0001 s'a'", MALFORMED, id="SUBSCRIBE without options"),
    # SUBACK
    pytest.param(4, "client", "90 03 0001 03", PROTOCOL, marks=clause("3.1.1 MQTT-3.9.3-2"), id="SUBACK code, 4"),
    pytest.param(5, "client", "90 * 0001 [] 03", PROTOCOL, marks=clause("5.0 MQTT-3.9.3-2"), id="SUBACK reason, 5"),
    pytest.param(4, "client", "90 02 0001", PROTOCOL, id="SUBACK without codes"),
    # UNSUBSCRIBE, UNSUBACK
    pytest.param(
        4, "server", "a2 02 0001", PROTOCOL, marks=clause("3.1.1 MQTT-3.10.3-2"), id="UNSUBSCRIBE of nothing, 4"
    ),
    pytest.param(
        5, "server", "a2 * 0001 []", PROTOCOL, marks=clause("5.0 MQTT-3.10.3-2"), id="UNSUBSCRIBE of nothing, 5"
    ),
    pytest.param(
        4, "server", "a2 * 0001 0001ff", MALFORMED, marks=clause("3.1.1 MQTT-3.10.3-1"), id="UNSUBSCRIBE no UTF-8, 4"
    ),
    pytest.param(
        5, "server", "a2 * 0001 [] 0001ff", MALFORMED, marks=clause("5.0 MQTT-3.10.3-1"), id="UNSUBSCRIBE no UTF-8, 5"
    ),
    pytest.param(4, "server", "a2 * 0001 s''", PROTOCOL, id="UNSUBSCRIBE empty filter"),
    pytest.param(4, "client", "b0 03 0001 00", MALFORMED, id="UNSUBACK with reasons before 5.0"),
    pytest.param(5, "client", "b0 * 0001 []", PROTOCOL, id="UNSUBACK without reasons"),
    pytest.param(5, "client", "b0 * 0001 [] 01", PROTOCOL, marks=clause("5.0 MQTT-3.11.3-2"), id="UNSUBACK reason"),
    # PINGREQ, PINGRESP, DISCONNECT, AUTH
    pytest.param(4, "server", "c0 01 00", MALFORMED, id="PINGREQ too long"),
    pytest.param(4, "client", "d0 01 00", MALFORMED, id="PINGRESP too long"),
    pytest.param(4, "server", "e0 01 00", MALFORMED, id="DISCONNECT with a reason before 5.0"),
    pytest.param(5, "server", "e0 01 86", PROTOCOL, marks=clause("5.0 MQTT-3.14.2-1"), id="DISCONNECT reason"),
    pytest.param(
        5,
        "client",
        "e0 * 00 [11 00000001]",
        PROTOCOL,
        marks=clause("5.0 MQTT-3.14.2-2"),
        id="session expiry from a server",
    ),
    pytest.param(5, "server", "f0 01 00", PROTOCOL, id="AUTH without method"),
    pytest.param(5, "server", "f0 * 18 [16 s'd']", PROTOCOL, id="AUTH data without method"),
    pytest.param(5, "server", "f0 * 01 [15 s'M']", PROTOCOL, marks=clause("5.0 MQTT-3.15.2-1"), id="AUTH reason"),
    # who may send what
    pytest.param(4, "client", "10 * s'MQTT' 04 02 0000 s'c'", PROTOCOL, id="CONNECT to a client"),
    pytest.param(4, "client", "82 * 0001 s'a' 00", PROTOCOL, id="SUBSCRIBE to a client"),
    pytest.param(4, "client", "a2 * 0001 s'a'", PROTOCOL, id="UNSUBSCRIBE to a client"),
    pytest.param(4, "client", "c0 00", PROTOCOL, id="PINGREQ to a client"),
    pytest.param(4, "client", "e0 00", PROTOCOL, id="DISCONNECT to a client before 5.0"),
    pytest.param(4, "server", "20 02 00 00", PROTOCOL, id="CONNACK to a server"),
    pytest.param(4, "server", "90 03 0001 00", PROTOCOL, id="SUBACK to a server"),
    pytest.param(4, "server", "b0 02 0001", PROTOCOL, id="UNSUBACK to a server"),
    pytest.param(4, "server", "d0 00", PROTOCOL, id="PINGRESP to a server"),
    pytest.param(4, "server", "f0 00", MALFORMED, id="AUTH before 5.0"),
    pytest.param(5, "server", "00 00", MALFORMED, id="packet type 0"),
]


@pytest.mark.parametrize(("version", "side", "line", "reason"), BAD)
def test_a_packet_that_breaks_the_format_is_refused(version: int, side: Side, line: str, reason: int) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(version, side, line)
    assert refused.value.reason == reason


LEGAL_FLAGS = {1: 0, 2: 0, 4: 0, 5: 0, 6: 2, 7: 0, 8: 2, 9: 0, 10: 2, 11: 0, 12: 0, 13: 0, 14: 0, 15: 0}


@clause("5.0 MQTT-2.1.3-1", "3.1.1 MQTT-2.2.2-1", "3.1.1 MQTT-2.2.2-2", "3.1.1 MQTT-3.6.1-1", "3.1.1 MQTT-3.8.1-1")
@clause("5.0 MQTT-3.8.1-1", "5.0 MQTT-3.10.1-1", "3.1.1 MQTT-3.10.1-1", "5.0 MQTT-3.14.1-1", "3.1.1 MQTT-3.14.1-1")
@clause("5.0 MQTT-3.15.1-1")
@pytest.mark.parametrize("version", [4, 5])
def test_the_reserved_flags_of_every_packet_are_checked(version: int) -> None:
    for kind, legal in LEGAL_FLAGS.items():
        for flags in range(16):
            readers = [READERS[side, version][kind << 4 | flags] for side in ("server", "client")]
            if flags == legal and not (kind == 15 and version == 4):
                assert any(readers), f"type {kind} with flags {flags} must be read"
            else:
                assert not any(readers), f"type {kind} with flags {flags} must be refused"


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_every_first_byte_without_a_reader_has_a_reason(version: int, side: Side) -> None:
    for first, reader in enumerate(READERS[side, version]):
        if reader is None:
            assert refusal(first, side, version).reason in (MALFORMED, PROTOCOL)


@clause("5.0 MQTT-3.3.1-2", "5.0 MQTT-3.3.1-4", "3.1.1 MQTT-3.3.1-2", "3.1.1 MQTT-3.3.1-4")
def test_the_reason_for_a_refused_publish_is_told() -> None:
    assert "QoS is 3" in str(refusal(0x36, "server", 5))
    assert "DUP at QoS 0" in str(refusal(0x38, "server", 5))
