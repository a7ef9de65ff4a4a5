"""paho-mqtt against ``tidings broker``."""

import queue
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

HOST = "127.0.0.1"
TIMEOUT_S = 10
VERSIONS = {"3.1": mqtt.MQTTv31, "3.1.1": mqtt.MQTTv311, "5.0": mqtt.MQTTv5}


def properties(packet: int, **values: Any) -> Any:
    """paho's properties, which have their attributes at run time only."""
    made = Properties(packet)  # type: ignore[no-untyped-call]
    for key, value in values.items():
        setattr(made, key, value)
    return made


class Paho:
    """A paho client whose callbacks are queues; every method returns once the broker has answered."""

    def __init__(self, port: int, client_id: str, version: str, keep_s: int = 0, clean: bool = True) -> None:
        self.port = port
        self.v5 = version == "5.0"
        self.clean = clean
        self.keep_s = keep_s
        session: dict[str, Any] = {} if self.v5 else {"clean_session": clean}
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=VERSIONS[version], reconnect_on_failure=False, **session
        )
        self.messages: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.connacks: queue.Queue[tuple[bool, ReasonCode, Any]] = queue.Queue()
        self.answers: queue.Queue[tuple[int, list[int]]] = queue.Queue()
        self.ends: queue.Queue[int] = queue.Queue()
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.on_connect = lambda client, data, flags, reason, told: self.connacks.put(
            (flags.session_present, reason, told)
        )
        self.client.on_subscribe = lambda client, data, mid, reasons, told: self.answers.put(
            (mid, [each.value for each in reasons])
        )
        self.client.on_unsubscribe = lambda client, data, mid, reasons, told: self.answers.put(
            (mid, [each.value for each in reasons])
        )
        self.client.on_disconnect = lambda client, data, flags, reason, told: self.ends.put(reason.value)

    def connect(self) -> tuple[bool, ReasonCode, Any]:
        """(session present, reason code, properties)"""
        if self.v5:
            told = properties(PacketTypes.CONNECT, SessionExpiryInterval=self.keep_s)
            self.client.connect(HOST, self.port, clean_start=self.clean, properties=told)
        else:
            self.client.connect(HOST, self.port)
        self.client.loop_start()
        return self.connacks.get(timeout=TIMEOUT_S)

    def subscribe(self, filter: str, qos: int = 0, **arguments: Any) -> int:
        """The granted QoS, or the reason code."""
        error, mid = self.client.subscribe(filter, qos, **arguments)
        assert error == MQTTErrorCode.MQTT_ERR_SUCCESS
        answered, reasons = self.answers.get(timeout=TIMEOUT_S)
        assert answered == mid
        return reasons[0]

    def unsubscribe(self, filter: str) -> list[int]:
        error, mid = self.client.unsubscribe(filter)
        assert error == MQTTErrorCode.MQTT_ERR_SUCCESS
        answered, reasons = self.answers.get(timeout=TIMEOUT_S)
        assert answered == mid
        return reasons

    def publish(self, topic: str, payload: bytes, qos: int = 0, retain: bool = False, **told: Any) -> None:
        sent = self.client.publish(
            topic, payload, qos, retain, properties(PacketTypes.PUBLISH, **told) if told else None
        )
        sent.wait_for_publish(TIMEOUT_S)
        assert sent.is_published()

    def next(self) -> mqtt.MQTTMessage:
        return self.messages.get(timeout=TIMEOUT_S)

    def expect_nothing_more(self) -> None:
        """Nothing was under way to this client: a message to itself is the next one that it gets."""
        fence = f"fence/{uuid.uuid4().hex}"
        self.subscribe(fence, 0)
        self.publish(fence, b"")
        assert self.next().topic == fence

    def end(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def break_off(self) -> None:
        """Close the connection without DISCONNECT."""
        sock: Any = self.client.socket()
        sock.shutdown(socket.SHUT_RDWR)
        self.ends.get(timeout=TIMEOUT_S)
        self.client.loop_stop()


Make = Callable[..., Paho]


@pytest.fixture
def paho(port: int, name: str) -> Iterator[Make]:
    """Make clients, with client ids of their own unless ``client_id`` says one."""
    made: list[Paho] = []

    def make(version: str = "5.0", client_id: str | None = None, **options: Any) -> Paho:
        made.append(Paho(port, f"{name}{len(made)}" if client_id is None else client_id, version, **options))
        return made[-1]

    yield make
    for client in made:
        client.end()


def connected(paho: Make, version: str = "5.0", **options: Any) -> Paho:
    client = paho(version, **options)
    _, reason, _ = client.connect()
    assert not reason.is_failure, reason
    return client


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_arrive_once_and_in_order(paho: Make, topic: str, version: str, qos: int) -> None:
    sender, receiver = connected(paho, version), connected(paho, version)
    assert receiver.subscribe(f"{topic}/+", qos) == qos
    for number in range(200):
        sender.client.publish(f"{topic}/a", bytes([number]), qos)
    received = [receiver.next() for _ in range(200)]
    assert [(each.payload, each.qos, each.retain, each.dup) for each in received] == [
        (bytes([number]), qos, False, False) for number in range(200)
    ]
    receiver.expect_nothing_more()


@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize("granted", [0, 1, 2])
def test_the_lower_qos_counts(paho: Make, topic: str, sent: int, granted: int) -> None:
    client = connected(paho)
    client.subscribe(topic, granted)
    client.publish(topic, b"x", sent)
    assert client.next().qos == min(sent, granted)


@pytest.mark.parametrize("version", VERSIONS)
def test_wildcards_match_what_they_should(paho: Make, topic: str, version: str) -> None:
    receiver, sender = connected(paho, version), connected(paho, version)
    receiver.subscribe(f"{topic}/+/temp/#", 1)
    for level in ("a/temp", "a/temp/x/y", "a/b/temp", "b/temp/", "temp"):
        sender.publish(f"{topic}/{level}", b"x", 1)
    sender.publish(f"{topic}/z/temp", b"last", 1)
    found = [receiver.next().topic.removeprefix(f"{topic}/") for _ in range(4)]
    assert found == ["a/temp", "a/temp/x/y", "b/temp/", "z/temp"]


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_messages_are_kept_replaced_and_deleted(paho: Make, topic: str, version: str) -> None:
    sender = connected(paho, version)
    for payload in (b"old", b"new"):
        sender.publish(topic, payload, 2, retain=True)
    receiver = connected(paho, version)
    receiver.subscribe(topic, 2)
    kept = receiver.next()
    assert (kept.payload, kept.qos, kept.retain) == (b"new", 2, True)
    sender.publish(topic, b"", 1, retain=True)
    gone = receiver.next()
    assert (gone.payload, gone.retain) == (b"", False)
    late = connected(paho, version)
    late.subscribe(topic, 1)
    sender.publish(topic, b"live", 1)
    assert late.next().payload == b"live"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_broken_connection_publishes_the_will_and_a_goodbye_does_not(paho: Make, topic: str, version: str) -> None:
    watcher = connected(paho, version)
    watcher.subscribe(f"{topic}/#", 2)
    for name in ("polite", "broken"):
        client = paho(version)
        client.client.will_set(f"{topic}/{name}", b"gone", 2, retain=True)
        client.connect()
        client.end() if name == "polite" else client.break_off()
    will = watcher.next()
    assert (will.topic, will.payload, will.qos, will.retain) == (f"{topic}/broken", b"gone", 2, False)
    late = connected(paho, version)
    late.subscribe(f"{topic}/#", 2)
    assert late.next().retain
    late.expect_nothing_more()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [1, 2])
