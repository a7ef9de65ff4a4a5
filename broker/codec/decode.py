"""Bytes in, packets out: cuts a stream into packets and reads them, whatever the pieces it arrives in.

It holds no socket, clock or session. Invariants:

1. ``feed`` never raises. The first bad packet sets ``error`` and everything from there on is dropped.
2. The same stream gives the same packets however it is split, in time linear in its length.
3. No more than ``max_packet_size`` bytes are ever kept, and none are reserved on a peer's mere announcement.
"""

from collections.abc import Sequence
from struct import Struct, unpack
from typing import Final, Literal

from ..errors import MalformedPacket, PacketTooLarge, ProtocolError
from .bodies import READERS, read_connect, read_version, refusal
from .packets import (
    MQTT_5_0,
    NO_PROPERTIES,
    AckRun,
    Packet,
    PacketType,
    Puback,
    Pubcomp,
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
)
from .properties import decode_properties
from .wire import MAX_PACKET_BYTES, TopicTable, length_end, read_varint

_PUBLISH_FLAGS: Final[list[tuple[int, bool, bool] | None]] = [None] * 256
"""First byte to (qos, retain, dup). Neither QoS 3 nor DUP at QoS 0 is legal."""
for _flags in (0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0xA, 0xB, 0xC, 0xD):
    _PUBLISH_FLAGS[0x30 | _flags] = (_flags >> 1 & 3, bool(_flags & 1), bool(_flags & 8))

_ACKS: Final[list[type[Puback | Pubrec | Pubrel | Pubcomp] | None]] = [None] * 256
"""First byte to the class of the acknowledgements, which are four bytes where all went well."""
_ACKS[0x40], _ACKS[0x50], _ACKS[0x62], _ACKS[0x70] = Puback, Pubrec, Pubrel, Pubcomp
_ACK: Final = Struct(">2xH")  # first byte and length, packet id

_NO_PUBLISH: Final[list[tuple[int, bool, bool] | None]] = [None] * 256
_NO_ACKS: Final[list[type[Puback | Pubrec | Pubrel | Pubcomp] | None]] = [None] * 256
"""In force until CONNECT has told the version."""


