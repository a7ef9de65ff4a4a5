"""The load generator's traffic: publishers, subscribers, and the flows that decide who may send.

A flow holds its publishers back while more than its backlog is undelivered; a publisher holds itself back while its
window is full of what is not acknowledged.
"""

import time
from collections import deque
from collections.abc import Sequence

from tidings.broker.codec.packets import Connack, SubscribeFilter

from .load_plan import Load, count
from .load_sockets import Connection, Generator
from .load_wire import ACK_BYTES, STAMP, Batch, Tally, acks_for, frame_bounds, varint


class Publisher(Connection):
    """Sends as its window, its flow's backlog, or a timetable allows."""

    __slots__ = ("acked", "batch", "flow", "qos", "queued", "refused", "sent", "window")

    def __init__(self, generator: Generator, flow: "Flow", index: int, topic: str, load: Load) -> None:
        super().__init__(generator, f"bench-pub-{index}")
        self.flow = flow
        self.qos = load.qos
        self.batch = Batch(
            index, topic, load.qos, load.version, load.size_bytes, load.window if load.qos else load.backlog
        )
        self.window = load.window if load.qos else self.batch.capacity
        self.sent = self.acked = self.refused = 0
        self.queued = False
        if load.qos == 1:
            self.runs = {0x40: (b"\x40\x02", ACK_BYTES, self._on_final_acks)}
        elif load.qos == 2:
            self.runs = {
                0x50: (b"\x50\x02", ACK_BYTES, self._on_pubrecs),
                0x70: (b"\x70\x02", ACK_BYTES, self._on_final_acks),
            }

    def publish(self, amount: int, time_ns: int, step_ns: int = 0) -> bool:
        """Send ``amount`` messages, at most what a batch holds; false if the socket did not take all of them."""
        frames = self.batch.fill(self.sent, amount, time_ns, step_ns)
        self.sent += amount
        self.flow.sent += amount
        if not self.qos:
            self.acked = self.sent
        return self.send(frames)

    def granted(self, connack: Connack) -> None:
        super().granted(connack)
        if self.qos:  # 5.0 [MQTT-4.9.0-2]
            self.window = min(self.window, connack.properties.get("receive_maximum", 65535))

    def writable(self) -> None:
        self.flow.wake(self)

    def frame(self, data: bytes, body_at: int) -> bytes:
        kind = data[0] >> 4
        if kind not in (4, 5, 7):
            return super().frame(data, body_at)
        failed = len(data) > body_at + 2 and data[body_at + 2] >= 0x80  # the long form of 5.0 has a reason
        self.refused += failed
        if kind == 5 and not failed:
            return b"\x62\x02" + data[body_at : body_at + 2]
        return self._on_final_acks(bytearray(data), 0, 1)

    def _on_final_acks(self, data: bytearray, start: int, found: int) -> bytes:
        self.acked += found
        if not self.queued:
            self.flow.wake(self)
        return b""

    def _on_pubrecs(self, data: bytearray, start: int, found: int) -> bytes | bytearray:
        return acks_for(0x62, data, start + 2, found, ACK_BYTES)


