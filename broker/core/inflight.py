"""What was sent to one session at QoS 1 and 2 and is not acknowledged: by packet id, until PUBACK or PUBCOMP.

    sent ──▶ inflight ──PUBACK──▶ done
                └──PUBREC──▶ released ──PUBCOMP──▶ done

1. What was sent once is not dropped, because the receiver may hold state for its packet id; but for the memory budget,
   while its client is away and no store has it.
2. An acknowledgement of the wrong kind is an error of the client's, and changes nothing.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ProtocolError
from .budget import Budget
from .ports import Acked, Batch, Finished, Released
from .queue import MAX_PACKET_ID, DropReason, Entry, Queue
from .spill import Spill

if TYPE_CHECKING:
    from ..config import Config
    from .snapshot import Stats


class InFlight(Queue):
    """The messages of one session that are on their way, and through ``Queue`` those that wait to be sent."""

    __slots__ = ("inflight",)

    def __init__(self, client_id: str, config: "Config", stats: "Stats", budget: Budget | None = None) -> None:
        super().__init__(client_id, config, stats, budget)
        self.inflight: dict[int, Entry] = {}

    @property
    def sent_seq(self) -> int:
        """While no client is connected: deliveries up to this number may have been sent.

        Acknowledged ones count too, because a store may lose acknowledgements, and then owes them again.
        """
        if self.latest is None:  # else what waits may have lower numbers than what was sent
            for _, _, seq in self.queue or ():
                if seq:
                    return seq - 1
            if self.spill is not None:
                return max(self.spill.after_seq, self.spill.maybe_sent_seq)
        return self.seq

    def on_puback(self, packet_id: int) -> Entry | None:
        """QoS 1 delivered; None if nothing was in flight under this id (5.0 section 4.4 lets a server ignore that)."""
        entry = self.inflight.get(packet_id)
        if entry is None:
            return None
        if entry[0].qos == 2 and entry[1].qos == 2:  # it stays where it is: still owed, and in its order
            raise ProtocolError(f"PUBACK for packet id {packet_id}, which was sent at QoS 2")
        del self.inflight[packet_id]
        self.inflight_bytes -= entry[0].size
        if self.changes is not None:
            self.changes.append(Acked(self.client_id, entry[2], [entry[0]]))
        return entry

    def on_pubacks(self, packet_ids: Iterable[int]) -> None:
        """``on_puback`` for many."""
        inflight = self.inflight
        freed: list[Entry] = []
        try:
            for packet_id in packet_ids:
                entry = inflight.get(packet_id)
                if entry is None:
                    continue
                if entry[1].qos == 2:
                    self.on_puback(packet_id)
                else:
                    del inflight[packet_id]
                    freed.append(entry)
        finally:
            self.inflight_bytes -= sum([entry[0].size for entry in freed])
            if freed and self.changes is not None:
                self._note_acked(self.changes, freed)

    def _note_acked(self, changes: Batch, entries: list[Entry]) -> None:
        """One change for all if their numbers are consecutive, which they mostly are; else one for each."""
        first = entries[0][2]
        if [entry[2] for entry in entries] == list(range(first, first + len(entries))):
            changes.append(Acked(self.client_id, first, [entry[0] for entry in entries]))
        else:
            changes += [Acked(self.client_id, seq, [message]) for message, _, seq in entries]

    def on_pubrec(self, packet_id: int, reason: int = 0) -> bool:
        """QoS 2 received; False if nothing was in flight under this id."""
        entry = self.inflight.get(packet_id)
        if entry is None:
            return packet_id in self.released
        message, grant, seq = entry
        if message.qos < 2 or grant.qos < 2:
            raise ProtocolError(f"PUBREC for packet id {packet_id}, which was sent at QoS 1")
        del self.inflight[packet_id]
        self.inflight_bytes -= message.size
        if reason >= 0x80:
            self.forget(seq, message, DropReason.REFUSED)
            return True
        self.released[packet_id] = seq
        if self.changes is not None:
            self.changes.append(Released(self.client_id, seq, message))
        return True

    def on_pubcomp(self, packet_id: int) -> bool:
        """QoS 2 complete; False if nothing was released under this id."""
        seq = self.released.pop(packet_id, None)
        if seq is None:
            return False
        if self.changes is not None:
            self.changes.append(Finished(self.client_id, seq))
        return True

    def refused(self) -> None:
        """PUBACK came with a reason of 0x80 or above; 5.0 [MQTT-4.8.2-6] nobody else gets the message."""
        self.drop(DropReason.REFUSED, 1)

    def shed_resend(self, level_bytes: int) -> None:
        """Of what the client that is away had not acknowledged, leave to the store what it has, the rest is dropped."""
        resend = self.resend
        assert resend is not None
        spill = self.spill
        spillable = (
            self.changes is not None
            and not (self.queue or self.latest or self.mixed)
            and (spill is None or not spill.asked)
        )
        # Of what was sent some is dropped, or acknowledged, and a crash may bring that back too.
        maybe_sent_seq = self.sent_seq
        released: list[int] = []
        while resend and self.inflight_bytes > level_bytes:
            message, grant, seq = resend.pop()
            self.inflight_bytes -= message.size
            if spillable and message.stored >= 0:
                if spill is None:
                    spill = self.spill = Spill(seq - 1)
                spill.maybe_sent_seq = maybe_sent_seq
                spill.after_seq = seq - 1
                spill.add(message.size)
            elif message.qos == 2 and grant.qos == 2:
                # The client may remember the packet id. PUBREL makes it forget that: 5.0 section 4.3.3.
                released.append(seq)
                if self.changes is not None:
                    self.changes.append(Released(self.client_id, seq, message))
                self.drop(DropReason.MEMORY, 1)
            else:
                self.forget(seq, message, DropReason.MEMORY)
        for seq in reversed(released):
            self.released[seq % MAX_PACKET_ID + 1] = seq
        self.resend = resend or None
        self.settle()
