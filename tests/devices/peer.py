"""The other end of a client's wire: a broker of paper that a test plays packet by packet, without a socket."""

from collections.abc import Sequence
from typing import Any

from tidings.broker.codec import Connack, Connect, Decoder, Packet, Publish, encode
from tidings.devices.client import Client


class PaperWire:
    """Keeps what the client wrote; each write is one entry of ``writes``."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = ""
        self.reading = True
        self._decoder = Decoder(side="server")

    def write(self, data: bytes) -> None:
        assert not self.closed, "wrote to a closed wire"
        self.writes.append(data)

    def close(self) -> None:
        self.closed = "closed"

    def abort(self) -> None:
        self.closed = "aborted"

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def take(self) -> list[Packet]:
        """What was written since the last time, as packets."""
        packets = [packet for data in self.writes for packet in self._decoder.feed(data)]
        assert self._decoder.error is None, self._decoder.error
        self.writes.clear()
        return packets


class Peer:
    """A dialer that notes who dials, and the broker's side of the latest connection."""

    def __init__(self) -> None:
        self.dials = 0
        self.client: Client | None = None
        self.wire = PaperWire()

    def __call__(self, client: Client) -> None:
        self.dials += 1
        self.client = client

    def accept(self, *, session_present: bool = False, reason: int = 0, **properties: Any) -> Connect:
        """Let the dialled connection stand and answer its CONNECT, which is returned."""
        assert self.client is not None
        self.wire = PaperWire()
        self.client.link_up(self.wire)
        (connect,) = self.wire.take()
        assert isinstance(connect, Connect)
        self.say(Connack(session_present, reason, properties))  # type: ignore[arg-type]
        return connect

    def say(self, *packets: Packet) -> None:
        """Send packets to the client, all in one read."""
        assert self.client is not None
        version = self.client.options.version
        self.client.feed(b"".join(encode(packet, version) for packet in packets))

    def take(self) -> list[Packet]:
        return self.wire.take()

    def drop(self) -> None:
        """The connection breaks."""
        assert self.client is not None
        self.client.link_down("reset")


class Notes:
    """An owner that writes down what it is told."""

    def __init__(self) -> None:
        self.online: list[bool] = []
        self.offline: list[str] = []
        self.gone: list[str] = []
        self.granted: list[list[int]] = []
        self.messages: list[Publish] = []
        self.written: list[tuple[Any, bool]] = []
        self.acknowledged: list[tuple[Any, int]] = []
        self.at_once = True

    def on_online(self, session_present: bool) -> None:
        self.online.append(session_present)

    def on_offline(self, reason: str) -> None:
        self.offline.append(reason)

    def on_gone(self, reason: str) -> None:
        self.gone.append(reason)

    def on_subscribed(self, granted: Sequence[int]) -> None:
        self.granted.append(list(granted))

    def on_message(self, message: Publish) -> bool:
        self.messages.append(message)
        return self.at_once

    def on_written(self, token: Any, again: bool) -> None:
        self.written.append((token, again))

    def on_acknowledged(self, token: Any, reason: int) -> None:
        self.acknowledged.append((token, reason))
