"""A Gate that says what the test tells it to, at once or later."""

from dataclasses import dataclass, field

from tidings.broker.core.engine import Engine
from tidings.broker.core.ports import Accepted, Action, Answer, Identity


@dataclass
class ListGate:
    """``answers`` to who they are, in order, then ``Accepted``; None = later. ``rules``: (action, topic) → may, None =
    later; what they do not have is ``default``. ``questions`` is what was asked, ``gone`` who has left."""

    answers: list[Answer | None] = field(default_factory=list)
    rules: dict[tuple[Action, str], bool | None] = field(default_factory=dict)
    default: bool | None = True
    asked: list[tuple[str, bytes | None]] = field(default_factory=list)
    questions: list[tuple[Action, str]] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    gone: list[Identity] = field(default_factory=list)

    def _next(self, what: str, identity: Identity) -> Answer | None:
        self.asked.append((what, identity.data))
        return self.answers.pop(0) if self.answers else Accepted()

    def authenticate(self, identity: Identity, now: float) -> Answer | None:
        self.identities.append(identity)
        return self._next("authenticate", identity)

    def respond(self, identity: Identity, now: float) -> Answer | None:
        return self._next("respond", identity)

    def reauthenticate(self, identity: Identity, now: float) -> Answer | None:
        return self._next("reauthenticate", identity)

    def may(self, identity: Identity, action: Action, topic: str, now: float) -> bool | None:
        self.questions.append((action, topic))
        return self.rules.get((action, topic), self.default)

    def left(self, identity: Identity, now: float) -> None:
        self.gone.append(identity)

    # what the test does

    def decide(self, engine: Engine, answer: Answer, now: float = 1.0, number: int = -1) -> None:
        """Answer late who a client is."""
        engine.decided(self.identities[number], answer, now)

    def allow(
        self, engine: Engine, action: Action, topic: str, may: bool = True, now: float = 1.0, number: int = -1
    ) -> None:
        """Answer late what a client may do."""
        engine.allowed(self.identities[number], action, topic, may, now)