class Decoder:
    """One direction of one connection.

    ``version``: 3, 4 or 5; a server leaves it out and learns it from CONNECT, and until then takes nothing else.
    ``max_packet_size``, ``max_connect_size``: bytes of a whole packet, the latter while no CONNECT has been read.
    ``side``: who we are; packets that only our own side sends are refused.
    ``topics``: a table to share with other decoders, so that one topic is one str across connections.
    ``publish``: the class to fill for a PUBLISH; slots that a subclass adds are left unset.
    ``runs``: give PUBLISH packets that repeat topic and length as one ``PublishRun``, and acknowledgements of one type
    as one ``AckRun``, as far as that pays.
    """

    __slots__ = (
        "_max_connect_size",
        "_max_packet_size",
        "_needed",
        "_previous",
        "_publish",
        "_runs",
        "_tail",
        "_topics",
        "error",
        "side",
        "version",
    )

    def __init__(
        self,
        *,
        version: int | None = None,
        max_packet_size: int = MAX_PACKET_BYTES,
        max_connect_size: int | None = None,
        side: Literal["server", "client"] = "server",
        topics: TopicTable | None = None,
        publish: type[Publish] = Publish,
        runs: bool = False,
    ) -> None:
        if side not in ("server", "client"):
            raise ValueError(f"side is {side!r}, not 'server' or 'client'")
        if version is None and side == "client":
            raise ValueError("a client's decoder needs the version that it sent in CONNECT")
        if version is not None and (side, version) not in READERS:
            raise ValueError(f"version is {version}, not 3, 4 or 5")
        self.version = version
        self.side = side
        self.error: ProtocolError | None = None
        self._max_packet_size = max_packet_size
        self._max_connect_size = max_packet_size if max_connect_size is None else min(max_connect_size, max_packet_size)
        self._topics = TopicTable() if topics is None else topics
        self._publish = publish
        self._runs = runs
        self._previous = ""  # topic of the last PUBLISH
        self._tail: bytes | bytearray = b""  # an incomplete packet from its first byte
        self._needed = 0  # its length once its header has arrived, else 0

    @property
    def waiting(self) -> int:
        """Bytes kept of a packet that is not complete."""
        return len(self._tail)

    def feed(self, data: bytes) -> list[Packet]:
        """Every packet that ``data`` completes, in order. A bad one sets ``error``; nothing comes after it."""
        if not self._tail and len(data) < 130 and self.version is not None and self.error is None:
            packet = self._only(data)
            if packet is not None:
                return [packet]
        packets: list[Packet] = []
        if self._tail:
            data = self._collect(data)
            if not data:
                return packets
        if self.error is not None:
            return packets
        append = packets.append
        publish_class = self._publish
        new = publish_class.__new__
        runs = self._runs
        topics = self._topics
        previous = self._previous
        version = self.version
        if version is None:
            publish_flags, acks = _NO_PUBLISH, _NO_ACKS
            limit = self._max_connect_size
        else:
            publish_flags, acks = _PUBLISH_FLAGS, _ACKS
            limit = self._max_packet_size
        room = limit - 5  # what fits under the limit whatever the size of its header
        v5 = version == MQTT_5_0
        at = 0
        end = len(data)
        last = end - 1
        try:
            while at < last:
                first = data[at]
                length = data[at + 1]
                start = at + 2
                if length > 127:
                    if start < end and data[start] < 128:
                        length += (data[start] << 7) - 128
                        start += 1
                    else:
                        start = length_end(data, at + 1, end)
                        if not start:
                            break
                        length, start = read_varint(data, at + 1, start)
                stop = start + length
                if length > room and stop - at > limit:
                    # 5.0 [MQTT-3.1.2-24], 5.0 [MQTT-3.2.2-15]
                    raise PacketTooLarge(f"a packet of {stop - at} bytes is over the limit of {limit}")
                if stop > end:
                    self._require_legal(first)
                    self._needed = stop - at
                    break
                flags = publish_flags[first]
                if flags is not None:
                    body = name_end = start + 2 + (data[start] << 8) + data[start + 1]
                    publish = new(publish_class)
                    publish.qos, publish.retain, publish.dup = flags
                    if first & 6:
                        publish.packet_id = packet_id = data[body] << 8 | data[body + 1]
                        body += 2
                        if not packet_id:
                            raise MalformedPacket("PUBLISH: packet id is 0")  # 5.0 [MQTT-2.2.1-3]
                    else:
                        publish.packet_id = 0
                    if v5:
                        if data[body]:
                            self._read_properties(publish, data, start, name_end, body, stop)
                            append(publish)
                            at = stop
                            continue
                        body += 1
                    if body > stop:
                        raise MalformedPacket("PUBLISH: packet ends inside a field")
                    publish.topic = topic = topics[data[start:name_end]]
                    # A peer that repeats a topic is likely to do so again, and then often in the same length.
                    repeats = topic is previous
                    previous = topic
                    if repeats and first == 0x30 and runs and data.startswith(head := data[at:body], stop):
                        stride = stop - at
                        while stop + stride <= end and data.startswith(head, stop):
                            stop += stride
                        if stop - at > stride:
                            append(PublishRun(topic, data[at:stop], stride, len(head)))
                            at = stop
                            continue
                    if repeats and first & 6 and runs and data.startswith(head := data[at:name_end], stop):
                        stride = stop - at
                        until = stop
                        while until + stride <= end and data.startswith(head, until):
                            until += stride
                        packet_ids = _publish_ids(data, name_end, until, stride, v5)
                        if len(packet_ids) > 1 and not flags[1] and not flags[2]:
                            stop = at + stride * len(packet_ids)
                            append(PublishRun(topic, data[at:stop], stride, body - at, flags[0], packet_ids))
                            at = stop
                            continue
                    publish.payload = data[body:stop]
                    publish.properties = NO_PROPERTIES
                    append(publish)
                    if repeats and first & 6 and data.startswith(head := data[at:name_end], stop):
                        # the same header and topic: only id and payload are to be read
                        stride = stop - at
                        while stop + stride <= end and data.startswith(head, stop):
                            body = stop + len(head)
                            packet_id = data[body] << 8 | data[body + 1]
                            body += 2
                            if v5:
                                if data[body]:
                                    break
                                body += 1
                            if not packet_id:
                                raise MalformedPacket("PUBLISH: packet id is 0")  # 5.0 [MQTT-2.2.1-3]
                            stop += stride
                            publish = new(publish_class)
                            publish.topic = topic
                            publish.payload = data[body:stop]
                            publish.qos, publish.retain, publish.dup = flags
                            publish.packet_id = packet_id
                            publish.properties = NO_PROPERTIES
                            append(publish)
                    at = stop
                    continue
                kind = acks[first]
                if kind is not None and length == 2 and start - at == 2:
                    if runs and data.startswith(header := data[at:start], stop):
                        packet_ids = _ack_ids(header, data, at, end)
                        if len(packet_ids) > 1:
                            append(AckRun(kind, packet_ids))
                            at += 4 * len(packet_ids)
                            continue
                    packet_id = data[start] << 8 | data[start + 1]
                    if not packet_id:
                        raise MalformedPacket("packet id is 0")
                    ack = kind.__new__(kind)
                    ack.packet_id = packet_id
                    ack.reason = 0
                    ack.properties = NO_PROPERTIES
                    append(ack)
                    at = stop
                    continue
                if version is None:
                    version = self._read_greeting(first, data, start, stop, packets)
                    v5 = version == MQTT_5_0
                    publish_flags, acks = _PUBLISH_FLAGS, _ACKS
                    limit = self._max_packet_size
                    room = limit - 5
                else:
                    reader = READERS[self.side, version][first]
                    if reader is None:
                        raise refusal(first, self.side, version)
                    append(reader(data, start, stop))
                at = stop
            self._previous = previous
            if at < end:
                self._tail = data[at:]
        except ProtocolError as error:
            self.error = error
        except IndexError:  # a field of the last PUBLISH reaches past ``data``; the slow readers mind their bounds
            self.error = MalformedPacket("PUBLISH: packet ends inside a field")
        return packets

    def _only(self, data: bytes) -> Packet | None:
        """The one short packet that ``data`` is, if it is one of the few kinds that clients send all the time.

        A client that waits for each answer sends them so, and then what ``feed`` prepares costs more than it saves.
        """
        size = len(data)
        if size < 4 or data[1] != size - 2 or size > self._max_packet_size:
            return None
        first = data[0]
        if size == 4:
            kind = _ACKS[first]
            packet_id = data[2] << 8 | data[3]
            if kind is None or not packet_id:
                return None
            ack = kind.__new__(kind)
            ack.packet_id = packet_id
            ack.reason = 0
            ack.properties = NO_PROPERTIES
            return ack
        flags = _PUBLISH_FLAGS[first]
        name_end = body = 4 + (data[2] << 8) + data[3]
        if flags is None or body + 3 > size:
            return None
        packet_id = 0
        if first & 6:
            packet_id = data[body] << 8 | data[body + 1]
            body += 2
            if not packet_id:
                return None
        if self.version == MQTT_5_0:
            if data[body]:
                return None
            body += 1
        topic = self._topics.get(data[2:name_end])
        if topic is None:
            return None
        publish = self._publish.__new__(self._publish)
        publish.topic = self._previous = topic
        publish.payload = data[body:]
        publish.qos, publish.retain, publish.dup = flags
        publish.packet_id = packet_id
        publish.properties = NO_PROPERTIES
        return publish

    def _collect(self, data: bytes) -> bytes:
        """What was kept and ``data`` together, or nothing as long as that is no whole packet."""
        tail = self._tail
        if len(tail) + len(data) < self._needed:
            # a bytearray grows in amortised constant time, so a packet in many pieces costs linear time
            if not isinstance(tail, bytearray):
                self._tail = tail = bytearray(tail)
            tail += data
            return b""
        self._tail = b""
        self._needed = 0
        return b"".join((tail, data))

    def _read_properties(self, publish: Publish, data: bytes, start: int, name_end: int, body: int, stop: int) -> None:
        """The rest of a PUBLISH that has properties, from ``body`` where they begin."""
        properties, body = decode_properties(data, body, stop, PacketType.PUBLISH)
        if "subscription_identifier" in properties and self.side == "server":
            raise ProtocolError("PUBLISH: a client sent a subscription identifier")  # 5.0 [MQTT-3.3.4-6]
        aliased = name_end == start + 2 and "topic_alias" in properties
        publish.topic = "" if aliased else self._topics[data[start:name_end]]
        publish.payload = data[body:stop]
        publish.properties = properties

    def _require_legal(self, first: int) -> None:
        """Refuse a packet that may not arrive at all before its body is collected."""
        if self.version is None:
            if first >> 4 != PacketType.CONNECT:
                raise ProtocolError("the first packet is not CONNECT")  # 5.0 [MQTT-3.1.0-1], 3.1.1 [MQTT-3.1.0-1]
            if first & 0x0F:
                raise MalformedPacket(f"CONNECT: reserved flags are wrong (first byte 0x{first:02X})")
        elif _PUBLISH_FLAGS[first] is None and READERS[self.side, self.version][first] is None:
            raise refusal(first, self.side, self.version)

    def _read_greeting(self, first: int, data: bytes, start: int, stop: int, packets: list[Packet]) -> int:
        """The CONNECT that opens a connection; returns its version."""
        self._require_legal(first)
        # known before the rest is read, so that a bad CONNECT can still be answered in its own version
        self.version, _ = read_version(data, start, stop)
        packets.append(read_connect(data, start, stop))
        return self.version


