"""Parts of a run on a virtual clock, each with a broker of paper."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from tidings.broker.codec import Publish
from tidings.broker.config_file import parse_yaml
from tidings.devices import Ledger, Scenario
from tidings.devices.client import Client
from tidings.devices.clock import VirtualClock
from tidings.devices.publisher import Run

from .peer import Peer

EPOCH_US = 1_767_225_600_000_000


def scenario(**parts: Any) -> Scenario:
    parts = {"name": "s", "for": "60s", **parts}
    return parse_yaml(yaml.safe_dump(parts, sort_keys=False), Scenario, "s.yaml")


class Stage:
    """A run; every client that dials gets a ``Peer`` under its client id."""

    def __init__(self, seed: int = 1) -> None:
        self.clock = VirtualClock()
        self.peers: dict[str, Peer] = {}
        self.run = Run(clock=self.clock, ledger=Ledger(), dial=self._dial, seed=seed, epoch_us=EPOCH_US)

    def _dial(self, client: Client) -> None:
        self.peers.setdefault(client.options.client_id, Peer())(client)

    def published(self, client_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Topic and body of what this client published since the last time; acknowledged at once."""
        return [(one.topic, body(one)) for one in self.take(client_id) if isinstance(one, Publish)]

    def take(self, client_id: str) -> list[Any]:
        return list(self.peers[client_id].take())


def body(message: Publish) -> dict[str, Any]:
    """The JSON of a message without its stamp."""
    found = json.loads(message.payload)
    found.pop("sent", None)
    assert isinstance(found, dict)
    return found


def each(action: Callable[[], object], times: int) -> None:
    for _ in range(times):
        action()
