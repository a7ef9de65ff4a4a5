"""Packets to bytes, for the version that the connection speaks.

``encode`` takes any packet; the functions below it are for the few that a broker sends by the million. What a version
does not have is left out (properties and most reasons before 5.0); what it cannot express at all raises ``ValueError``
with a sentence that names the field. Nothing is cut short to fit.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from . import wire
from .packets import (
    MQTT_3_1,
    MQTT_5_0,
    NO_PROPERTIES,
    AckRun,
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
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
)
from .properties import WILL, Properties, encode_properties
from .reasons import LEGAL, name_of
from .wire import BYTE, MAX_VARINT, PACKET_ID, write_varint

_GREETINGS: Final = {3: b"\x00\x06MQIsdp\x03", 4: b"\x00\x04MQTT\x04", 5: b"\x00\x04MQTT\x05"}
_MAX_RETURN_CODE: Final = 5
_MAX_HEADS: Final = 64
_FAILURE: Final = 0x80
"""The one code for a refused subscription before 5.0; every code from here on is a failure in 5.0."""


def encode(packet: Packet, version: int) -> bytes:
    """The whole packet as ``version`` (3, 4 or 5) writes it; ``ValueError`` if it cannot be written."""
    if version not in _GREETINGS:
        raise ValueError(f"version is {version}, not 3, 4 or 5")
    return _ENCODERS[type(packet)](packet, version)


def publish_parts(
    topic: str, payload: bytes, qos: int, retain: bool, properties: Properties, version: int
) -> tuple[bytes, bytes]:
    """A PUBLISH in two parts that many receivers share.

    At QoS 0 the frame is head + tail, at QoS 1 and 2 it is head + two bytes of packet id + tail. A repeat has bit 3
    (0x08) set in its first byte. ``topic`` is trusted to be a topic name: only its length is checked here.
    """
    name = topic.encode()
    size = len(name)
    if size > wire.MAX_STRING_BYTES:
        raise ValueError(f"topic of {size} bytes is over the limit of {wire.MAX_STRING_BYTES}")
    first = _PUBLISH_FIRST[qos << 1 | retain]
    if version == MQTT_5_0:
        fields = encode_properties(properties, PacketType.PUBLISH) if properties else b"\0"
        if qos:
            tail = fields + payload
            return b"".join((first, write_varint(size + len(tail) + 4), PACKET_ID[size], name)), tail
        length = write_varint(size + len(fields) + len(payload) + 2)
        return b"".join((first, length, PACKET_ID[size], name, fields)), payload
    length = write_varint(size + len(payload) + (4 if qos else 2))
    return b"".join((first, length, PACKET_ID[size], name)), payload


def publish_again(
    topic: str, payload: bytes, qos: int, retain: bool, version: int, heads: dict[int, bytes]
) -> tuple[bytes, bytes]:
    """``publish_parts`` without properties, of a topic that is published to again and again.

    The head depends on length and options alone; ``heads`` remembers some heads of this topic.
    """
    extended = version == MQTT_5_0
    key = len(payload) << 4 | extended << 3 | retain << 2 | qos
    head = heads.get(key)
    if head is None:
        if len(heads) >= _MAX_HEADS:
            heads.clear()
        head = heads[key] = publish_parts(topic, payload, qos, retain, NO_PROPERTIES, version)[0]
    return head, b"\0" + payload if extended and qos else payload


def publish_run(
    topic: str,
    payloads: Sequence[bytes],
    qos: int,
    retain: bool,
    version: int,
    heads: dict[int, bytes],
    length: int = -1,
) -> list[bytes]:
    """``publish_again`` of many payloads: head, room for the packet id, tail, head, …

    ``length``: bytes of every payload, -1 = they may differ.
    """
    pieces = [b""] * (3 * len(payloads))
    if length >= 0:
        pieces[0::3] = [publish_again(topic, payloads[0], qos, retain, version, heads)[0]] * len(payloads)
    else:
        sizes = list(map(len, payloads))
        by_size = {
            len(payload): publish_again(topic, payload, qos, retain, version, heads)[0]
            for payload in dict(zip(sizes, payloads, strict=True)).values()
        }
        pieces[0::3] = [by_size[size] for size in sizes]
    pieces[2::3] = [b"\0" + payload for payload in payloads] if version == MQTT_5_0 and qos else payloads
    return pieces


def puback(packet_id: int) -> bytes:
    """PUBACK with success, the same four bytes in every version. The same goes for the three below."""
    return b"\x40\x02" + PACKET_ID[packet_id]


def pubrec(packet_id: int) -> bytes:
    return b"\x50\x02" + PACKET_ID[packet_id]


def pubrel(packet_id: int) -> bytes:
    return b"\x62\x02" + PACKET_ID[packet_id]


def pubcomp(packet_id: int) -> bytes:
    return b"\x70\x02" + PACKET_ID[packet_id]


_PUBLISH_FIRST: Final[list[bytes]] = [bytes((0x30 | flags,)) for flags in range(6)]


def _frame(first: int, *parts: bytes) -> bytes:
    length = sum([len(part) for part in parts])
    if length > MAX_VARINT:
        raise ValueError(f"a packet body of {length} bytes is over the limit of {MAX_VARINT}")
    return b"".join((BYTE[first], write_varint(length), *parts))


def _encode_connect(packet: Connect, version: int) -> bytes:
    if packet.version != version:
        raise ValueError(f"CONNECT of version {packet.version} on a connection of version {version}")
    if not 0 <= packet.keep_alive <= 0xFFFF:
        raise ValueError(f"keep_alive is {packet.keep_alive}, not 0 to 65535")
    if packet.password is not None and packet.username is None and version != MQTT_5_0:
        raise ValueError("a password without a user name needs MQTT 5.0")  # 3.1.1 [MQTT-3.1.2-22]
    flags = 0x02 if packet.clean_start else 0
    payload = [wire.write_string(packet.client_id)]
    if packet.will is not None:
        will = packet.will
        flags |= 0x04 | _qos(will.qos) << 3 | (0x20 if will.retain else 0)
        if version == MQTT_5_0:
            payload.append(encode_properties(will.properties, WILL))
        payload += wire.write_topic_name(will.topic), wire.write_binary(will.payload)
    if packet.username is not None:
        flags |= 0x80
        payload.append(wire.write_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        payload.append(wire.write_binary(packet.password))
    return _frame(
        0x10,
        _GREETINGS[version],
        BYTE[flags],
        wire.write_u16(packet.keep_alive),
        _with_method(packet.properties, PacketType.CONNECT, version),
        *payload,
    )


def _encode_connack(packet: Connack, version: int) -> bytes:
    reason = packet.reason
    if version == MQTT_5_0:
        _require_legal(PacketType.CONNACK, reason)
    elif not 0 <= reason <= _MAX_RETURN_CODE:
        raise ValueError(f"CONNACK: {reason} is no return code; CONNACK_RETURN_CODE gives the one for a 5.0 reason")
    if packet.session_present and reason:
        raise ValueError("CONNACK: a refusal has no session present")  # 5.0 [MQTT-3.2.2-6], 3.1.1 [MQTT-3.2.2-4]
    flags = 1 if packet.session_present and version != MQTT_3_1 else 0
    return _frame(0x20, bytes((flags, reason)), _with_method(packet.properties, PacketType.CONNACK, version))


def _encode_publish(packet: Publish, version: int) -> bytes:
    qos = _qos(packet.qos)
    aliased = version == MQTT_5_0 and "topic_alias" in packet.properties
    topic = wire.write_string("") if aliased and not packet.topic else wire.write_topic_name(packet.topic)
    if packet.dup and not qos:
        raise ValueError("PUBLISH: DUP at QoS 0")
    if packet.packet_id and not qos:
        raise ValueError("PUBLISH: a packet id at QoS 0")
    return _frame(
        0x30 | qos << 1 | (1 if packet.retain else 0) | (8 if packet.dup else 0),
        topic,
        wire.write_packet_id(packet.packet_id) if qos else b"",
        _properties(packet.properties, PacketType.PUBLISH, version),
        packet.payload,
    )


def _encode_publish_run(packet: PublishRun, version: int) -> bytes:
    return b"".join(_encode_publish(publish, version) for publish in packet.packets())


def _encode_ack_run(packet: AckRun, version: int) -> bytes:
    return b"".join(_encode_ack(packet.kind(packet_id), version) for packet_id in packet.packet_ids)


def _encode_ack(packet: Puback | Pubrec | Pubrel | Pubcomp, version: int) -> bytes:
    """Before 5.0 an acknowledgement carries its id alone, whatever came of the message, `3.1.1 [MQTT-3.3.5-2]`."""
    first, place = _ACKS[type(packet)]
    packet_id = wire.write_packet_id(packet.packet_id)
    if version != MQTT_5_0:
        return first + b"\x02" + packet_id
    return _frame(first[0], packet_id, _reason(packet.reason, packet.properties, place))


def _encode_subscribe(packet: Subscribe, version: int) -> bytes:
    if not packet.filters:
        raise ValueError("SUBSCRIBE: no topic filter")
    parts = [
        wire.write_packet_id(packet.packet_id),
        _properties(packet.properties, PacketType.SUBSCRIBE, version),
    ]
    for entry in packet.filters:
        parts += _topic_filter(entry.filter), BYTE[_options(entry, version)]
    return _frame(0x82, *parts)


def _encode_suback(packet: Suback, version: int) -> bytes:
    reasons = packet.reasons
    if not reasons:
        raise ValueError("SUBACK: no reason code")
    for reason in reasons:
        _require_legal(PacketType.SUBACK, reason)
    if version != MQTT_5_0:
        reasons = [min(reason, _FAILURE) for reason in reasons]
    return _frame(
        0x90,
        wire.write_packet_id(packet.packet_id),
        _properties(packet.properties, PacketType.SUBACK, version),
        bytes(reasons),
    )


def _encode_unsubscribe(packet: Unsubscribe, version: int) -> bytes:
    if not packet.filters:
        raise ValueError("UNSUBSCRIBE: no topic filter")
    return _frame(
        0xA2,
        wire.write_packet_id(packet.packet_id),
        _properties(packet.properties, PacketType.UNSUBSCRIBE, version),
        *map(_topic_filter, packet.filters),
    )


def _encode_unsuback(packet: Unsuback, version: int) -> bytes:
    packet_id = wire.write_packet_id(packet.packet_id)
    if version != MQTT_5_0:
        return b"\xb0\x02" + packet_id
    if not packet.reasons:
        raise ValueError("UNSUBACK: no reason code")
    for reason in packet.reasons:
        _require_legal(PacketType.UNSUBACK, reason)
    properties = encode_properties(packet.properties, PacketType.UNSUBACK)
    return _frame(0xB0, packet_id, properties, bytes(packet.reasons))


def _encode_disconnect(packet: Disconnect, version: int) -> bytes:
    if version != MQTT_5_0:
        return b"\xe0\x00"
    return _frame(0xE0, _reason(packet.reason, packet.properties, PacketType.DISCONNECT))


def _encode_auth(packet: Auth, version: int) -> bytes:
    if version != MQTT_5_0:
        raise ValueError("AUTH needs MQTT 5.0")
    if (packet.reason or packet.properties) and "authentication_method" not in packet.properties:
        raise ValueError("AUTH: no authentication method")
    return _frame(0xF0, _reason(packet.reason, packet.properties, PacketType.AUTH))


def _reason(reason: int, properties: Properties, place: PacketType) -> bytes:
    """The end of a packet in its shortest form: both, the reason alone, or nothing for success."""
    _require_legal(place, reason)
    if properties:
        return BYTE[reason] + encode_properties(properties, place)
    return BYTE[reason] if reason else b""


def _properties(properties: Properties, place: PacketType, version: int) -> bytes:
    return encode_properties(properties, place) if version == MQTT_5_0 else b""


def _with_method(properties: Properties, place: PacketType, version: int) -> bytes:
    if "authentication_data" in properties and "authentication_method" not in properties:
        raise ValueError("authentication_data without authentication_method")
    return _properties(properties, place, version)


def _options(entry: SubscribeFilter, version: int) -> int:
    qos = _qos(entry.qos)
    if version != MQTT_5_0:
        return qos
    if entry.retain_handling not in (0, 1, 2):
        raise ValueError(f"retain_handling is {entry.retain_handling}, not 0, 1 or 2")
    if entry.no_local and entry.filter.startswith("$share/"):
        raise ValueError("SUBSCRIBE: no local on a shared subscription")  # 5.0 [MQTT-3.8.3-4]
    return (
        qos | (0x04 if entry.no_local else 0) | (0x08 if entry.retain_as_published else 0) | entry.retain_handling << 4
    )


def _qos(qos: int) -> int:
    if qos not in (0, 1, 2):
        raise ValueError(f"QoS is {qos}, not 0, 1 or 2")
    return qos


def _topic_filter(topic_filter: str) -> bytes:
    if not topic_filter:
        raise ValueError("topic filter is empty")
    return wire.write_string(topic_filter)


def _require_legal(place: PacketType, reason: int) -> None:
    if reason not in LEGAL[place]:
        raise ValueError(f"{place.name}: reason {name_of(reason)} may not stand here")


_ACKS: Final[dict[type, tuple[bytes, PacketType]]] = {
    Puback: (b"\x40", PacketType.PUBACK),
    Pubrec: (b"\x50", PacketType.PUBREC),
    Pubrel: (b"\x62", PacketType.PUBREL),
    Pubcomp: (b"\x70", PacketType.PUBCOMP),
}
_ENCODERS: Final[dict[type, Callable[[Any, int], bytes]]] = {
    Connect: _encode_connect,
    Connack: _encode_connack,
    Publish: _encode_publish,
    PublishRun: _encode_publish_run,
    Puback: _encode_ack,
    Pubrec: _encode_ack,
    Pubrel: _encode_ack,
    Pubcomp: _encode_ack,
    AckRun: _encode_ack_run,
    Subscribe: _encode_subscribe,
    Suback: _encode_suback,
    Unsubscribe: _encode_unsubscribe,
    Unsuback: _encode_unsuback,
    Pingreq: lambda packet, version: b"\xc0\x00",
    Pingresp: lambda packet, version: b"\xd0\x00",
    Disconnect: _encode_disconnect,
    Auth: _encode_auth,
}