class Subscriber(Connection):
    """Receives, checks, acknowledges."""

    __slots__ = ("_ack_byte", "_id_at", "_stamp_at", "flow", "qos", "stride", "tally", "topic_filter")

    def __init__(
        self,
        generator: Generator,
        flow: "Flow",
        index: int,
        topic_filter: str,
        tally: Tally,
        load: Load,
        persistent: bool = False,
    ) -> None:
        super().__init__(generator, f"bench-sub-{index}", persistent)
        self.flow = flow
        self.tally = tally
        self.topic_filter = topic_filter
        self.qos = load.qos
        self._ack_byte = (0, 0x40, 0x50)[load.qos]
        like = Batch(0, topic_of(0), load.qos, load.version, load.size_bytes, 1).fill(0, 1, 0)
        body_at, self.stride = frame_bounds(like, 0, len(like))
        self._stamp_at = self.stride - load.size_bytes
        self._id_at = self._stamp_at - (3 if load.version >= 5 else 2)
        for retain in (0, 1):
            prefix = bytes((like[0] | retain,)) + bytes(like[1:body_at])
            self.runs[prefix[0]] = (prefix, self.stride, self._on_publishes)
        if load.qos == 2:
            self.runs[0x62] = (b"\x62\x02", ACK_BYTES, self._on_pubrels)

    def filters(self) -> Sequence[SubscribeFilter]:
        return (SubscribeFilter(self.topic_filter, self.qos),)

    def frame(self, data: bytes, body_at: int) -> bytes:
        kind = data[0] >> 4
        if kind == 3:  # of another length, or with other flags, than usual
            qos = data[0] >> 1 & 3
            id_at = body_at + 2 + int.from_bytes(data[body_at : body_at + 2], "big")
            stamp_at = id_at + (2 if qos else 0)
            if self.generator.version >= 5:
                size, stamp_at = varint(data, stamp_at)
                stamp_at += size
            self._took(bytearray(data), stamp_at, 1, len(data))
            return bytes((0x40 if qos == 1 else 0x50, 2)) + data[id_at : id_at + 2] if qos else b""
        if kind == 6:
            return b"\x70\x02" + data[body_at : body_at + 2]
        return super().frame(data, body_at)

    def _on_publishes(self, data: bytearray, start: int, found: int) -> bytes | bytearray:
        self._took(data, start + self._stamp_at, found, self.stride)
        return acks_for(self._ack_byte, data, start + self._id_at, found, self.stride) if self._ack_byte else b""

    def _on_pubrels(self, data: bytearray, start: int, found: int) -> bytes | bytearray:
        return acks_for(0x70, data, start + 2, found, ACK_BYTES)

    def _took(self, data: bytearray, stamp_at: int, found: int, stride: int) -> None:
        tally, flow, generator = self.tally, self.flow, self.generator
        delivered, settled = tally.delivered, tally.settled
        intended = tally.take_run(data, stamp_at, found, stride)
        flow.delivered += tally.delivered - delivered
        flow.settled += tally.settled - settled
        generator.awake.add(flow)
        now = time.monotonic_ns()
        count(generator.latency_us, (now - intended) // 1000)
        if generator.every_latency:
            for i in range(1, found):
                count(generator.latency_us, (now - STAMP.unpack_from(data, stamp_at + i * stride)[2]) // 1000)


class Flow:
    """Publishers and those who hear them: who may send now. A message makes ``fan`` deliveries."""

    def __init__(self, fan: int, backlog: int) -> None:
        self.fan = fan
        self.backlog = backlog
        self.publishers: list[Publisher] = []
        self.tallies: list[Tally] = []
        self.sent = self.settled = self.delivered = 0
        self._written_off = 0
        self._ready: deque[Publisher] = deque()

    @property
    def owed(self) -> int:
        """Deliveries not made yet."""
        return self.sent * self.fan - self.delivered

    def wake(self, publisher: Publisher) -> None:
        """It may have room in its window again."""
        if not publisher.queued:
            publisher.queued = True
            self._ready.append(publisher)
            publisher.generator.awake.add(self)

    def refill(self, now: int) -> None:
        """Let the publishers send what they may, each once, in turn.

        A publisher waits until a quarter of its window is free, or as much as a batch of large messages, so that a
        broker that acknowledges one at a time does not make the generator write one at a time.
        """
        room = self.backlog * len(self.publishers) - (self.sent - self.settled // self.fan) + self._written_off
        ready = self._ready
        for _ in range(len(ready)):
            publisher = ready[0]
            window, capacity = publisher.window, publisher.batch.capacity
            least = min(window // 4, capacity) or 1
            if room < least:
                return
            ready.popleft()
            publisher.queued = False
            amount = min(window - (publisher.sent - publisher.acked), room, capacity)
            if amount < least:
                continue
            room -= amount
            if publisher.publish(amount, now) and (not publisher.qos or amount == capacity):
                publisher.queued = True
                ready.append(publisher)

    def write_off(self) -> None:
        """Wait no longer for what is outstanding: the broker has dropped it."""
        self._written_off = self.sent - self.settled // self.fan
        for publisher in self.publishers:
            publisher.acked = publisher.sent
            self.wake(publisher)


def topic_of(publisher: int) -> str:
    """Where it publishes: all topics are of one length, so that all frames are."""
    return f"bench/{publisher:06}"


def build(generator: Generator, load: Load) -> tuple[list[Flow], list[Subscriber]]:
    """The flows of a load with their publishers, and all its subscribers, none of them connected."""
    subscribers: list[Subscriber] = []
    if load.shape == "pairs":
        flows = []
        for i in range(load.publishers):
            flow = Flow(1, load.backlog)
            flow.publishers = [Publisher(generator, flow, i, topic_of(i), load)]
            flow.tallies = [Tally(i, 1)]
            subscribers.append(Subscriber(generator, flow, i, topic_of(i), flow.tallies[0], load))
            flows.append(flow)
        return flows, subscribers
    shared = load.shape == "shared"
    flow = Flow(1 if shared else load.subscribers, load.backlog)
    flow.publishers = [Publisher(generator, flow, i, topic_of(i), load) for i in range(load.publishers)]
    for i in range(load.subscribers):
        if not (shared and flow.tallies):
            flow.tallies.append(Tally(0, load.publishers, ordered=not shared))
        topic_filter = "$share/bench/bench/+" if shared else "bench/+"
        subscribers.append(Subscriber(generator, flow, i, topic_filter, flow.tallies[-1], load))
    return [flow], subscribers
