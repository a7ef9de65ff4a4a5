"""Those who use the broker of the simulation: publishers, subscribers of all kinds, and one who leaves wills."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tidings.broker.codec import Publish, SubscribeFilter, Will
from tidings.broker.core.window import MAX_PACKET_ID
from tidings.broker.policy import PROPERTY
from tidings.devices.client import Client
from tidings.devices.ports import ClientOptions

if TYPE_CHECKING:
    from .pipe import Pipe
    from .world import World

DAY_S = 86_400
WILL_DELAY_S = 1
SKIPPING = ("latest", "sample", "fickle")  # who wants the newest values, now or at times


class Owner:
    """Somebody with a client. What is not told otherwise is of no interest."""

    def __init__(self, world: "World", name: str, session_s: int = DAY_S, version: int = 5) -> None:
        self.world = world
        self.name = name
        self.session_s = session_s
        self._connects = 0
        self.away_since = 0.0  # when the last connection ended that the broker had accepted
        options = ClientOptions(name, version, session_s, keep_alive_s=0, receive_maximum=4)
        options.window_count, options.queue_count = 6, 50
        options.backoff_first_s, options.backoff_max_s = 0.1, 0.5
        self.client = Client(options, self, world.clock, world.dial, jitter_key=world.seed)

    @property
    def durable(self) -> bool:
        """Whether its session outlives every history."""
        return self.session_s == DAY_S

    def on_online(self, session_present: bool) -> None:
        """The connection stands."""

    def on_offline(self, reason: str) -> None:
        if self.client.connects > self._connects:
            self._connects = self.client.connects
            self.away_since = self.world.clock.now()

    def on_gone(self, reason: str) -> None:
        raise AssertionError(f"{self.name} was refused: {reason}")

    def on_subscribed(self, granted: Sequence[int]) -> None:
        raise AssertionError(f"{self.name} did not ask for {granted}")

    def on_message(self, message: Publish) -> bool:
        raise AssertionError(f"{self.name} did not ask for {message.topic}")

    def on_written(self, token: Any, again: bool) -> None:
        """Nothing to note."""

    def on_acknowledged(self, token: Any, reason: int) -> None:
        """Nothing to note."""


class Publisher(Owner):
    """Numbers its messages and notes which were acknowledged."""

    def on_acknowledged(self, token: Any, reason: int) -> None:
        assert reason < 0x80, f"{self.name} was told {reason:#x}"
        kind, qos, number = token
        books = self.world.books[qos]
        (books.state_acknowledged if kind == "state" else books.acknowledge)(self.name, number)


class Subscriber(Owner):
    """Notes in the books of ``account`` what came. ``policy``: what it asks for in SUBSCRIBE."""

    def __init__(
        self,
        world: "World",
        name: str,
        account: str,
        filter: str,
        session_s: int = DAY_S,
        policy: str = "",
        version: int = 5,
    ) -> None:
        super().__init__(world, name, session_s, version)
        self.account = account
        self.filter = filter
        self.policy = policy
        self.subscribed = False
        self.last: dict[tuple[str, int], int] = {}  # publisher and QoS → the number that came last
        self._seen: set[int] = set()  # packet ids that came; no history is so long that they begin again

    def crashed(self) -> None:
        """A broker that does not know a delivery any more may use its packet id for something new."""
        kept = self.world.store.sessions.get(self.name)
        self._seen &= {seq % MAX_PACKET_ID + 1 for seq in kept.owed} if kept is not None else set()

    def on_online(self, session_present: bool) -> None:
        away_s = self.world.clock.now() - self.away_since
        if away_s > self.session_s - 0.001:  # times are sums
            # Even one that is present may have begun with a connection whose CONNACK was lost on its way.
            self.subscribed = False
        assert session_present or not self.subscribed, f"{self.name} lost its session after {away_s:g} s"
        if not self.subscribed:
            self._seen.clear()
            self.subscribe()

    def subscribe(self) -> None:
        asked = {"user_property": [(PROPERTY, self.policy)]} if self.policy else {}
        self.client.subscribe([SubscribeFilter(self.filter, 2)], asked)  # type: ignore[arg-type]

    def on_subscribed(self, granted: Sequence[int]) -> None:
        assert list(granted) == [2]
        self.subscribed = True
        if not self.durable:
            self.world.forgive(self.account)

    def on_message(self, message: Publish) -> bool:
        assert message.dup or message.properties.get("message_expiry_interval", 1) > 0, "it had expired"
        if message.qos == 2 and self.session_s:
            # We remember this packet id from now on. The broker must too, or the next message under it is lost.
            known = {seq % MAX_PACKET_ID + 1 for seq in self.world.store.sessions[self.name].owed}
            assert message.packet_id in known, f"packet id {message.packet_id} came before it was on disk"
        if message.qos:  # 5.0 [MQTT-3.3.1-1]
            assert message.dup or message.packet_id not in self._seen, f"packet id {message.packet_id} came again"
            self._seen.add(message.packet_id)
        publisher, _, number = message.payload.decode().partition(" ")
        books = self.world.books[message.qos]
        self.last[publisher, message.qos] = int(number)
        expired = message.properties.get("message_expiry_interval") == 0
        if message.dup and (expired or self.world.drops_any or self.account in ("oldest", *SKIPPING)):
            # After a crash the broker cannot know that it dropped this one, as too old or one too many, instead of
            # sending it, and repeats it after what came later. It still comes once only.
            new = books.receivers[self.account].received[publisher].add(int(number))
            assert new or message.qos == 1, f"{publisher} {number} came twice at QoS 2"
        else:
            books.receive(self.account, publisher, int(number))
        return True


class Newcomer(Owner):
    """Asks for the retained messages, once."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name, 0)
        self.seen: dict[tuple[str, int], int] = {}

    def on_online(self, session_present: bool) -> None:
        self.client.subscribe([SubscribeFilter("state/#", 2)])

    def on_subscribed(self, granted: Sequence[int]) -> None:
        self.seen = {(owner.name, qos): 0 for owner in self.world.publishers for qos in (1, 2)}

    def on_message(self, message: Publish) -> bool:
        assert message.retain
        publisher, _, number = message.payload.decode().partition(" ")
        self.seen[publisher, int(message.topic.rpartition("/")[2])] = int(number)
        return True


