"""What it costs to match a topic, by the number of filters there are: ``python tests/bench/matching.py``.

Half of the filters are exact, a quarter have ``+`` on one level and a quarter end in ``#``; each topic meets one of
them. A topic is matched as one that was never published to, so that it is looked for among the filters, and as one that
was, so that it is in the cache of routes. Beside that stands what the machine asks for one look-up of such a topic in a
dict of as many: memory that the processor has not in its caches is slow, whatever is done with it. Each round takes
other topics, at random among all; the figures are the best of the rounds.
"""

import gc
import random
import time
from collections.abc import Callable, Sequence

from tidings.broker import Config
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant, Topics
from tidings.broker.core.window import Window

SIZES = (1_000, 10_000, 100_000, 1_000_000)
TOPICS = 1_000  # of a round
ROUNDS = 20
KINDS = ("site/{0}/dev/{1}/temp", "site/{0}/dev/{1}/+", "site/{0}/dev/{1}/temp", "site/{0}/dev/{1}/#")
COLUMNS = ("a new topic", "a known topic", "a look-up in a dict")


def filter_of(number: int, kind: int) -> str:
    """One of the filters."""
    return KINDS[kind].format(number // 1000, number)


def microseconds(act: Callable[[str], object], numbers: Sequence[int]) -> float:
    """Microseconds per call of ``act`` with topics that come new, as from a socket."""
    names = [filter_of(number, 0) for number in numbers]
    begin = time.perf_counter()
    for name in names:
        act(name)
    return (time.perf_counter() - begin) / len(names) * 1e6


class Scene:
    """``count`` filters, and a dict of as many."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._topics = Topics(2 * TOPICS)
        self._window = Window("w", Config(), Stats())
        for number in range(count):
            self._topics.subscribe(filter_of(number, number % 4), self._window, Grant())
        self._table = {filter_of(number, 0): number for number in range(count)}
        self.best = [float("inf")] * len(COLUMNS)

    def play(self) -> None:
        """One round."""
        self._topics.subscribe("#", self._window, Grant())  # nothing is known any more
        self._topics.unsubscribe("#", self._window)
        numbers = random.sample(range(self._count), TOPICS)
        acts = (self._topics.match, self._topics.match, self._table.__getitem__)
        self.best = [min(least, microseconds(act, numbers)) for least, act in zip(self.best, acts, strict=True)]


def main() -> None:
    gc.disable()  # as good as in ``tidings broker``, where it does not walk what has been there for long
    scenes = [Scene(size) for size in SIZES]
    for _ in range(ROUNDS):  # in turn: the machine may become slower
        for scene in scenes:
            scene.play()
    print("  filters" + "".join(f"{column:>22} µs   times" for column in COLUMNS))
    for size, scene in zip(SIZES, scenes, strict=True):
        pairs = zip(scene.best, scenes[0].best, strict=True)
        print(f"{size:>9,}" + "".join(f"{now:25.2f} {now / then:7.2f}" for now, then in pairs))


if __name__ == "__main__":
    main()
