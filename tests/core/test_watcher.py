"""What a watcher is told about clients, and when."""

from collections.abc import Sequence

from tidings.broker.codec.packets import Connect, Disconnect, Publish, Will
from tidings.broker.core.connection import Connection
from tidings.broker.core.message import Message
from tidings.broker.core.ports import Action, Refused

from ..conformance.wire import Wire
from .gate import ListGate


class Notes(list[tuple[object, ...]]):
    """A Watcher that writes everything down."""

    def connected(self, connection: Connection) -> None:
        self.append(("connected", connection.client_id))

    def disconnected(self, connection: Connection) -> None:
        self.append(("disconnected", connection.client_id))

    def subscribed(self, client_id: str, filter: str, qos: int) -> None:
        self.append(("subscribed", client_id, filter, qos))

    def unsubscribed(self, client_id: str, filter: str) -> None:
        self.append(("unsubscribed", client_id, filter))

    def received(self, client_id: str, messages: Sequence[Message], may: bool) -> None:
        self.append(("received", client_id, [message.payload for message in messages], may))

    def retained(self, message: Message) -> None:
        self.append(("retained", message.topic, message.payload))

    def queued(self, client_id: str, messages: Sequence[Message]) -> None:
        self.append(("queued", client_id, [message.payload for message in messages]))

    def take(self) -> list[tuple[object, ...]]:
        notes = list(self)
        self.clear()
        return notes


def watched() -> tuple[Wire, Notes]:
    wire, notes = Wire(), Notes()
    wire.engine.watcher = wire.engine.message_watcher = notes
    return wire, notes


def test_life_of_a_client_is_told_in_order() -> None:
    wire, notes = watched()
    peer = wire.connect("c")
    peer.subscribe("t", 1)
    peer.unsubscribe("t", "never")
    peer.send(Disconnect())
    assert notes.take() == [
        ("connected", "c"),
        ("subscribed", "c", "t", 1),
        ("unsubscribed", "c", "t"),
        ("unsubscribed", "c", "never"),
        ("disconnected", "c"),
    ]


def test_client_that_is_taken_over_leaves_before_the_next_one_comes() -> None:
    wire, notes = watched()
    wire.connect("c")
    wire.connect("c")
    assert notes.take() == [("connected", "c"), ("disconnected", "c"), ("connected", "c")]


def test_who_is_not_let_in_was_never_there() -> None:
    wire, notes = watched()
    wire.engine.gate = ListGate([Refused()])
    wire.open().send(Connect("c", will=Will("w")))
    assert notes == []


def test_messages_are_told_once_and_whether_they_were_allowed() -> None:
    wire, notes = watched()
    gate = wire.engine.gate = ListGate()
    peer = wire.connect("c")
    notes.clear()
    gate.rules = {(Action.PUBLISH, "no"): False, (Action.PUBLISH, "later"): None}
    peer.send(Publish("no", b"1"), Publish("later", b"2", 2, packet_id=1), Publish("later", b"2", 2, True, packet_id=1))
    gate.allow(wire.engine, Action.PUBLISH, "later", True, wire.now)
    assert notes.take() == [("received", "c", [b"1"], False), ("received", "c", [b"2"], True)]


def test_retained_and_waiting_messages_are_told() -> None:
    wire, notes = watched()
    reader = wire.connect("reader", session_expiry_interval=99)
    reader.subscribe("t", 1)
    reader.drop()
    writer = wire.connect("writer")
    notes.clear()
    writer.send(Publish("t", b"1", 1, True, packet_id=1), Publish("t", b"2", 0), Publish("t", b"", 0, True))
    told = [note for note in notes if note[0] != "received"]
    assert told == [("retained", "t", b"1"), ("queued", "reader", [b"1"]), ("retained", "t", b"")]
