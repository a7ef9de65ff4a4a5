"""Bytes that no client may send: the sender is told why and cut off, and nobody else notices."""

import pytest

from tidings.broker.codec import encode
from tidings.broker.codec.packets import MQTT_5_0, Connack, Connect, Publish

from ..conformance.wire import frame
from ..raw_client import RawClient, run, serve

MAX_PACKET_BYTES = 10_000
MAX_CONNECT_BYTES = 1_000

CONNECT = {4: frame("10 L s:MQTT 04 02 0000 s:bad"), 5: frame("10 L s:MQTT 05 02 0000 00 s:bad")}

# What follows an accepted CONNECT, and the reason that a 5.0 client is told.
MALFORMED = {
    "type 0": ("00 00", 0x81),
    "a length of five bytes": ("30 ff ff ff ff 01", 0x81),
    "a length of five bytes, all of them continuing": ("30 ff ff ff ff ff", 0x81),
    "PINGREQ with flags": ("c1 00", 0x81),
    "PINGREQ with a body": ("c0 01 00", 0x81),
    "SUBSCRIBE with wrong flags": ("80 L 0001 00 s:a 00", 0x81),
    "SUBSCRIBE with no filter": ("82 L 0001 00", 0x82),
    "SUBSCRIBE with packet id 0": ("82 L 0000 00 s:a 00", 0x81),
    "SUBSCRIBE with QoS 3": ("82 L 0001 00 s:a 03", 0x82),
    "SUBSCRIBE with reserved options": ("82 L 0001 00 s:a c0", 0x81),
    "SUBSCRIBE whose filter is cut off": ("82 L 0001 00 0010 61", 0x81),
    "SUBSCRIBE with an identifier of 0": ("82 L 0001 P 0b 00 . s:a 00", 0x82),
    "UNSUBSCRIBE with no filter": ("a2 L 0001 00", 0x82),
    "PUBLISH with QoS 3": ("36 L s:a 0001 00", 0x81),
    "PUBLISH with no topic": ("30 00", 0x81),
    "PUBLISH with an empty topic and no alias": ("30 L s: 00", 0x82),
    "PUBLISH with a wildcard": ("30 L s:a/# 00", 0x90),
    "PUBLISH with packet id 0": ("32 L s:a 0000 00", 0x81),
    "PUBLISH with NUL in its topic": ("30 L b:610062 00", 0x81),
    "PUBLISH with a topic that is no UTF-8": ("30 L b:c328 00", 0x81),
    "PUBLISH with a surrogate in its topic": ("30 L b:eda080 00", 0x81),
    "PUBLISH with an overlong form in its topic": ("30 L b:c080 00", 0x81),
    "PUBLISH with properties that are longer than it": ("30 L s:a 7f", 0x81),
    "PUBLISH with an unknown property": ("30 L s:a P 7f .", 0x81),
    "PUBLISH with a property of CONNECT": ("30 L s:a P 21 0001 .", 0x81),
    "PUBLISH with a property twice": ("30 L s:a P 01 00 01 00 .", 0x82),
    "PUBLISH with a topic alias of 0": ("30 L s:a P 23 0000 .", 0x94),
    "PUBLISH with a topic alias above the maximum": ("30 L s:a P 23 ffff .", 0x94),
    "PUBLISH with a topic alias that was never set": ("30 L s: P 23 0001 .", 0x82),
    "PUBLISH with a subscription identifier": ("30 L s:a P 0b 01 .", 0x82),
    "PUBACK of one byte": ("40 01 00", 0x81),
    "PUBACK with an unknown reason": ("40 03 0001 42", 0x82),
    "PUBREL with wrong flags": ("60 02 0001", 0x81),
    "DISCONNECT with flags": ("e1 00", 0x81),
    "AUTH without a method": ("f0 00", 0x82),
    "a second CONNECT": ("10 L s:MQTT 05 02 0000 00 s:bad", 0x82),
    "CONNACK, which only servers send": ("20 03 00 00 00", 0x82),
    "SUBACK, which only servers send": ("90 04 0001 00 00", 0x82),
    "PINGRESP, which only servers send": ("d0 00", 0x82),
    "a packet over the maximum size": ("30 ff 4e s:a 00", 0x95),
    "a packet that announces 268,435,455 bytes": ("30 ff ff ff 7f", 0x95),
    "SUBSCRIBE that announces 268,435,455 bytes": ("82 ff ff ff 7f", 0x95),
}

