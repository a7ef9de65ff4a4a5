"""What it costs to match a topic, by the number of filters there are: ``python tests/bench/matching.py``.

Half of the filters are exact, a quarter have ``+`` on one level and a quarter end in ``#``. Each topic is matched once
per round, without the cache of routes, as one that was never published to, and with it, as one that was; the figure is
the best of the rounds.
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


def microseconds(count: int, max_routes: int) -> float:
    """Microseconds per match among ``count`` filters, of which ``max_routes`` topics are remembered."""
    topics = Topics(max_routes)
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
    print(f"{'filters':>9}   µs a new topic   times   µs a known topic   times   ({SIZES[0]} filters: 1)")
    first: tuple[float, float] | None = None
    for size in SIZES:
        new, known = microseconds(size, max_routes=1), microseconds(size, max_routes=2 * TOPICS)
        first = first or (new, known)
        print(f"{size:>9,} {new:16.2f} {new / first[0]:7.2f} {known:18.2f} {known / first[1]:7.2f}")


if __name__ == "__main__":
    main()
