"""The field types of the MQTT wire: integers, lengths, strings, binary data, and names of topics.

Readers take ``(data, position, end)`` and return ``(value, position after it)``. They never look at or past ``end`` and
raise nothing but ``ProtocolError``. Writers return bytes and raise ``ValueError`` for what the wire cannot hold.
"""

from typing import Final

from ..errors import MalformedPacket, ProtocolError

MAX_VARINT: Final = 268_435_455
"""Largest variable byte integer: four groups of seven bits (5.0 section 1.5.5)."""
MAX_STRING_BYTES: Final = 65_535
MAX_PACKET_BYTES: Final = MAX_VARINT + 5
"""A packet with the largest remaining length, its type byte and four length bytes included."""
TOPIC_NAME_INVALID: Final = 0x90


BYTE: Final[list[bytes]] = [bytes((value,)) for value in range(256)]
PACKET_ID: Final[list[bytes]] = [value.to_bytes(2, "big") for value in range(65_536)]
"""The two bytes of every packet id: 3 MB and 5 ms at import, for 30 ns less at each packet that is sent."""


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A variable byte integer of one to four bytes. Padded forms are taken: only encoders owe the shortest."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= end:
            raise MalformedPacket("packet ends inside a variable byte integer")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedPacket("variable byte integer is longer than four bytes")


def length_end(data: bytes, at: int, end: int) -> int:
    """Where the remaining length at ``at`` ends, at four bytes if it is too long; 0 while it has not arrived whole."""
    for stop in range(at + 1, min(at + 4, end) + 1):
        if data[stop - 1] < 0x80:
            return stop
    return at + 4 if at + 4 <= end else 0


def read_byte(data: bytes, at: int, end: int) -> tuple[int, int]:
    if at >= end:
        raise MalformedPacket("packet ends where a byte is expected")
    return data[at], at + 1


def read_u16(data: bytes, at: int, end: int) -> tuple[int, int]:
    stop = at + 2
    if stop > end:
        raise MalformedPacket("packet ends inside a two-byte integer")
    return data[at] << 8 | data[at + 1], stop


def read_u32(data: bytes, at: int, end: int) -> tuple[int, int]:
    stop = at + 4
    if stop > end:
        raise MalformedPacket("packet ends inside a four-byte integer")
    return int.from_bytes(data[at:stop], "big"), stop


