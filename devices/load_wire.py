"""The wire side of the load generator: many equal PUBLISH frames made, recognised and checked at a time.

A general codec spends a microsecond or two on a message. This one spends some ten nanoseconds, because all PUBLISH
frames of a run have the same length: a field of every frame in a batch is one strided slice of a bytearray, so that
writing all sequence numbers, or comparing them all, is one operation. It is no codec: templates come from
``tidings.broker.codec``, and any frame of another form than the expected one is taken apart one by one, slower and
with the same result.

The payload starts with a stamp of 16 bytes: publisher (u32), sequence number (u32), intended send time in ns (u64), all
big-endian; the rest is zeros.
"""

import struct
from functools import cache
from typing import Final

from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Publish

STAMP: Final = struct.Struct(">IIQ")
ACK_BYTES: Final = 4

# Columns of the low 16 bits of consecutive sequence numbers and of packet ids, long enough from any start.
_MAX_BATCH: Final = 1024
_MAX_STRETCH: Final = 4096
_SEQ_HIGH: Final = bytes((i >> 8) & 0xFF for i in range(65536 + _MAX_BATCH))
_SEQ_LOW: Final = bytes(i & 0xFF for i in range(65536 + _MAX_STRETCH))
_ID_HIGH: Final = bytes((i % 65535 + 1) >> 8 for i in range(65535 + _MAX_BATCH))
_ID_LOW: Final = bytes((i % 65535 + 1) & 0xFF for i in range(65535 + _MAX_BATCH))
_FEW: Final = 6  # below this many frames, packing each is faster than filling columns (measured: equal at 6)
_STRETCH: Final = 16  # fewer frames than this are no stretch: one by one is faster
_SOME: Final = 64  # frames counted one by one before another look for a stretch
_BATCH_BYTES: Final = 128 * 1024


