"""The ledger against a naive model that keeps every message, and each anomaly injected to see that it is found."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.errors import TidingsError
from tidings.devices.ledger import Account, FlowResult, Ledger, Stream
from tidings.devices.stamp import stamped

TOPIC = "dev/a/t"


class Books:
    """A ledger with one stream and one consumer, and short words for what happens."""

    def __init__(self, *, publish: int = 1, subscribe: int = 1, durable: bool = False, loss_max: float = 1.0) -> None:
        self.ledger = Ledger(loss_max)
        self.account: Account = self.ledger.account("c", [("dev/#", subscribe)], durable=durable)
        self.stream: Stream = self.ledger.stream("a", TOPIC, publish)
        self.subscribe = subscribe

    def subscribed(self) -> None:
        self.ledger.subscribed(self.account, "c", [self.subscribe])

    def send(self, count: int = 1, *, acknowledge: bool = True) -> None:
        for _ in range(count):
            sequence = self.stream.send()
            if acknowledge and self.stream.qos:
                self.stream.acknowledge(sequence, True)

    def deliver(self, *sequences: int, retain: bool = False, topic: str = TOPIC, now_us: int = 0) -> None:
        for sequence in sequences:
            payload = stamped(b'{"v":1}', "a", sequence, 0)
            self.ledger.receive(self.account, "c", topic, payload, retain=retain, now_us=now_us)

    @property
    def result(self) -> FlowResult:
        (result,) = self.ledger.results()
        return result


def test_what_was_sent_and_arrived_in_order_keeps_every_promise() -> None:
    books = Books(publish=2, subscribe=2)
    books.subscribed()
    books.send(3)
    books.deliver(1, 2, 3)
    result = books.result
    assert (result.qos, result.sent, result.acknowledged, result.owed, result.delivered) == (2, 3, 3, 3, 3)
    assert (result.lost, result.uncertain, result.duplicated, result.reordered, result.broken) == (0, 0, 0, 0, [])
    assert books.account.backlog == 0


@pytest.mark.parametrize(("publish", "subscribe"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_an_acknowledged_message_that_never_arrives_is_lost(publish: int, subscribe: int) -> None:
    books = Books(publish=publish, subscribe=subscribe)
    books.subscribed()
    books.send(3)
    books.deliver(1, 3)
    assert books.result.lost == 1
    assert "1 acknowledged and never delivered" in books.result.broken[0]
    assert books.account.sure_backlog == 1


def test_a_message_that_was_never_acknowledged_is_uncertain_and_breaks_nothing() -> None:
    books = Books()
    books.subscribed()
    books.send(2)
    books.send(1, acknowledge=False)
    books.deliver(1, 2)
    assert (books.result.lost, books.result.uncertain, books.result.broken) == (0, 1, [])


def test_a_refused_message_is_not_counted_as_lost() -> None:
    books = Books()
    books.subscribed()
    books.stream.acknowledge(books.stream.send(), False)
    assert (books.result.lost, books.result.uncertain) == (0, 1)
    assert books.stream.refused == 1


@pytest.mark.parametrize(("publish", "subscribe"), [(0, 0), (0, 2), (1, 0), (2, 0)])
def test_loss_at_qos_0_is_reported_and_breaks_nothing_unless_asked(publish: int, subscribe: int) -> None:
    for loss_max, broken in ((1.0, False), (0.5, False), (0.4, True)):
        books = Books(publish=publish, subscribe=subscribe, loss_max=loss_max)
        books.subscribed()
        books.send(2)
        books.deliver(1)
        assert books.result.lost == 1
        assert bool(books.result.broken) is broken


def test_a_duplicate_at_qos_2_breaks_the_promise_whatever_happened() -> None:
    books = Books(publish=2, subscribe=2)
    books.subscribed()
    books.account.reconnects = 1
    books.stream.resumed = True
    books.send(2)
    books.deliver(1, 1, 2)
    assert books.result.duplicated == 1
    assert "delivered twice at QoS 2" in books.result.broken[0]


@pytest.mark.parametrize("who", ["publisher", "consumer"])
def test_a_duplicate_at_qos_1_needs_a_reconnect_that_explains_it(who: str) -> None:
    books = Books()
    books.subscribed()
    books.send(1)
    books.deliver(1, 1)
    assert "no reconnect to explain it" in books.result.broken[0]
    if who == "publisher":
        books.stream.resumed = True
    else:
        books.account.reconnects = 1
    assert books.result.broken == []
    assert books.result.duplicated == 1


def test_a_duplicate_at_qos_0_is_explained_only_by_a_publisher_that_repeated() -> None:
    books = Books(publish=1, subscribe=0)
    books.subscribed()
    books.account.reconnects = 1
    books.send(1)
    books.deliver(1, 1)
    assert books.result.broken
    books.stream.resumed = True
    assert not books.result.broken


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_message_behind_a_later_one_is_out_of_order(qos: int) -> None:
    books = Books(publish=qos, subscribe=qos)
    books.subscribed()
    books.send(3)
    books.deliver(1, 3, 2)
    assert (books.result.reordered, books.result.lost) == (1, 0)
    assert "1 out of order" in books.result.broken


def test_changed_bytes_wrong_topics_and_messages_never_sent_are_found() -> None:
    books = Books()
    books.subscribed()
    books.send(1)
    payload = stamped(b'{"v":1}', "a", 1, 0).replace(b'"v":1', b'"v":2')
    books.ledger.receive(books.account, "c", TOPIC, payload, retain=False, now_us=0)
    books.deliver(1, topic="elsewhere")
    books.deliver(2)
    account = books.account
    assert (account.corrupted, account.misrouted, account.phantoms) == (1, 1, 1)
    assert len(books.ledger.account_troubles(account)) == 3
    assert books.result.lost == 1


def test_strangers_and_wills_are_counted_and_nothing_more() -> None:
    books = Books()
    books.subscribed()
    books.ledger.receive(books.account, "c", TOPIC, b"\x00\xff", retain=False, now_us=0)
    books.ledger.receive(books.account, "c", TOPIC, stamped(b"{}", "stranger", 5, 0), retain=False, now_us=0)
    books.deliver(0)
    assert (books.account.foreign, books.account.wills) == (2, 1)
    assert books.ledger.account_troubles(books.account) == []


def test_a_retained_message_is_no_delivery() -> None:
    books = Books()
    books.send(1)
    books.subscribed()
    books.deliver(1, retain=True)
    books.send(1)
    books.deliver(2)
    result = books.result
    assert (result.retained, result.owed, result.delivered, result.duplicated) == (1, 1, 1, 0)


def test_what_was_sent_before_the_subscription_is_not_owed_but_may_come() -> None:
    books = Books()
    books.send(2)
    books.subscribed()
    books.send(1)
    books.deliver(2, 3)
    assert (books.result.owed, books.result.delivered, books.result.broken) == (1, 1, [])
    assert books.account.backlog == 0


def test_a_clean_session_is_owed_nothing_while_it_is_away() -> None:
    books = Books()
    books.subscribed()
    books.send(3)
    books.deliver(1)
    books.ledger.left(books.account, "c")
    books.send(4)
    books.subscribed()
    books.send(1)
    books.deliver(8)
    result = books.result
    assert (result.owed, result.delivered, result.uncertain, result.lost) == (4, 2, 2, 0)
    assert books.account.backlog == 0


def test_a_durable_session_is_owed_everything_while_it_is_away() -> None:
    books = Books(durable=True)
    books.subscribed()
    books.ledger.left(books.account, "c")
    books.send(3)
    assert books.account.backlog == 3
    books.ledger.resumed(books.account, "c")
    books.deliver(1, 3)
    assert (books.result.owed, books.result.lost) == (3, 1)


def test_a_durable_session_is_owed_nothing_at_qos_0_while_it_is_away() -> None:
    books = Books(publish=0, durable=True, loss_max=0.0)
    books.subscribed()
    books.send(1)
    books.deliver(1)
    books.ledger.left(books.account, "c")
    books.send(3)
    late = books.ledger.stream("b", "dev/b", 0)
    late.send()
    books.ledger.resumed(books.account, "c")
    books.send(1)
    late.send()
    books.deliver(5)
    result = next(iter(books.ledger.results()))
    assert (result.owed, result.delivered, result.lost, result.broken) == (2, 2, 0, [])
    assert books.account.flows["b", "dev/b"].all_owed().ranges is not None
    assert len(books.account.flows["b", "dev/b"].all_owed()) == 1


def test_a_stream_that_begins_after_the_subscription_is_owed_from_its_first_message() -> None:
    books = Books()
    books.subscribed()
    later = books.ledger.stream("late", "dev/late", 1)
    later.acknowledge(later.send(), True)
    assert [result.lost for result in books.ledger.results()] == [1]


def test_a_filter_that_was_refused_is_owed_nothing_and_reported() -> None:
    ledger = Ledger()
    account = ledger.account("c", [("a/#", 1), ("b/#", 1)])
    streams = [ledger.stream("p", topic, 1) for topic in ("a/x", "b/x")]
    ledger.subscribed(account, "c", [0x87, 0])
    for stream in streams:
        stream.acknowledge(stream.send(), True)
    assert [(result.topic, result.owed, result.qos) for result in ledger.results()] == [("a/x", 0, 0), ("b/x", 1, 0)]
    assert "0x87" in ledger.account_troubles(account)[0]


def test_a_shared_group_is_owed_each_message_once() -> None:
    ledger = Ledger()
    group = ledger.account("g", [("dev/#", 1)], members=("g-1", "g-2"), group=True)
    stream = ledger.stream("a", TOPIC, 1)
    for member in group.members:
        ledger.subscribed(group, member, [1])
    for sequence in (1, 2, 3, 4):
        stream.acknowledge(stream.send(), True)
        member = group.members[sequence % 2]
        ledger.receive(group, member, TOPIC, stamped(b"{}", "a", sequence, 0), retain=False, now_us=0)
    (result,) = ledger.results()
    assert (result.owed, result.delivered, result.reordered, result.broken) == (4, 4, 0, [])
    ledger.receive(group, "g-1", TOPIC, stamped(b"{}", "a", 4, 0), retain=False, now_us=0)
    (result,) = ledger.results()
    assert result.duplicated == 1
    assert result.broken


def test_a_group_goes_on_without_a_member_and_loses_nothing_that_is_sent_later() -> None:
    ledger = Ledger()
    group = ledger.account("g", [("dev/#", 1)], members=("g-1", "g-2"), group=True)
    stream = ledger.stream("a", TOPIC, 1)
    for member in group.members:
        ledger.subscribed(group, member, [1])
    stream.acknowledge(stream.send(), True)
    ledger.left(group, "g-1")
    stream.acknowledge(stream.send(), True)
    (result,) = ledger.results()
    assert (result.owed, result.uncertain, result.lost) == (2, 1, 1)
    assert group.backlog == 1
    ledger.subscribed(group, "g-1", [1])
    ledger.left(group, "g-1")
    (result,) = ledger.results()
    assert (result.owed, result.uncertain, result.lost) == (2, 2, 0)
    assert group.backlog == 0


def test_latency_is_that_from_the_intended_time_and_from_the_sending() -> None:
    books = Books()
    books.subscribed()
    books.send(1)
    books.stream.wrote(1, 40_000)
    books.deliver(1, now_us=50_000)
    assert books.result.latency.maximum == 50_000
    assert books.account.service.maximum == 10_000


def test_memory_grows_with_gaps_and_not_with_messages() -> None:
    books = Books()
    books.subscribed()
    books.send(20_000)
    books.deliver(*(n for n in range(1, 20_001) if n != 777))
    (flow,) = books.account.flows.values()
    assert flow.received.range_count() == 2
    assert books.stream.acknowledged.range_count() == 1
    for sequence in range(10_000):
        books.stream.wrote(sequence, 5_000)
    assert len(books.stream.late) <= 4096


# -- the naive model


@dataclass
class NaiveMessage:
    acknowledged: bool = False
    owed: bool = False
    excused: bool = False
    arrivals: int = 0


@dataclass
class NaiveFlow:
    """Keeps every message; says the same things as the ledger, one message at a time."""

    durable: bool
    qos: int
    publish_qos: int
    messages: list[NaiveMessage] = field(default_factory=list)
    open: bool = False
    highest: int = 0
    reordered: int = 0

    def leave(self) -> None:
        if not self.open or (self.durable and self.qos > 0):
            return
        self.open = False
        for message in self.messages:
            if message.owed and not message.arrivals:
                message.excused = True

    def deliver(self, number: int) -> None:
        message = self.messages[number]
        message.arrivals += 1
        if message.arrivals == 1:
            self.reordered += number < self.highest
            self.highest = max(self.highest, number)

    def expected(self) -> tuple[int, ...]:
        owed = [message for message in self.messages if message.owed]
        missing = [message for message in owed if not message.arrivals]
        forgiven = [m for m in missing if m.excused or (self.publish_qos > 0 and not m.acknowledged)]
        return (
            len(self.messages),
            sum(message.acknowledged for message in self.messages),
            len(owed),
            len(owed) - len(missing),
            len(missing) - len(forgiven),
            len(forgiven),
            sum(max(0, message.arrivals - 1) for message in self.messages),
            self.reordered,
        )


Operations = list[tuple[str, int]]
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 5)),
        st.tuples(st.just("acknowledge"), st.integers(0, 40)),
        st.tuples(st.just("deliver"), st.integers(0, 40)),
        st.tuples(st.just("subscribe"), st.just(0)),
        st.tuples(st.just("leave"), st.just(0)),
    ),
    max_size=80,
)


def play(
    ledger: Ledger, publisher: str, operations: Operations, publish: int, subscribe: int, durable: bool
) -> NaiveFlow:
    """The same operations for a ledger and for the model, which is returned."""
    name = f"c-{publisher}"
    account = ledger.account(name, [("dev/#", subscribe)], durable=durable)
    stream = ledger.stream(publisher, f"dev/{publisher}", publish)
    model = NaiveFlow(durable, min(publish, subscribe), publish)
    for what, number in operations:
        if what == "send":
            for _ in range(number):
                stream.send()
                model.messages.append(NaiveMessage(owed=model.open))
        elif what == "acknowledge" and number < len(model.messages) and publish:
            stream.acknowledge(number + 1, True)
            model.messages[number].acknowledged = True
        elif what == "deliver" and number < len(model.messages):
            payload = stamped(b"{}", publisher, number + 1, 0)
            ledger.receive(account, name, f"dev/{publisher}", payload, retain=False, now_us=0)
            model.deliver(number)
        elif what == "subscribe":
            ledger.subscribed(account, name, [subscribe])
            model.open = True
        elif what == "leave":
            ledger.left(account, name)
            model.leave()
    return model


def numbers(result: FlowResult) -> tuple[int, ...]:
    return (
        result.sent,
        result.acknowledged,
        result.owed,
        result.delivered,
        result.lost,
        result.uncertain,
        result.duplicated,
        result.reordered,
    )


@given(OPERATIONS, st.integers(0, 2), st.integers(0, 2), st.booleans())
def test_the_ledger_says_what_a_naive_model_says(
    operations: Operations, publish: int, subscribe: int, durable: bool
) -> None:
    ledger = Ledger()
    model = play(ledger, "a", operations, publish, subscribe, durable)
    results = list(ledger.results())
    if not model.messages:
        assert results == []
        return
    assert numbers(results[0]) == model.expected()
    account = ledger.accounts["c-a"]
    assert account.backlog == sum(m.owed and not m.excused and not m.arrivals for m in model.messages)


@given(OPERATIONS, OPERATIONS)
def test_merged_books_are_those_of_one_ledger_that_saw_all(one: Operations, other: Operations) -> None:
    whole, left, right = Ledger(), Ledger(), Ledger()
    # Filters end below each publisher so that no consumer hears both.
    for ledger, parts in ((whole, "ab"), (left, "a"), (right, "b")):
        for publisher, operations in (("a", one), ("b", other)):
            if publisher in parts:
                account = ledger.account(f"c-{publisher}", [(f"dev/{publisher}", 1)])
                stream = ledger.stream(publisher, f"dev/{publisher}", 1)
                ledger.subscribed(account, account.name, [1])
                for what, number in operations:
                    if what == "send":
                        stream.send()
                    elif what == "deliver" and 1 <= number <= stream.sent:
                        payload = stamped(b"{}", publisher, number, 0)
                        ledger.receive(account, account.name, stream.topic, payload, retain=False, now_us=number)
    left.merge(right)
    assert [numbers(result) for result in left.results()] == [numbers(result) for result in whole.results()]
    assert {n: a.received for n, a in left.accounts.items()} == {n: a.received for n, a in whole.accounts.items()}


def test_merging_adds_accounts_of_the_same_name() -> None:
    parts = []
    for publisher in "ab":
        ledger = Ledger()
        account = ledger.account("all", [("dev/#", 1)])
        ledger.subscribed(account, "all", [1])
        stream = ledger.stream(publisher, f"dev/{publisher}", 1)
        stream.acknowledge(stream.send(), True)
        ledger.receive(account, "all", f"dev/{publisher}", stamped(b"{}", publisher, 1, 0), retain=False, now_us=100)
        parts.append(ledger)
    parts[0].merge(parts[1])
    account = parts[0].accounts["all"]
    assert (account.received, account.owed[1], account.delivered[1], account.latency.count) == (2, 2, 2, 2)
    assert [result.delivered for result in parts[0].results()] == [1, 1]


def test_books_that_share_a_flow_are_not_merged() -> None:
    one, other = Books(), Books()
    one.send(1)
    other.send(1)
    with pytest.raises(TidingsError, match="both ledgers account for a, dev/a/t, c"):
        one.ledger.merge(other.ledger)