def read_binary(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    start = at + 2
    if start <= end:
        stop = start + (data[at] << 8) + data[at + 1]
        if stop <= end:
            return data[start:stop], stop
    raise MalformedPacket("packet ends inside binary data")


def read_string(data: bytes, at: int, end: int) -> tuple[str, int]:
    """Strict UTF-8 without surrogates or U+0000. A byte order mark stays, `5.0 [MQTT-1.5.4-3]`."""
    start = at + 2
    stop = start + (data[at] << 8) + data[at + 1] if start <= end else end + 1
    if stop > end:
        raise MalformedPacket("packet ends inside a string")
    try:
        text = data[start:stop].decode()  # refuses surrogates: 5.0 [MQTT-1.5.4-1], 3.1.1 [MQTT-1.5.3-1]
    except UnicodeDecodeError as error:
        raise MalformedPacket(f"a string is not UTF-8: {error.reason} at byte {error.start}") from None
    if "\0" in text:
        raise MalformedPacket("a string contains U+0000")  # 5.0 [MQTT-1.5.4-2], 3.1.1 [MQTT-1.5.3-2]
    return text, stop


def read_pair(data: bytes, at: int, end: int) -> tuple[tuple[str, str], int]:
    """Name and value of a user property; both obey the rules for strings, `5.0 [MQTT-1.5.7-1]`."""
    name, at = read_string(data, at, end)
    value, at = read_string(data, at, end)
    return (name, value), at


def read_topic_name(data: bytes, at: int, end: int) -> tuple[str, int]:
    topic, at = read_string(data, at, end)
    if not topic:
        raise ProtocolError("topic name is empty")  # 5.0 [MQTT-4.7.3-1], 3.1.1 [MQTT-4.7.3-1]
    if "+" in topic or "#" in topic:
        # 5.0 [MQTT-3.3.2-2], 5.0 [MQTT-3.3.2-14], 5.0 [MQTT-4.7.0-1], 3.1.1 [MQTT-3.3.2-2], 3.1.1 [MQTT-4.7.1-1]
        raise ProtocolError("topic name contains a wildcard", TOPIC_NAME_INVALID)
    return topic, at


def read_packet_id(data: bytes, at: int, end: int) -> tuple[int, int]:
    packet_id, at = read_u16(data, at, end)
    if not packet_id:
        raise MalformedPacket("packet id is 0")  # 5.0 [MQTT-2.2.1-3], 5.0 [MQTT-2.2.1-4], 3.1.1 [MQTT-2.3.1-1]
    return packet_id, at


class TopicTable(dict[bytes, str]):
    """Topic names as the wire has them, length prefix included, to the one str that stands for each.

    ``table[raw]`` checks and remembers a name at first sight, so a known topic costs one look-up and is the same object
    each time. Memory is bounded: names over ``MAX_BYTES`` are not kept, and a full table starts afresh. Many decoders
    may share one table.
    """

    MAX_ENTRIES: Final = 8192
    MAX_BYTES: Final = 160

    def __missing__(self, raw: bytes) -> str:
        topic, _ = read_topic_name(raw, 0, len(raw))
        if len(raw) <= self.MAX_BYTES:
            if len(self) >= self.MAX_ENTRIES:
                self.clear()
            self[raw] = topic
        return topic


_SMALL_VARINTS: Final[list[bytes]] = BYTE[:128] + [
    bytes((value & 0x7F | 0x80, value >> 7)) for value in range(128, 16_384)
]


def write_varint(value: int) -> bytes:
    """The shortest form, `5.0 [MQTT-1.5.5-1]`."""
    if 0 <= value < 16_384:
        return _SMALL_VARINTS[value]
    if not 0 <= value <= MAX_VARINT:
        raise ValueError(f"{value} does not fit a variable byte integer (0 to {MAX_VARINT})")
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80)) + _SMALL_VARINTS[value >> 14]


def write_byte(value: int) -> bytes:
    if not 0 <= value <= 0xFF:
        raise ValueError(f"{value} is not in 0 to 255")
    return BYTE[value]


def write_u16(value: int) -> bytes:
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{value} is not in 0 to 65535")
    return PACKET_ID[value]


def write_u32(value: int) -> bytes:
    if not 0 <= value <= 0xFFFF_FFFF:
        raise ValueError(f"{value} is not in 0 to 4294967295")
    return value.to_bytes(4, "big")


def write_binary(value: bytes) -> bytes:
    if len(value) > MAX_STRING_BYTES:
        raise ValueError(f"a field of {len(value)} bytes is over the limit of {MAX_STRING_BYTES}")
    return PACKET_ID[len(value)] + value


def write_string(value: str) -> bytes:
    """Length and UTF-8. Surrogates and U+0000 are refused."""
    if "\0" in value:
        raise ValueError("a string contains U+0000")
    try:
        return write_binary(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"a string contains a surrogate at character {error.start}") from None


def write_topic_name(value: str) -> bytes:
    if not value:
        raise ValueError("topic name is empty")
    if "+" in value or "#" in value:
        raise ValueError(f"topic name {value[:64]!r} contains a wildcard")
    return write_string(value)


def write_pair(value: tuple[str, str]) -> bytes:
    key, text = value
    return write_string(key) + write_string(text)


def write_packet_id(value: int) -> bytes:
    if not 0 < value <= 65_535:
        raise ValueError(f"packet id {value} is not in 1 to 65535")
    return PACKET_ID[value]
