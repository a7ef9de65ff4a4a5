"""Chapter 3.3.1.3: retained messages."""

import pytest

from tidings.broker.codec.packets import Publish

from .wire import VERSIONS, Peer, Wire

clause = pytest.mark.clause


@pytest.fixture
def publisher(wire: Wire) -> Peer:
    return wire.connect("publisher", keep_alive=0)


def retained(wire: Wire, filter: str, version: int = 5, qos: int = 2) -> list[Publish]:
    """What a new subscriber to ``filter`` is sent."""
    client = wire.connect("late", version)
    client.subscribe(filter, qos=qos)
    return client.messages()


@clause("3.1.1 MQTT-3.3.1-5", "3.1.1 MQTT-3.3.1-6", "3.1.1 MQTT-3.3.1-8", "5.0 MQTT-3.3.1-5", "5.0 MQTT-3.3.1-9")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_new_subscriber_gets_the_retained_message_with_its_qos(
    wire: Wire, publisher: Peer, version: int, qos: int
) -> None:
    publisher.publish("t", b"kept", qos=qos, retain=True)
    (message,) = retained(wire, "t", version)
    assert (message.payload, message.qos, message.retain, message.dup) == (b"kept", qos, True, False)


@clause("3.1.1 MQTT-3.3.1-6", "5.0 MQTT-3.3.1-5", "3.1.1 MQTT-3.3.1-5", "3.1.1 MQTT-3.3.1-7")
@VERSIONS
def test_last_retained_message_of_a_topic_replaces_the_others(wire: Wire, publisher: Peer, version: int) -> None:
    for number, qos in enumerate((2, 1, 0)):
        publisher.publish("t", b"%d" % number, qos=qos, retain=True)
    (message,) = retained(wire, "t", version)
    assert (message.payload, message.qos) == (b"2", 0)


@clause("3.1.1 MQTT-3.3.1-6", "5.0 MQTT-3.3.1-9")
@VERSIONS
def test_every_matching_topic_has_its_retained_message(wire: Wire, publisher: Peer, version: int) -> None:
    topics = {"a", "a/b", "a/b/c", "a/x/c", "/a", "a/"}
    for topic in topics:
        publisher.publish(topic, topic.encode(), retain=True)
    publisher.publish("$a/b", b"hidden", retain=True)

    def found(filter: str) -> set[str]:
        return {message.topic for message in retained(wire, filter, version)}

    assert found("#") == topics
    assert found("a/#") == {"a", "a/b", "a/b/c", "a/x/c", "a/"}
    assert found("a/+/c") == {"a/b/c", "a/x/c"}
    assert found("+/+") == {"a/b", "/a", "a/"}
    assert found("+") == {"a"}
    assert found("$a/#") == {"$a/b"}
    assert found("+/b") == {"a/b"}


@clause("3.1.1 MQTT-3.3.1-10", "3.1.1 MQTT-3.3.1-11", "5.0 MQTT-3.3.1-6", "5.0 MQTT-3.3.1-7")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_empty_payload_removes_the_retained_message(wire: Wire, publisher: Peer, version: int, qos: int) -> None:
    publisher.publish("t", b"kept", retain=True)
    publisher.publish("t", b"", qos=qos, retain=True)
    assert retained(wire, "t", version) == []


@clause("3.1.1 MQTT-3.3.1-10", "5.0 MQTT-3.3.1-6")
@VERSIONS
def test_empty_retained_message_reaches_subscribers_as_any_other(wire: Wire, publisher: Peer, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=1)
    publisher.publish("t", b"", qos=1, retain=True)
    message = client.expect(Publish)
    assert (message.payload, message.qos, message.retain) == (b"", 1, False)


@clause("3.1.1 MQTT-3.3.1-11", "5.0 MQTT-3.3.1-7")
@VERSIONS
def test_empty_retained_message_is_not_stored(wire: Wire, publisher: Peer, version: int) -> None:
    publisher.publish("t", b"", retain=True)
    assert retained(wire, "t", version) == []


@clause("3.1.1 MQTT-3.3.1-12", "5.0 MQTT-3.3.1-8")
@VERSIONS
def test_message_without_retain_is_not_stored_and_replaces_nothing(wire: Wire, publisher: Peer, version: int) -> None:
    publisher.publish("t", b"plain")
    assert retained(wire, "t", version) == []
    publisher.publish("t", b"kept", retain=True)
    publisher.publish("t", b"plain")
    publisher.publish("t", b"")
    assert [message.payload for message in retained(wire, "t", version)] == [b"kept"]


