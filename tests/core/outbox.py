"""An Outbox that keeps what it was given, and reads it back as a client would."""

from tidings.broker.codec import Decoder
from tidings.broker.codec.packets import Packet
from tidings.broker.core.ports import PauseReason


class ListOutbox:
    """``full`` is set by the test. What waits for a batch is let go by ``release``."""

    def __init__(self, version: int = 5) -> None:
        self.full = False
        self.held = 0
        self.sent: list[bytes] = []
        self.waiting: list[tuple[int, bytes]] = []
        self.durable = 0
        self.closed = False
        self._decoder = Decoder(side="client", version=version)

    def send(self, data: bytes) -> None:
        assert not self.closed
        assert data
        self.sent.append(data)

    @property
    def waits(self) -> bool:
        return bool(self.waiting)

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        self.held += publishes
        self.waiting.append((batch, data))
        self.release(self.durable)

    def go_on(self, reason: PauseReason) -> None:
        pass

    def shorten(self) -> None:
        pass

    def hold(self, batch: int) -> None:
        self.full = batch > self.durable

    def release(self, batch: int) -> None:
        self.durable = batch
        while self.waiting and self.waiting[0][0] <= batch:
            self.send(self.waiting.pop(0)[1])

    def close(self) -> None:
        self.closed = True

    def packets(self) -> list[Packet]:
        """What was sent since the last look."""
        data = b"".join(self.sent)
        self.sent.clear()
        packets = self._decoder.feed(data)
        assert self._decoder.error is None, self._decoder.error
        assert self._decoder.waiting == 0
        return packets
