"""The stamp that every message of a fleet carries: publisher, sequence number, intended time, checksum.

It is the last member of the payload, which is always a JSON object::

    {"temperature":21.4,"unit":"°C","sent":{"by":"thermostat-0007","seq":12,"at_us":1767225605250000,"crc":"5d1f00a3"}}

Why there, and there only. MQTT 5.0 user properties would be the obvious place, but 3.1.1 has none and bridges drop
them; a binary trailer works everywhere but makes JSON unreadable for every other subscriber. A member of the JSON
object works in all versions, for generated and replayed values alike, and any program that reads JSON is free to
ignore it.

* ``by``: the publisher, made of letters, digits and ``-_.~``. * ``seq``: 1, 2, 3, … for each (publisher, topic); 0 on a
  will, which the broker sends. * ``at_us``: the *intended* time, in microseconds since 1970 of the scenario's own time,
  so that payloads are equal in every run with the same seed. * ``crc``: CRC-32 of all bytes before the stamp.
"""

import re
import zlib
from typing import Final, NamedTuple

_STAMP: Final = re.compile(
    rb'"sent":\{"by":"([A-Za-z0-9._~-]{1,200})","seq":(\d{1,18}),"at_us":(\d{1,18}),"crc":"([0-9a-f]{8})"\}\}'
)
_START: Final = b'"sent":{"by":"'
_NAME: Final = re.compile(r"[A-Za-z0-9._~-]{1,200}")


class Stamp(NamedTuple):
    """``intact`` is False if the bytes before the stamp are not those that were stamped."""

    publisher: str
    sequence: int
    at_us: int
    intact: bool


def is_publisher_name(name: str) -> bool:
    """Whether ``name`` can stand in a stamp."""
    return _NAME.fullmatch(name) is not None


def stamped(body: bytes, publisher: str, sequence: int, at_us: int) -> bytes:
    """``body``, a JSON object, with the stamp as its last member."""
    head = body[:-1] if body == b"{}" else body[:-1] + b","
    crc = zlib.crc32(head)
    return b'%b"sent":{"by":"%b","seq":%d,"at_us":%d,"crc":"%08x"}}' % (head, publisher.encode(), sequence, at_us, crc)


def read_stamp(payload: bytes) -> Stamp | None:
    """The stamp of ``payload``; None if it has none."""
    start = payload.rfind(_START)
    if start < 0:
        return None
    match = _STAMP.fullmatch(payload, start)
    if match is None:
        return None
    publisher, sequence, at_us, crc = match.groups()
    return Stamp(publisher.decode(), int(sequence), int(at_us), zlib.crc32(payload[:start]) == int(crc, 16))
