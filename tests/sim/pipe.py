"""One connection of the simulation, without sockets: what is on its way, and what the engine holds back."""

from collections import deque
from typing import TYPE_CHECKING

from tidings.broker.codec import Decoder, TopicTable
from tidings.broker.core.connection import Connection
from tidings.broker.core.message import Message
from tidings.broker.core.ports import PauseReason
from tidings.devices.client import Client

if TYPE_CHECKING:
    from .world import World

OUTBOX_BYTES = 600


class Pipe:
    """One connection: the engine's outbox, and what is on the way in both directions."""

    def __init__(self, world: "World", client: Client) -> None:
        self.world = world
        self.client = client
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes] = deque()
        self.server_closed = False
        self.client_closed = False
        self.full = False
        self.held = 0
        self._waiting: deque[tuple[int, bytes, int]] = deque()
        self._held_until = 0
        self._decoder = Decoder(topics=TopicTable(), publish=Message, runs=True)
        self.will = 0  # the number of the will that its CONNECT has
        self.connection: Connection = world.engine.connect(self, client.options.client_id, world.now)

    # for the engine

    def send(self, data: bytes) -> None:
        assert not self.server_closed, "sent after close"
        self.to_client.append(data)
        self._update()

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        if self._waiting or batch > self.world.engine.durable_batch:
            self._waiting.append((batch, data, publishes))
            self.held += publishes
        else:
            self.send(data)

    def go_on(self, reason: PauseReason) -> None:
        pass

    def shorten(self) -> None:
        pass

    def hold(self, batch: int) -> None:
        self._held_until = max(self._held_until, batch)
        self._update()

    def release(self, batch: int) -> None:
        while self._waiting and self._waiting[0][0] <= batch:
            _, data, publishes = self._waiting.popleft()
            self.held -= publishes
            self.send(data)
        self._update()

    def close(self) -> None:
        self._waiting.clear()
        self.server_closed = True

    def _update(self) -> None:
        size = sum(map(len, self.to_client))
        was_full = self.full
        self.full = self._held_until > self.world.engine.durable_batch or size > OUTBOX_BYTES
        if was_full and not self.full and not self.server_closed:
            self.world.engine.writable(self.connection, self.world.now)

    # for the world

    def carry_up(self, writes: int) -> None:
        """The server reads what the client wrote first, as much as ``writes`` of its writes at once."""
        packets = self._decoder.feed(_taken(self.to_server, writes))
        if self.server_closed:
            return
        if packets:
            greeted = self.connection.session is not None
            self.world.engine.handle(self.connection, packets, self.world.now)
            if self.will and not greeted and self.connection.session is not None:
                self.world.mortal.greeted()
        assert self._decoder.error is None, self._decoder.error

    def carry_down(self, writes: int) -> None:
        """The client reads what the server wrote first; after the last of it, that the server closed."""
        if self.to_client:
            self.client.feed(_taken(self.to_client, writes))
            self._update()
        elif self.server_closed and not self.client_closed:
            self.lost()

    def lost(self) -> None:
        """Both ends notice that the connection is gone."""
        if not self.server_closed:
            if self.will and self.connection.session is not None:
                self.world.mortal.lost(self)
            self.world.engine.disconnected(self.connection, self.world.now)
        if not self.client_closed:
            self.client_closed = True
            self.client.link_down("lost")
        self.to_client.clear()
        self.to_server.clear()


def _taken(queue: deque[bytes], count: int) -> bytes:
    return b"".join([queue.popleft() for _ in range(min(count, len(queue)))])


class ClientEnd:
    """The client's wire."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def write(self, data: bytes) -> None:
        self._pipe.to_server.append(data)

    def close(self) -> None:
        self._pipe.client_closed = True

    def abort(self) -> None:
        self._pipe.client_closed = True

    def pause_reading(self) -> None:
        """Nothing here reads by itself."""

    def resume_reading(self) -> None:
        """Nothing here reads by itself."""
