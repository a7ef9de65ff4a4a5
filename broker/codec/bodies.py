"""What stands after the fixed header of each packet type, per protocol version.

A reader takes ``(data, at, end)`` of one complete packet and returns the packet or raises ``ProtocolError``.
``READERS`` says which first bytes are legal: for a side and a version, a list by first byte with None for what may not
arrive. PUBLISH is missing from it: ``decode`` reads that itself, being fast where these are only complete.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from ..errors import MalformedPacket, ProtocolError, UnsupportedVersion
from . import wire
from .packets import (
    MQTT_3_1,
    MQTT_3_1_1,
    MQTT_5_0,
    NO_PROPERTIES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
    Will,
)
from .properties import WILL, Properties, decode_properties
from .reasons import LEGAL, name_of

Reader = Callable[[bytes, int, int], Packet]
Ack = Puback | Pubrec | Pubrel | Pubcomp

PROTOCOLS: Final[dict[tuple[bytes, int], int]] = {
    (b"MQIsdp", MQTT_3_1): MQTT_3_1,
    (b"MQTT", MQTT_3_1_1): MQTT_3_1_1,
    (b"MQTT", MQTT_5_0): MQTT_5_0,
}
_MAX_RETURN_CODE: Final = 5
_SUBACK_RETURN_CODES: Final = frozenset({0x00, 0x01, 0x02, 0x80})


def read_version(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The protocol name and level that open a CONNECT; returns the version and the position after them."""
    name, at = wire.read_binary(data, at, end)
    level, at = wire.read_byte(data, at, end)
    version = PROTOCOLS.get((name, level))
    if version is None:
        # 5.0 [MQTT-3.1.2-1], 5.0 [MQTT-3.1.2-2], 3.1.1 [MQTT-3.1.2-1], 3.1.1 [MQTT-3.1.2-2]
        # Level 0x83 or 0x84, by which some bridges say what they are, is no level of ours either.
        raise UnsupportedVersion(f"protocol {name[:16]!r} level {level} is not one of MQTT 3.1, 3.1.1, 5.0", level)
    return version, at


def read_connect(data: bytes, at: int, end: int) -> Connect:
    version, at = read_version(data, at, end)
    flags, at = wire.read_byte(data, at, end)
    keep_alive, at = wire.read_u16(data, at, end)
    has_username, has_password, has_will = flags & 0x80, flags & 0x40, flags & 0x04
    will_qos, will_retain = flags >> 3 & 3, bool(flags & 0x20)
    if version != MQTT_3_1:  # 3.1 leaves these bits unused instead of reserved
        if flags & 0x01:
            raise MalformedPacket("CONNECT: reserved flag is set")  # 5.0 [MQTT-3.1.2-3], 3.1.1 [MQTT-3.1.2-3]
        if not has_will and flags & 0x38:
            # 5.0 [MQTT-3.1.2-11], 5.0 [MQTT-3.1.2-13]; 3.1.1 [MQTT-3.1.2-13], 3.1.1 [MQTT-3.1.2-15]
            raise MalformedPacket("CONNECT: will QoS or will retain without a will")
    if has_will and will_qos == 3:
        raise MalformedPacket("CONNECT: will QoS is 3")  # 5.0 [MQTT-3.1.2-12], 3.1.1 [MQTT-3.1.2-14]
    if has_password and not has_username and version != MQTT_5_0:
        raise MalformedPacket("CONNECT: password without user name")  # 3.1.1 [MQTT-3.1.2-22]
    properties = NO_PROPERTIES
    if version == MQTT_5_0:
        properties, at = decode_properties(data, at, end, PacketType.CONNECT)
        _require_method(properties)
    client_id, at = wire.read_string(data, at, end)
    will = username = password = None
    if has_will:
        will_properties = NO_PROPERTIES
        if version == MQTT_5_0:
            will_properties, at = decode_properties(data, at, end, WILL)
        topic, at = wire.read_topic_name(data, at, end)
        payload, at = wire.read_binary(data, at, end)
        will = Will(topic, payload, will_qos, will_retain, will_properties)
    # in 3.1 the remaining length takes precedence over the user name and password flags (3.1 section 3.1)
    if has_username and not (version == MQTT_3_1 and at == end):
        username, at = wire.read_string(data, at, end)
    if has_password and not (version == MQTT_3_1 and at == end):
        password, at = wire.read_binary(data, at, end)
    _require_end(at, end)
    clean_start = bool(flags & 0x02)
    return Connect(client_id, version, clean_start, keep_alive, username, password, will, properties)


def _read_connack(version: int, data: bytes, at: int, end: int) -> Connack:
    flags, at = wire.read_byte(data, at, end)
    reason, at = wire.read_byte(data, at, end)
    properties = NO_PROPERTIES
    if version == MQTT_3_1:
        flags = 0  # a reserved byte then
    if flags > 1:
        raise MalformedPacket("CONNACK: reserved flags are set")  # 5.0 [MQTT-3.2.2-1]
    if version == MQTT_5_0:
        _require_legal(PacketType.CONNACK, reason)
        properties, at = decode_properties(data, at, end, PacketType.CONNACK)
        _require_method(properties)
    elif reason > _MAX_RETURN_CODE:
        raise ProtocolError(f"CONNACK: return code {reason} is reserved")
    if flags and reason:
        raise ProtocolError("CONNACK: a refusal with session present")  # 5.0 [MQTT-3.2.2-6], 3.1.1 [MQTT-3.2.2-4]
    _require_end(at, end)
    return Connack(flags == 1, reason, properties)


