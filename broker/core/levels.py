"""How durable the messages of a topic are: the broker's level, or that of the first filter in the configuration that
matches. Looked up once per topic; the cache is bounded.
"""

from typing import TYPE_CHECKING, Final

from .topics import MAX_CACHED_TOPIC, matches

if TYPE_CHECKING:
    from ..config import Config, Durability

_MAX_TOPICS: Final = 10_000


class Levels:
    """``level(topic)`` by the options ``durability`` and ``durability_by_filter``."""

    def __init__(self, config: "Config") -> None:
        self.default: Durability = config.durability
        """The level of topics that no filter matches."""
        self._filters = list(config.durability_by_filter.items())
        self._topics: dict[str, Durability] = {}

    @property
    def durable(self) -> bool:
        """Whether anything is to be kept at all."""
        return any(level != "memory" for level in (self.default, *(level for _, level in self._filters)))

    @property
    def varies(self) -> bool:
        """Whether topics differ at all."""
        return bool(self._filters)

    def level(self, topic: str) -> "Durability":
        """The level of ``topic``."""
        if not self._filters:
            return self.default
        found = self._topics.get(topic)
        if found is None:
            if len(self._topics) >= _MAX_TOPICS:
                self._topics.clear()
            levels = (level for filter, level in self._filters if matches(filter, topic))
            found = next(levels, None) or self.default
            if len(topic) <= MAX_CACHED_TOPIC:
                self._topics[topic] = found
        return found
