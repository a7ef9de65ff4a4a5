"""The books of a run: what was sent, acknowledged and delivered, for every (publisher, topic, consumer).

Publishers enter what they send and what is acknowledged into a ``Stream`` (publisher, topic). Consumers enter when
they are subscribed, when they leave, and every message that arrives, into an ``Account`` (one consumer, or one shared
group). A ``Flow`` is one stream towards one account. The ledger opens no socket and has no clock.

What is owed:

1. A message is owed to an account if it was sent after the account's SUBACK arrived. A durable session is owed
   everything from then on, also while it is away, except at QoS 0, which a broker need not keep (5.0 section 4.1); a
   session that ends with its connection is owed nothing sent after it left.
2. An owed message that did not arrive is *uncertain* where no promise was made: the broker never acknowledged it, or
   the clean session it was owed to ended while it may have been on its way. Otherwise it is *lost*.
3. A shared group is owed each message once, as a whole.
4. A subscriber whose policy is ``latest`` or ``sample`` is not owed what a newer message of the stream made out of date
   (*skipped*), but the last message, or one after it, has to arrive.
5. A message with RETAIN set is the state at the time of subscribing, not a delivery; it is only counted.

What breaks the promise, with q the lower of the publisher's and the subscription's QoS (``5.0 section 4.3``):

* q = 1 or 2: a lost message. q = 2: a duplicate. Any q: a duplicate without a reconnect that would explain it
  (``5.0 [MQTT-4.4.0-1]``), messages of one stream out of order to one consumer (``5.0 [MQTT-4.6.0-6]``).
* A message whose bytes changed, that no filter asked for, or that was never sent.
* Loss at q = 0 is allowed and reported, and breaks the promise only above ``qos0_loss_max``.

Memory: a stream or flow keeps ranges of sequence numbers, so it grows with gaps, not with messages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tidings.broker.errors import TidingsError

from .filters import matches
from .histogram import Histogram
from .intervals import Intervals
from .stamp import read_stamp

LATE_US = 1000
_LATE_KEPT = 4096


class Stream:
    """Everything one publisher sends to one topic. Sequence numbers run 1, 2, 3, …"""

    __slots__ = ("acknowledged", "flows", "late", "publisher", "qos", "refused", "resumed", "sent", "topic")

    def __init__(self, publisher: str, topic: str, qos: int) -> None:
        self.publisher = publisher
        self.topic = topic
        self.qos = qos
        self.sent = 0
        self.acknowledged = Intervals()
        self.refused = 0
        self.resumed = False
        self.flows: list[Flow] = []
        self.late: dict[int, int] = {}

    def send(self) -> int:
        """Enter one message; its sequence number."""
        self.sent = sequence = self.sent + 1
        for flow in self.flows:
            if flow.open_after is not None:
                flow.account.owed[flow.qos > 0] += 1
        return sequence

    def wrote(self, sequence: int, late_us: int) -> None:
        """The message went out ``late_us`` after its intended time. Only what is 1 ms late or more is kept."""
        if late_us >= LATE_US:
            if len(self.late) >= _LATE_KEPT:
                del self.late[next(iter(self.late))]
            self.late[sequence] = late_us

    def acknowledge(self, sequence: int, accepted: bool) -> None:
        """The broker answered: it took the message over, or refused it with a reason code of 0x80 or more."""
        if accepted:
            self.acknowledged.add(sequence)
        else:
            self.refused += 1

    def outstanding(self) -> Intervals:
        """What was sent at QoS 1 or 2 and not acknowledged: it may or may not have arrived."""
        if self.qos == 0 or not self.sent:
            return Intervals()
        return Intervals([(1, self.sent)]).difference(self.acknowledged)


class Flow:
    """One stream towards one account."""

    __slots__ = (
        "account",
        "duplicates",
        "excused",
        "highest",
        "latency",
        "newest",
        "open_after",
        "owed",
        "qos",
        "received",
        "reordered",
        "retained",
        "skipped",
        "stream",
    )

    def __init__(self, stream: Stream, account: "Account") -> None:
        self.stream = stream
        self.account = account
        self.qos = 0
        self.open_after: int | None = None
        """While subscribed: everything after this sequence number is owed."""
        self.owed = Intervals()
        """What was owed in earlier subscriptions that have ended."""
        self.excused: Intervals | None = None
        self.skipped: Intervals | None = None
        """What was owed until a newer message of the stream arrived."""
        self.received = Intervals()
        self.newest = 0
        """Of a consumer that is only owed what is newest: what it has."""
        self.highest: dict[str, int] = {}
        """The latest number that each connection of the account has seen."""
        self.duplicates = 0
        self.reordered = 0
        self.retained = 0
        self.latency = Histogram()

    def open(self, qos: int) -> None:
        """The account is subscribed from here on, at ``qos``."""
        self.qos = min(qos, self.stream.qos)
        if self.open_after is None:
            self.open_after = self.stream.sent

    def close(self) -> None:
        """The account's session has ended: nothing more is owed, and what is on its way may not come."""
        if self.open_after is None:
            return
        window = Intervals([(self.open_after + 1, self.stream.sent)])
        self.owed = self.owed.union(window)
        self.open_after = None
        self.excuse(window)

    def excuse(self, window: Intervals | None = None) -> None:
        """What is owed and not here yet was possibly on its way to a clean session that is gone."""
        missing = (self.all_owed() if window is None else window).difference(self.received)
        for known in (self.excused, self.skipped):
            if known is not None:
                missing = missing.difference(known)
        if missing:
            self.excused = missing if self.excused is None else self.excused.union(missing)
            self.account.owed[self.qos > 0] -= len(missing)

    def skip(self, sequence: int) -> None:
        """``sequence`` arrived: what was sent before it and is not here yet is out of date."""
        before = self.all_owed().difference(self.received).intersection(Intervals([(1, sequence - 1)]))
        for known in (self.excused, self.skipped):
            if known is not None:
                before = before.difference(known)
        if before:
            self.skipped = before if self.skipped is None else self.skipped.union(before)
            self.account.owed[self.qos > 0] -= len(before)

    def owes(self, sequence: int) -> bool:
        return (self.open_after is not None and sequence > self.open_after) or sequence in self.owed

    def all_owed(self) -> Intervals:
        if self.open_after is None:
            return self.owed
        return self.owed.union(Intervals([(self.open_after + 1, self.stream.sent)]))


