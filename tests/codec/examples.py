"""Packets and their bytes, worked out by hand from the standards: what decoding and encoding must agree on."""

from typing import Literal, NamedTuple

from tidings.broker.codec import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
    Will,
)

Side = Literal["server", "client"]


class Example(NamedTuple):
    """``line`` in the words of ``frames``; ``side`` is who receives it."""

    version: int
    side: Side
    line: str
    packet: Packet


EXAMPLES = [
    # CONNECT
    Example(3, "server", "10 * s'MQIsdp' 03 02 003c s'id'", Connect("id", 3)),
    Example(4, "server", "10 * s'MQTT' 04 00 0000 s'id'", Connect("id", 4, False, 0)),
    Example(4, "server", "10 * s'MQTT' 04 02 003c s''", Connect("", 4)),
    Example(
        4,
        "server",
        "10 * s'MQTT' 04 f6 ffff s'id' s'w/t' s'bye' s'user' s'pass'",
        Connect("id", 4, True, 65535, "user", b"pass", Will("w/t", b"bye", 2, True)),
    ),
    Example(5, "server", "10 * s'MQTT' 05 02 003c [] s'id'", Connect("id", 5)),
    Example(5, "server", "10 * s'MQTT' 05 42 003c [] s'id' s'token'", Connect("id", 5, password=b"token")),
    Example(
        5,
        "server",
        "10 * s'MQTT' 05 0e 003c"
        " [11 00000e10 21 0014 27 00010000 22 000a 19 01 17 00 26 s'a' s'b' 15 s'X' 16 s'y'] s'id'"
        " [18 00000005 01 01 02 0000003c 03 s'text/plain' 08 s're/ply' 09 s'42' 26 s'k' s'v'] s'w' s'bye'",
        Connect(
            "id",
            5,
            will=Will(
                "w",
                b"bye",
                1,
                False,
                {
                    "will_delay_interval": 5,
                    "payload_format_indicator": 1,
                    "message_expiry_interval": 60,
                    "content_type": "text/plain",
                    "response_topic": "re/ply",
                    "correlation_data": b"42",
                    "user_property": [("k", "v")],
                },
            ),
            properties={
                "session_expiry_interval": 3600,
                "receive_maximum": 20,
                "maximum_packet_size": 65536,
                "topic_alias_maximum": 10,
                "request_response_information": 1,
                "request_problem_information": 0,
                "user_property": [("a", "b")],
                "authentication_method": "X",
                "authentication_data": b"y",
            },
        ),
    ),
    # CONNACK
    Example(3, "client", "20 02 00 00", Connack()),
    Example(4, "client", "20 02 01 00", Connack(True)),
    Example(4, "client", "20 02 00 05", Connack(False, 5)),
    Example(5, "client", "20 * 00 86 []", Connack(False, 0x86)),
    Example(
        5,
        "client",
        "20 * 01 00 [11 00000001 21 0002 24 01 25 00 27 00000003 12 s'made' 22 0004 1f s'why' 26 s'a' s'1' 26 s'a' s'1'"
        " 28 01 29 00 2a 01 13 0005 1a s'ri' 1c s'other' 15 s'M' 16 s'd']",
        Connack(
            True,
            0,
            {
                "session_expiry_interval": 1,
                "receive_maximum": 2,
                "maximum_qos": 1,
                "retain_available": 0,
                "maximum_packet_size": 3,
                "assigned_client_identifier": "made",
                "topic_alias_maximum": 4,
                "reason_string": "why",
                "user_property": [("a", "1"), ("a", "1")],
                "wildcard_subscription_available": 1,
                "subscription_identifier_available": 0,
                "shared_subscription_available": 1,
                "server_keep_alive": 5,
                "response_information": "ri",
                "server_reference": "other",
                "authentication_method": "M",
                "authentication_data": b"d",
            },
        ),
    ),
    # PUBLISH
    Example(3, "server", "30 * s'a/b' 'hi'", Publish("a/b", b"hi")),
    Example(4, "server", "30 * s'a/b'", Publish("a/b")),
    Example(4, "server", "31 * s'a/b' 'hi'", Publish("a/b", b"hi", retain=True)),
    Example(4, "server", "32 * s'a/b' 000a 'hi'", Publish("a/b", b"hi", 1, packet_id=10)),
    Example(4, "client", "3d * s'a/b' ffff 'hi'", Publish("a/b", b"hi", 2, True, True, 65535)),
    Example(5, "server", "30 * s'a/b' [] 'hi'", Publish("a/b", b"hi")),
    Example(5, "client", "3a * s'a/b' 0001 []", Publish("a/b", b"", 1, dup=True, packet_id=1)),
    Example(
        5,
        "server",
        "34 * s'' 0102 [23 0007] 'hi'",
        Publish("", b"hi", 2, packet_id=0x0102, properties={"topic_alias": 7}),
    ),
    Example(
        5,
        "client",
        "30 * s'a' [0b 01 0b 8001 0b ffffff7f 01 00 26 s'' s''] 'x'",
        Publish(
            "a",
            b"x",
            properties={
                "subscription_identifier": [1, 128, 268435455],
                "payload_format_indicator": 0,
                "user_property": [("", "")],
            },
        ),
    ),
    # PUBACK, PUBREC, PUBREL, PUBCOMP
    Example(3, "client", "40 02 0001", Puback(1)),
    Example(4, "server", "50 02 0002", Pubrec(2)),
    Example(4, "server", "62 02 0003", Pubrel(3)),
    Example(4, "client", "70 02 ffff", Pubcomp(65535)),
    Example(5, "client", "40 02 0001", Puback(1)),
    Example(5, "client", "40 03 0001 10", Puback(1, 0x10)),
    Example(
        5,
        "server",
        "50 * 0001 00 [1f s'no' 26 s'a' s'b']",
        Pubrec(1, 0, {"reason_string": "no", "user_property": [("a", "b")]}),
    ),
    Example(5, "server", "62 03 0001 92", Pubrel(1, 0x92)),
    Example(5, "client", "70 * 0001 92 [1f s'gone']", Pubcomp(1, 0x92, {"reason_string": "gone"})),
    # SUBSCRIBE, SUBACK
    Example(3, "server", "82 * 0001 s'a/#' 01", Subscribe(1, [SubscribeFilter("a/#", 1)])),
    Example(
        4,
        "server",
        "82 * 000a s'a/b' 01 s'+/d' 02",
        Subscribe(10, [SubscribeFilter("a/b", 1), SubscribeFilter("+/d", 2)]),
    ),
    Example(
        5,
        "server",
        "82 * 000a [0b 8001 26 s'a' s'b'] s'a' 2e s'$share/g/b' 19",
        Subscribe(
            10,
            [SubscribeFilter("a", 2, True, True, 2), SubscribeFilter("$share/g/b", 1, False, True, 1)],
            {"subscription_identifier": [128], "user_property": [("a", "b")]},
        ),
    ),
    Example(4, "client", "90 * 000a 00 01 02 80", Suback(10, [0, 1, 2, 0x80])),
    Example(
        5,
        "client",
        "90 * 000a [1f s'x'] 02 97 9e a1 a2",
        Suback(10, [2, 0x97, 0x9E, 0xA1, 0xA2], {"reason_string": "x"}),
    ),
    # UNSUBSCRIBE, UNSUBACK
    Example(3, "server", "a2 * 0001 s'a/b'", Unsubscribe(1, ["a/b"])),
    Example(4, "server", "a2 * 0001 s'a/b' s'#'", Unsubscribe(1, ["a/b", "#"])),
    Example(5, "server", "a2 * 0001 [26 s'a' s'b'] s'#'", Unsubscribe(1, ["#"], {"user_property": [("a", "b")]})),
    Example(4, "client", "b0 02 0001", Unsuback(1)),
    Example(5, "client", "b0 * 0001 [] 00 11 8f", Unsuback(1, [0, 0x11, 0x8F])),
    # PINGREQ, PINGRESP, DISCONNECT, AUTH
    Example(3, "server", "c0 00", Pingreq()),
    Example(5, "server", "c0 00", Pingreq()),
    Example(4, "client", "d0 00", Pingresp()),
    Example(3, "server", "e0 00", Disconnect()),
    Example(4, "server", "e0 00", Disconnect()),
    Example(5, "client", "e0 00", Disconnect()),
    Example(5, "server", "e0 01 04", Disconnect(4)),
    Example(5, "server", "e0 * 00 [11 00000000]", Disconnect(0, {"session_expiry_interval": 0})),
    Example(5, "client", "e0 * 9c [1c s'other']", Disconnect(0x9C, {"server_reference": "other"})),
    Example(5, "server", "f0 00", Auth()),
    Example(
        5,
        "client",
        "f0 * 18 [15 s'M' 16 s'd']",
        Auth(0x18, {"authentication_method": "M", "authentication_data": b"d"}),
    ),
]


def example_id(example: object) -> str:
    if isinstance(example, Example):
        return f"{example.version}-{example.side}-{type(example.packet).__name__}"
    return ""
