"""The fifteen MQTT control packets, one slots dataclass each, the same tree for versions 3.1, 3.1.1 and 5.0.

Packets are plain values: they hold what the wire says and never check, encode or act on it. What a version cannot
express (properties before 5.0) stays at its default. They are immutable by convention, which is what makes sharing them
safe; freezing them would cost four times the construction time.

``properties`` maps names of ``properties.Properties`` to values; absent means absent on the wire. ``NO_PROPERTIES`` is
shared by all packets without any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import repeat
from struct import iter_unpack
from typing import Final

from .properties import NO_PROPERTIES as NO_PROPERTIES
from .properties import Properties


def _none() -> Properties:
    return NO_PROPERTIES


MQTT_3_1: Final = 3
MQTT_3_1_1: Final = 4
MQTT_5_0: Final = 5


class PacketType(IntEnum):
    """The high four bits of a packet's first byte (5.0 section 2.1.2)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(slots=True)
class Will:
    """What the server publishes if this client goes without saying goodbye (5.0 section 3.1.2.5)."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Connect:
    """5.0 section 3.1. ``keep_alive`` in seconds, 0 = off. ``version`` is 3, 4 or 5."""

    client_id: str = ""
    version: int = MQTT_5_0
    clean_start: bool = True
    keep_alive: int = 60
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    will: Will | None = None
    properties: Properties = field(default_factory=_none, repr=False)  # Authentication Data may be a secret


@dataclass(slots=True)
class Connack:
    """5.0 section 3.2. ``reason`` is a version 5.0 reason code or, before 5.0, a return code 0 to 5."""

    session_present: bool = False
    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Publish:
    """5.0 section 3.3. ``packet_id`` is 0 at QoS 0. ``topic`` may be empty where a topic alias stands for it."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Puback:
    """5.0 section 3.4: the receiver of a QoS 1 PUBLISH has taken it over."""

    packet_id: int
    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Pubrec:
    """5.0 section 3.5: the receiver of a QoS 2 PUBLISH has taken it over."""

    packet_id: int
    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Pubrel:
    """5.0 section 3.6: the sender will not repeat this QoS 2 PUBLISH."""

    packet_id: int
    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Pubcomp:
    """5.0 section 3.7: the QoS 2 exchange is over, its packet id is free."""

    packet_id: int
    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class SubscribeFilter:
    """One topic filter of a SUBSCRIBE with its options (5.0 section 3.8.3.1)."""

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(slots=True)
class Subscribe:
    """5.0 section 3.8."""

    packet_id: int
    filters: list[SubscribeFilter]
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Suback:
    """5.0 section 3.9. One reason per filter of the SUBSCRIBE, in its order."""

    packet_id: int
    reasons: list[int]
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Unsubscribe:
    """5.0 section 3.10."""

    packet_id: int
    filters: list[str]
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Unsuback:
    """5.0 section 3.11. ``reasons`` is empty before 5.0, which has none on the wire."""

    packet_id: int
    reasons: list[int] = field(default_factory=list)
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Pingreq:
    """5.0 section 3.12."""


@dataclass(slots=True)
class Pingresp:
    """5.0 section 3.13."""


@dataclass(slots=True)
class Disconnect:
    """5.0 section 3.14. Before 5.0 only clients send it and it carries nothing."""

    reason: int = 0
    properties: Properties = field(default_factory=_none)


@dataclass(slots=True)
class Auth:
    """5.0 section 3.15. Exists in 5.0 only."""

    reason: int = 0
    properties: Properties = field(default_factory=_none, repr=False)  # Authentication Data may be a secret


@dataclass(slots=True)
class PublishRun:
    """PUBLISH packets of one topic, one QoS and one length without properties, one after the other in a stream.

    Apart from ``packet_ids``, which QoS 0 has not, they differ in their payloads alone; so at QoS 0 a receiver that
    speaks the same version can be sent ``frames`` as it is. ``stride`` is the length of one packet and ``head`` what
    comes before its payload, both in bytes.
    """

    topic: str
    frames: bytes
    stride: int
    head: int
    qos: int = 0
    packet_ids: Sequence[int] = ()

    @property
    def count(self) -> int:
        """How many packets there are."""
        return len(self.frames) // self.stride

    def payloads(self) -> list[bytes]:
        """Their payloads, in order."""
        layout = f"{self.head}x{self.stride - self.head}s"
        return [payload for (payload,) in iter_unpack(layout, self.frames)]

    def packets(self) -> list[Publish]:
        """The packets one by one, but for DUP."""
        ids = self.packet_ids or repeat(0)
        return [
            Publish(self.topic, payload, self.qos, packet_id=id)
            for payload, id in zip(self.payloads(), ids, strict=False)
        ]


@dataclass(slots=True)
class AckRun:
    """Two or more acknowledgements of one ``kind`` without reason and properties, one after the other in a stream."""

    kind: type[Puback] | type[Pubrec] | type[Pubrel] | type[Pubcomp]
    packet_ids: list[int]

    @property
    def count(self) -> int:
        """How many packets there are."""
        return len(self.packet_ids)


Packet = (
    Connect
    | Connack
    | Publish
    | PublishRun
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | AckRun
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
