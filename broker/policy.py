"""What a subscription wants when its client cannot keep up: everything, the newest of each topic, or a sample.

    all [; overflow=drop-oldest | drop-newest | disconnect | spill]     the ordinary queue and what happens at its bound
    latest                                                              one waiting message per topic, the newest
    sample=RATE                                                         the same, and at most RATE a second and topic
    … ; tell-missed                                                     say in the next message how many were skipped

A policy is a value: it holds no messages and drops none, ``Window`` does. None stands for ``all`` without a word about
overflow everywhere, so that ordinary subscriptions cost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from .errors import ProtocolError

if TYPE_CHECKING:
    from .config import PolicyRule

PROPERTY: Final = "tidings-policy"  # user property of SUBSCRIBE
MISSED_PROPERTY: Final = "tidings-missed"  # user property of a PUBLISH to a subscriber that asked with tell-missed
NOT_SUPPORTED: Final = 0x83  # Implementation specific error
MIN_RATE: Final = 0.001
MAX_RATE: Final = 1_000.0
GRAMMAR: Final = "all, latest or sample=RATE; all may have ; overflow=RULE, and each ; tell-missed"


class Overflow(Enum):
    """What happens to a message that does not fit into the queue of its session."""

    DROP_NEWEST = "drop-newest"
    DROP_OLDEST = "drop-oldest"
    DISCONNECT = "disconnect"  # the client is cut off with 0x97; a durable session stays
    SPILL = "spill"  # it goes to the store, up to the bound there


@dataclass(slots=True, frozen=True)
class Policy:
    """``period_s``: None = all, 0 = latest, else the seconds between two messages of a topic (sample).

    ``overflow`` None: spill what is kept for a durable session in a broker with a data directory, else drop the oldest.
    """

    period_s: float | None = None
    overflow: Overflow | None = None
    tell_missed: bool = False

    def __str__(self) -> str:
        if self.period_s is None:
            words = ["all"]
        else:
            words = [f"sample={1 / self.period_s:.6g}" if self.period_s else "latest"]
        if self.overflow is not None:
            words.append(f"overflow={self.overflow.value}")
        if self.tell_missed:
            words.append("tell-missed")
        return "; ".join(words)


def parse_policy(text: str) -> Policy | None:
    """The policy that ``text`` names; None for plain ``all``. Raises ValueError in words that a client can use."""
    kind, *options = [part.strip() for part in text.split(";")]
    period_s: float | None = None
    if kind == "latest":
        period_s = 0.0
    elif kind.startswith("sample="):
        period_s = 1.0 / _rate(kind.removeprefix("sample="))
    elif kind != "all":
        raise ValueError(f"policy {kind[:40]!r} is not one of: {GRAMMAR}")
    overflow: Overflow | None = None
    tell_missed = False
    for option in options:
        name, _, value = option.partition("=")
        if option == "tell-missed" and not tell_missed:
            tell_missed = True
        elif name.strip() == "overflow" and overflow is None:
            if period_s is not None:
                raise ValueError(f"overflow belongs to the policy all, not to {kind}, which drops what is out of date")
            overflow = _overflow(value.strip())
        else:
            raise ValueError(f"{option[:40]!r} after {kind}: expected {GRAMMAR}")
    policy = Policy(period_s, overflow, tell_missed)
    return None if policy == ORDINARY else policy


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"sample={text[:40]}: expected messages a second, from {MIN_RATE:g} to {MAX_RATE:g}")
    return rate


def _overflow(text: str) -> Overflow:
    for one in Overflow:
        if text == one.value:
            return one
    raise ValueError(f"overflow={text[:40]}: expected one of {', '.join(one.value for one in Overflow)}")


def newest_only(policy: Policy | None) -> bool:
    """Whether newer messages replace what waits."""
    return policy is not None and policy.period_s is not None


def merged(one: Policy | None, other: Policy | None) -> Policy | None:
    """One policy for overlapping subscriptions of one session: the one that skips least.

    all before latest before sample, of two samples the faster; of two overflow rules spill, disconnect, none named,
    drop-oldest, drop-newest in this order. Whoever asked to be told of what was missed is told.
    """
    if one is other:
        return one
    first, second = one or ORDINARY, other or ORDINARY
    best = max(first, second, key=_strength)
    best = replace(best, tell_missed=first.tell_missed or second.tell_missed)
    return None if best == ORDINARY else best


def _strength(policy: Policy) -> tuple[int, float]:
    if policy.period_s is None:
        return 2, _RULES.index(policy.overflow)
    return (1, 0.0) if not policy.period_s else (0, -policy.period_s)


def choose(
    properties: Sequence[tuple[str, str]],
    rules: "Sequence[PolicyRule]",
    filter: str,
    client_id: str,
    user: str,
    durable: bool,
) -> Policy | None:
    """The policy of a subscription: what the SUBSCRIBE asks for, else the first rule of the configuration that fits.

    ``durable``: a store keeps what the session is owed. Raises ProtocolError 0x83 if the SUBSCRIBE asks for something
    that there is not.
    """
    asked = [value for name, value in properties if name == PROPERTY]
    if len(asked) > 1:
        raise ProtocolError(f"{PROPERTY} stands there {len(asked)} times", NOT_SUPPORTED)
    if asked:
        try:
            policy = parse_policy(asked[0])
            check_shared(filter, policy)
            if policy is not None and policy.overflow is Overflow.SPILL and not durable:
                raise ValueError("overflow=spill needs a session that outlives its connection and a broker with a disk")
        except ValueError as error:
            raise ProtocolError(str(error), NOT_SUPPORTED) from None
        return policy
    for rule in rules:
        if (
            covers(rule.filter, filter)
            and fnmatchcase(client_id, rule.client_id)
            and (rule.user == "*" or fnmatchcase(user, rule.user))
        ):
            return parse_policy(rule.policy)
    return None


def check_shared(filter: str, policy: Policy | None) -> None:
    """Raise ValueError if ``filter`` is shared and its members cannot have ``policy``."""
    if filter.startswith("$share/") and policy is not None and policy.period_s is not None:
        raise ValueError("a shared subscription has the policy all: what one member skips would be lost to the group")


def covers(wide: str, filter: str) -> bool:
    """Whether every topic that ``filter`` matches is matched by ``wide`` too."""
    if filter.startswith("$") and wide[:1] in ("+", "#"):
        return False
    levels, wanted = filter.split("/"), wide.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or levels[index] == "#" or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


ORDINARY: Final = Policy()
_RULES: Final = (Overflow.DROP_NEWEST, Overflow.DROP_OLDEST, None, Overflow.DISCONNECT, Overflow.SPILL)
