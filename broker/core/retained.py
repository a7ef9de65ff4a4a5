"""The retained message of every topic that has one, and their look-up by filter (5.0 section 3.3.1.3).

Topics form a tree with one node per level, so that a wildcard look-up costs what it finds and the levels above it.
Messages that expired are passed over and removed when they are met, or by ``sweep``.
"""

from collections.abc import Iterator
from typing import Final

from .message import Message

EFFORT: Final = 32  # nodes that match nothing and are looked at in the time of about one delivery
NODE_BYTES: Final = 300  # a node, its dict and its name; or topics of many levels would cost more than their messages


class _Node:
    __slots__ = ("children", "message")

    def __init__(self) -> None:
        self.children: dict[str, _Node] | None = None
        self.message: Message | None = None


class Retained:
    """Bounded in messages and in bytes (``Message.size``, and ``NODE_BYTES`` for each level that only they have)."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._root = _Node()
        self._count = 0
        self._expiring: dict[str, float] = {}
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:  # see ``Latest``
        return self._count > 0

    def __iter__(self) -> Iterator[Message]:
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            if node.message is not None:
                yield node.message
            if node.children is not None:
                nodes += node.children.values()

    def get(self, topic: str) -> Message | None:
        """The retained message of exactly this topic, expired or not."""
        node, missing = self._deepest(topic.split("/"))
        return None if missing else node.message

    def set(self, message: Message) -> bool:
        """Keep ``message`` for its topic, or with an empty payload remove what was kept.

        Returns False, changing nothing, if that would go beyond the bounds.
        """
        if not message.payload:  # 5.0 [MQTT-3.3.1-6], [MQTT-3.3.1-7]
            self.remove(message.topic)
            return True
        node, missing = self._deepest(message.topic.split("/"))
        before = None if missing else node.message
        if before is None and self._count >= self._max_messages:
            return False
        growth = message.size - (0 if before is None else before.size) + len(missing) * NODE_BYTES
        if self.bytes + growth > self._max_bytes:
            return False
        for level in missing:
            child = _Node()
            if node.children is None:
                node.children = {level: child}
            else:
                node.children[level] = child
            node = child
        node.message = message
        self._count += before is None
        self.bytes += growth
        if message.expires_at is not None:
            self._expiring[message.topic] = message.expires_at
        elif before is not None:
            self._expiring.pop(message.topic, None)
        return True

    def _deepest(self, levels: list[str]) -> tuple[_Node, list[str]]:
        """The last node on the way along ``levels`` that there is, and the levels that are missing below it."""
        node = self._root
        for depth, level in enumerate(levels):
            child = None if node.children is None else node.children.get(level)
            if child is None:
                return node, levels[depth:]
            node = child
        return node, []

    def remove(self, topic: str) -> bool:
        """Forget the retained message of ``topic``; False if there was none."""
        levels = topic.split("/")
        path = [self._root]
        for level in levels:
            children = path[-1].children
            if children is None or level not in children:
                return False
            path.append(children[level])
        message, path[-1].message = path[-1].message, None
        if message is None:
            return False
        self._count -= 1
        self.bytes -= message.size
        self._expiring.pop(topic, None)
        while levels:
            node = path.pop()
            if node.children or node.message is not None:
                break
            children = path[-1].children
            assert children is not None
            del children[levels.pop()]
            self.bytes -= NODE_BYTES
        return True

    def matching(self, filter: str, now: float) -> Iterator[Message]:
        """The retained messages that a new subscription to ``filter`` receives, without the expired ones."""
        for message in self.search(filter):
            if message is not None and (message.expires_at is None or message.expires_at > now):
                yield message

    def search(self, filter: str) -> Iterator[Message | None]:
        """The retained messages that match, expired or not; None whenever ``EFFORT`` nodes were looked at in vain.

        Messages may come and go between two steps: who was there all the time is found, once.
        """
        if "+" not in filter and "#" not in filter:
            message = self.get(filter)
            if message is not None:
                yield message
            return
        levels = filter.split("/")
        stack: list[tuple[Iterator[_Node], int]] = [(iter((self._root,)), 0)]
        effort = 0
        while stack:
            nodes, depth = stack[-1]
            node = next(nodes, None)
            if node is None:
                stack.pop()
                continue
            level = levels[depth] if depth < len(levels) else ""
            effort += 1
            if (depth == len(levels) or level == "#") and node.message is not None:
                yield node.message
                effort = 0
            elif effort >= EFFORT:
                yield None
                effort = 0
            if depth == len(levels):
                continue
            if level == "#":
                stack.append((self._visible(node), depth))
            elif level == "+":
                stack.append((self._visible(node), depth + 1))
            elif node.children is not None and level in node.children:
                stack.append((iter((node.children[level],)), depth + 1))

    def _visible(self, node: _Node) -> Iterator[_Node]:
        """The children that a wildcard sees: below the root not those that begin with $."""
        children = node.children
        if children is None:
            return iter(())
        if node is self._root:  # 5.0 [MQTT-4.7.2-1]
            return iter([child for level, child in children.items() if not level.startswith("$")])
        return iter(list(children.values()))

    def sweep(self, now: float) -> list[str]:
        """Remove every expired message and return their topics."""
        expired = [topic for topic, deadline in self._expiring.items() if deadline <= now]
        for topic in expired:
            self.remove(topic)
        return expired
