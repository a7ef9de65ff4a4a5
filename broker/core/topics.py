"""Topic names, topic filters, and who receives what: the subscription tree with its bounded cache of routes.

Filters without wildcards live in one dict, the others in a tree with one node per level. Matching walks the tree level
by level over a frontier of nodes, never recursively, so its work follows the levels of the topic and the filters that
match, not the filters there are. What it finds is a ``Route``, kept until a subscription changes it.

Rules: 5.0 section 4.7 (names and filters), 4.8.2 (shared subscriptions).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from ..codec.wire import MAX_STRING_BYTES
from ..errors import ProtocolError
from ..policy import Policy, merged

if TYPE_CHECKING:
    from ..config import Config
    from .window import Window

NOT_AUTHORIZED: Final = 0x87
TOPIC_FILTER_INVALID: Final = 0x8F
TOPIC_NAME_INVALID: Final = 0x90
SHARE_PREFIX: Final = "$share/"
NODE_WEIGHT: Final = 32
WEIGHT_PER_SUBSCRIPTION: Final = 512  # on average: eight levels and 256 characters, say
MAX_CACHED_TOPIC: Final = 256  # characters; a longer one is looked up anew each time rather than kept
RECEIVERS_PER_ROUTE: Final = 32  # on average over max_routes, above which the cache starts afresh
FREED: Final = 2  # forgotten routes that are freed for each that comes; all 32,768 at once took 13 to 20 ms
RESERVED: Final = ("$SYS/", SHARE_PREFIX)  # topics that no client may publish to (5.0 section 4.7.2)


@dataclass(slots=True, frozen=True)
class Grant:
    """What the server granted a subscriber: the options of one subscription, or of all that match, merged."""

    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    identifiers: tuple[int, ...] = ()
    share: "Share | None" = None
    own: "Grant | None" = None  # with no_local: what holds for the session's own messages; None = it gets none
    policy: Policy | None = None  # None = all

    def merged(self, other: "Grant") -> "Grant":
        """One grant for overlapping subscriptions of one session.

        5.0 [MQTT-3.3.4-2] the highest QoS of all that match; 5.0 [MQTT-3.3.4-4] every subscription identifier; of
        delivery policies the one that skips least.
        """
        grants = [self._for_own(), other._for_own()]
        own = [grant for grant in grants if grant is not None]
        no_local = self.no_local or other.no_local
        return Grant(
            max(self.qos, other.qos),
            no_local,
            self.retain_as_published or other.retain_as_published,
            self.identifiers + other.identifiers,
            own=(own[0].merged(own[1]) if len(own) == 2 else own[0] if own else None) if no_local else None,
            policy=merged(self.policy, other.policy),
        )

    def _for_own(self) -> "Grant | None":
        return self.own if self.no_local else self


@lru_cache(maxsize=1_024)
def grant_for(
    qos: int, no_local: bool, retain_as_published: bool, identifiers: tuple[int, ...], policy: Policy | None
) -> Grant:
    """The grant of a subscription with these options; most subscriptions are alike, and share theirs."""
    return Grant(qos, no_local, retain_as_published, identifiers, policy=policy)


class Share:
    """The members of one shared subscription: each message goes to one of them."""

    __slots__ = ("_turn", "filter", "members", "name")

    def __init__(self, name: str, filter: str) -> None:
        self.name = name
        self.filter = filter
        self.members: dict[Window, Grant] = {}
        self._turn = 0

    def __repr__(self) -> str:
        return f"Share({self.name!r}, {self.filter!r}, {len(self.members)} members)"

    def choose(self, topic: str, now: float) -> "tuple[Window, Grant] | None":
        """The member that takes the next message: in turn, among those who can take it at once, else the least loaded.

        Members that may not receive ``topic`` are passed over.

        Members that are away are chosen only if nobody is connected, and only if their session queues messages.
        """
        members = list(self.members.items())
        count = len(members)
        self._turn = turn = (self._turn + 1) % count if count else 0
        best: tuple[tuple[int, int], tuple[Window, Grant]] | None = None
        for offset in range(count):
            member = members[(turn + offset) % count]
            window = member[0]
            if window.rights is not None and window.rights.receive(topic, now) is False:
                continue
            if window.ready:
                self._turn = (turn + offset) % count
                return member
            if not window.present and not window.keeps:
                continue
            load = (not window.present, window.waiting)
            if best is None or load < best[0]:
                best = (load, member)
        return best[1] if best else None


class Route:
    """Who receives a topic: windows grouped by what they were granted, and the shared subscriptions.

    ``refusal`` is the reason code why clients may not publish to the topic, 0 if they may. ``heads`` are PUBLISH heads
    for the topic, see ``codec.encode.publish_run``.
    """

    __slots__ = ("groups", "heads", "refusal", "shares")

    def __init__(self, groups: "list[tuple[Grant, list[Window]]]", shares: list[Share], refusal: int) -> None:
        self.groups = groups
        self.shares = shares
        self.refusal = refusal
        self.heads: dict[int, bytes] = {}


class _Node:
    __slots__ = ("children", "here", "plus", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.plus: _Node | None = None  # the child for "+"
        self.here: dict[Window | Share, Grant] | None = None  # filters that end at this level
        self.rest: dict[Window | Share, Grant] | None = None  # filters that end in "#" below this level

    @property
    def bare(self) -> bool:
        """Whether no filter goes through here any more."""
        return not self.children and self.plus is None and self.here is None and self.rest is None


class Topics:
    """All subscriptions of the broker."""

    def __init__(self, max_routes: int, max_levels: int = 200) -> None:
        self._exact: dict[str, dict[Window | Share, Grant]] = {}
        self._root = _Node()
        self._shares: dict[tuple[str, str], Share] = {}
        self._routes: dict[str, Route] = {}
        self._forgotten: list[dict[str, Route]] = []  # what was in ``_routes`` before, freed little by little
        self._nobody = {refusal: Route([], [], refusal) for refusal in (0, NOT_AUTHORIZED, TOPIC_NAME_INVALID)}
        self._max_routes = max_routes
        self._receivers = 0  # in all routes
        self._max_levels = max_levels
        self.count = 0  # subscriptions, each member of a share counted

    def subscribe(self, filter: str, window: "Window", grant: Grant) -> Grant:
        """Add or replace a subscription. ``filter`` was checked; a ``$share`` filter joins its group.

        Returns the grant as stored (a member's grant names its share).
        """
        share_name, inner = split_share(filter)
        if not share_name:
            self._add(inner, window, grant)
            return grant
        share = self._shares.get((share_name, inner))
        if share is None:
            share = self._shares[share_name, inner] = Share(share_name, inner)
            self._add(inner, share, Grant())
            self.count -= 1  # members are counted, the share is not
        grant = Grant(grant.qos, False, grant.retain_as_published, grant.identifiers, share, policy=grant.policy)
        self.count += window not in share.members
        share.members[window] = grant
        return grant

    def unsubscribe(self, filter: str, window: "Window") -> None:
        """Remove a subscription that exists."""
        share_name, inner = split_share(filter)
        if not share_name:
            self._remove(inner, window)
            return
        share = self._shares[share_name, inner]
        del share.members[window]
        self.count -= 1
        if not share.members:
            del self._shares[share_name, inner]
            self._remove(inner, share)
            self.count += 1

    def match(self, topic: str) -> Route:
        """Who receives ``topic``. Do not keep the result: a change of subscriptions replaces it."""
        route = self._routes.get(topic)
        if route is None:
            route = self._find(topic)
            if self._forgotten:
                self._free()
            if len(topic) <= MAX_CACHED_TOPIC:
                for _, windows in route.groups:
                    self._receivers += len(windows)
                if len(self._routes) >= self._max_routes or self._receivers > self._max_routes * RECEIVERS_PER_ROUTE:
                    self._forget_routes()
                self._routes[topic] = route
        return route

    def _forget_routes(self) -> None:
        if self._routes:
            self._forgotten.append(self._routes)
            self._routes = {}
            self._receivers = 0

    def _free(self) -> None:
        """Free more of the forgotten routes than have come since."""
        routes = self._forgotten[-1]
        for _ in range(min(FREED, len(routes))):
            routes.popitem()
        if not routes:
            self._forgotten.pop()

    def _find(self, topic: str) -> Route:
        shares: list[Share] = []
        grants: dict[Window, Grant] = {}
        for found in self._walk(topic):
            for subscriber, grant in found.items():
                if isinstance(subscriber, Share):
                    shares.append(subscriber)
                elif subscriber in grants:
                    grants[subscriber] = grants[subscriber].merged(grant)
                else:
                    grants[subscriber] = grant
        refusal = self._refusal(topic)
        if not grants and not shares:
            return self._nobody[refusal]
        groups: dict[Grant, list[Window]] = {}
        for window, grant in grants.items():
            groups.setdefault(grant, []).append(window)
        return Route(list(groups.items()), shares, refusal)

    def _refusal(self, topic: str) -> int:
        if topic.startswith("$") and reserved(topic):
            return NOT_AUTHORIZED
        return TOPIC_NAME_INVALID if topic.count("/") >= self._max_levels else 0

    def _walk(self, topic: str) -> "list[dict[Window | Share, Grant]]":
        """The subscribers of every filter that matches."""
        found: list[dict[Window | Share, Grant]] = []
        exact = self._exact.get(topic)
        if exact is not None:
            found.append(exact)
        nodes = [self._root]
        # 5.0 [MQTT-4.7.2-1] a wildcard at the first level does not match a topic that begins with $
        wild = not topic.startswith("$")
        for level in topic.split("/"):
            following: list[_Node] = []
            for node in nodes:
                if wild:
                    if node.rest is not None:
                        found.append(node.rest)
                    if node.plus is not None:
                        following.append(node.plus)
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        following.append(child)
            if not following:
                return found
            nodes = following
            wild = True
        for node in nodes:
            if node.here is not None:
                found.append(node.here)
            if node.rest is not None:  # "#" also matches the level above it (5.0 section 4.7.1.2)
                found.append(node.rest)
        return found

    def _add(self, filter: str, subscriber: "Window | Share", grant: Grant) -> None:
        if "+" not in filter and "#" not in filter:
            subscribers = self._exact.setdefault(filter, {})
            self._routes.pop(filter, None)
        else:
            node = self._root
            levels = filter.split("/")
            ends_in_rest = levels[-1] == "#"
            for level in levels[:-1] if ends_in_rest else levels:
                node = _child(node, level)
            if ends_in_rest:
                subscribers = node.rest = {} if node.rest is None else node.rest
            else:
                subscribers = node.here = {} if node.here is None else node.here
            self._forget_routes()
        self.count += subscriber not in subscribers
        subscribers[subscriber] = grant

    def _remove(self, filter: str, subscriber: "Window | Share") -> None:
        self.count -= 1
        if self._forgotten:  # they may refer to the window
            self._free()
        if "+" not in filter and "#" not in filter:
            del self._exact[filter][subscriber]
            if not self._exact[filter]:
                del self._exact[filter]
            self._routes.pop(filter, None)
            return
        self._forget_routes()
        levels = filter.split("/")
        ends_in_rest = levels[-1] == "#"
        if ends_in_rest:
            levels.pop()
        path = [self._root]
        for level in levels:
            path.append(_child(path[-1], level))
        node = path[-1]
        if ends_in_rest:
            assert node.rest is not None
            del node.rest[subscriber]
            node.rest = node.rest or None
        else:
            assert node.here is not None
            del node.here[subscriber]
            node.here = node.here or None
        while levels and path.pop().bare:
            level = levels.pop()
            if level == "+":
                path[-1].plus = None
            else:
                children = path[-1].children
                assert children is not None
                del children[level]
                path[-1].children = children or None


def _child(node: _Node, level: str) -> _Node:
    """The node below ``node`` for ``level`` of a filter, made if there is none."""
    if level == "+":
        if node.plus is None:
            node.plus = _Node()
        return node.plus
    if node.children is None:
        node.children = {}
    child = node.children.get(level)
    if child is None:
        child = node.children[level] = _Node()
    return child


def split_share(filter: str) -> tuple[str, str]:
    """``("group", "a/+")`` of ``$share/group/a/+``; ``("", filter)`` of an ordinary filter."""
    if not filter.startswith(SHARE_PREFIX):
        return "", filter
    name, _, inner = filter[len(SHARE_PREFIX) :].partition("/")
    return name, inner


def weight(filter: str) -> int:
    """What a filter costs: its characters, and for each level a node of the tree, in memory and in every match."""
    return len(filter) + NODE_WEIGHT * (filter.count("/") + 1)


def max_weight(config: "Config") -> int:
    """What the filters of one session may weigh together; one filter that is as long as filters get always fits.

    Without it, 10,000 filters like a/+/+/… of 200 levels would be two million nodes, any number of which a topic can
    be made to meet.
    """
    longest = MAX_STRING_BYTES + NODE_WEIGHT * config.max_topic_levels
    return longest + WEIGHT_PER_SUBSCRIPTION * config.max_subscriptions


def check_filter(filter: str, max_levels: int) -> None:
    """Raise ProtocolError 0x8F unless ``filter`` is a legal topic filter, shared or not.

    5.0 [MQTT-4.7.1-1] ``#`` stands last and alone on its level; 5.0 [MQTT-4.7.1-2] ``+`` stands alone on its level.
    """
    inner = filter
    if filter.startswith(SHARE_PREFIX) or filter == "$share":
        # 5.0 [MQTT-4.8.2-1] and 5.0 [MQTT-4.8.2-2]: a name of at least one character without wildcards, then a filter
        name, inner = split_share(filter)
        if not name or not inner or "+" in name or "#" in name or filter == "$share":
            raise ProtocolError(f"shared subscription {filter!r} is not $share/NAME/FILTER", TOPIC_FILTER_INVALID)
    if not inner:
        raise ProtocolError("empty topic filter", TOPIC_FILTER_INVALID)  # 5.0 [MQTT-4.7.3-1]
    if inner.count("/") >= max_levels:
        raise ProtocolError(f"topic filter has more than {max_levels} levels", TOPIC_FILTER_INVALID)
    if "#" not in inner and "+" not in inner:
        return
    levels = inner.split("/")
    for level in levels:
        if len(level) > 1 and ("#" in level or "+" in level):
            raise ProtocolError(f"wildcard must fill its level in {filter!r}", TOPIC_FILTER_INVALID)
    if "#" in levels[:-1]:
        raise ProtocolError(f"# must be the last level in {filter!r}", TOPIC_FILTER_INVALID)


def reserved(topic: str) -> bool:
    """Whether ``topic`` is the broker's own."""
    return topic.startswith(RESERVED)


def check_topic(topic: str, max_levels: int) -> None:
    """Raise ProtocolError 0x90 unless ``topic`` may be published to; its characters were checked on decoding."""
    if topic.count("/") >= max_levels:
        raise ProtocolError(f"topic name has more than {max_levels} levels", TOPIC_NAME_INVALID)


def matches(filter: str, topic: str) -> bool:
    """Whether one filter matches one topic (5.0 section 4.7); the obvious form, for single questions and tests."""
    if topic.startswith("$") and filter[:1] in ("+", "#"):
        return False
    wanted, levels = filter.split("/"), topic.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(levels) or level not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
