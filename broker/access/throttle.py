"""Whoever guesses passwords has to wait, longer each time; whoever knows his own hardly notices.

Failures count for the address that they came from and for the user whose password was guessed. Above a few of them an
attempt waits for its turn before it is looked at, and at most ``MAX_WAIT_S``: beyond that it is refused unseen. A user
who was let in from an address is not held up there by what others do, so that nobody can be locked out from afar.

It is told the time, and every table is bounded: the entries that failed longest ago go first.
"""

from collections import OrderedDict
from typing import Final

FREE: Final = 3  # failures that cost nothing: a mistyped password
FIRST_S: Final = 0.5  # the wait after one more, which doubles with each further one
ADDRESS_MAX_S: Final = 30.0
USER_MAX_S: Final = 4.0  # failures may come from anywhere, and the user himself has to get in
MAX_WAIT_S: Final = 8.0
FORGET_S: Final = 60.0  # without a failure, after which one counts no more
TRUST: Final = 3  # failures in a row, from where a user was let in before, after which that counts no more
MAX_ENTRIES: Final = 10_000


class _Entry:
    __slots__ = ("failures", "failures_at", "next_at")

    def __init__(self) -> None:
        self.failures = 0
        self.failures_at = 0.0
        self.next_at = 0.0

    def count(self, now: float) -> int:
        return max(0, self.failures - int((now - self.failures_at) / FORGET_S))


class Throttle:
    """The waiting times of one broker."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._addresses: OrderedDict[str, _Entry] = OrderedDict()
        self._users: OrderedDict[str, _Entry] = OrderedDict()
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()  # let in from there; failures since

    def wait(self, address: str, user: str, now: float) -> float | None:
        """Seconds that an attempt has to wait, 0 = none; None = refuse it. ``address`` as ``network.group`` has it."""
        if (address, user) in self._known:
            return 0.0
        entries = [
            (entry, longest_s)
            for entry, longest_s in ((self._addresses.get(address), ADDRESS_MAX_S), (self._users.get(user), USER_MAX_S))
            if entry is not None
        ]
        wait_s = max((entry.next_at - now for entry, _ in entries), default=0.0)
        if wait_s > MAX_WAIT_S:
            return None
        for entry, longest_s in entries:  # whoever comes next has to wait for this one too
            entry.next_at = max(now, entry.next_at) + delay(entry.count(now), longest_s)
        return max(0.0, wait_s)

    def count(self, address: str, user: str, now: float) -> int:
        """How many failures count for an attempt that is about to be made."""
        entries = self._addresses.get(address), self._users.get(user)
        return max((entry.count(now) for entry in entries if entry is not None), default=0)

    def failed(self, address: str, user: str, now: float) -> int:
        """An attempt was wrong; how many count for the address now."""
        known = self._known.get((address, user))
        if known is not None:
            if known + 1 >= TRUST:
                del self._known[address, user]
            else:
                self._known[address, user] = known + 1
        self._count(self._users, user, USER_MAX_S, now)
        return self._count(self._addresses, address, ADDRESS_MAX_S, now) if address else 0

    def succeeded(self, address: str, user: str) -> None:
        """An attempt was right."""
        self._known[address, user] = 0
        self._known.move_to_end((address, user))
        if len(self._known) > self._max_entries:
            self._known.popitem(last=False)

    def _count(self, table: OrderedDict[str, _Entry], key: str, longest_s: float, now: float) -> int:
        entry = table.get(key)
        if entry is None:
            entry = table[key] = _Entry()
            if len(table) > self._max_entries:
                table.popitem(last=False)
        table.move_to_end(key)
        entry.failures = entry.count(now) + 1
        entry.failures_at = now
        entry.next_at = max(entry.next_at, now + delay(entry.failures, longest_s))
        return entry.failures


def delay(failures: int, longest_s: float) -> float:
    """Seconds between two attempts after so many failures."""
    return 0.0 if failures <= FREE else min(longest_s, FIRST_S * 2.0 ** min(failures - FREE - 1, 30))
