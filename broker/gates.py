"""Two gates in a row: that of the password and access files, and after it the plugins. Both have to agree."""

from .access.gate import AccessGate
from .codec.reasons import ReasonCode
from .core.ports import Accepted, Action, Answer, Gate, Identity, Refused
from .plugins.host import Host


class Gates(Gate):
    """``then`` and ``finish`` take late answers of the one and the other, and tell what comes of them."""

    def __init__(self, access: AccessGate, plugins: Host) -> None:
        self._access = access
        self._plugins = plugins
        self._accepted: dict[Identity, Accepted] = {}  # by the first, while the second thinks

    def authenticate(self, identity: Identity, now: float) -> Answer | None:
        return self.then(identity, self._access.authenticate(identity, now))

    def respond(self, identity: Identity, now: float) -> Answer | None:
        return self.then(identity, self._access.respond(identity, now))

    def reauthenticate(self, identity: Identity, now: float) -> Answer | None:
        return self.then(identity, self._access.reauthenticate(identity, now))

    def then(self, identity: Identity, answer: Answer | None) -> Answer | None:
        """The first has answered: if it accepts, the plugins are asked; None = they think."""
        if not isinstance(answer, Accepted):
            return answer
        self._accepted[identity] = answer
        if answer.user:
            identity.user = (
                answer.user
            )  # whom the plugins shall know; without a proof they get the name that is claimed
        self._plugins.admit(identity)
        return None

    def finish(self, identity: Identity, answer: Answer) -> Answer:
        """The plugins have answered too."""
        first = self._accepted.pop(identity, None)
        if first is None or not isinstance(answer, Accepted):
            return answer
        user = first.user
        if not user and self._plugins.authenticates:
            user = identity.user = answer.user or ""
            if self._access.why_not(identity):  # it is only known now who it is
                return Refused(ReasonCode.NOT_AUTHORIZED, "not authorized")
        return Accepted(first.data, user)

    def may(self, identity: Identity, action: Action, topic: str, now: float) -> bool | None:
        first = self._access.may(identity, action, topic, now)
        return self._plugins.may(identity, action, topic, now) if first else first

    def left(self, identity: Identity, now: float) -> None:
        self._accepted.pop(identity, None)
        self._access.left(identity, now)
        self._plugins.left(identity, now)
