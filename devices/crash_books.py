"""What a crash test knows: which messages were acknowledged, what reached whom, and which promises that breaks.

A message is ``publisher number``, with numbers 1, 2, 3, … for each publisher, so that every broker can be examined. No
sockets and no clock here.

* lost: acknowledged at QoS 1 or 2, and a durable session (a shared group: all its members together) never got it;
* duplicated: a session or group got it more than once; a broken promise at QoS 2 only;
* reordered: a session got a message for the first time after a later one of the same publisher;
* gone back: the retained message of a topic is older than one that was acknowledged, or than one seen before.
"""

from dataclasses import dataclass, fields

from .intervals import Intervals


@dataclass(slots=True)
class Verdict:
    """Counts of one round, or of all. ``delivered`` counts every arrival at every session."""

    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    retained_gone_back: int = 0
    sessions_lost: int = 0

    def add(self, other: "Verdict") -> None:
        """Count ``other`` in."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def broken(self, qos: int) -> bool:
        """Whether a promise of QoS ``qos`` was broken."""
        duplicated = self.duplicated if qos == 2 else 0
        return bool(self.lost or duplicated or self.reordered or self.retained_gone_back or self.sessions_lost)


class Receiver:
    """One durable session, or one shared group, and what it got."""

    def __init__(self, publishers: list[str], *, ordered: bool = True) -> None:
        self.received = {publisher: Intervals() for publisher in publishers}
        self.given_up = {publisher: Intervals() for publisher in publishers}
        self._highest = dict.fromkeys(publishers, 0)
        self._ordered = ordered

    def take(self, publisher: str, number: int, verdict: Verdict) -> None:
        """Message ``number`` of ``publisher`` arrived."""
        verdict.delivered += 1
        if not self.received[publisher].add(number):
            verdict.duplicated += 1
            return
        if self._ordered and number < self._highest[publisher]:
            verdict.reordered += 1
        self._highest[publisher] = max(number, self._highest[publisher])

    def missing(self, publisher: str, acknowledged: Intervals) -> Intervals:
        """What it should have by now and has not."""
        return acknowledged.difference(self.received[publisher]).difference(self.given_up[publisher])


class Books:
    """The accounts of a whole test. ``verdict`` is that of the round under way."""

    def __init__(self, publishers: list[str], receivers: dict[str, Receiver]) -> None:
        self.receivers = receivers
        self.verdict = Verdict()
        self.sent = dict.fromkeys(publishers, 0)
        self.acknowledged = {publisher: Intervals() for publisher in publishers}
        self.progress = 0  # grows with everything that happens
        self._state_sent = dict.fromkeys(publishers, 0)
        self._state_kept = dict.fromkeys(publishers, 0)

    def send(self, publisher: str) -> int:
        """The number of the next message."""
        self.sent[publisher] += 1
        return self.sent[publisher]

    def acknowledge(self, publisher: str, number: int) -> None:
        """The broker took it over."""
        if self.acknowledged[publisher].add(number):
            self.verdict.acknowledged += 1
        self.progress += 1

    def receive(self, receiver: str, publisher: str, number: int) -> None:
        """It arrived at a session."""
        self.receivers[receiver].take(publisher, number, self.verdict)
        self.progress += 1

    def send_state(self, publisher: str) -> int:
        """The number of the next retained message."""
        self._state_sent[publisher] += 1
        return self._state_sent[publisher]

    def state_acknowledged(self, publisher: str, number: int) -> None:
        """The broker keeps retained message ``number``, or a later one."""
        self._state_kept[publisher] = max(number, self._state_kept[publisher])
        self.progress += 1

    def state_kept(self, publisher: str) -> int:
        """The number of the retained message that must be there, at least."""
        return self._state_kept[publisher]

    def state_seen(self, publisher: str, number: int) -> None:
        """A new subscriber got ``number`` as the retained message, 0 = none at all."""
        if number < self._state_kept[publisher]:
            self.verdict.retained_gone_back += 1
        self._state_kept[publisher] = number

    @property
    def complete(self) -> bool:
        """Whether everything that was acknowledged has arrived everywhere."""
        return not any(
            receiver.missing(publisher, acknowledged)
            for receiver in self.receivers.values()
            for publisher, acknowledged in self.acknowledged.items()
        )

    def close_round(self) -> Verdict:
        """Count what is missing as lost, once, and begin a new round."""
        verdict, self.verdict = self.verdict, Verdict()
        for receiver in self.receivers.values():
            for publisher, acknowledged in self.acknowledged.items():
                missing = receiver.missing(publisher, acknowledged)
                verdict.lost += len(missing)
                receiver.given_up[publisher] = receiver.given_up[publisher].union(missing)
        return verdict
