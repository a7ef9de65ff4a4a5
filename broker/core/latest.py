"""The messages of one session that newer ones replace: at most one waits per topic (policies ``latest``, ``sample``).

    add ──▶ pending ──▶ taken by the window, which sends it
     │       │   ▲
     │    too soon │ its slot has come
     │       ▼   │
     └newer▶ held            a newer message replaces the one of its topic, wherever that is

1. One message per topic; memory follows the topics, not the messages.
2. A newer message takes the place of the one that it replaces, so that a busy topic does not lose its turn.
3. Of a topic with a period two messages are taken at least that period apart, and the newest is taken in the end.
4. Nothing is taken before what was in the session's queue when this began (``behind``): a topic may have changed its
   policy, and its order is kept.
5. A replacement takes over the sequence number that its topic waits under, so that numbers follow the queue; but not a
   number from before what only the store has, where messages of the topic may be that came in between.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from .message import Message
from .ports import Queued, Withdrawn
from .topics import Grant

if TYPE_CHECKING:
    from .deadlines import Place
    from .queue import Entry, Queue


class Latest:
    """Of one window; ``wake(now)`` is called when the slot of a held message has come.

    ``max_topics`` bounds what is remembered of topics that have nothing waiting and whose slot has not come yet.
    """

    __slots__ = (
        "_held",
        "_next_at",
        "_pending",
        "_ripe",
        "_turn",
        "_wake",
        "_window",
        "apart",
        "behind",
        "due_at",
        "max_topics",
        "place",
    )

    def __init__(self, window: "Queue", wake: Callable[[float], None], max_topics: int) -> None:
        self._window = window
        self._wake = wake
        self.max_topics = max_topics
        self.behind = window.queued
        self.apart: set[int] = set()
        """Sequence numbers in the range of the spill that are or were here: the store has them too, and reads them."""
        self._pending: OrderedDict[str, Entry] = OrderedDict()
        self._held: OrderedDict[str, Entry] = OrderedDict()
        self._ripe: list[tuple[float, str]] = []  # a heap of when the slots of held messages come
        self._next_at: OrderedDict[str, float] = OrderedDict()  # when the next message of a topic may be taken
        self._turn = True
        self.due_at: float | None = None
        self.place: Place | None = None

    def __len__(self) -> int:
        return len(self._pending) + len(self._held)

    def __bool__(self) -> bool:  # compiled, an optional value is not asked for its length
        return bool(self._pending or self._held)

    def __iter__(self) -> "Iterator[Entry]":
        yield from self._pending.values()
        yield from self._held.values()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not self._pending and not self._held and not self._next_at

    # coming

    def add(self, messages: list[Message], grant: Grant, qos: int) -> int:
        """Let the last of ``messages``, which are of one topic, wait in the place of what waits; how many it replaced.

        A durable session is owed the replacement under the same number.
        """
        window = self._window
        changes = window.changes
        message = messages[-1]
        topic = message.topic
        waiting = self._held if topic in self._held else self._pending
        old = waiting.get(topic)
        seq = 0
        if old is not None:
            seq = old[2]
            window.queued_bytes -= old[0].size
            if seq and changes is not None:
                changes.append(Withdrawn(window.client_id, seq, [old[0]]))
        if not qos:
            seq = 0
        elif not seq or (window.spill is not None and seq not in self.apart):
            window.seq = seq = window.seq + 1
            if window.spill is not None:
                self.apart.add(seq)
        if qos and changes is not None and message.stored >= 0:
            changes.append(Queued(window.client_id, seq, [message], grant))
            if qos == 2:
                message.batch = changes.number
        waiting[topic] = (message, grant, seq)
        window.queued_bytes += message.size
        return len(messages) - (old is None)

    def add_restored(self, entry: "Entry") -> bool:
        """Take an entry that comes back from the store; whether it, or one that it replaced, is not owed any more."""
        window = self._window
        topic = entry[0].topic
        waiting = self._held if topic in self._held else self._pending
        old = waiting.get(topic)
        gone: Entry | None = old
        if old is not None and (not old[2] or old[2] > entry[2]):
            gone = entry  # what waits came after it
        else:
            waiting[topic] = entry
            window.queued_bytes += entry[0].size - (old[0].size if old is not None else 0)
        if gone is not None and gone[2] and window.changes is not None:
            window.changes.append(Withdrawn(window.client_id, gone[2], [gone[0]]))
        return gone is not None

    def give_way(self, entry: "Entry") -> "Entry | None":
        """Let go what waits of the topic of ``entry`` and came before it: the policy was another one in between."""
        topic = entry[0].topic
        waiting = self._held if topic in self._held else self._pending
        older = waiting.get(topic)
        if older is None or not older[2] or older[2] > entry[2]:
            return None
        del waiting[topic]
        self._given_up([older])
        return older

    # going

    def first(self, now: float, queue: bool) -> "Entry | None":
        """What would be taken now; None if nothing waits or it is the queue's turn. ``queue``: it has messages."""
        if self._ripe:
            self._ripen(now)
        if not queue:
            self.behind = 0
        elif self.behind > 0 or not self._turn:
            return None
        pending = self._pending
        while pending:
            topic, entry = next(iter(pending.items()))
            at = self._next_at.get(topic, now)
            if at <= now:
                return entry
            pending.popitem(last=False)
            self._held[topic] = entry
            heappush(self._ripe, (at, topic))
            self._watch()
        return None

    def take(self, now: float) -> None:
        """What ``first`` gave is sent; the queue has the next turn."""
        topic, (message, grant, _) = self._pending.popitem(last=False)
        window = self._window
        window.queued_bytes -= message.size
        policy = grant.policy
        if policy is not None and policy.period_s:
            next_at = self._next_at
            next_at[topic] = now + policy.period_s
            next_at.move_to_end(topic)
            while len(next_at) > self.max_topics or next_at[next(iter(next_at))] <= now:
                next_at.popitem(last=False)
        self._turn = False

    def passed(self) -> None:
        """A message of the queue was sent; the next turn is ours."""
        self.behind -= 1
        self._turn = True

    def on_due(self, now: float) -> None:
        """The slot of a held message has come."""
        self._ripen(now)
        self._wake(now)

    def _ripen(self, now: float) -> None:
        ripe = self._ripe
        while ripe and (ripe[0][0] <= now or ripe[0][1] not in self._held):
            topic = heappop(ripe)[1]
            entry = self._held.pop(topic, None)
            if entry is not None:
                self._pending[topic] = entry
        self._watch()

    def _watch(self) -> None:
        at = self._ripe[0][0] if self._ripe else None
        if at != self.due_at:
            self._window.budget.deadlines.set(self, at)

    # giving up

    def drop_oldest(self) -> "Entry":
        """Give up a message that has waited long; there is one."""
        _, entry = (self._pending or self._held).popitem(last=False)
        self._given_up([entry])
        return entry

    def drop_qos0(self) -> int:
        """Give up what is not kept for a client that is away; how many there were."""
        unkept = [entry for entry in self if not entry[2]]
        for entry in unkept:
            topic = entry[0].topic
            del (self._pending if topic in self._pending else self._held)[topic]
        self._given_up(unkept)
        return len(unkept)

    def dissolve(self) -> "list[Entry]":
        """Everything, in the order in which it would be taken; nothing is left."""
        entries = list(self)
        self._pending.clear()
        self._held.clear()
        self._given_up(entries)
        return entries

    def _given_up(self, entries: "Iterable[Entry]") -> None:
        self._window.queued_bytes -= sum(entry[0].size for entry in entries)
        held = self._held
        if len(self._ripe) > 2 * len(held):  # the rest belongs to messages that were given up
            self._ripe = [(self._next_at.get(topic, 0.0), topic) for topic in held]
            heapify(self._ripe)
        self._watch()
