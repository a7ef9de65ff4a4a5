"""Retained messages on their way to new subscriptions of one connection, a slice at a time.

A wildcard may match a hundred thousand of them. The first slice goes out with the SUBACK; the others follow in turns of
their own, so that nobody else waits, and no faster than the client takes them, so that they do not push one another out
of its queue. A message that was replaced meanwhile goes out as it is by then.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .message import Message, Run
from .topics import Grant

if TYPE_CHECKING:
    from .connection import Connection

SLICE: Final = 500  # messages in one turn: a few milliseconds
PAUSE_S: Final = 0.0005  # until the next turn, which lets others have theirs
BUSY_S: Final = 0.02  # until the client is looked at again when it has not taken the last slice


class Handout:
    """What is left to hand out to ``connection``; see ``Timed`` for its deadline."""

    __slots__ = ("_connection", "_left", "due_at", "entry_at")

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._left: deque[tuple[str, Grant, Iterator[Message]]] = deque()
        self.due_at: float | None = None
        self.entry_at: float | None = None

    def add(self, filter: str, grant: Grant, now: float) -> None:
        """Hand out what matches ``filter`` after everything that was added before."""
        self._left.append((filter, grant, self._connection.engine.retained.matching(filter, now)))

    def on_due(self, now: float) -> None:
        """The next slice.

        5.0 [MQTT-3.3.1-9] to [MQTT-3.3.1-11]; RETAIN is 1 whatever Retain As Published says (5.0 section 3.3.1.3).
        """
        connection = self._connection
        session = connection.session
        if session is None or session.connection is not connection:
            return
        window = session.window
        room = SLICE - window.queued
        while self._left and room > 0:
            filter, grant, messages = self._left[0]
            if session.subscriptions.get(filter) is grant:
                kept: Grant | None = None
                for message in messages:
                    kept = kept or replace(grant, retain_as_published=True)
                    if not (grant.no_local and message.sender == session.client_id):
                        window.deliver(Run([message], now), kept)
                        room -= 1
                        if not room:
                            break
                else:
                    self._left.popleft()
            else:
                self._left.popleft()  # unsubscribed or subscribed anew meanwhile
        if self._left:
            connection.engine.deadlines.set(self, now + (BUSY_S if window.queued >= SLICE else PAUSE_S))
