"""What a client needs from outside: a wire for its bytes, an owner to tell what happens, options to connect with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tidings.broker.codec import MQTT_5_0, Publish, Will


class Wire(Protocol):
    """What carries a client's bytes. ``close`` sends what was written first, ``abort`` does not."""

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Owner(Protocol):
    """Whom a client tells what happens. ``token`` is what the owner gave to ``publish``."""

    def on_online(self, session_present: bool) -> None: ...
    def on_offline(self, reason: str) -> None: ...
    def on_gone(self, reason: str) -> None:
        """The broker's refusal is final: the client will not try again."""

    def on_subscribed(self, granted: Sequence[int]) -> None: ...
    def on_message(self, message: Publish) -> bool:
        """True: acknowledge now. False: the owner calls ``Client.acknowledge`` later, on the same connection."""
        ...

    def on_written(self, token: Any, again: bool) -> None: ...
    def on_acknowledged(self, token: Any, reason: int) -> None: ...


@dataclass(slots=True)
class ClientOptions:
    """How a client connects. Plain numbers are seconds (``_s``) or messages (``_count``).

    ``session_s``: how long the broker keeps the session after a lost connection; in 3.1.1 anything above 0 means for
    ever.
    ``clean_first``: the first connection discards what the broker may still hold (5.0 only; later ones resume).
    """

    client_id: str
    version: int = MQTT_5_0
    session_s: int = 0
    clean_first: bool = True
    keep_alive_s: int = 60
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    receive_maximum: int = 200
    window_count: int = 100
    queue_count: int = 1000
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    max_packet_bytes: int = 1 << 20
