"""What it costs to match a topic, by the number of filters there are: ``python tests/bench/matching.py``.

Half of the filters are exact, a third have ``+`` on one level and the rest end in ``#``. The topics are matched without
the cache of routes, each once per round; the figure is the best of the rounds.
"""

import time

from tidings.broker import Config
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant, Topics
from tidings.broker.core.window import Window

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
TOPICS = 1_000
ROUNDS = 5


def filters(count: int) -> list[str]:
    """``count`` different filters, of which the topics below match a few each."""
    kinds = ("site/{0}/dev/{1}/temp", "site/{0}/dev/{1}/+", "site/{0}/dev/{1}/temp", "site/{0}/dev/{1}/#")
    return [kinds[i % 4].format(i // 1000, i) for i in range(count)]


def microseconds(count: int) -> float:
    """Microseconds per match among ``count`` filters."""
    topics = Topics(max_routes=1)
    window = Window("w", Config(), Stats())
    for filter in filters(count):
        topics.subscribe(filter, window, Grant())
    step = max(1, count // TOPICS)
    names = [f"site/{i // 1000}/dev/{i}/temp" for i in range(0, count, step)]
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for name in names:
            topics.match(name)
        best = min(best, (time.perf_counter() - begin) / len(names))
    return best * 1e6


def main() -> None:
    base = microseconds(SIZES[0])
    for size in SIZES:
        cost = microseconds(size)
        print(f"{size:>9,} filters: {cost:6.2f} µs a topic, {cost / base:4.2f} times what it costs among {SIZES[0]}")


if __name__ == "__main__":
    main()
