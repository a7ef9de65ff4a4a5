"""An engine with a clock, and clients that can stop taking anything."""

from dataclasses import dataclass, field

from tidings.broker import Config
from tidings.broker.codec.packets import Connect, Packet, Publish, Subscribe, SubscribeFilter
from tidings.broker.core.engine import Engine

from .outbox import ListOutbox

KIB = b"x" * 1_000
LIMIT_BYTES = 20_000
OVER = 20  # messages that are over the limit
LIMIT_S = 10


@dataclass
class World:
    """An engine and its clock."""

    options: dict[str, object] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        values = {"soft_limit_s": LIMIT_S, "soft_limit_bytes": LIMIT_BYTES, **self.options}
        config = Config.model_validate({"sys_interval_s": 0, "max_inflight": 5, **values})
        self.engine = Engine(config, self.now, lambda: "x", keeps=bool(self.options.get("data_dir")))
        self.publisher = Client(self, "p")

    def publish(self, topic: str, count: int) -> None:
        self.publisher.send(*(Publish(topic, KIB) for _ in range(count)))

    def wait_until(self, now: float) -> None:
        if self.engine.budget.attention:  # as at the end of a turn
            self.engine.relieve(self.now)
        while (due := self.engine.next_deadline()) is not None and due <= now:
            self.now = max(self.now, due)
            self.engine.tick(self.now)
        self.now = now


class Client:
    """One connection. It takes nothing while ``outbox.full``."""

    def __init__(self, world: World, client_id: str, expiry_s: int = 0, version: int = 5) -> None:
        self.world = world
        self.outbox = ListOutbox(version)
        self.connection = world.engine.connect(self.outbox, "peer", world.now)
        properties = {"session_expiry_interval": expiry_s} if version == 5 else {}
        self.send(Connect(client_id, version, not expiry_s, 0, properties=properties))  # type: ignore[arg-type]
        self.outbox.packets()

    def send(self, *packets: Packet) -> None:
        self.world.engine.handle(self.connection, packets, self.world.now)

    def subscribe(self, filter: str, qos: int = 0) -> None:
        self.send(Subscribe(1, [SubscribeFilter(filter, qos)]))
        self.outbox.packets()

    def freeze(self) -> None:
        self.outbox.full = True

    def catch_up(self) -> None:
        self.outbox.full = False
        self.world.engine.writable(self.connection, self.world.now)
        self.outbox.packets()

    @property
    def gone(self) -> bool:
        return self.outbox.closed