def _read_ack_before_5(kind: type[Ack], data: bytes, at: int, end: int) -> Ack:
    packet_id, at = wire.read_packet_id(data, at, end)
    _require_end(at, end)
    return kind(packet_id, 0, NO_PROPERTIES)


def _read_ack(kind: type[Ack], place: PacketType, data: bytes, at: int, end: int) -> Ack:
    packet_id, at = wire.read_packet_id(data, at, end)
    reason, properties = _read_reason(place, data, at, end)
    return kind(packet_id, reason, properties)


def _read_subscribe(version: int, data: bytes, at: int, end: int) -> Subscribe:
    packet_id, at = wire.read_packet_id(data, at, end)
    properties = NO_PROPERTIES
    if version == MQTT_5_0:
        properties, at = decode_properties(data, at, end, PacketType.SUBSCRIBE)
    filters: list[SubscribeFilter] = []
    while at < end:
        topic_filter, at = _read_filter(data, at, end)
        options, at = wire.read_byte(data, at, end)
        if options & 3 == 3:
            raise ProtocolError("SUBSCRIBE: QoS is 3")  # 5.0 section 3.8.3.1, 3.1.1 [MQTT-3.8.3-4]
        if version != MQTT_5_0:
            if options > 2 and version == MQTT_3_1_1:
                raise MalformedPacket("SUBSCRIBE: reserved bits are set")  # 3.1.1 [MQTT-3.8.3-4]
            filters.append(SubscribeFilter(topic_filter, options & 3))
            continue
        if options & 0xC0:
            raise MalformedPacket("SUBSCRIBE: reserved option bits are set")  # 5.0 [MQTT-3.8.3-5]
        if options & 0x30 == 0x30:
            raise ProtocolError("SUBSCRIBE: retain handling is 3")
        no_local = bool(options & 4)
        if no_local and topic_filter.startswith("$share/"):
            raise ProtocolError("SUBSCRIBE: no local on a shared subscription")  # 5.0 [MQTT-3.8.3-4]
        filters.append(SubscribeFilter(topic_filter, options & 3, no_local, bool(options & 8), options >> 4))
    if not filters:
        raise ProtocolError("SUBSCRIBE: no topic filter")  # 5.0 [MQTT-3.8.3-2], 3.1.1 [MQTT-3.8.3-3]
    return Subscribe(packet_id, filters, properties)


def _read_suback(version: int, data: bytes, at: int, end: int) -> Suback:
    packet_id, at = wire.read_packet_id(data, at, end)
    properties, legal = NO_PROPERTIES, _SUBACK_RETURN_CODES
    if version == MQTT_5_0:
        properties, at = decode_properties(data, at, end, PacketType.SUBACK)
        legal = LEGAL[PacketType.SUBACK]
    reasons = list(data[at:end])
    if not reasons:
        raise ProtocolError("SUBACK: no reason code")
    if not legal.issuperset(reasons):
        raise ProtocolError("SUBACK: a reserved reason code")  # 5.0 [MQTT-3.9.3-2], 3.1.1 [MQTT-3.9.3-2]
    return Suback(packet_id, reasons, properties)


def _read_unsubscribe(version: int, data: bytes, at: int, end: int) -> Unsubscribe:
    packet_id, at = wire.read_packet_id(data, at, end)
    properties = NO_PROPERTIES
    if version == MQTT_5_0:
        properties, at = decode_properties(data, at, end, PacketType.UNSUBSCRIBE)
    filters: list[str] = []
    while at < end:
        topic_filter, at = _read_filter(data, at, end)
        filters.append(topic_filter)
    if not filters:
        raise ProtocolError("UNSUBSCRIBE: no topic filter")  # 5.0 [MQTT-3.10.3-2], 3.1.1 [MQTT-3.10.3-2]
    return Unsubscribe(packet_id, filters, properties)


def _read_unsuback(version: int, data: bytes, at: int, end: int) -> Unsuback:
    packet_id, at = wire.read_packet_id(data, at, end)
    if version != MQTT_5_0:
        _require_end(at, end)
        return Unsuback(packet_id)
    properties, at = decode_properties(data, at, end, PacketType.UNSUBACK)
    reasons = list(data[at:end])
    if not reasons:
        raise ProtocolError("UNSUBACK: no reason code")
    if not LEGAL[PacketType.UNSUBACK].issuperset(reasons):
        raise ProtocolError("UNSUBACK: a reserved reason code")  # 5.0 [MQTT-3.11.3-2]
    return Unsuback(packet_id, reasons, properties)