def _publish_ids(data: bytes, at: int, end: int, stride: int, v5: bool) -> Sequence[int]:
    """The packet ids that stand every ``stride`` bytes from ``at`` on, up to an id that is none, or to properties."""
    high, low = data[at:end:stride], data[at + 1 : end : stride]
    pairs = bytearray(2 * len(low))
    pairs[0::2], pairs[1::2] = high[: len(low)], low
    packet_ids = unpack(f">{len(low)}H", pairs)
    if v5:
        lengths = data[at + 2 : end : stride]
        packet_ids = packet_ids[: len(lengths) - len(lengths.lstrip(b"\0"))]
    return packet_ids[: packet_ids.index(0)] if 0 in packet_ids else packet_ids


def _ack_ids(header: bytes, data: bytes, at: int, end: int) -> list[int]:
    """The packet ids of all acknowledgements from ``at`` on that begin with ``header``, up to an id that is none."""
    end -= (end - at) % 4
    firsts, lengths = data[at:end:4], data[at + 1 : end : 4]
    count = min(
        len(firsts) - len(firsts.lstrip(header[:1])),
        len(lengths) - len(lengths.lstrip(header[1:])),
    )
    packet_ids = [packet_id for (packet_id,) in _ACK.iter_unpack(memoryview(data)[at : at + 4 * count])]
    return packet_ids[: packet_ids.index(0)] if 0 in packet_ids else packet_ids