class Account:
    """One consumer, or one shared group of consumers, and what reaches it.

    ``filters``: (topic filter without ``$share/…/``, QoS asked for). ``durable``: the session outlives its connection.
    ``members``: the names of the connections, one unless it is a group.
    """

    def __init__(
        self,
        name: str,
        filters: Sequence[tuple[str, int]],
        durable: bool,
        members: Sequence[str],
        group: bool,
        newest_only: bool = False,
    ) -> None:
        self.name = name
        self.filters = tuple(filters)
        self.durable = durable
        self.members = tuple(members)
        self.group = group
        self.newest_only = newest_only
        self.flows: dict[tuple[str, str], Flow] = {}
        self.granted: dict[str, int] = {}
        self.refusals: dict[str, int] = {}
        self.present: set[str] = set()
        """Members that are subscribed: for a durable session that never ends."""
        self.away: set[str] = set()
        """Those of them that have a session and no connection."""
        self.reconnects = 0
        self.sessions_lost = 0
        self.owed = [0, 0]
        """How many messages are owed and not excused: at QoS 0, and above."""
        self.delivered = [0, 0]
        """How many of those arrived."""
        self.received = 0
        self.foreign = 0
        self.wills = 0
        self.misrouted = 0
        self.corrupted = 0
        self.phantoms = 0
        self.latency = Histogram()
        """From the intended time."""
        self.service = Histogram()
        """From the time that the message was written to the publisher's socket."""

    @property
    def backlog(self) -> int:
        """How many messages are owed and have not arrived."""
        return self.owed[0] + self.owed[1] - self.delivered[0] - self.delivered[1]

    @property
    def sure_backlog(self) -> int:
        """The same at QoS 1 and 2 only, where a broker has promised them."""
        return self.owed[1] - self.delivered[1]

    def subscribed_qos(self, topic: str) -> int | None:
        """The highest QoS granted to a filter that matches ``topic``; None if no filter does."""
        best: int | None = None
        for topic_filter, qos in self.granted.items():
            if (best is None or qos > best) and matches(topic_filter, topic):
                best = qos
        return best

    def wants(self, topic: str) -> bool:
        return any(matches(topic_filter, topic) for topic_filter, _ in self.filters)


@dataclass(slots=True)
class FlowResult:
    """One line of the books. ``broken``: which promises, in words; empty if all were kept."""

    publisher: str
    topic: str
    consumer: str
    qos: int
    sent: int
    acknowledged: int
    owed: int
    delivered: int
    lost: int
    uncertain: int
    duplicated: int
    reordered: int
    retained: int
    latency: Histogram
    skipped: int = 0
    broken: list[str] = field(default_factory=list)


