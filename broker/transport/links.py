"""The links of one broker: who is open, who is not read from and why, and the end of each turn of the event loop.

Links that were appended to in a turn are flushed together at its end, each once.
"""

import asyncio
import logging
import select
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from ..codec.wire import TopicTable
from ..core.connection import Connection
from ..core.engine import Engine
from ..core.ports import PauseReason, Tap, TurnedAway
from ..core.rate import Rate
from ..network import parse_network
from .addresses import Addresses

if TYPE_CHECKING:
    from ..config import Config
    from .link import Link

log: Final = logging.getLogger("tidings.broker")

# What one turn may append, in high-water marks. A socket that is being read takes several at once, and queueing costs
# more than sending; one that is not read holds this much once, then stays blocked.
TURN: Final = 4
LEAST_TURN_BYTES: Final = 4_096
# Not Final, see acceptor.RETRY_S
ADMITTED = 32  # clients whose CONNECT one turn takes, and resumes their queues; then others are served again
LOOK_S = 1.0  # how often those whom the gate lets wait are looked at: whether they are still there
ARRIVALS: Final = 10_000  # addresses whose rate of connections is remembered


class Links:
    """The links of one broker, and the end of each turn of the event loop, when they are flushed."""

    def __init__(self, engine: Engine, config: "Config", clock: Callable[[], float], after: Callable[[], None]) -> None:
        self.engine = engine
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.topics = TopicTable()
        self.tap: Tap | None = None
        self.open: set[Link] = set()
        self.accepting = True  # False once the broker stops; what was accepted by then is cut off
        self.addresses = Addresses(engine.stats)
        self.durable = 0
        self.waiting: set[Link] = set()  # those that hold something back for the store
        self.stalled: set[Link] = set()  # those that are not read from because of the store
        self.pressed: set[Link] = set()  # those that are not read from because of the memory budget
        self.heavy: set[Link] = set()  # those in which so much waits that the memory budget knows of it
        engine.budget.recount = self._recount
        self._arrivals: OrderedDict[str, Rate] = OrderedDict()  # by address
        self._after = after
        self.dirty: list[Link] = []  # those that have something to flush
        self.turn_ends = False  # whether the end of this turn is arranged for
        self._turn_began = 0.0
        self._one_closed = asyncio.Event()
        self._knocking: set[Link] = set()  # those that wait for the gate to let them in
        self._lobby: deque[Link] = deque()  # those whose CONNECT waits for its turn
        self._admitted = 0  # in this turn
        self.use(config)

    def use(self, config: "Config") -> None:
        """Hold connections that are made from now on to the limits of ``config``."""
        banned = [parse_network(each) for each in config.banned_addresses]
        self.addresses.use(banned, config.max_connections_per_address)
        self.max_connections = config.max_connections
        self.max_packet_size = config.max_packet_size_bytes
        self.max_connect_size = config.max_connect_size_bytes
        self.high_bytes = config.outbox_high_bytes
        self.max_turn_bytes = TURN * config.outbox_high_bytes
        self.max_bytes = config.outbox_max_bytes
        self.max_blocked_s = config.max_blocked_s
        self.max_messages_per_s = config.max_messages_per_s
        self.max_bytes_per_s = config.max_bytes_per_s
        self._connect_timeout_s = config.connect_timeout_s
        self._arrivals.clear()  # they have the old rate
        self._max_connects_per_s = config.max_connects_per_s
        self._share_turn()

    async def all_closed(self) -> None:
        """Wait until no link is open."""
        while self.open:
            self._one_closed.clear()
            await self._one_closed.wait()

    def turn_away(self, peer: str) -> bool:
        """Whether another connection, from ``peer``, is not wanted; the log and the stats say why."""
        if not self.accepting:
            return True
        if len(self.open) >= self.max_connections:
            log.warning("refusing %s: %d connections are open, as many as allowed", peer, self.max_connections)
            self.engine.stats.turn_away(TurnedAway.FULL)
            return True
        return self.addresses.refuse(peer)

    def opened(self, link: "Link") -> None:
        """``link`` has a connection."""
        self.open.add(link)
        self._share_turn()

    def closed(self, link: "Link") -> None:
        """``link`` has lost its connection."""
        self.open.discard(link)
        self._share_turn()
        self._one_closed.set()

    def _share_turn(self) -> None:
        """All links together may append a quarter of the memory budget in one turn."""
        share_bytes = self.engine.budget.limit_bytes // 4 // max(1, len(self.open))
        self.turn_bytes = max(LEAST_TURN_BYTES, min(self.max_turn_bytes, share_bytes))

    def _recount(self) -> None:
        """Sockets take bytes without telling: look again before anybody pays for them."""
        for link in tuple(self.heavy):
            link.weigh()

    def turn(self, now: float | None = None) -> None:
        """Something happened in this turn, at ``now``: flush at its end."""
        if not self.turn_ends:
            self.turn_ends = True
            self._turn_began = self.clock() if now is None else now
            self.loop.call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        self.turn_ends = False
        dirty, self.dirty = self.dirty, []
        for link in dirty:
            try:
                link.flush()
            except Exception:  # the others must be flushed whatever happens to one
                log.exception("internal error while sending to %r", link.connection)
                link.abort()
        self._admitted = 0
        while self._lobby and self._admitted < ADMITTED:
            link = self._lobby.popleft()
            if link in self.open:
                self._admitted += 1
                link.admitted = True
                link.go_on(PauseReason.CROWD)
        self._after()
        took_s = self.clock() - self._turn_began
        if took_s > self.engine.longest_turn_s:
            self.engine.longest_turn_s = took_s
        if self._lobby:
            self.turn()

    def admit(self, link: "Link") -> bool:
        """Whether ``link`` may send its first bytes now; else its turn comes, after those who came before it."""
        self.turn()
        if self._lobby or self._admitted >= ADMITTED:
            self._lobby.append(link)
            return False
        self._admitted += 1
        link.admitted = True
        return True

    def knock(self, link: "Link") -> None:
        """``link`` waits for the gate to let it in, and is not read from meanwhile.

        One that has hung up would not be noticed, and keep its place in the queue for the password check: clients that
        lose patience and try again would fill it with those who are gone.
        """
        if not self._knocking:
            self.loop.call_later(LOOK_S, self._look)
        self._knocking.add(link)

    def _look(self) -> None:
        self._knocking = {link for link in self._knocking if link.knocks}
        for link in hung_up(self._knocking):
            log.info("%r: hung up before it was let in", link.connection)
            link.abort()
        if self._knocking:
            self.loop.call_later(LOOK_S, self._look)

    def resume(self) -> None:
        """The store has caught up: read again from those that it held up."""
        stalled, self.stalled = self.stalled, set()
        for link in stalled:
            link.go_on(PauseReason.STORE)

    def relieved(self) -> None:
        """There is memory again: read again from those that had to wait for it."""
        pressed, self.pressed = self.pressed, set()
        for link in pressed:
            link.go_on(PauseReason.MEMORY)

    def arrive(self, connection: Connection, peer: str, now: float) -> float:
        """A connection came from ``peer``; the seconds that it has to wait for its turn."""
        host, colon, _ = peer.rpartition(":")
        if not self._max_connects_per_s or not colon:
            return 0.0
        rate = self._arrivals.get(host)
        if rate is None:
            rate = self._arrivals[host] = Rate(self._max_connects_per_s)
            if len(self._arrivals) > ARRIVALS:
                self._arrivals.popitem(last=False)
        else:
            self._arrivals.move_to_end(host)
        wait_s = rate.spend(1, now)
        if wait_s:
            self.engine.deadlines.set(connection, now + wait_s + self._connect_timeout_s)
        return wait_s


def hung_up(links: "Iterable[Link]") -> "list[Link]":
    """Those whose other end has closed the connection, whatever they sent before; nothing is read. Linux knows."""
    if sys.platform != "linux":
        return []
    poll = select.poll()
    found: dict[int, Link] = {}
    for link in links:
        descriptor = link.descriptor
        if descriptor >= 0:
            found[descriptor] = link
            poll.register(descriptor, select.POLLRDHUP)
    return [found[descriptor] for descriptor, _ in poll.poll(0)]