# What a connection begins with instead of a CONNECT.
NO_CONNECT = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": frame("16 0301 0200 01 00 01 fc 03 03") + bytes(500),
    "PUBLISH": frame("30 L s:a 00"),
    "SUBSCRIBE": frame("82 L 0001 00 s:a 00"),
    "PINGREQ": frame("c0 00"),
    "DISCONNECT": frame("e0 00"),
    "AUTH": frame("f0 00"),
    "nothing but NUL": bytes(1000),
    "CONNECT of 268,435,455 bytes": frame("10 ff ff ff 7f"),
    "CONNECT over its own limit": frame("10 e9 07"),
    "CONNECT of another protocol": frame("10 L s:HTTP 05 02 0000 00 s:bad"),
    "CONNECT with the reserved flag": frame("10 L s:MQTT 05 03 0000 00 s:bad"),
    "CONNECT of an empty body": frame("10 00"),
    "CONNECT with a client id that is cut off": frame("10 L s:MQTT 05 02 0000 00 00ff 62"),
    "CONNECT with a will it does not announce": frame("10 L s:MQTT 05 18 0000 00 s:bad"),
    "CONNECT with a will topic with a wildcard": frame("10 L s:MQTT 05 06 0000 00 s:bad 00 s:a/+ s:x"),
    "CONNECT with something behind it": frame("10 L s:MQTT 05 02 0000 00 s:bad ff"),
}


def attack(version: int, data: bytes) -> int | None:
    """The reason with which a client that sends ``data`` after its CONNECT is cut off; a neighbour must not notice."""

    async def main() -> int | None:
        limits = {"max_packet_size_bytes": MAX_PACKET_BYTES, "max_connect_size_bytes": MAX_CONNECT_BYTES}
        async with serve(**limits) as broker:
            url = broker.urls[0]
            async with await RawClient.connect(url, "good") as good, await RawClient.open(url, version) as bad:
                await good.subscribe("good")
                bad.send(CONNECT[version])
                await bad.expect(Connack)
                bad.send(data)
                reason = await bad.refusal()
                good.send(Publish("good", b"x"))
                assert (await good.message()).payload == b"x"
                assert broker.snapshot().clients_connected == 1
                return reason

    return run(main())


@pytest.mark.parametrize("name", MALFORMED)
def test_a_5_0_client_is_told_why_it_is_cut_off(name: str, caplog: pytest.LogCaptureFixture) -> None:
    line, reason = MALFORMED[name]
    assert attack(5, frame(line)) == reason
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "'bad'" in warning
    assert f"{reason:#04x}" in warning


@pytest.mark.parametrize("name", ["type 0", "a length of five bytes", "PINGREQ with flags", "a second CONNECT"])
def test_a_3_1_1_client_is_cut_off_without_a_word(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data = CONNECT[4] if name == "a second CONNECT" else frame(MALFORMED[name][0])
    assert attack(4, data) is None
    assert "closing <connected 'bad' from " in caplog.text


@pytest.mark.parametrize("name", NO_CONNECT)
def test_a_connection_that_does_not_begin_with_connect_is_closed(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        limits = {"max_packet_size_bytes": MAX_PACKET_BYTES, "max_connect_size_bytes": MAX_CONNECT_BYTES}
        async with serve(**limits) as broker:
            url = broker.urls[0]
            async with await RawClient.connect(url, "good") as good, await RawClient.open(url) as bad:
                bad.send(NO_CONNECT[name])
                packets = await bad.rest()
                assert all(isinstance(packet, Connack) and packet.reason >= 0x80 for packet in packets), packets
                assert len(packets) <= 1
                await good.publish("good", b"x")
                assert broker.snapshot().clients_maximum == 1

    run(main())
    assert "closing <connecting '' from 127.0.0.1:" in caplog.text
    assert "internal error" not in caplog.text


def test_a_length_that_is_never_filled_takes_no_memory_before_its_bytes_come() -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "giant") as client:
            client.send(frame("30 80 80 3f"))  # 1,032,192 bytes, which is allowed
            client.send(b"x" * 100)
            async with await RawClient.connect(broker.urls[0], "good") as good:
                await good.publish("a")
            snapshot = broker.snapshot()
            assert snapshot.stats.bytes_received < 1000
            assert snapshot.clients_connected == 2

    run(main())


@pytest.mark.parametrize("version", [4, 5])
def test_what_came_before_the_error_is_done_and_what_comes_after_it_is_not(version: int) -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")
            async with await RawClient.open(broker.urls[0], version) as bad:
                before, after = (encode(Publish("a", payload), version) for payload in (b"before", b"after"))
                bad.send(CONNECT[version] + before + b"\x00\x00" + after + after)
                await bad.rest()
                bad.send(after)
            assert [(await anext(messages)).payload, messages.waiting] == [b"before", 0]

    run(main())


def test_a_thousand_offenders_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serve() as broker:
            for number in range(1000):
                async with await RawClient.open(broker.urls[0]) as bad:
                    bad.send(Connect(f"bad {number}", MQTT_5_0), b"\x00\x00")
                    await bad.rest()
            snapshot = broker.snapshot()
            assert (snapshot.clients_connected, snapshot.clients_disconnected, snapshot.subscriptions) == (0, 0, 0)
            assert broker._engine is not None
            assert not broker._engine.connections

    run(main())
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1000