class Mortal(Owner):
    """Leaves with every connection a will of its own number, and knows which of them must be read and which must not.

    A connection that was lost begins the delay. If the next one begins before its end the will must not be published,
    5.0 [MQTT-3.1.3-9]; if it begins later, or begins another session (section 3.1.2.5), it must have been. That is
    certain once the client has seen the CONNACK.
    """

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.number = 0
        self.required: set[int] = set()
        self.forbidden: set[int] = set()
        self._lost: dict[int, float] = {}  # number of the will → when it is due
        self._certain_soon: tuple[set[int], set[int]] = set(), set()

    def write_will(self) -> None:
        """Before it connects."""
        self.number += 1
        payload = str(self.number).encode()
        self.client.options.will = Will("will/w", payload, 2, properties={"will_delay_interval": WILL_DELAY_S})

    def lost(self, pipe: "Pipe") -> None:
        """The broker noticed that the connection is gone."""
        self._lost[pipe.will] = self.world.now + WILL_DELAY_S

    def greeted(self) -> None:
        """The broker took a new CONNECT. While the client knows of no session, that begins one, and ends the other."""
        now = math.inf if not self.client.connects else self.world.now
        due = {number for number, at in self._lost.items() if at <= now}
        self._certain_soon = due, set(self._lost) - due
        self._lost = {}

    def crashed(self) -> None:
        """The delay begins anew, or does not: nothing is certain."""
        self._lost = {}
        self._certain_soon = set(), set()

    def on_online(self, session_present: bool) -> None:
        self.required |= self._certain_soon[0]
        self.forbidden |= self._certain_soon[1]
        self._certain_soon = set(), set()


class Mourner(Owner):
    """Reads wills."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(world, name)
        self.subscribed = False
        self.seen: set[int] = set()

    def on_online(self, session_present: bool) -> None:
        assert session_present or not self.subscribed, f"{self.name} lost its session"
        if not session_present:
            self.client.subscribe([SubscribeFilter("will/#", 2)])

    def on_subscribed(self, granted: Sequence[int]) -> None:
        self.subscribed = True

    def on_message(self, message: Publish) -> bool:
        number = int(message.payload)
        assert number not in self.seen, f"will {number} came twice at QoS 2"
        self.seen.add(number)
        return True