class Ledger:
    """All streams and accounts of a run. ``qos0_loss_max``: the share of messages that a flow at QoS 0 may lose."""

    def __init__(self, qos0_loss_max: float = 1.0) -> None:
        self.qos0_loss_max = qos0_loss_max
        self.streams: dict[tuple[str, str], Stream] = {}
        self.accounts: dict[str, Account] = {}

    # -- publishers

    def stream(self, publisher: str, topic: str, qos: int) -> Stream:
        """The stream of ``publisher`` to ``topic``, made at its first use."""
        stream = self.streams.get((publisher, topic))
        if stream is None:
            stream = self.streams[publisher, topic] = Stream(publisher, topic, qos)
            for account in self.accounts.values():
                self._connect(stream, account)
        return stream

    def _connect(self, stream: Stream, account: Account) -> None:
        if not account.wants(stream.topic):
            return
        flow = account.flows[stream.publisher, stream.topic] = Flow(stream, account)
        stream.flows.append(flow)
        granted = account.subscribed_qos(stream.topic) if account.present else None
        if granted is not None:
            flow.open(granted)
            if flow.qos == 0 and account.away >= account.present:
                flow.close()

    # -- consumers

    def account(
        self,
        name: str,
        filters: Sequence[tuple[str, int]],
        *,
        durable: bool = False,
        members: Sequence[str] = (),
        group: bool = False,
        newest_only: bool = False,
    ) -> Account:
        """A new account; its filters must not overlap, because a second copy would look like a duplicate."""
        account = self.accounts[name] = Account(name, filters, durable, members or (name,), group, newest_only)
        for stream in self.streams.values():
            self._connect(stream, account)
        return account

    def subscribed(self, account: Account, member: str, granted: Sequence[int]) -> None:
        """SUBACK arrived at ``member``; ``granted`` holds a QoS or a reason code of 0x80 or more for each filter."""
        for (topic_filter, _), code in zip(account.filters, granted, strict=True):
            if code >= 0x80:
                account.refusals[topic_filter] = code
            else:
                account.granted[topic_filter] = code
        account.present.add(member)
        account.away.discard(member)
        for flow in account.flows.values():
            qos = account.subscribed_qos(flow.stream.topic)
            if qos is not None:
                flow.open(qos)

    def resumed(self, account: Account, member: str) -> None:
        """``member`` is back and the broker still had its durable session."""
        account.away.discard(member)
        for flow in account.flows.values():
            qos = account.subscribed_qos(flow.stream.topic)
            if qos is not None:
                flow.open(qos)

    def left(self, account: Account, member: str) -> None:
        """The connection of ``member`` is gone, and with it its session unless that is durable."""
        if member not in account.present:
            return
        if account.durable:
            account.away.add(member)
        else:
            account.present.discard(member)
        anybody = account.present > account.away
        for flow in account.flows.values():
            if account.durable and flow.qos > 0:
                continue
            if anybody:
                flow.excuse()  # the others of the group go on, but what this one had may be gone
            else:
                flow.close()

    def receive(self, account: Account, member: str, topic: str, payload: bytes, *, retain: bool, now_us: int) -> None:
        """A message arrived. ``now_us``: the scenario's time, on the scale of the stamps."""
        account.received += 1
        stamp = read_stamp(payload)
        if stamp is None:
            account.foreign += 1
            return
        flow = account.flows.get((stamp.publisher, topic))
        if not account.wants(topic):
            account.misrouted += 1
            return
        if not stamp.intact:
            account.corrupted += 1
            return
        sequence = stamp.sequence
        if retain:
            if flow is not None:
                flow.retained += 1
            return
        if sequence == 0:
            account.wills += 1
            return
        if flow is None or sequence > flow.stream.sent:
            # Somebody else's fleet is a stranger; a message of ours that we have not sent cannot exist.
            if flow is None:
                account.foreign += 1
            else:
                account.phantoms += 1
            return
        if not flow.received.add(sequence):
            flow.duplicates += 1
            return
        if not self._in_order(flow, member, sequence):
            flow.reordered += 1
        if flow.owes(sequence) and (flow.excused is None or sequence not in flow.excused):
            account.delivered[flow.qos > 0] += 1
        if account.newest_only and sequence > flow.newest:
            flow.skip(sequence)
            flow.newest = sequence
        latency = now_us - stamp.at_us
        flow.latency.record(latency)
        account.latency.record(latency)
        account.service.record(latency - flow.stream.late.get(sequence, 0))

    def _in_order(self, flow: Flow, member: str, sequence: int) -> bool:
        """Whether nothing later came to this connection before; a group has an order for each of its members."""
        before = flow.highest.get(member, 0)
        flow.highest[member] = max(before, sequence)
        return sequence > before

    # -- results

    def results(self) -> Iterator[FlowResult]:
        """Every (publisher, topic, consumer) with anything to tell."""
        for account in self.accounts.values():
            for flow in account.flows.values():
                if flow.stream.sent or flow.retained:
                    yield self._result(flow)

    def _result(self, flow: Flow) -> FlowResult:
        stream, account = flow.stream, flow.account
        owed = flow.all_owed()
        if flow.skipped is not None:
            owed = owed.difference(flow.skipped)
        missing = owed.difference(flow.received)
        certain = missing.difference(stream.outstanding())
        if flow.excused is not None:
            certain = certain.difference(flow.excused)
        if account.newest_only and certain:
            last = max(high for _, high in certain.ranges())  # those before it would have been out of date
            out_of_date = certain.difference(Intervals([(last, last)]))
            owed, missing = owed.difference(out_of_date), missing.difference(out_of_date)
            certain = Intervals([(last, last)])
        result = FlowResult(
            publisher=stream.publisher,
            topic=stream.topic,
            consumer=account.name,
            qos=flow.qos,
            sent=stream.sent,
            acknowledged=len(stream.acknowledged),
            owed=len(owed),
            delivered=len(owed) - len(missing),
            lost=len(certain),
            uncertain=len(missing) - len(certain),
            duplicated=flow.duplicates,
            reordered=flow.reordered,
            retained=flow.retained,
            latency=flow.latency,
            skipped=len(flow.skipped) if flow.skipped is not None else 0,
        )
        result.broken = self._broken(flow, result)
        return result

    def _broken(self, flow: Flow, result: FlowResult) -> list[str]:
        stream, account, broken = flow.stream, flow.account, []
        if result.lost and result.qos > 0:
            what = "the last value was" if account.newest_only else f"{result.lost}"
            broken.append(f"{what} acknowledged and never delivered at QoS {result.qos}")
        elif result.lost > self.qos0_loss_max * result.owed:
            broken.append(f"{result.lost} of {result.owed} lost at QoS 0, more than {self.qos0_loss_max:.2%}")
        if result.duplicated and result.qos == 2:
            broken.append(f"{result.duplicated} delivered twice at QoS 2")
        elif result.duplicated and not (
            (stream.qos == 1 and stream.resumed) or (result.qos == 1 and account.reconnects)
        ):
            broken.append(f"{result.duplicated} delivered twice with no reconnect to explain it")
        # A group's member may get again, later, what another one left behind: an order is only promised to one session.
        if result.reordered and not account.group:
            broken.append(f"{result.reordered} out of order")
        return broken

    def account_troubles(self, account: Account) -> list[str]:
        """Broken promises that belong to no single flow."""
        troubles = [
            f"the broker refused the subscription to {topic_filter} with reason 0x{code:02x}"
            for topic_filter, code in account.refusals.items()
        ]
        counted = (
            (account.misrouted, "arrived that no filter asked for"),
            (account.corrupted, "arrived with changed bytes"),
            (account.phantoms, "arrived before or without having been sent"),
            (account.sessions_lost, "times the broker had forgotten a session that it should have kept"),
        )
        return troubles + [f"{count} {what}" for count, what in counted if count]

    def merge(self, other: "Ledger") -> None:
        """Take over the books of another part of the same run. Raises TidingsError if a (publisher, topic, consumer)
        is in both.

        Each part must hold both ends of its flows; a consumer of the same name becomes one account.
        """
        for name, account in other.accounts.items():
            mine = self.accounts.get(name)
            if mine is not None and not mine.flows.keys().isdisjoint(account.flows):
                publisher, topic = next(iter(mine.flows.keys() & account.flows.keys()))
                raise TidingsError(f"both ledgers account for {publisher}, {topic}, {name}")
        for key, stream in other.streams.items():
            if key in self.streams:
                raise TidingsError(f"both ledgers have sent as {key[0]} to {key[1]}")
            self.streams[key] = stream
        for name, account in other.accounts.items():
            mine = self.accounts.get(name)
            if mine is None:
                self.accounts[name] = account
            else:
                _add(mine, account)


def _add(mine: Account, other: Account) -> None:
    for key, flow in other.flows.items():
        flow.account = mine
        mine.flows[key] = flow
    mine.members = tuple(dict.fromkeys((*mine.members, *other.members)))
    mine.granted.update(other.granted)
    mine.refusals.update(other.refusals)
    mine.present |= other.present
    mine.away |= other.away
    for name in ("reconnects", "sessions_lost", "received", "foreign", "wills", "misrouted", "corrupted", "phantoms"):
        setattr(mine, name, getattr(mine, name) + getattr(other, name))
    for index in (0, 1):
        mine.owed[index] += other.owed[index]
        mine.delivered[index] += other.delivered[index]
    mine.latency.merge(other.latency)
    mine.service.merge(other.service)