class Batch:
    """Room for ``capacity`` PUBLISH frames of one publisher, refilled in place."""

    __slots__ = ("_frames", "_id_at", "_publisher", "_stamp_at", "_view", "capacity", "stride")

    def __init__(self, publisher: int, topic: str, qos: int, version: int, size_bytes: int, capacity: int) -> None:
        payload = STAMP.pack(publisher, 0, 0) + bytes(size_bytes - STAMP.size)
        frame = bytes(encode(Publish(topic, payload, qos=qos, packet_id=1 if qos else 0), version))
        self.stride = len(frame)
        self.capacity = max(1, min(capacity, _MAX_BATCH, _BATCH_BYTES // self.stride))
        self._publisher = publisher
        self._stamp_at = self.stride - size_bytes
        # The packet id stands before the payload; 5.0 puts the property length, one zero byte, in between.
        self._id_at = self._stamp_at - (3 if version >= 5 else 2) if qos else 0
        self._frames = bytearray(frame * self.capacity)
        self._view = memoryview(self._frames)

    def fill(self, first: int, count: int, time_ns: int, step_ns: int = 0) -> memoryview:
        """``count`` frames, at most ``capacity``, from sequence number ``first``, each intended ``step_ns`` after the
        last.

        The result is a view of this batch: send or copy it before the next call.
        """
        frames, stride, at, id_at = self._frames, self.stride, self._stamp_at, self._id_at
        if count < _FEW or step_ns or (first & 0xFFFF) + count > 0x10000:
            for i in range(count):
                start = i * stride
                STAMP.pack_into(frames, start + at, self._publisher, first + i, time_ns + i * step_ns)
                if id_at:
                    packet_id = (first + i) % 65535 + 1
                    frames[start + id_at] = packet_id >> 8
                    frames[start + id_at + 1] = packet_id & 0xFF
            return self._view[: count * stride]
        end = count * stride
        high, low = (first >> 24) & 0xFF, (first >> 16) & 0xFF
        frames[at + 4 : end : stride] = bytes((high,)) * count
        frames[at + 5 : end : stride] = bytes((low,)) * count
        start = first & 0xFFFF
        frames[at + 6 : end : stride] = _SEQ_HIGH[start : start + count]
        frames[at + 7 : end : stride] = _SEQ_LOW[start : start + count]
        for i, byte in enumerate(time_ns.to_bytes(8, "big"), at + 8):
            frames[i:end:stride] = bytes((byte,)) * count
        if id_at:
            start = first % 65535
            frames[id_at:end:stride] = _ID_HIGH[start : start + count]
            frames[id_at + 1 : end : stride] = _ID_LOW[start : start + count]
        return self._view[:end]


def run_length(data: bytearray, start: int, end: int, prefix: bytes, stride: int) -> int:
    """How many whole frames of ``stride`` bytes that begin with ``prefix`` follow one another from ``start``.

    ``prefix`` is the type byte and the remaining length, so each frame found proves where the next one begins.
    """
    available = (end - start) // stride
    if available == 0 or not data.startswith(prefix, start):
        return 0
    return equal_bytes(data, start, start + len(prefix), available, stride)


def equal_bytes(data: bytearray, start: int, stop: int, count: int, stride: int) -> int:
    """How many of ``count`` frames, from the first on, have the same bytes as the first where it has start to stop."""
    found, limit = 1, 32  # a short run in much data must not cost a look at all of it
    while found < count:
        found = min(limit, count)
        for i in range(start, stop):
            column = data[i : i + (found - 1) * stride + 1 : stride]
            found = min(found, len(column) - len(column.lstrip(data[i : i + 1])))
        if found < limit:
            break
        limit *= 4
    return found


def frame_bounds(data: bytearray | memoryview, start: int, end: int) -> tuple[int, int]:
    """Where the frame's body begins, counted from its first byte, and the frame's size; size 0 if not known yet."""
    value = shift = 0
    for i in range(start + 1, min(start + 5, end)):
        value |= (data[i] & 0x7F) << shift
        if data[i] < 0x80:
            return i + 1 - start, i + 1 - start + value
        shift += 7
    return 0, 0


def varint(data: bytes, start: int) -> tuple[int, int]:
    """A variable byte integer and where it ends."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def acks_for(first_byte: int, data: bytearray, start: int, count: int, stride: int) -> bytes | bytearray:
    """``count`` four-byte packets of type ``first_byte``; their ids are at ``start`` and every ``stride`` bytes on."""
    if count == 1:
        return bytes((first_byte, 2, data[start], data[start + 1]))
    acks = bytearray(bytes((first_byte, 2, 0, 0)) * count)
    stop = start + 1 + (count - 1) * stride
    acks[2::ACK_BYTES] = data[start:stop:stride]
    acks[3::ACK_BYTES] = data[start + 1 : stop + 1 : stride]
    return acks


@cache
def _stamps(stride: int) -> struct.Struct:
    return struct.Struct(f">II{stride - 8}x")


class Tally:
    """What one receiver got from the publishers ``first`` to ``first + publishers - 1``, each of whom counts from 0.

    ``delivered`` counts each message once; ``reordered`` those that came after a later one; ``strange`` what none of
    these publishers sent. ``settled`` also counts what has been overtaken, so that a sender who waits for delivery does
    not wait for lost messages for ever. With ``ordered`` false, receivers of a shared subscription keep one tally.
    """

    __slots__ = (
        "_missing",
        "delivered",
        "duplicated",
        "expected",
        "first",
        "ordered",
        "reordered",
        "settled",
        "strange",
    )

    def __init__(self, first: int, publishers: int, ordered: bool = True) -> None:
        self.first = first
        self.expected = [0] * publishers
        self.ordered = ordered
        self.delivered = self.duplicated = self.reordered = self.settled = self.strange = 0
        self._missing: list[set[int]] = [set() for _ in range(publishers)]

    def take(self, publisher: int, seq: int) -> None:
        """Count one message."""
        index = publisher - self.first
        if not 0 <= index < len(self.expected):
            self.strange += 1
            return
        expected = self.expected[index]
        if seq == expected:
            self.expected[index] = seq + 1
            self.delivered += 1
            self.settled += 1
        elif seq > expected:
            self._missing[index].update(range(expected, seq))
            self.expected[index] = seq + 1
            self.delivered += 1
            self.settled += seq + 1 - expected
        elif seq in self._missing[index]:
            self._missing[index].remove(seq)
            self.delivered += 1
            if self.ordered:
                self.reordered += 1
        else:
            self.duplicated += 1

    def take_run(self, data: bytearray, start: int, count: int, stride: int) -> int:
        """Count ``count`` messages, checking each; returns the first one's intended time.

        The first stamp is at ``start``, the others every ``stride`` bytes; ``data`` must reach ``stride`` bytes beyond
        the last one. A stretch of one publisher in order, the usual case, is proved by its first and last sequence
        number and the column of the low bytes between.
        """
        publisher, seq, time_ns = STAMP.unpack_from(data, start)
        if count == 1:
            self.take(publisher, seq)
            return int(time_ns)
        while count:
            taken = self._take_stretch(data, start, count, stride) or self._take_some(data, start, count, stride)
            start += taken * stride
            count -= taken
        return int(time_ns)

    def _take_stretch(self, data: bytearray, start: int, count: int, stride: int) -> int:
        """Count the messages of one publisher in order that come first, if they are many; returns how many."""
        publisher, seq, _ = STAMP.unpack_from(data, start)
        index = publisher - self.first
        if not 0 <= index < len(self.expected) or seq != self.expected[index]:
            return 0
        found = equal_bytes(data, start + 2, start + 4, min(count, _MAX_STRETCH), stride)
        if found < _STRETCH:
            return 0
        stop = start + (found - 1) * stride
        low = seq & 0xFFFF
        if (
            STAMP.unpack_from(data, stop)[:2] != (publisher, seq + found - 1)
            or data[start + 7 : stop + 8 : stride] != _SEQ_LOW[low : low + found]
        ):
            return 0
        self.expected[index] = seq + found
        self.delivered += found
        self.settled += found
        return found

    def _take_some(self, data: bytearray, start: int, count: int, stride: int) -> int:
        """Count the first few messages one by one; returns how many."""
        count = min(count, _SOME)
        fresh, first, expected, take = 0, self.first, self.expected, self.take
        with memoryview(data) as view, view[start : start + count * stride] as stamps:
            for publisher, seq in _stamps(stride).iter_unpack(stamps):
                index = publisher - first
                if 0 <= index < len(expected) and seq == expected[index]:
                    expected[index] = seq + 1
                    fresh += 1
                else:
                    take(publisher, seq)
        self.delivered += fresh
        self.settled += fresh
        return count

    def lost(self, sent: list[int]) -> int:
        """Messages that never came, where publisher ``first + i`` has sent ``sent[i]``."""
        never = sum(max(0, total - seen) for total, seen in zip(sent, self.expected, strict=True))
        return never + sum(map(len, self._missing))
