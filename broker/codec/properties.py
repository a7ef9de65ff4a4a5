"""The 27 properties of MQTT 5.0 (section 2.2.2.2) as one table: identifier, wire type, and where each may stand.

A place is the number of a packet type, or ``WILL`` for the properties that travel inside CONNECT for the will message.
Reading raises nothing but ``ProtocolError``; writing raises ``ValueError`` for what must not go on the wire.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from ..errors import MalformedPacket, ProtocolError
from . import wire


class Properties(TypedDict, total=False):
    """Property names and the Python types of their values. Absent key = absent on the wire."""

    payload_format_indicator: int
    message_expiry_interval: int
    content_type: str
    response_topic: str
    correlation_data: bytes
    subscription_identifier: list[int]
    session_expiry_interval: int
    assigned_client_identifier: str
    server_keep_alive: int
    authentication_method: str
    authentication_data: bytes
    request_problem_information: int
    will_delay_interval: int
    request_response_information: int
    response_information: str
    server_reference: str
    reason_string: str
    receive_maximum: int
    topic_alias_maximum: int
    topic_alias: int
    maximum_qos: int
    retain_available: int
    user_property: list[tuple[str, str]]
    maximum_packet_size: int
    wildcard_subscription_available: int
    subscription_identifier_available: int
    shared_subscription_available: int


NO_PROPERTIES: Final[Properties] = {}
"""Shared by all packets without any; never to be filled."""

WILL: Final = 0
# the numbers of packets.PacketType, which cannot be imported here: packets need Properties
_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _PUBREC, _PUBREL, _PUBCOMP = range(1, 8)
_SUBSCRIBE, _SUBACK, _UNSUBSCRIBE, _UNSUBACK, _DISCONNECT, _AUTH = 8, 9, 10, 11, 14, 15

_MESSAGE: Final = (_PUBLISH, WILL)
_GREETING: Final = (_CONNECT, _CONNACK)
_REASONED: Final = (_CONNACK, _PUBACK, _PUBREC, _PUBREL, _PUBCOMP, _SUBACK, _UNSUBACK, _DISCONNECT, _AUTH)


_Reader = Callable[[bytes, int, int], tuple[Any, int]]


@dataclass(frozen=True, slots=True)
class WireType:
    """How one type of value is read and written."""

    python: type
    read: _Reader
    write: Callable[[Any], bytes]


BYTE: Final = WireType(int, wire.read_byte, wire.write_byte)
U16: Final = WireType(int, wire.read_u16, wire.write_u16)
U32: Final = WireType(int, wire.read_u32, wire.write_u32)
VARINT: Final = WireType(int, wire.read_varint, wire.write_varint)
UTF8: Final = WireType(str, wire.read_string, wire.write_string)
TOPIC: Final = WireType(str, wire.read_topic_name, wire.write_topic_name)
BINARY: Final = WireType(bytes, wire.read_binary, wire.write_binary)
PAIR: Final = WireType(tuple, wire.read_pair, wire.write_pair)


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the table.

    ``bounds`` are the lowest and highest value, None where the wire type's own will do; ``refusal`` is the reason to
    give for others. A ``listed`` property is a list in ``Properties``, longer than one in ``repeats`` only.
    """

    identifier: int
    name: str
    type: WireType
    places: tuple[int, ...]
    bounds: tuple[int, int] | None = None
    listed: bool = False
    repeats: tuple[int, ...] = ()
    refusal: int = 0x82


_EVERYWHERE: Final = (*_REASONED, _CONNECT, _PUBLISH, WILL, _SUBSCRIBE, _UNSUBSCRIBE)

