"""A broker's core in memory, with clients that speak bytes to it: no sockets, no tasks, and time moves when told to.

``Wire`` is the server side and its clock, ``Peer`` one network connection seen from its client. What the server sends
is read by a decoder in the client's role, so a packet that no server may send fails every test that meets it.
"""

from collections import deque
from itertools import count
from typing import Any, TypeVar, cast

import pytest

from tidings.broker.codec import Decoder, TopicTable, encode
from tidings.broker.codec.packets import (
    MQTT_5_0,
    Connack,
    Connect,
    Disconnect,
    Packet,
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
from tidings.broker.codec.properties import Properties
from tidings.broker.config import Config
from tidings.broker.core.engine import Engine
from tidings.broker.core.ports import PauseReason

VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5.0"])

# Maximum Packet Sizes of a client that leave room for the server's CONNACK and for little else
SMALL_SIZES = (16, 17, 20, 40)

P = TypeVar("P", bound=Packet)


def frame(text: str) -> bytes:
    """Bytes from a line of tokens.

    ``82`` and other hex digits stand for themselves, ``s:abc`` for a string with its length, ``b:00ff`` for bytes with
    their length, ``L`` for the length of all that follows, ``P … .`` for a block of properties with its length.
    """
    blocks = [bytearray()]
    for token in text.split():
        if token in ("L", "P"):
            blocks.append(bytearray())
        elif token == ".":
            _close(blocks)
        elif token.startswith(("s:", "b:")):
            value = token[2:].encode() if token[0] == "s" else bytes.fromhex(token[2:])
            blocks[-1] += len(value).to_bytes(2, "big") + value
        else:
            blocks[-1] += bytes.fromhex(token)
    while len(blocks) > 1:
        _close(blocks)
    return bytes(blocks[0])


def _close(blocks: list[bytearray]) -> None:
    block = blocks.pop()
    length = len(block)
    while length > 127:
        blocks[-1].append(0x80 | length & 0x7F)
        length >>= 7
    blocks[-1].append(length)
    blocks[-1] += block


class Pipe:
    """The Outbox of one connection: keeps what was sent until the peer reads it."""

    def __init__(self, wire: "Wire") -> None:
        self._wire = wire
        self._waiting: deque[tuple[int, bytes, int]] = deque()
        self._held_until = 0
        self._stuffed = False
        self.sent = bytearray()
        self.closed = False
        self.full = False
        self.held = 0

    def send(self, data: bytes) -> None:
        assert not self.closed, "sent after close"
        self.sent += data

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        if self._waiting or batch > self._wire.durable:
            self._waiting.append((batch, data, publishes))
            self.held += publishes
        else:
            self.send(data)

    def go_on(self, reason: PauseReason) -> None:
        pass

    def shorten(self) -> None:
        pass

    def hold(self, batch: int) -> None:
        self._held_until = max(self._held_until, batch)
        self._update()

    def release(self, batch: int) -> None:
        while self._waiting and self._waiting[0][0] <= batch:
            _, data, publishes = self._waiting.popleft()
            self.held -= publishes
            self.send(data)
        self._update()

    def close(self) -> None:
        self._waiting.clear()
        self.held = 0
        self.closed = True

    def stuff(self, stuffed: bool) -> None:
        """Behave as if the client had stopped reading, or went on."""
        self._stuffed = stuffed
        self._update()

    def _update(self) -> None:
        self.full = self._stuffed or self._held_until > self._wire.durable


class Wire:
    """One engine. Options of ``Config`` as keywords; ``$SYS`` is off unless asked for.

    With ``keeps`` there is a store, so that answers wait until what they promise is durable.
    """

    def __init__(self, *, keeps: bool = True, **options: object) -> None:
        self.config = Config.model_validate({"sys_interval_s": 0, **options})
        self.now = 1_700_000_000.0
        self.durable = 0
        self.store_is_slow = False  # while True nothing becomes durable
        self.topics = TopicTable()
        self._ids = count(1)
        self.engine = Engine(self.config, self.now, lambda: f"assigned-{next(self._ids)}", keeps=keeps)

    def open(self, version: int = MQTT_5_0) -> "Peer":
        """A network connection on which nothing was sent yet; ``version`` is what its client will speak."""
        return Peer(self, version)

    def connect(
        self,
        client_id: str,
        version: int = MQTT_5_0,
        *,
        clean_start: bool = True,
        keep_alive: int = 60,
        will: Will | None = None,
        **properties: Any,
    ) -> "Peer":
        """A client whose CONNECT was accepted. ``properties`` are left out before 5.0."""
        peer = self.open(version)
        peer.send(
            self.connect_packet(
                client_id, version, clean_start=clean_start, keep_alive=keep_alive, will=will, **properties
            )
        )
        first, *peer.inbox = peer.receive()
        assert isinstance(first, Connack)
        assert first.reason == 0
        peer.connack = first
        return peer

    def connect_packet(
        self,
        client_id: str,
        version: int,
        *,
        clean_start: bool = True,
        keep_alive: int = 60,
        will: Will | None = None,
        **properties: Any,
    ) -> Connect:
        kept = cast(Properties, properties if version == MQTT_5_0 else {})
        return Connect(client_id, version, clean_start, keep_alive, will=will, properties=kept)

    def advance(self, seconds: float) -> None:
        """Let time pass; what falls due is done at its moment."""
        end = self.now + seconds
        while (due := self.engine.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.engine.tick(self.now)
            self.settle()
        self.now = end

    def settle(self) -> None:
        """Let the store catch up, unless it is slow."""
        while not self.store_is_slow and (self.engine.changes or self.durable < self.engine.batch - 1):
            if self.engine.changes:
                self.engine.take_changes()
            self.durable = self.engine.batch - 1
            self.engine.durable(self.durable)
            for connection in list(self.engine.connections):
                if not connection.outbox.full:
                    self.engine.writable(connection, self.now)


class Peer:
    """A client's end of one connection. It answers nothing by itself."""

    def __init__(self, wire: Wire, version: int) -> None:
        self.wire = wire
        self.version = version
        self.connack = Connack()
        self.inbox: list[Packet] = []
        self._ids = count(1)
        self._pipe = Pipe(wire)
        self._in = Decoder(side="client", version=version)
        self._server = Decoder(
            max_packet_size=wire.config.max_packet_size_bytes,
            max_connect_size=wire.config.max_connect_size_bytes,
            topics=wire.topics,
        )
        self._connection = wire.engine.connect(self._pipe, f"peer:{id(self)}", wire.now)

    @property
    def closed(self) -> bool:
        """Whether the server closed the connection."""
        return self._pipe.closed

    def send(self, *items: "Packet | bytes | str") -> None:
        """Send packets, bytes, or lines for ``frame``, all of them in one piece."""
        data = b"".join(
            item if isinstance(item, bytes) else frame(item) if isinstance(item, str) else encode(item, self.version)
            for item in items
        )
        if self.closed:
            return
        engine, now = self.wire.engine, self.wire.now
        packets = self._server.feed(data)
        if packets:
            engine.handle(self._connection, packets, now)
        if self._server.error is not None:
            engine.fail(self._connection, self._server.error, now)
        self.wire.settle()

    def stop_reading(self) -> None:
        """Let the server's outbox for this client count as full."""
        self._pipe.stuff(True)

    def read_again(self) -> None:
        self._pipe.stuff(False)
        self.wire.engine.writable(self._connection, self.wire.now)
        self.wire.settle()

    def drop(self) -> None:
        """Lose the connection without a DISCONNECT."""
        self.wire.engine.disconnected(self._connection, self.wire.now)
        self.wire.settle()

    def receive_bytes(self) -> bytes:
        """What arrived since the last look, as it is on the wire."""
        data = bytes(self._pipe.sent)
        self._pipe.sent.clear()
        self._in.feed(data)
        assert self._in.error is None, f"the server sent {data.hex(' ')}: {self._in.error}"
        return data

    def receive(self) -> list[Packet]:
        """What arrived since the last look."""
        packets, self.inbox = self.inbox, []
        packets += self._in.feed(bytes(self._pipe.sent))
        assert self._in.error is None, f"the server sent {bytes(self._pipe.sent).hex(' ')}: {self._in.error}"
        assert self._in.waiting == 0, "the server sent part of a packet"
        self._pipe.sent.clear()
        return packets

    def expect(self, kind: type[P]) -> P:
        """The only packet that arrived, which must be of this type."""
        packets = self.receive()
        assert len(packets) == 1, packets
        assert isinstance(packets[0], kind), packets
        return packets[0]

    def _take(self, kind: type[P]) -> P:
        """The only packet of this type among those that arrived; the others stay, since they may come before it."""
        packets = self.receive()
        wanted = [packet for packet in packets if isinstance(packet, kind)]
        assert len(wanted) == 1, packets
        self.inbox = [packet for packet in packets if not isinstance(packet, kind)]
        return wanted[0]

    def messages(self) -> list[Publish]:
        """The messages that arrived, and nothing else may have."""
        packets = self.receive()
        assert all(isinstance(packet, Publish) for packet in packets), packets
        return [packet for packet in packets if isinstance(packet, Publish)]

    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages()]

    def assert_refused(self, *reasons: int) -> None:
        """The CONNECT was not accepted: closed, with nothing said before 5.0 and at most CONNACK ``reasons`` since."""
        assert self.closed
        packets = self.receive()
        if packets:
            assert self.version == MQTT_5_0, packets
            assert [type(packet) for packet in packets] == [Connack]
            assert isinstance(packets[0], Connack)
            assert packets[0].reason in reasons

    def assert_dropped(self, *reasons: int) -> None:
        """The server ended the connection: without a word before 5.0, since then with DISCONNECT ``reasons``."""
        assert self.closed
        packets = self.receive()
        if self.version < MQTT_5_0:
            assert packets == []
            return
        assert [type(packet) for packet in packets] == [Disconnect]
        assert isinstance(packets[0], Disconnect)
        assert packets[0].reason in reasons, hex(packets[0].reason)

    def subscribe(
        self,
        filter: str,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        identifier: int = 0,
    ) -> int:
        """Subscribe to one filter; the reason code of its SUBACK. What else arrives stays to be received."""
        properties: Properties = {"subscription_identifier": [identifier]} if identifier else {}
        wanted = SubscribeFilter(filter, qos, no_local, retain_as_published, retain_handling)
        self.send(Subscribe(next(self._ids), [wanted], properties))
        suback = self._take(Suback)
        assert len(suback.reasons) == 1
        return suback.reasons[0]

    def unsubscribe(self, *filters: str) -> Unsuback:
        self.send(Unsubscribe(next(self._ids), list(filters)))
        return self._take(Unsuback)

    def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        *,
        dup: bool = False,
        packet_id: int = 0,
        **properties: Any,
    ) -> int:
        """Send a PUBLISH; its packet id. The acknowledgement stays to be received."""
        packet_id = (packet_id or next(self._ids)) if qos else 0
        kept = cast(Properties, properties)
        self.send(Publish(topic, payload, qos, retain, dup, packet_id, kept))
        return packet_id

    def finish(self, message: Publish) -> None:
        """Acknowledge a message to the end."""
        if message.qos == 1:
            self.send(Puback(message.packet_id))
        elif message.qos == 2:
            self.send(Pubrec(message.packet_id))
            others = [packet for packet in self.receive() if packet != Pubrel(message.packet_id)]
            self.inbox = others
            self.send(Pubcomp(message.packet_id))
