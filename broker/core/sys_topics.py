"""``$SYS``: the numbers of the broker as retained messages, brought up to date again and again.

The topics under ``$SYS/broker`` are those of Mosquitto; what only tidings knows is under ``$SYS/tidings``. Only what
has changed is published.
"""

import json
from math import exp
from typing import TYPE_CHECKING, Final

from ..codec.reasons import name_of
from .message import Message
from .queue import CHOSEN

if TYPE_CHECKING:
    from .engine import Engine
    from .snapshot import SessionNumbers, Stats

LOAD_MINUTES: Final = (1, 5, 15)


class Loads:
    """Exponential moving averages per minute over 1, 5 and 15 minutes, as Mosquitto publishes them."""

    NAMES: Final = {
        "messages/received": "packets_received",
        "messages/sent": "packets_sent",
        "publish/received": "messages_received",
        "publish/sent": "messages_sent",
        "bytes/received": "bytes_received",
        "bytes/sent": "bytes_sent",
        "connections": "connections",
    }

    def __init__(self) -> None:
        self._last = dict.fromkeys(self.NAMES, 0)
        self.averages = {(name, minutes): 0.0 for name in self.NAMES for minutes in LOAD_MINUTES}

    def update(self, stats: "Stats", elapsed_s: float) -> None:
        """Take in what happened in the last ``elapsed_s`` seconds."""
        for name, attribute in self.NAMES.items():
            count = getattr(stats, attribute)
            per_minute = (count - self._last[name]) * 60.0 / elapsed_s
            self._last[name] = count
            for minutes in LOAD_MINUTES:
                weight = exp(-elapsed_s / (60.0 * minutes))
                key = (name, minutes)
                self.averages[key] = per_minute + weight * (self.averages[key] - per_minute)


class SysTopics:
    """Of one broker; ``publish`` is to be called every ``sys_interval_s``."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._loads = Loads()
        self._longest_turn_s = 0.0  # since the start

    def publish(self, now: float) -> None:
        """Publish what has changed."""
        engine = self._engine
        self._loads.update(engine.stats, engine.config.sys_interval_s)
        for topic, value in {**sys_topics(engine, now, self._loads), **self._turns()}.items():
            old = engine.retained.get(topic)
            payload = value.encode()
            if old is None or old.payload != payload:
                message = Message(topic, payload, 0, True)
                engine.retained.set(message)
                engine.announce(message, now)

    def _turns(self) -> dict[str, str]:
        """How long the event loop was away for at most, in ms: since the last time, and since the start."""
        longest_s, self._engine.longest_turn_s = self._engine.longest_turn_s, 0.0
        self._longest_turn_s = max(self._longest_turn_s, longest_s)
        return {
            "$SYS/tidings/loop/longest-turn-ms": f"{longest_s * 1000:.2f}",
            "$SYS/tidings/loop/longest-turn-ever-ms": f"{self._longest_turn_s * 1000:.2f}",
        }


def sys_topics(engine: "Engine", now: float, loads: Loads) -> dict[str, str]:
    """The ``$SYS`` tree: topics that Mosquitto users expect, with their payloads."""
    shot = engine.snapshot(now)
    stats = shot.stats
    values: dict[str, str | int] = {
        "version": f"tidings version {engine.version}",
        "uptime": f"{int(shot.uptime_s)} seconds",
        "clients/total": shot.clients_connected + shot.clients_disconnected,
        "clients/connected": shot.clients_connected,
        "clients/active": shot.clients_connected,
        "clients/disconnected": shot.clients_disconnected,
        "clients/inactive": shot.clients_disconnected,
        "clients/expired": shot.clients_expired,
        "clients/maximum": shot.clients_maximum,
        "messages/received": stats.packets_received,
        "messages/sent": stats.packets_sent,
        "messages/stored": shot.retained_messages + shot.queued_messages,
        "store/messages/count": shot.retained_messages + shot.queued_messages,
        "store/messages/bytes": shot.retained_bytes + shot.queued_bytes,
        "publish/messages/received": stats.messages_received,
        "publish/messages/sent": stats.messages_sent,
        "publish/messages/dropped": sum(count for reason, count in stats.dropped.items() if reason not in CHOSEN),
        "publish/bytes/received": stats.payload_bytes_received,
        "publish/bytes/sent": stats.payload_bytes_sent,
        "bytes/received": stats.bytes_received,
        "bytes/sent": stats.bytes_sent,
        "retained messages/count": shot.retained_messages,
        "subscriptions/count": shot.subscriptions,
    }
    topics = {f"$SYS/broker/{name}": str(value) for name, value in values.items()}
    for (name, minutes), average in loads.averages.items():
        topics[f"$SYS/broker/load/{name}/{minutes}min"] = f"{average:.2f}"
    if engine.keeps:
        topics["$SYS/tidings/store/trouble"] = shot.store_trouble or "none"
    for reason, count in stats.dropped.items():
        topics[f"$SYS/tidings/dropped/{reason.value}"] = str(count)
    for why, count in stats.paused.items():
        topics[f"$SYS/tidings/paused/{why.value}"] = str(count)
    for action, count in stats.not_authorized.items():
        topics[f"$SYS/tidings/not-authorized/{action.value}"] = str(count)
    for code, count in stats.cut_off.items():
        topics[f"$SYS/tidings/cut-off/{_slug(code)}"] = str(count)
    for unwanted, count in stats.turned_away.items():
        topics[f"$SYS/tidings/turned-away/{unwanted.value}"] = str(count)
    if stats.untold:
        topics["$SYS/tidings/plugins/events-dropped"] = str(stats.untold)
    topics["$SYS/tidings/memory/bytes"] = str(shot.memory_bytes)
    topics["$SYS/tidings/memory/budget"] = str(shot.memory_budget_bytes)
    topics["$SYS/tidings/heaviest"] = json.dumps([_spelled_out(each) for each in shot.heaviest])
    return topics


def _spelled_out(session: "SessionNumbers") -> dict[str, object]:
    """``session`` as JSON has it; client ids can be no part of a topic, since they may contain what topics must not."""
    return {
        "client_id": session.client_id[:200],  # it may have 65,535 bytes
        "connected": session.connected,
        "queued_messages": session.queued_messages,
        "queued_bytes": session.queued_bytes,
        "stored_bytes": session.stored_bytes,
        "inflight_messages": session.inflight_messages,
        "inflight_bytes": session.inflight_bytes,
        "link_bytes": session.link_bytes,
        "dropped": {reason.value: count for reason, count in session.dropped.items()},
        "paused": {why.value: count for why, count in session.paused.items()},
        "cut_off": {_slug(code): count for code, count in session.cut_off.items()},
    }


def _slug(code: int) -> str:
    """The name of a reason code as a topic level."""
    return name_of(code).rpartition(" ")[0].lower().replace(" ", "-")