TABLE: Final[tuple[Spec, ...]] = (
    Spec(0x01, "payload_format_indicator", BYTE, _MESSAGE, (0, 1)),
    Spec(0x02, "message_expiry_interval", U32, _MESSAGE),
    Spec(0x03, "content_type", UTF8, _MESSAGE),
    Spec(0x08, "response_topic", TOPIC, _MESSAGE),
    Spec(0x09, "correlation_data", BINARY, _MESSAGE),
    Spec(0x0B, "subscription_identifier", VARINT, (_PUBLISH, _SUBSCRIBE), (1, wire.MAX_VARINT), True, (_PUBLISH,)),
    Spec(0x11, "session_expiry_interval", U32, (_CONNECT, _CONNACK, _DISCONNECT)),
    Spec(0x12, "assigned_client_identifier", UTF8, (_CONNACK,)),
    Spec(0x13, "server_keep_alive", U16, (_CONNACK,)),
    Spec(0x15, "authentication_method", UTF8, (_CONNECT, _CONNACK, _AUTH)),
    Spec(0x16, "authentication_data", BINARY, (_CONNECT, _CONNACK, _AUTH)),
    Spec(0x17, "request_problem_information", BYTE, (_CONNECT,), (0, 1)),
    Spec(0x18, "will_delay_interval", U32, (WILL,)),
    Spec(0x19, "request_response_information", BYTE, (_CONNECT,), (0, 1)),
    Spec(0x1A, "response_information", UTF8, (_CONNACK,)),
    Spec(0x1C, "server_reference", UTF8, (_CONNACK, _DISCONNECT)),
    Spec(0x1F, "reason_string", UTF8, _REASONED),
    Spec(0x21, "receive_maximum", U16, _GREETING, (1, 0xFFFF)),
    Spec(0x22, "topic_alias_maximum", U16, _GREETING),
    Spec(0x23, "topic_alias", U16, (_PUBLISH,), (1, 0xFFFF), refusal=0x94),
    Spec(0x24, "maximum_qos", BYTE, (_CONNACK,), (0, 1)),
    Spec(0x25, "retain_available", BYTE, (_CONNACK,), (0, 1)),
    Spec(0x26, "user_property", PAIR, _EVERYWHERE, listed=True, repeats=_EVERYWHERE),
    Spec(0x27, "maximum_packet_size", U32, _GREETING, (1, 0xFFFF_FFFF)),
    Spec(0x28, "wildcard_subscription_available", BYTE, (_CONNACK,), (0, 1)),
    Spec(0x29, "subscription_identifier_available", BYTE, (_CONNACK,), (0, 1)),
    Spec(0x2A, "shared_subscription_available", BYTE, (_CONNACK,), (0, 1)),
)

_ROWS: Final[list[list[tuple[str, _Reader, Spec] | None]]] = [[None] * 256 for _ in range(16)]
"""Place and identifier to name, reader and row; None where the property may not stand."""
for _spec in TABLE:
    for _place in _spec.places:
        _ROWS[_place][_spec.identifier] = (_spec.name, _spec.type.read, _spec)

_BY_NAME: Final[dict[str, tuple[Spec, bytes]]] = {spec.name: (spec, bytes((spec.identifier,))) for spec in TABLE}


def decode_properties(data: bytes, at: int, end: int, place: int) -> tuple[Properties, int]:
    """The property length and the properties at ``at``; returns them and the position after them.

    An identifier that does not belong here is malformed (5.0 section 2.2.2.2). A second value of a property that has
    one, or a value outside its range, is a protocol error (5.0 sections 3.1.2.11, 3.2.2.3, 3.3.2.3 and so on).
    """
    if at < end and data[at] < 128:
        length = data[at]
        at += 1
    else:
        length, at = wire.read_varint(data, at, end)
    stop = at + length
    if stop > end:
        raise MalformedPacket(f"properties of {length} bytes in a packet with {end - at} left")
    if not length:
        return NO_PROPERTIES, at
    found: Any = {}
    rows = _ROWS[place]
    while at < stop:
        row = rows[data[at]]
        if row is None:
            raise MalformedPacket(f"property 0x{data[at]:02X} may not stand here")
        name, read, spec = row
        value, at = read(data, at + 1, stop)
        bounds = spec.bounds
        if bounds is not None and not bounds[0] <= value <= bounds[1]:
            raise ProtocolError(f"{name} is {value}, not {bounds[0]} to {bounds[1]}", spec.refusal)
        if name not in found:
            found[name] = [value] if spec.listed else value
        elif place in spec.repeats:
            found[name].append(value)
        else:
            raise ProtocolError(f"{name} stands twice")
    return found, at


def encode_properties(properties: Properties, place: int) -> bytes:
    """The property length and the properties, in the mapping's order. ``ValueError`` names what may not be sent."""
    if not properties:
        return b"\0"  # 5.0 [MQTT-2.2.2-1]
    parts: list[bytes] = []
    for name, value in properties.items():
        row = _BY_NAME.get(name)
        if row is None or place not in row[0].places:
            raise ValueError(f"property {name!r} may not stand here")
        spec, identifier = row
        if not spec.listed:
            parts += identifier, _write(spec, value)
            continue
        if not isinstance(value, list):
            raise ValueError(f"{name} must be a list, not {value!r}")
        if len(value) > 1 and place not in spec.repeats:
            raise ValueError(f"{name} may have one value here, not {len(value)}")
        for item in value:
            parts += identifier, _write(spec, item)
    body = b"".join(parts)
    return wire.write_varint(len(body)) + body


def _write(spec: Spec, value: Any) -> bytes:
    kind, given = spec.type, type(value)
    if given is not kind.python:  # nor is True a number
        raise ValueError(f"{spec.name} must be {kind.python.__name__}, not {value!r}")
    if spec.bounds is not None and not spec.bounds[0] <= value <= spec.bounds[1]:
        raise ValueError(f"{spec.name} is {value}, not {spec.bounds[0]} to {spec.bounds[1]}")
    try:
        return kind.write(value)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    except (AttributeError, LookupError, TypeError):  # a pair that is none, or not of strings
        raise ValueError(f"{spec.name} cannot be {value!r}") from None
