"""A message on its way from one publisher to its receivers, and the run: the unit in which messages travel.

A ``Message`` is created once per PUBLISH and shared by every queue that owes it; nobody changes it. A ``Run`` is what
one read brought for one topic at one QoS, in order. Routing looks receivers up once per run, and the wire form is made
once per run and form, however many receivers there are.
"""

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, cast

from ..codec.encode import publish_again, publish_parts, publish_run
from ..codec.packets import MQTT_5_0, NO_PROPERTIES, Publish, PublishRun
from ..codec.properties import Properties

Parts = tuple[bytes, bytes]


@dataclass(slots=True, eq=False)
class Message(Publish):
    """An application message (5.0 section 1.2): the PUBLISH that brought it, as the publisher sent it.

    ``properties`` holds only what travels on to receivers unchanged; ``expires_at`` (engine time in seconds, None =
    never) stands for Message Expiry Interval. ``sender`` is the publisher's client id, "" for the broker itself.
    ``batch`` is the batch of changes that must be durable before the message may go onward, 0 = none. ``dup`` and
    ``packet_id`` belong to the publisher's connection and mean nothing to receivers. ``stored`` belongs to the store:
    the number under which it keeps the message, 0 = none yet, -1 = it is not to be stored. ``size``: bytes that it
    counts against the bounds of queues and of memory: payload, topic, properties, and a flat charge. Who makes one
    without calling the class has to set it.
    """

    sender: str = ""
    expires_at: float | None = None
    batch: int = 0
    stored: int = 0
    size: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self.size = len(self.payload) + len(self.topic) + OVERHEAD_BYTES
        if self.properties:
            self.size += sum(map(_weigh, self.properties.values()))

    def parts(self, version: int, qos: int, retain: bool, identifiers: tuple[int, ...], now: float) -> Parts:
        """Head and tail of the PUBLISH frame; at QoS 1 and 2 the packet id goes between them."""
        if version < 5 or (self.expires_at is None and not identifiers):
            return publish_parts(self.topic, self.payload, qos, retain, self.properties, version)
        return publish_parts(self.topic, self.payload, qos, retain, self.outgoing(identifiers, now), version)

    def outgoing(self, identifiers: tuple[int, ...], now: float) -> Properties:
        """The properties of a delivery: the publisher's, the remaining lifetime and the subscription identifiers.

        5.0 [MQTT-3.3.2-6] the expiry interval sent is the one received minus the time waited here.
        """
        properties = self.properties.copy()
        if self.expires_at is not None:
            properties["message_expiry_interval"] = max(0, ceil(self.expires_at - now))
        if identifiers:
            properties["subscription_identifier"] = list(identifiers)
        return properties


def messages_of(wire: PublishRun, sender: str) -> list[Message]:
    """The messages of a run at QoS 1 or 2. Filling the slots here takes half the time of calling the class."""
    new = Message.__new__
    topic, qos = wire.topic, wire.qos
    size = wire.stride - wire.head + len(topic) + OVERHEAD_BYTES
    messages: list[Message] = []
    append = messages.append
    for packet_id, payload in zip(wire.packet_ids, wire.payloads(), strict=True):
        message = new(Message)
        message.topic = topic
        message.payload = payload
        message.qos = qos
        message.retain = message.dup = False
        message.packet_id = packet_id
        message.properties = NO_PROPERTIES
        message.sender = sender
        message.expires_at = None
        message.batch = message.stored = 0
        message.size = size
        append(message)
    return messages


# What a Message, its key in a queue and its share of the containers cost beside topic and payload; measured with
# tracemalloc on CPython 3.11 (tests/core/test_message.py holds it to the right order of magnitude).
OVERHEAD_BYTES: Final = 200
FIELD_BYTES: Final = 60  # what an object of Python costs before it holds anything
FORWARDED: Final = frozenset(
    ("payload_format_indicator", "content_type", "response_topic", "correlation_data", "user_property")
)


def forwarded(properties: Properties) -> Properties:
    """What of a PUBLISH or will travels on to its receivers unaltered (5.0 [MQTT-3.3.2-4], [MQTT-3.3.2-15] ff.)."""
    kept = {key: value for key, value in properties.items() if key in FORWARDED}
    return cast(Properties, kept) if kept else NO_PROPERTIES


def _weigh(value: object) -> int:
    """About the bytes that the value of a property takes in memory; small ones must not come for nothing."""
    if isinstance(value, str | bytes):
        return FIELD_BYTES + len(value)
    if isinstance(value, list | tuple):
        return FIELD_BYTES + sum(map(_weigh, value))
    return FIELD_BYTES