def test_a_session_keeps_what_comes_while_its_client_is_away(
    paho: Make, topic: str, name: str, version: str, qos: int
) -> None:
    away = connected(paho, version, client_id=f"{name}k", clean=False, keep_s=60)
    away.subscribe(topic, qos)
    away.break_off()
    sender = connected(paho, version)
    for number in range(100):
        sender.publish(topic, bytes([number]), qos)
    back = paho(version, client_id=f"{name}k", clean=False, keep_s=60)
    present, _, _ = back.connect()
    assert present is (version != "3.1")  # CONNACK of 3.1 does not tell
    assert [back.next().payload for _ in range(100)] == [bytes([number]) for number in range(100)]
    back.end()
    fresh = paho(version, client_id=f"{name}k", clean=True)
    assert fresh.connect()[0] is False
    sender.publish(topic, b"for nobody", qos)
    fresh.expect_nothing_more()


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_a_client_without_a_name_gets_one(paho: Make, version: str, topic: str) -> None:
    client = paho(version, client_id="")
    _, reason, told = client.connect()
    assert not reason.is_failure
    if version == "5.0":
        assert told.AssignedClientIdentifier
    client.subscribe(topic, 1)
    client.publish(topic, b"x", 1)
    assert client.next().payload == b"x"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_second_connection_with_the_same_client_id_takes_over(paho: Make, name: str, version: str) -> None:
    first = connected(paho, version, client_id=f"{name}t")
    connected(paho, version, client_id=f"{name}t")
    reason = first.ends.get(timeout=TIMEOUT_S)
    assert version != "5.0" or reason == 0x8E


