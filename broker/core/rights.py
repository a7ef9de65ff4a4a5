"""What one client may do: the gate's decisions for one connection, remembered.

1. A decision holds for ``decision_lifetime_s``, or until ``forget``.
2. What is remembered is bounded: the oldest goes first.
3. The gate is asked once for what is not remembered, however many messages meanwhile need the answer; and at most
   ``MAX_ASKED`` questions are open for packets, as many for deliveries. What is not asked now is asked at the next try.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from .ports import Action, Gate, Identity
from .topics import MAX_CACHED_TOPIC, split_share

if TYPE_CHECKING:
    from ..config import Config

MAX_ASKED: Final = 64
MAX_LONG: Final = 4  # topics longer than MAX_CACHED_TOPIC of which the decision is remembered

Decisions = dict[str, tuple[float, bool]]  # topic → until when, and what


class Undecided(Exception):
    """The gate has to decide first. Nothing was done; the packet is to be handled again when it has."""


class Rights:
    """What the client of ``identity`` may do, as ``gate`` says."""

    __slots__ = (
        "_answers",
        "_asked",
        "_asked_receive",
        "_gate",
        "_identity",
        "_known",
        "_lifetime_s",
        "_limit",
        "_long",
        "_publish",
        "_receive",
    )

    def __init__(self, gate: Gate, identity: Identity, config: "Config") -> None:
        self._gate = gate
        self._identity = identity
        self._lifetime_s = config.decision_lifetime_s
        self._limit = config.max_decisions
        # One dict for each action, because all messages look into two of them.
        self._publish: Decisions = {}
        self._receive: Decisions = {}
        self._known = {Action.PUBLISH: self._publish, Action.SUBSCRIBE: Decisions(), Action.RECEIVE: self._receive}
        self._long: dict[tuple[Action, str], tuple[float, bool]] = {}
        # What is under way, for packets and for deliveries, and whether it was asked before the last ``forget``
        self._asked: dict[tuple[Action, str], bool] = {}
        self._asked_receive: dict[tuple[Action, str], bool] = {}
        self._answers: dict[tuple[Action, str], bool] = {}  # for the packet that waits

    @property
    def waits(self) -> bool:
        """Whether a decision is under way that a packet of the client needs."""
        return bool(self._asked)

    def receive(self, topic: str, now: float) -> bool | None:
        """Whether the client may be sent a message on ``topic``; None = not decided yet."""
        known = self._receive.get(topic)
        if known is not None and known[0] >= now:
            return known[1]
        return self._ask(Action.RECEIVE, topic, now)

    def publish(self, topic: str, now: float) -> bool:
        """Whether the client may publish to ``topic``. Raises Undecided."""
        known = self._publish.get(topic)
        if known is not None and known[0] >= now:
            return known[1]
        return self._all(Action.PUBLISH, (topic,), now)[topic]

    def subscribe(self, filters: Iterable[str], now: float) -> dict[str, bool]:
        """Which of ``filters`` the client may subscribe to. Raises Undecided."""
        inner = {filter: split_share(filter)[1] for filter in filters}
        may = self._all(Action.SUBSCRIBE, inner.values(), now)
        return {filter: may[inner[filter]] for filter in inner}

    def _all(self, action: Action, topics: Iterable[str], now: float) -> dict[str, bool]:
        """Whether the client may do ``action``, for each of ``topics``. Raises Undecided once all have been asked."""
        remembered = self._known[action]
        found: dict[str, bool] = {}
        undecided = False
        for topic in topics:
            known = remembered.get(topic)
            may = known[1] if known is not None and known[0] >= now else self._ask(action, topic, now)
            if may is None:
                undecided = True
            else:
                found[topic] = may
        if undecided:
            raise Undecided
        return found

    def _ask(self, action: Action, topic: str, now: float) -> bool | None:
        key = (action, topic)
        if key in self._answers:
            return self._answers[key]
        if key in self._long and self._long[key][0] >= now:
            return self._long[key][1]
        asked = self._asked_receive if action is Action.RECEIVE else self._asked
        if key in asked or len(asked) >= MAX_ASKED:
            return None
        try:
            may = self._gate.may(self._identity, action, topic, now)
        except Exception:  # it must not cost the publisher of a message that one of its receivers is in doubt
            logging.getLogger("tidings.broker").exception("the gate failed; %s is refused", action.value)
            may = False
        if may is None:
            asked[key] = False
        else:
            self._remember(key, may, now)
        return may

    def decided(self, action: Action, topic: str, may: bool, now: float) -> bool:
        """The gate has decided what it was asked; False if nobody waits for that any more."""
        key = (action, topic)
        stale = (self._asked_receive if action is Action.RECEIVE else self._asked).pop(key, None)
        if stale is None:
            return False
        if stale:
            return self._ask(action, topic, now) is not None
        self._remember(key, may, now)
        if action is not Action.RECEIVE:
            self._answers[key] = may
        return True

    def _remember(self, key: tuple[Action, str], may: bool, now: float) -> None:
        action, topic = key
        decision = (now + self._lifetime_s, may)
        if len(topic) > MAX_CACHED_TOPIC:
            self._long.pop(key, None)
            self._long[key] = decision
            if len(self._long) > MAX_LONG:
                del self._long[next(iter(self._long))]
            return
        known = self._known[action]
        known.pop(topic, None)  # so that it becomes the newest
        known[topic] = decision
        if len(known) > self._limit:
            del known[next(iter(known))]

    def done(self) -> None:
        """The packet that waited has been handled."""
        self._answers.clear()

    def forget(self) -> None:
        """Ask anew from now on, also where an answer is still under way."""
        for known in self._known.values():
            known.clear()
        self._long.clear()
        self._answers.clear()
        self._asked = dict.fromkeys(self._asked, True)
        self._asked_receive = dict.fromkeys(self._asked_receive, True)
