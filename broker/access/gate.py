"""The gate of the password file, the access file and the bans: who is let in, and what they may do.

1. Nothing here waits: passwords are checked elsewhere (``Checks``), and whoever has guessed wrong waits (``Throttle``).
2. What is wrong with a password, a user name or a proof is not told to the client, only that something is; the log
   says who and from where. Passwords are in neither.
3. A password that was right is remembered, as a keyed hash, so that a crowd that comes back is let in at once.
"""

import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Final, Protocol

from ..codec.reasons import ReasonCode
from ..core.ports import Accepted, Action, Answer, Challenge, Identity, Refused
from ..network import group, host_of
from .checks import Checks, Submit
from .rules import ClientRules
from .scram import Exchange, ScramError
from .terms import Terms, certificate_name
from .throttle import Throttle
from .users import SCRAM, User, nobody

log: Final = logging.getLogger("tidings.broker")

MAX_PROVEN: Final = 100_000
WRONG: Final = Refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "wrong user name or password")
TOO_OFTEN: Final = Refused(ReasonCode.CONNECTION_RATE_EXCEEDED, "too many wrong passwords; try again later")
BUSY: Final = Refused(ReasonCode.SERVER_BUSY, "too many passwords wait to be checked; try again later")


class Cancel(Protocol):
    """What is going to happen later, unless it is cancelled."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Cancel]


class _Client:
    """What the gate knows of one connection (``Identity.note``)."""

    __slots__ = ("attempt", "exchange", "record", "rules")

    def __init__(self) -> None:
        self.attempt: _Attempt | None = None
        self.exchange: Exchange | None = None
        self.record: User | None = None  # by which it was let in
        self.rules: ClientRules | None = None


class AccessGate:
    """``decided`` takes answers that come late, in a turn of its own; ``later`` calls back after so many seconds.

    ``clock`` is engine time.
    """

    def __init__(
        self,
        terms: Terms,
        *,
        clock: Callable[[], float],
        later: Later,
        submit: Submit,
        decided: Callable[[Identity, Answer], None],
    ) -> None:
        self._terms = terms
        self._clock = clock
        self._later = later
        self._decided = decided
        self._checks = Checks(submit)
        self._throttle = Throttle()
        self._secret = secrets.token_bytes(32)
        self._proven: OrderedDict[str, tuple[User, bytes]] = OrderedDict()

    # what the engine asks

    def authenticate(self, identity: Identity, now: float) -> Answer | None:
        """See ``Gate``."""
        terms = self._terms
        identity.note = client = _Client()
        if identity.method:
            if identity.method != SCRAM or terms.users is None:
                return Refused(ReasonCode.BAD_AUTHENTICATION_METHOD, "the authentication method is not known")
            return self._begin(identity, client)
        name = certificate_name(identity.tls) if terms.user_from_certificate else ""
        if name or terms.users is None:
            return self._admit(identity, name)  # without a password file a user name proves nothing
        if not identity.user:
            if terms.allow_anonymous:
                return self._admit(identity, "")
            return self._refuse(identity, Refused(ReasonCode.NOT_AUTHORIZED, "a user name is needed"), "no user name")
        banned = terms.why_banned(identity.user, identity.client_id)
        if banned:
            return self._refuse(identity, Refused(ReasonCode.BANNED), banned)
        user = terms.users.get(identity.user)
        attempt = client.attempt = _Attempt(self, identity, user, self._throttle.count(*who(identity), now))
        wait_s = self._throttle.wait(attempt.address, identity.user, now)
        if wait_s is None:
            return self._refuse(identity, TOO_OFTEN, "too many wrong passwords")
        if wait_s:
            attempt.wait(wait_s)
            return None
        if user is not None and self._is_proven(user, attempt.password):
            client.attempt = None
            return self._let_in(identity, user)
        return None if self._checks.add(attempt) else self._refuse(identity, BUSY, "too many passwords wait")

    def respond(self, identity: Identity, now: float) -> Answer | None:
        """See ``Gate``."""
        client = note(identity)
        exchange = client.exchange
        if exchange is None:
            return self._begin(identity, client)
        wait_s = self._throttle.wait(group(host_of(identity.peer)), exchange.user, now)
        if wait_s is None:
            return self._refuse(identity, TOO_OFTEN, "too many wrong proofs", exchange.user)
        if wait_s:
            data = identity.data or b""
            client.attempt = _Attempt(self, identity, None, 0)
            client.attempt.timer = self._later(wait_s, lambda: self._decided(identity, self._prove(identity, data)))
            return None
        return self._prove(identity, identity.data or b"")

    def reauthenticate(self, identity: Identity, now: float) -> Answer | None:
        """See ``Gate``."""
        client = note(identity)
        client.exchange = None
        return self._begin(identity, client)

    def may(self, identity: Identity, action: Action, topic: str, now: float) -> bool | None:
        """See ``Gate``."""
        rules = self._terms.rules
        if rules is None:
            return True
        client = note(identity)
        if client.rules is None:
            client.rules = ClientRules(rules, identity.user, identity.client_id)
        decision = client.rules.decide(action, topic)
        if not decision.allowed and log.isEnabledFor(logging.DEBUG):
            why = "no line fits" if decision.rule is None else f"line {decision.rule.line}: {decision.rule.text}"
            log.debug("%.200r may not %s %.200r: %s", identity.client_id, action.value, topic, why)
        return decision.allowed

    def left(self, identity: Identity, now: float) -> None:
        """See ``Gate``."""
        attempt = note(identity).attempt
        if attempt is not None:
            attempt.give_up()

    # new terms

    def use(self, terms: Terms) -> None:
        """Decide by ``terms`` from now on. See ``why_not`` for those who are in."""
        self._terms = terms
        for name in [name for name, (user, _) in self._proven.items() if (terms.users or {}).get(name) != user]:
            del self._proven[name]

    def why_not(self, identity: Identity) -> str:
        """Why a client that was let in may not stay, "" if it may."""
        terms, client = self._terms, note(identity)
        client.rules = None
        banned = terms.why_banned(identity.user, identity.client_id)
        if banned:
            return banned
        if client.record is not None and (terms.users or {}).get(client.record.name) != client.record:
            return f"user {client.record.name!r} was removed or has a new password"
        if terms.users is not None and not identity.user and not terms.allow_anonymous:
            return "a user name is needed"
        if terms.rules is not None and not terms.rules.may_be(identity.user, identity.client_id):
            return f"user {identity.user!r} may not have client id {identity.client_id!r}"
        return ""

    # passwords

    def checked(self, attempt: "_Attempt", right: bool) -> None:
        """A password was checked."""
        identity, user = attempt.identity, attempt.user
        note(identity).attempt = None
        if right and user is not None and (self._terms.users or {}).get(user.name) == user:
            self._proven[user.name] = user, self._digest(user, attempt.password)
            self._proven.move_to_end(user.name)
            if len(self._proven) > MAX_PROVEN:
                self._proven.popitem(last=False)
            self._decided(identity, self._let_in(identity, user))
        else:
            self._decided(identity, self._failed(identity, identity.user, "wrong password"))

    def start(self, attempt: "_Attempt") -> bool:
        """The turn of ``attempt`` has come; False if it does not need it, or not now."""
        now = self._clock()
        if not attempt.waited and self._throttle.count(*who(attempt.identity), now) > attempt.failures:
            wait_s = self._throttle.wait(attempt.address, attempt.identity.user, now)
            if wait_s is None:
                note(attempt.identity).attempt = None
                self._decided(attempt.identity, self._refuse(attempt.identity, TOO_OFTEN, "too many wrong passwords"))
                return False
            if wait_s:
                attempt.wait(wait_s)
                return False
        return True

    def again(self, attempt: "_Attempt") -> None:
        """``attempt`` has waited long enough."""
        if attempt.user is not None and self._is_proven(attempt.user, attempt.password):
            self.checked(attempt, True)
        elif not self._checks.add(attempt):
            note(attempt.identity).attempt = None
            self._decided(attempt.identity, self._refuse(attempt.identity, BUSY, "too many passwords wait"))

    def later(self, wait_s: float, attempt: "_Attempt") -> Cancel:
        """Call ``again`` after so many seconds."""
        return self._later(wait_s, lambda: self.again(attempt))

    def drop(self, attempt: "_Attempt") -> None:
        """Nobody waits for ``attempt`` any more."""
        self._checks.drop(attempt)

    def _digest(self, user: User, password: bytes) -> bytes:
        return blake2b(password, key=self._secret, digest_size=32, person=b"proven").digest()

    def _is_proven(self, user: User, password: bytes) -> bool:
        known = self._proven.get(user.name)
        return known is not None and known[0] == user and hmac.compare_digest(known[1], self._digest(user, password))

    # SCRAM

    def _begin(self, identity: Identity, client: _Client) -> Answer:
        if not identity.data:
            return Challenge()  # the client has the first word
        client.exchange = exchange = Exchange(self._terms.users or {}, self._secret)
        try:
            challenge = exchange.first(identity.data)
        except ScramError as error:
            return self._failed(identity, exchange.user, f"SCRAM: {error}")
        if identity.user and identity.user != exchange.user:
            return self._failed(identity, exchange.user, "SCRAM as another user than CONNECT")
        return Challenge(challenge)

    def _prove(self, identity: Identity, data: bytes) -> Answer:
        client = note(identity)
        exchange, client.exchange, client.attempt = client.exchange, None, None
        assert exchange is not None
        user = (self._terms.users or {}).get(exchange.user)
        try:
            proof = exchange.final(data)
            if user is None:
                raise ScramError("no such user")
        except ScramError as error:
            return self._failed(identity, exchange.user, f"SCRAM: {error}")
        return self._let_in(identity, user, proof)

    # the end of it

    def _let_in(self, identity: Identity, user: User, data: bytes | None = None) -> Answer:
        self._throttle.succeeded(group(host_of(identity.peer)), user.name)
        note(identity).record = user
        return self._admit(identity, user.name, data)

    def _admit(self, identity: Identity, user: str, data: bytes | None = None) -> Answer:
        banned = self._terms.why_banned(user, identity.client_id)
        if banned:
            return self._refuse(identity, Refused(ReasonCode.BANNED), banned)
        rules = self._terms.rules
        if rules is not None and not rules.may_be(user, identity.client_id):
            refused = Refused(ReasonCode.CLIENT_IDENTIFIER_NOT_VALID, "this user may not have this client id")
            return self._refuse(identity, refused, f"user {user!r} may not have this client id")
        return Accepted(data, user)

    def _failed(self, identity: Identity, user: str, why: str) -> Answer:
        failures = self._throttle.failed(group(host_of(identity.peer)), user, self._clock())
        why = f"{why}, failure {failures} of its address" if failures else why
        return self._refuse(identity, WRONG, why, user)

    def _refuse(self, identity: Identity, refused: Refused, why: str, user: str = "") -> Refused:
        name = user or identity.user
        log.warning("refusing %.200r from %s, user %.200r: %s", identity.client_id, identity.peer, name, why)
        return refused


class _Attempt:
    """A password of one client on its way to being checked."""

    __slots__ = ("_gate", "address", "failures", "identity", "password", "timer", "user", "waited")

    def __init__(self, gate: AccessGate, identity: Identity, user: User | None, failures: int) -> None:
        self._gate = gate
        self.address = group(host_of(identity.peer))
        self.identity = identity
        self.user = user
        self.password = identity.password or b""
        self.failures = failures  # of its address and user when it came
        self.waited = False
        self.timer: Cancel | None = None

    def wait(self, wait_s: float) -> None:
        """Be checked after so many seconds at the earliest."""
        self.waited = True
        self.timer = self._gate.later(wait_s, self)

    def start(self) -> bool:
        """See ``Attempt``."""
        return self._gate.start(self)

    def check(self) -> bool:
        """See ``Attempt``."""
        return (self.user or nobody()).matches(self.password) and self.user is not None

    def done(self, right: bool) -> None:
        """See ``Attempt``."""
        self._gate.checked(self, right)

    def give_up(self) -> None:
        """The client is gone."""
        if self.timer is not None:
            self.timer.cancel()
        self._gate.drop(self)


def note(identity: Identity) -> _Client:
    """What the gate noted of a client."""
    client = identity.note
    if not isinstance(client, _Client):
        identity.note = client = _Client()
    return client


def who(identity: Identity) -> tuple[str, str]:
    """By what failures are counted."""
    return group(host_of(identity.peer)), identity.user