class Run:
    """Messages of one topic and one QoS that arrived together, in order, with their wire forms made once.

    More than one message in a run means that they differ in nothing but payload and packet id, and have no properties.
    ``heads``: what the route of the topic remembers for ``publish_run``. ``length``: bytes of every payload, -1 = they
    may differ.
    """

    __slots__ = (
        "_forms",
        "_length",
        "_messages",
        "_payload_bytes",
        "_size_bytes",
        "batch",
        "count",
        "heads",
        "now",
        "qos",
        "sender",
        "topic",
    )

    def __init__(self, messages: list[Message], now: float, length: int = -1) -> None:
        first = messages[0]
        self._messages = messages
        self.topic = first.topic
        self.qos = first.qos
        self.sender = first.sender
        self.batch = first.batch
        self.count = len(messages)
        self.now = now
        self.heads: dict[int, bytes] | None = None
        self._length = length
        if length < 0:
            self._payload_bytes = self._size_bytes = -1
        else:
            self._payload_bytes = length * self.count
            self._size_bytes = first.size * self.count
        self._forms: dict[Any, Any] = {}

    @property
    def messages(self) -> list[Message]:
        """The messages, in order."""
        return self._messages

    @property
    def size_bytes(self) -> int:
        """What all messages together count against the bounds of memory."""
        size_bytes = self._size_bytes
        if size_bytes < 0:
            size_bytes = self._size_bytes = sum([message.size for message in self._messages])
        return size_bytes

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        size_bytes = self._payload_bytes
        if size_bytes < 0:
            size_bytes = self._payload_bytes = sum([len(message.payload) for message in self._messages])
        return size_bytes

    def pieces(self, version: int, qos: int, keep_retain: bool, identifiers: tuple[int, ...]) -> list[bytes]:
        """Head, room for the packet id, and tail of every message, for receivers with these options; copy it first."""
        key = (version, qos, keep_retain, identifiers)
        pieces: list[bytes] | None = self._forms.get(key)
        if pieces is None:
            first = self._messages[0]
            if self.count == 1:
                pieces = self._one(first, version, qos, keep_retain and first.retain, identifiers)
            elif not first.properties and first.expires_at is None and not identifiers:
                payloads = [message.payload for message in self._messages]
                heads = {} if self.heads is None else self.heads
                pieces = publish_run(
                    self.topic, payloads, qos, keep_retain and first.retain, version, heads, self._length
                )
            else:
                pieces = []
                for message in self._messages:
                    head, tail = message.parts(version, qos, keep_retain and message.retain, identifiers, self.now)
                    pieces += (head, b"", tail)
            self._forms[key] = pieces
        return pieces

    def _one(self, message: Message, version: int, qos: int, retain: bool, identifiers: tuple[int, ...]) -> list[bytes]:
        if message.properties or message.expires_at is not None or identifiers or self.heads is None:
            head, tail = message.parts(version, qos, retain, identifiers, self.now)
        else:
            head, tail = publish_again(message.topic, message.payload, qos, retain, version, self.heads)
        return [head, b"", tail]

    def frames(self, version: int, keep_retain: bool, identifiers: tuple[int, ...]) -> bytes:
        """The whole run as QoS 0 PUBLISH packets, one after the other, ready for the wire."""
        key = (version, keep_retain, identifiers)
        frames: bytes | None = self._forms.get(key)
        if frames is None:
            frames = self._forms[key] = b"".join(self.pieces(version, 0, keep_retain, identifiers))
        return frames


class WireRun(Run):
    """A run of QoS 0 as a decoder cut it out of the stream of a client that speaks ``version``.

    Receivers of the same version are sent it as it is; messages are made only when somebody has to queue them.
    """

    __slots__ = ("_version", "_wire")

    def __init__(self, wire: PublishRun, version: int, sender: str, now: float) -> None:
        self._wire = wire
        self._version = version
        self._messages = []
        self.topic = wire.topic
        self.qos = 0
        self.sender = sender
        self.batch = 0
        self.count = wire.count
        self.now = now
        self.heads = None
        self._length = length = wire.stride - wire.head
        self._payload_bytes = wire.count * length
        self._size_bytes = wire.count * (length + len(wire.topic) + OVERHEAD_BYTES)
        self._forms = {}

    @property
    def messages(self) -> list[Message]:
        """The messages, in order; made when first asked for."""
        if not self._messages:
            topic, sender = self.topic, self.sender
            self._messages = [Message(topic, payload, sender=sender) for payload in self._wire.payloads()]
        return self._messages

    def pieces(self, version: int, qos: int, keep_retain: bool, identifiers: tuple[int, ...]) -> list[bytes]:
        """As ``Run.pieces``."""
        _ = self.messages  # makes them
        return super().pieces(version, qos, keep_retain, identifiers)

    def frames(self, version: int, keep_retain: bool, identifiers: tuple[int, ...]) -> bytes:
        """As ``Run.frames``; the very bytes that came in where that is the same."""
        if not identifiers and (version == MQTT_5_0) == (self._version == MQTT_5_0):
            return self._wire.frames
        return super().frames(version, keep_retain, identifiers)
