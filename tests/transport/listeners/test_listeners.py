"""What every listener owes its clients, whatever carries the bytes: one suite for all of them."""

import threading

import pytest

from tidings.broker.core.ports import TurnedAway

from ...conformance.wire import frame
from .conftest import KINDS, Serve
from .streams import TIMEOUT_S, Closed

pytestmark = pytest.mark.parametrize("kind", KINDS)


def publish(topic: str, payload: bytes) -> bytes:
    return frame(f"30 L s:{topic}  {payload.hex()}")


def test_packets_arrive_whole_whatever_pieces_they_were_sent_in(serve: Serve, kind: str) -> None:
    stream = serve(kind).open()
    packets = frame("10 L s:MQTT 04 02 003c s:a") + frame("82 L 0001 s:t 01") + publish("t", b"hello") + b"\xc0\x00"
    for number in range(len(packets)):
        stream.send(packets[number : number + 1])
    assert stream.receive(9) == frame("20 02 0000 90 03 0001 01")
    assert stream.receive(10) == publish("t", b"hello")
    assert stream.receive(2) == b"\xd0\x00"


def test_many_packets_may_come_in_one_piece(serve: Serve, kind: str) -> None:
    stream = serve(kind).open()
    messages = b"".join(publish("t", b"%05d" % number) for number in range(2_000))
    stream.send(frame("10 L s:MQTT 04 02 003c s:a") + frame("82 L 0001 s:t 00") + messages)
    assert stream.receive(9) == frame("20 02 0000 90 03 0001 00")
    assert stream.receive(len(messages)) == messages


@pytest.mark.parametrize("size", [0, 100, 125, 65_540, 1_000_000])
def test_payloads_of_every_size_pass_in_both_directions(serve: Serve, kind: str, size: int) -> None:
    served = serve(kind)
    sender, receiver = served.client("a"), served.client("b")
    receiver.subscribe("t")
    message = publish("t", bytes(index % 251 for index in range(size)))
    sender.send(message)
    assert receiver.receive(len(message)) == message


def test_a_client_that_vanishes_leaves_its_will(serve: Serve, kind: str) -> None:
    served = serve(kind)
    watcher, dying = served.client("a"), served.client("b", will_topic="will")
    watcher.subscribe("will")
    dying.vanish()
    assert watcher.receive(12) == publish("will", b"gone")


def test_a_client_that_says_goodbye_is_closed_and_leaves_no_will(serve: Serve, kind: str) -> None:
    served = serve(kind)
    watcher, leaving = served.client("a"), served.client("b", will_topic="will")
    watcher.subscribe("will")
    leaving.send(b"\xe0\x00")
    with pytest.raises(Closed):
        leaving.receive(1)
    watcher.ping()


def test_a_client_that_breaks_the_rules_is_closed(serve: Serve, kind: str) -> None:
    served = serve(kind)
    bad, good = served.client("a"), served.client("b")
    bad.send(b"\xf0\x00")
    with pytest.raises(Closed):
        bad.receive(1)
    good.ping()


def test_a_connection_that_says_nothing_is_closed(serve: Serve, kind: str) -> None:
    stream = serve(kind, connect_timeout_s=0.3).open()
    with pytest.raises(Closed):
        stream.receive(1)


def test_no_more_connections_than_allowed(serve: Serve, kind: str) -> None:
    served = serve(kind, max_connections=1)
    first = served.client("a")
    with pytest.raises(Closed):
        served.client("b")
    first.ping()
    assert served.broker.snapshot().stats.turned_away == {TurnedAway.FULL: 1}


def test_a_packet_that_is_too_large_closes_before_it_has_all_come(serve: Serve, kind: str) -> None:
    stream = serve(kind, max_packet_size_bytes=1_000).client("a")
    stream.send(frame("30 ffff7f"))
    with pytest.raises(Closed):
        stream.receive(1)


def test_a_client_that_does_not_read_hurts_nobody_and_misses_nothing_within_its_bounds(serve: Serve, kind: str) -> None:
    served = serve(kind)
    slow, quick, sender = served.client("slow"), served.client("quick"), served.client("sender")
    for stream in (slow, quick):
        stream.subscribe("t")
    messages = [publish("t", bytes([number]) * 256_000) for number in range(64)]
    reader = threading.Thread(target=lambda: [quick.receive(len(each)) for each in messages])
    reader.start()
    for message in messages:
        sender.send(message)
    sender.ping()
    reader.join(TIMEOUT_S)
    assert not reader.is_alive()
    for message in messages:
        assert slow.receive(len(message)) == message


def test_a_stop_tells_the_clients_and_closes_them(serve: Serve, kind: str) -> None:
    served = serve(kind)
    stream = served.open()
    stream.send(frame("10 L s:MQTT 05 02 003c P . s:a"))
    head = stream.receive(2)
    stream.receive(head[1])
    served.broker.stop()
    assert stream.receive(3)[:1] == b"\xe0"
    with pytest.raises(Closed):
        stream.receive(4096)
