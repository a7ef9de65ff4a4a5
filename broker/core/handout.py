"""Retained messages on their way to new subscriptions, a slice at a time for all clients together.

A wildcard may match a hundred thousand of them, and a thousand clients may ask at once. What a SUBSCRIBE asks for
begins with its SUBACK; the rest follows in turns of its own, so that nobody else waits, and no faster than the client
takes it, so that it does not push itself out of the queue.

1. One turn gives out what costs as much as ``SLICE`` small messages, or looks in vain for as long.
2. A retained message goes out once, and before anything newer on its topic (5.0 [MQTT-4.6.0-6]).
3. One that is replaced meanwhile goes out as it is by then, or has gone out as it was published.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .message import Message, Run
from .topics import Grant, matches

if TYPE_CHECKING:
    from .connection import Connection
    from .deadlines import Place
    from .engine import Engine
    from .session import Session

SLICE: Final = 200  # messages: 0.7 ms; with 500 of them 1.7 ms were measured, and 4 ms where others used the machine
LARGE_BYTES: Final = 8_192  # a message costs one more of a slice for each of these: what it takes to be copied
TURN_S: Final = 0.00001  # until the next turn
FRESH_S: Final = 0.005  # after which a SUBSCRIBE is not of the turn that gave out something last
BUSY_S: Final = 1.0  # until clients are looked at again that have not taken their last slice, and do not say when


class Lookup:
    """What one new subscription is still to be given. ``connection``: None for a subscriber in this process."""

    __slots__ = ("_connection", "_filter", "_found", "_given", "_grant", "_kept", "_retained", "_session")

    def __init__(
        self, engine: "Engine", session: "Session", connection: "Connection | None", filter: str, grant: Grant
    ) -> None:
        self._session = session
        self._connection = connection
        self._filter = filter
        self._grant = grant
        self._kept = replace(grant, retain_as_published=True)  # RETAIN is 1 whatever it says (5.0 section 3.3.1.3)
        self._retained = engine.retained
        self._found: Iterator[Message | None] = engine.retained.search(filter)
        self._given: set[str] = set()  # topics

    @property
    def over(self) -> bool:
        """Whether nobody wants it any more: the connection is gone, or the subscription was made anew or ended."""
        session = self._session
        return session.connection is not self._connection or session.subscriptions.get(self._filter) is not self._grant

    @property
    def room(self) -> int:
        """How much of a slice the client may be given now."""
        return self._session.window.room(SLICE)

    def go_on(self, room: int, now: float) -> int:
        """Give out what ``room`` is enough for, or look in vain for as long; more than 0 is left when that was all.

        5.0 [MQTT-3.3.1-9] to [MQTT-3.3.1-11].
        """
        for message in self._found:
            if message is not None and message.topic not in self._given:
                self._give(message, now)
                room -= message.size // LARGE_BYTES
            room -= 1
            if room <= 0:
                return room
        self.end()
        return room

    def end(self) -> None:
        """There is no more, or nobody wants it."""
        window = self._session.window
        if window.lookups and self in window.lookups:
            window.lookups.remove(self)
            window.lookups = window.lookups or None

    def overtake(self, run: Run) -> None:
        """``run`` is about to be delivered: what was retained before it goes first."""
        topic = run.topic
        if topic in self._given or not matches(self._filter, topic):
            return
        message = self._retained.get(topic)
        if message is None:
            return
        if message in run.messages:
            self._given.add(topic)
        else:
            self._give(message, run.now)

    def _give(self, message: Message, now: float) -> None:
        self._given.add(message.topic)
        if message.expires_at is not None and message.expires_at <= now:
            return
        if self._grant.no_local and message.sender == self._session.client_id:
            return
        window = self._session.window
        lookups, window.lookups = window.lookups, None  # it overtakes nothing itself
        window.deliver(Run([message], now), self._kept)
        window.lookups = lookups


class Handout:
    """All look-ups of a broker; see ``Timed`` for their deadline."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._lookups: deque[Lookup] = deque()
        self._room = SLICE  # in this turn
        self._served_at = 0.0
        self.due_at: float | None = None
        self.place: Place | None = None

    def add(self, session: "Session", filter: str, grant: Grant) -> None:
        """Give what matches ``filter`` to ``session``, beginning with the next ``begin``."""
        if "+" not in filter and "#" not in filter and self._engine.retained.get(filter) is None:
            return
        lookup = Lookup(self._engine, session, session.connection, filter, grant)
        window = session.window
        window.lookups = window.lookups or []
        window.lookups.append(lookup)
        self._lookups.append(lookup)

    def begin(self, now: float) -> None:
        """Give out what this turn has room for: somebody has asked, or has room again."""
        if not self._lookups:
            return
        if now - self._served_at > FRESH_S:
            self._room = SLICE
        self._serve(now)

    def on_due(self, now: float) -> None:
        """The next slice."""
        self._room = SLICE
        self._serve(now)

    def _serve(self, now: float) -> None:
        lookups = self._lookups
        self._served_at = now
        waits = True  # for clients, all of them
        for _ in range(len(lookups)):
            if self._room <= 0:
                waits = False
                break
            lookup = lookups.popleft()
            self._room -= 1
            if lookup.over:
                lookup.end()
                continue
            room = min(self._room + 1, lookup.room)
            if room > 0:
                waits = False
                left = lookup.go_on(room, now)
                self._room -= room - left - 1
                if left > 0:
                    continue
            lookups.append(lookup)
        if lookups:
            self._engine.deadlines.set(self, now + (BUSY_S if waits else TURN_S))
