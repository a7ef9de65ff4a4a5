"""Which addresses may connect, and how often: bans, and a limit on the connections that one has open."""

import logging
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from ..core.ports import TurnedAway
from ..core.snapshot import Stats
from ..network import Network, group, host_of, parse_host

log: Final = logging.getLogger("tidings.broker")

REMEMBERED: Final = 10_000  # hosts of which it is known how they count: reading an address takes longer than a session


class Addresses:
    """The open connections of one broker by address. Those of this machine are not counted, nor local sockets."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._open: dict[str, int] = {}
        self.use((), sys.maxsize)

    def use(self, banned: Sequence[Network], max_connections: int) -> None:
        """Hold those who come from now on to these limits."""
        self._banned = banned
        self._max_connections = max_connections

    def why_banned(self, host: str) -> str:
        """Why nobody from ``host`` is wanted, "" if they are."""
        if not self._banned:
            return ""
        address = parse_host(host)
        if address is None:
            return ""
        network = next((each for each in self._banned if address in each), None)
        return "" if network is None else f"{network} is banned"

    def refuse(self, peer: str) -> bool:
        """Whether another connection from ``peer``, ``ADDRESS:PORT``, is not wanted; the log and the stats say why."""
        host = host_of(peer)
        banned = self.why_banned(host)
        if banned:
            log.info("refusing %s: %s", peer, banned)  # somebody banned keeps coming, and that is known
            self._stats.turn_away(TurnedAway.BANNED)
            return True
        name = _counted_as(host)
        count = self._open.get(name, 0) if name else 0
        if count >= self._max_connections:
            log.warning("refusing %s: %d connections are open from %s, as many as allowed", peer, count, name)
            self._stats.turn_away(TurnedAway.ADDRESS)
            return True
        return False

    def enter(self, peer: str) -> str:
        """A connection from ``peer`` is open; the name by which it is to ``leave``."""
        name = _counted_as(host_of(peer))
        if name:
            self._open[name] = self._open.get(name, 0) + 1
        return name

    def leave(self, name: str) -> None:
        """A connection that had entered has ended."""
        count = self._open.get(name, 0) - 1
        if count > 0:
            self._open[name] = count
        else:
            self._open.pop(name, None)


@lru_cache(REMEMBERED)
def _counted_as(host: str) -> str:
    """The name by which ``host`` is counted, "" if it is not."""
    address = parse_host(host)
    return "" if address is None or address.is_loopback else group(host)