@pytest.mark.parametrize("version", VERSIONS)
def test_large_messages_pass(paho: Make, topic: str, version: str) -> None:
    client = connected(paho, version)
    client.subscribe(topic, 1)
    payload = bytes(range(256)) * 3000
    client.publish(topic, payload, 1)
    assert client.next().payload == payload


def test_a_message_larger_than_the_broker_takes_ends_the_connection(paho: Make, topic: str) -> None:
    client = paho()
    _, _, told = client.connect()
    client.client.publish(topic, bytes(told.MaximumPacketSize), 0)
    assert client.ends.get(timeout=TIMEOUT_S) == 0x95


def test_properties_are_passed_on_as_they_were_given(paho: Make, topic: str) -> None:
    client = connected(paho)
    client.subscribe(topic, 1)
    told: dict[str, Any] = {
        "PayloadFormatIndicator": 1,
        "ContentType": "text/é",
        "ResponseTopic": "r/t",
        "CorrelationData": b"\x00\xff",
        "UserProperty": [("b", "1"), ("a", "2"), ("b", "3")],
    }
    client.publish(topic, "temperatür".encode(), 1, MessageExpiryInterval=600, **told)
    received: Any = client.next().properties
    assert {key: getattr(received, key) for key in told} == told
    assert 590 <= received.MessageExpiryInterval <= 600


def test_a_request_is_answered_where_it_says(paho: Make, topic: str) -> None:
    asking, answering = connected(paho), connected(paho)
    answering.subscribe(f"{topic}/request", 1)
    asking.subscribe(f"{topic}/response", 1)
    asking.publish(f"{topic}/request", b"?", 1, ResponseTopic=f"{topic}/response", CorrelationData=b"\x01")
    request: Any = answering.next().properties
    answering.publish(request.ResponseTopic, b"!", 1, CorrelationData=request.CorrelationData)
    response: Any = asking.next()
    assert (response.payload, response.properties.CorrelationData) == (b"!", b"\x01")


def test_subscription_options_are_obeyed(paho: Make, topic: str) -> None:
    client, other = connected(paho), connected(paho)
    other.publish(f"{topic}/old", b"retained", 1, retain=True)
    never = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=2)
    identifier = properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=268_435_455)
    assert client.subscribe(f"{topic}/#", 0, options=never, properties=identifier) == 1
    client.publish(f"{topic}/own", b"own", 1)
    other.publish(f"{topic}/new", b"new", 1, retain=True)
    message: Any = client.next()
    assert (message.payload, message.retain) == (b"new", True)
    assert message.properties.SubscriptionIdentifier == [268_435_455]


def test_unsubscribing_tells_what_was_there(paho: Make, topic: str) -> None:
    client = connected(paho)
    client.subscribe(topic, 1)
    assert client.unsubscribe(topic) == [0x00]
    assert client.unsubscribe(topic) == [0x11]
    client.publish(topic, b"x", 1)
    client.subscribe(topic, 1)
    client.publish(topic, b"y", 1)
    assert client.next().payload == b"y"


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_members_of_a_shared_subscription_split_the_messages(paho: Make, topic: str, qos: int) -> None:
    members = [connected(paho) for _ in range(3)]
    everything = connected(paho)
    everything.subscribe(f"{topic}/#", qos)
    for member in members:
        member.subscribe(f"$share/group/{topic}/a", qos)
        member.subscribe(f"{topic}/end", qos)
    sender = connected(paho)
    for number in range(60):
        sender.publish(f"{topic}/a", bytes([number]), qos)
    sender.publish(f"{topic}/end", b"", qos)
    taken: list[bytes] = []
    for member in members:
        before = len(taken)
        while (message := member.next()).topic == f"{topic}/a":
            taken.append(bytes(message.payload))
        assert len(taken) > before, "a member got nothing"
    assert sorted(taken) == [bytes([number]) for number in range(60)]
    assert [everything.next().payload for _ in range(60)] == [bytes([number]) for number in range(60)]


def test_what_a_lost_member_had_not_acknowledged_goes_to_another(paho: Make, topic: str) -> None:
    lazy = connected(paho)
    lazy.client.manual_ack_set(True)
    lazy.subscribe(f"$share/group/{topic}", 1)
    sender = connected(paho)
    for number in range(5):
        sender.publish(topic, bytes([number]), 1)
    assert [lazy.next().payload for _ in range(5)] == [bytes([number]) for number in range(5)]
    diligent = connected(paho)
    diligent.subscribe(f"$share/group/{topic}", 1)
    lazy.break_off()
    assert [diligent.next().payload for _ in range(5)] == [bytes([number]) for number in range(5)]