def _read_empty(kind: type[Pingreq | Pingresp | Disconnect], data: bytes, at: int, end: int) -> Packet:
    _require_end(at, end)
    return kind()


def _read_disconnect(side: str, data: bytes, at: int, end: int) -> Disconnect:
    reason, properties = _read_reason(PacketType.DISCONNECT, data, at, end)
    if side == "client" and "session_expiry_interval" in properties:
        raise ProtocolError("DISCONNECT: a server sent a session expiry interval")  # 5.0 [MQTT-3.14.2-2]
    return Disconnect(reason, properties)


def _read_auth(data: bytes, at: int, end: int) -> Auth:
    reason, properties = _read_reason(PacketType.AUTH, data, at, end)
    if at < end and "authentication_method" not in properties:
        raise ProtocolError("AUTH: no authentication method")  # 5.0 section 3.15.2.2.2
    return Auth(reason, properties)


def _read_reason(place: PacketType, data: bytes, at: int, end: int) -> tuple[int, Properties]:
    """A reason and properties at the end of a packet. Both, or the properties, may be left out."""
    if at == end:
        return 0, NO_PROPERTIES
    reason = data[at]
    _require_legal(place, reason)
    if at + 1 == end:
        return reason, NO_PROPERTIES
    properties, at = decode_properties(data, at + 1, end, place)
    _require_end(at, end)
    return reason, properties


def _read_filter(data: bytes, at: int, end: int) -> tuple[str, int]:
    topic_filter, at = wire.read_string(data, at, end)
    if not topic_filter:
        raise ProtocolError("topic filter is empty")  # 5.0 [MQTT-4.7.3-1], 3.1.1 [MQTT-4.7.3-1]
    return topic_filter, at


def _require_method(properties: Properties) -> None:
    if "authentication_data" in properties and "authentication_method" not in properties:
        raise ProtocolError("authentication data without authentication method")  # 5.0 section 3.1.2.11.10


def _require_legal(place: PacketType, reason: int) -> None:
    if reason not in LEGAL[place]:
        raise ProtocolError(f"{place.name}: reason {name_of(reason)} may not stand here")


def _require_end(at: int, end: int) -> None:
    if at != end:
        raise MalformedPacket(f"{end - at} bytes after the end of the packet")


def _readers(side: str, version: int) -> list[Reader | None]:
    """Every first byte that may arrive at ``side``, so that type, direction and flags are checked by one look-up."""
    server, v5 = side == "server", version == MQTT_5_0
    readers: dict[int, Reader] = {}
    kinds: tuple[tuple[int, type[Ack]], ...] = ((0x40, Puback), (0x50, Pubrec), (0x62, Pubrel), (0x70, Pubcomp))
    for first, kind in kinds:
        readers[first] = partial(_read_ack, kind, PacketType(first >> 4)) if v5 else partial(_read_ack_before_5, kind)
    if server:
        readers[0x10] = read_connect
        readers[0x82] = partial(_read_subscribe, version)
        readers[0xA2] = partial(_read_unsubscribe, version)
        readers[0xC0] = partial(_read_empty, Pingreq)
    else:
        readers[0x20] = partial(_read_connack, version)
        readers[0x90] = partial(_read_suback, version)
        readers[0xB0] = partial(_read_unsuback, version)
        readers[0xD0] = partial(_read_empty, Pingresp)
    if v5:
        readers[0xE0] = partial(_read_disconnect, side)
        readers[0xF0] = _read_auth
    elif server:
        readers[0xE0] = partial(_read_empty, Disconnect)
    if version == MQTT_3_1:  # which sets DUP when it repeats these (3.1 section 2.1)
        for first in (0x62, 0x82, 0xA2):
            if first in readers:
                readers[first | 0x08] = readers[first]
    return [readers.get(first) for first in range(256)]


READERS: Final[dict[tuple[str, int], list[Reader | None]]] = {
    (side, version): _readers(side, version)
    for side in ("server", "client")
    for version in (MQTT_3_1, MQTT_3_1_1, MQTT_5_0)
}


def refusal(first: int, side: str, version: int) -> ProtocolError:
    """Why no reader stands in ``READERS`` for this first byte."""
    kind = first >> 4
    if kind == 0 or (kind == PacketType.AUTH and version != MQTT_5_0):
        return MalformedPacket(f"packet type {kind} is reserved")
    name = PacketType(kind).name
    if kind == PacketType.PUBLISH:
        if first & 6 == 6:
            return MalformedPacket("PUBLISH: QoS is 3")  # 5.0 [MQTT-3.3.1-4], 3.1.1 [MQTT-3.3.1-4]
        return MalformedPacket("PUBLISH: DUP at QoS 0")  # 5.0 [MQTT-3.3.1-2], 3.1.1 [MQTT-3.3.1-2]
    if any(READERS[side, version][kind << 4 : (kind + 1) << 4]):
        # 5.0 [MQTT-2.1.3-1], 3.1.1 [MQTT-2.2.2-2]
        return MalformedPacket(f"{name}: reserved flags are wrong (first byte 0x{first:02X})")
    return ProtocolError(f"{name} may not be sent to a {side}")
