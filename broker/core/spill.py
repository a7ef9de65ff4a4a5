"""The end of a session's queue that only the store has: how much of it there is and where it begins.

A durable session keeps the head of its queue in memory, up to a bound, and leaves the rest to the store, which has it
all anyway. The rest comes back in slices (``Wanted``, ``Engine.refill``) as the head is used up. After a restart
everything that a session is owed begins here.

1. Spilled messages have higher sequence numbers than any in memory that could be spilled; so order is kept.
2. At most one slice is under way.
"""


class Spill:
    """``count`` messages, ``size_bytes`` of them, after sequence number ``after_seq``."""

    __slots__ = ("after_seq", "asked", "count", "maybe_sent_seq", "size_bytes", "stale")

    def __init__(self, after_seq: int, count: int = 0, size_bytes: int = 0, maybe_sent_seq: int = 0) -> None:
        self.after_seq = after_seq
        self.count = count
        self.size_bytes = size_bytes
        self.maybe_sent_seq = maybe_sent_seq
        """Messages up to this one may have been sent before: they are sent first, with DUP."""
        self.asked = 0
        """How many there were when a slice was asked for that has not come; 0 = none is under way."""
        self.stale = False
        """Whether the slice under way lacks messages that were added since in its midst: it has to be read again."""

    @property
    def again(self) -> bool:
        """Whether it begins with what was sent before, and so goes before anything else."""
        return self.maybe_sent_seq > self.after_seq

    def add(self, size_bytes: int) -> None:
        """One more message at the end."""
        self.count += 1
        self.size_bytes += size_bytes

    def take(self, seq: int, size_bytes: int) -> None:
        """The first message came back."""
        self.count -= 1
        self.size_bytes -= size_bytes
        self.after_seq = seq

    def settle(self, received: int) -> bool:
        """A slice of ``received`` messages has come; whether any are left.

        An empty slice says that the store has none of those that were there when it was asked.
        """
        if not received:
            self.count -= self.asked
        self.asked = 0
        return self.count > 0