@clause("3.1.1 MQTT-3.3.1-9", "5.0 MQTT-3.3.1-12")
@VERSIONS
def test_established_subscription_gets_retain_0(wire: Wire, publisher: Peer, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t")
    publisher.publish("t", b"kept", retain=True)
    assert client.expect(Publish).retain is False


@clause("5.0 MQTT-3.3.1-13")
@pytest.mark.parametrize("retain", [True, False])
@pytest.mark.parametrize("qos", [0, 1])
def test_retain_as_published_keeps_the_flag(wire: Wire, publisher: Peer, qos: int, retain: bool) -> None:
    client = wire.connect("a")
    client.subscribe("t", qos=1, retain_as_published=True)
    publisher.publish("t", b"x", qos=qos, retain=retain)
    assert client.expect(Publish).retain is retain


@clause("5.0 MQTT-3.3.1-12", "5.0 MQTT-3.3.1-13")
def test_retain_as_published_holds_for_messages_that_waited(wire: Wire, publisher: Peer) -> None:
    for client_id, keep in (("a", True), ("b", False)):
        client = wire.connect(client_id, session_expiry_interval=100)
        client.subscribe("t", qos=1, retain_as_published=keep)
        client.drop()
    publisher.publish("t", b"x", qos=1, retain=True)
    for client_id, keep in (("a", True), ("b", False)):
        client = wire.connect(client_id, clean_start=False, session_expiry_interval=100)
        assert client.expect(Publish).retain is keep


@clause("5.0 MQTT-3.3.1-9", "5.0 MQTT-3.8.4-4", "3.1.1 MQTT-3.8.4-3")
@VERSIONS
def test_retained_messages_are_sent_again_on_every_subscribe(wire: Wire, publisher: Peer, version: int) -> None:
    publisher.publish("t", b"kept", retain=True)
    client = wire.connect("a", version)
    for _ in range(3):
        client.subscribe("t", retain_handling=0)
        assert client.expect(Publish).payload == b"kept"


@clause("5.0 MQTT-3.3.1-10")
def test_retain_handling_1_sends_retained_messages_to_new_subscriptions_only(wire: Wire, publisher: Peer) -> None:
    publisher.publish("t", b"kept", retain=True)
    client = wire.connect("a", session_expiry_interval=100)
    client.subscribe("t", retain_handling=1)
    assert client.expect(Publish).payload == b"kept"
    client.subscribe("t", retain_handling=1)
    assert client.receive() == []
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100)
    client.subscribe("t", retain_handling=1)
    assert client.receive() == []
    client.unsubscribe("t")
    client.subscribe("t", retain_handling=1)
    assert client.expect(Publish).payload == b"kept"


@clause("5.0 MQTT-3.3.1-11")
def test_retain_handling_2_sends_no_retained_messages(wire: Wire, publisher: Peer) -> None:
    publisher.publish("t", b"kept", retain=True)
    client = wire.connect("a")
    for _ in range(2):
        client.subscribe("t", retain_handling=2)
        assert client.receive() == []


@clause("5.0 MQTT-3.3.2-5", "5.0 MQTT-3.3.2-6")
def test_retained_message_expires(wire: Wire, publisher: Peer) -> None:
    publisher.publish("t", b"kept", retain=True, message_expiry_interval=10)
    wire.advance(4)
    (message,) = retained(wire, "t")
    assert message.properties["message_expiry_interval"] == 6
    wire.advance(7)
    assert retained(wire, "t") == []


@clause("5.0 MQTT-3.3.4-3")
def test_retained_message_carries_the_subscription_identifier(wire: Wire, publisher: Peer) -> None:
    publisher.publish("t", b"kept", retain=True)
    client = wire.connect("a")
    client.subscribe("t", identifier=7)
    assert client.expect(Publish).properties["subscription_identifier"] == [7]


@clause("3.1.1 MQTT-3.8.4-6", "5.0 MQTT-3.8.4-8")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
@VERSIONS
def test_retained_message_is_sent_at_the_lower_qos(
    wire: Wire, publisher: Peer, version: int, published: int, granted: int
) -> None:
    publisher.publish("t", b"kept", qos=published, retain=True)
    (message,) = retained(wire, "t", version, qos=granted)
    assert message.qos == min(published, granted)
