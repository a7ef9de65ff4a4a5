"""Messages, wills and grants as bytes and text in a database row, and back.

A message row carries a checksum over all that it holds, so that what a disk got wrong is reported instead of delivered.
Nothing here knows SQL.
"""

import json
from binascii import crc32
from collections.abc import Iterable
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from ..codec.packets import PacketType, Will
from ..codec.properties import WILL, Properties, decode_properties, encode_properties
from ..core.message import Message
from ..core.topics import Grant, Share, split_share
from ..errors import ProtocolError, StoreError
from ..policy import parse_policy

_CHECKSUM: Final = Struct("<I")
_HEAD: Final = Struct("<BHH")  # flags, bytes of the topic, bytes of the sender's client id
_EXPIRY: Final = Struct("<d")
_QOS: Final = 0x03
_RETAIN: Final = 0x04
_EXPIRES: Final = 0x08


def encode_messages(messages: Iterable[Message]) -> list[bytes]:
    """One row body per message. What neighbours have in common (a run of one publisher) is encoded once."""
    bodies: list[bytes] = []
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
        bodies.append(b"".join((_CHECKSUM.pack(crc32(payload, start)), prefix, payload)))
    return bodies


def _prefix(message: Message) -> bytes:
    topic, sender = message.topic.encode(), message.sender.encode()
    flags = message.qos | (_RETAIN if message.retain else 0)
    expiry = b""
    if message.expires_at is not None:
        flags |= _EXPIRES
        expiry = _EXPIRY.pack(message.expires_at)
    properties = encode_properties(message.properties, PacketType.PUBLISH)
    return b"".join((_HEAD.pack(flags, len(topic), len(sender)), expiry, topic, sender, properties))


def decode_message(body: bytes, stored: int) -> Message:
    """The message of a row; ``stored`` is the row's id. Raises StoreError if the row is not what was written."""
    try:
        if crc32(body[4:]) != _CHECKSUM.unpack_from(body)[0]:
            raise StoreError(f"message {stored} is damaged: its checksum does not match")
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
        raise StoreError(f"message {stored} is damaged: {error}") from None
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
