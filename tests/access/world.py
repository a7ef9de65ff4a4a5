"""An engine behind an ``AccessGate``, in virtual time: passwords are checked and delays end when the test says so."""

import itertools
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, cast

from scramp import ScramClient

from tidings.broker.access.gate import AccessGate
from tidings.broker.access.rules import parse_rules
from tidings.broker.access.terms import Terms
from tidings.broker.access.users import MIN_ROUNDS, User, new_user
from tidings.broker.codec.packets import Auth, Connack, Connect
from tidings.broker.codec.properties import Properties
from tidings.broker.core.ports import Answer, Identity

from ..conformance.wire import Peer, Wire

METHOD = "SCRAM-SHA-256"
HERE = "192.0.2.7"


def users(*names: str, password: str = "right") -> dict[str, User]:
    """Users with the same password, whose keys are those of SCRAM because they are made and checked quickly."""
    keys = new_user("x", password, scram=True, rounds=MIN_ROUNDS)
    return {name: User(name, f"{name} {keys.hash}", keys.scram) for name in names}


class Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class World:
    """``rules`` as an access file has them; the rest as ``Terms``."""

    def __init__(self, known: dict[str, User] | None = None, rules: str | None = None, **terms: Any) -> None:
        self.wire = Wire()
        self.terms = Terms(known, None if rules is None else parse_rules(rules, "access"), **terms)
        self.gate = AccessGate(
            self.terms,
            clock=lambda: self.wire.now,
            later=self._later,
            submit=lambda work, done: self.checks.append((work, done)),
            decided=lambda identity, answer: self._answers.append((identity, answer)),
        )
        self.wire.engine.gate = self.gate
        self.checks: deque[tuple[Callable[[], bool], Callable[[bool], None]]] = deque()
        self._answers: deque[tuple[Identity, Answer]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def _later(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heappush(self._timers, (self.wire.now + seconds, next(self._numbers), timer))
        return timer

    def settle(self, checks: int = 1_000_000) -> int:
        """Check so many passwords at most, and hand over what was decided; how many were checked."""
        done = 0
        while self._answers or (self.checks and done < checks):
            if self._answers:
                identity, answer = self._answers.popleft()
                self.wire.engine.decided(identity, answer, self.wire.now)
                self.wire.settle()
            else:
                work, hand_over = self.checks.popleft()
                hand_over(work())
                done += 1
        return done

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.wire.now + seconds
        self.settle()
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heappop(self._timers)
            self.wire.advance(max(0.0, at - self.wire.now))
            if timer.call is not None:
                timer.call()
            self.settle()
        self.wire.advance(end - self.wire.now)
        self.settle()

    def open(self, address: str = HERE, tls: object = None, version: int = 5) -> Peer:
        """A connection from ``address``."""
        peer = self.wire.open(version)
        peer._connection.peer = f"{address}:4000"
        peer._connection.tls = tls
        return peer

    def knock(
        self,
        user: str | None = None,
        password: str | bytes | None = "right",
        client_id: str = "c",
        address: str = HERE,
        version: int = 5,
        tls: object = None,
        **rest: Any,
    ) -> Peer:
        """Send CONNECT, and nothing more."""
        peer = self.open(address, tls, version)
        secret = password.encode() if isinstance(password, str) else password
        peer.send(
            Connect(client_id, version, username=user, password=None if user is None else secret, keep_alive=0, **rest)
        )
        return peer

    def enter(self, user: str | None = None, client_id: str = "c", **rest: Any) -> Peer:
        """A client that was let in."""
        peer = self.knock(user, client_id=client_id, **rest)
        self.settle()
        assert reason(peer) == 0
        return peer

    # SCRAM

    def scram(self, user: str, password: str = "right", **rest: Any) -> "tuple[Peer, ScramClient]":
        """Send CONNECT with the client's first message."""
        client = ScramClient([METHOD], user, password)
        peer = self.open(rest.pop("address", HERE))
        properties = {"authentication_method": METHOD, "authentication_data": client.get_client_first().encode()}
        peer.send(Connect(rest.pop("client_id", "c"), properties=cast(Properties, properties), **rest))
        return peer, client


def auth(data: str, reason: int = 0x18) -> Auth:
    """A message of SCRAM in an AUTH packet."""
    return Auth(reason, {"authentication_method": METHOD, "authentication_data": data.encode()})


def data_of(packet: Auth | Connack) -> str:
    return packet.properties["authentication_data"].decode()


def reason(peer: Peer) -> int | None:
    """Of the CONNACK that came; None = none did."""
    packets = peer.receive()
    if not packets:
        return None
    assert isinstance(packets[0], Connack)
    return packets[0].reason
