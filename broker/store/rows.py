"""Messages, wills and grants as bytes and text in a database row, and back.

Each message carries a checksum over all that it holds, so that what a disk got wrong is reported instead of delivered.
A pack of one message is its record; a pack of more is the sizes of the records, 4 bytes each, and then the records.
Nothing here knows SQL.
"""

import json
from binascii import crc32
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from struct import Struct, pack, unpack_from
from struct import error as StructError
from typing import Any, Final

from ..codec.packets import PacketType, Will
from ..codec.properties import WILL, Properties, decode_properties, encode_properties
from ..core.message import Message
from ..core.topics import Grant, Share, split_share
from ..errors import ProtocolError, StoreError
from ..policy import parse_policy
from .schema import PACK_BITS

_CHECKSUM: Final = Struct("<I")
_HEAD: Final = Struct("<BHH")  # flags, bytes of the topic, bytes of the sender's client id
_EXPIRY: Final = Struct("<d")
_QOS: Final = 0x03
_RETAIN: Final = 0x04
_EXPIRES: Final = 0x08


def encode_messages(messages: Sequence[Message]) -> bytes:
    """The body of a pack. What neighbours have in common (a run of one publisher) is encoded once."""
    records: list[bytes] = []
    last: Message | None = None
    prefix, start = b"", 0
    for message in messages:
        if (
            last is None
            or message.topic is not last.topic
            or message.sender is not last.sender
            or message.properties is not last.properties
            or message.qos != last.qos
            or message.retain != last.retain
            or message.expires_at != last.expires_at
        ):
            prefix = _prefix(message)
            start = crc32(prefix)
            last = message
        payload = message.payload
        records.append(b"".join((_CHECKSUM.pack(crc32(payload, start)), prefix, payload)))
    if len(records) == 1:
        return records[0]
    return b"".join((pack(f"<{len(records)}I", *map(len, records)), *records))


def _prefix(message: Message) -> bytes:
    if not message.properties and message.expires_at is None:
        return _plain_prefix(message.topic, message.sender, message.qos | (_RETAIN if message.retain else 0))
    topic, sender = message.topic.encode(), message.sender.encode()
    flags = message.qos | (_RETAIN if message.retain else 0)
    expiry = b""
    if message.expires_at is not None:
        flags |= _EXPIRES
        expiry = _EXPIRY.pack(message.expires_at)
    properties = encode_properties(message.properties, PacketType.PUBLISH)
    return b"".join((_HEAD.pack(flags, len(topic), len(sender)), expiry, topic, sender, properties))


@lru_cache(maxsize=4_096)  # publishers repeat themselves
def _plain_prefix(topic: str, sender: str, flags: int) -> bytes:
    encoded, who = topic.encode(), sender.encode()
    return b"".join((_HEAD.pack(flags, len(encoded), len(who)), encoded, who, b"\0"))


def decode_messages(body: bytes, count: int, row: int, wanted: range | None = None) -> list[Message]:
    """Messages of a pack of ``count`` that is row ``row``; ``wanted``: their indices, None = all. Raises StoreError."""
    first = row << PACK_BITS
    if count == 1:
        return [_decode(body, first)]
    try:
        sizes = unpack_from(f"<{count}I", body)
    except StructError as error:
        raise StoreError(f"{named(first)} is damaged: {error}") from None
    ends = list(accumulate(sizes, initial=4 * count))
    if ends[-1] != len(body):
        raise StoreError(f"{named(first)} is damaged: it has {len(body)} bytes instead of {ends[-1]}")
    return [_decode(body[ends[index] : ends[index + 1]], first + index) for index in wanted or range(count)]


def named(stored: int) -> str:
    """A message by its number, for people: the row, and the index in it if it is not the first."""
    row, index = stored >> PACK_BITS, stored & ((1 << PACK_BITS) - 1)
    return f"message {row}.{index}" if index else f"message {row}"


def _decode(body: bytes, stored: int) -> Message:
    """The message with the number ``stored``. Raises StoreError if the record is not what was written."""
    try:
        if crc32(body[4:]) != _CHECKSUM.unpack_from(body)[0]:
            raise StoreError(f"{named(stored)} is damaged: its checksum does not match")
        flags, topic_size, sender_size = _HEAD.unpack_from(body, 4)
        at = 4 + _HEAD.size
        expires_at: float | None = None
        if flags & _EXPIRES:
            expires_at = _EXPIRY.unpack_from(body, at)[0]
            at += _EXPIRY.size
        topic = body[at : at + topic_size].decode()
        at += topic_size
        sender = body[at : at + sender_size].decode()
        at += sender_size
        properties, at = decode_properties(body, at, len(body), PacketType.PUBLISH)
    except (ProtocolError, ValueError, IndexError, StructError) as error:
        raise StoreError(f"{named(stored)} is damaged: {error}") from None
    return Message(
        topic,
        body[at:],
        flags & _QOS,
        bool(flags & _RETAIN),
        properties=properties,
        sender=sender,
        expires_at=expires_at,
        stored=stored,
    )


def encode_will(will: Will) -> bytes:
    """A will as bytes: QoS and retain, the topic, the properties, the payload."""
    topic = will.topic.encode()
    return b"".join(
        (
            _HEAD.pack(will.qos | (_RETAIN if will.retain else 0), len(topic), 0),
            topic,
            encode_properties(will.properties, WILL),
            will.payload,
        )
    )


def decode_will(data: bytes) -> Will:
    """The inverse of ``encode_will``."""
    flags, topic_size, _ = _HEAD.unpack_from(data)
    at = _HEAD.size + topic_size
    topic = data[_HEAD.size : at].decode()
    properties: Properties
    properties, at = decode_properties(data, at, len(data), WILL)
    return Will(topic, data[at:], flags & _QOS, bool(flags & _RETAIN), properties)


def encode_grant(grant: Grant) -> str:
    """A grant as JSON: ``[qos, no local, retain as published, [identifiers], "$share/NAME/FILTER" or "", policy or "",
    what holds for own messages or null]``."""
    return json.dumps(_plain(grant))


def _plain(grant: Grant) -> list[object]:
    share = grant.share
    return [
        grant.qos,
        int(grant.no_local),
        int(grant.retain_as_published),
        list(grant.identifiers),
        f"$share/{share.name}/{share.filter}" if share is not None else "",
        str(grant.policy) if grant.policy is not None else "",
        _plain(grant.own) if grant.own is not None else None,
    ]


def decode_grant(text: str) -> Grant:
    """The inverse of ``encode_grant``. The share has no members: the engine puts its own in its place."""
    return _grant(json.loads(text))


def _grant(values: list[Any]) -> Grant:
    qos, no_local, retain_as_published, identifiers, shared, policy, own = values
    return Grant(
        qos,
        bool(no_local),
        bool(retain_as_published),
        tuple(identifiers),
        Share(*split_share(shared)) if shared else None,
        own=_grant(own) if own is not None else None,
        policy=parse_policy(policy) if policy else None,
    )
