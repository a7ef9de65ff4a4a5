"""A fleet: all clients of a scenario against one broker, from the first connection to the report.

The order of a run: consumers connect and subscribe; replayed devices and the operator connect; the clock of the run
starts; devices connect at the scenario's rate and publish; at the end devices say goodbye, slow and absent consumers
catch up, and everybody waits until what is owed has arrived or the scenario's ``drain`` is over; then the ledger is
read, and only then the connections end.
"""

import asyncio
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from tidings.broker.codec import MQTT_5_0

from .client import Client
from .clock import RealClock
from .commands import Operator
from .consumer import Consumer
from .device import Device
from .faults import occasions, struck
from .ledger import Account, Ledger
from .link import Address, Dialer, FleetError, need_files, parse_address
from .ports import ClientOptions
from .profile import device_name
from .publisher import Publisher, Run
from .replay import Player, read_recording
from .report import Generator, Report, consumer_reports
from .scenario import Scenario

_READY_S = 30.0
_QUIET_S = 1.0
_POLL_S = 0.05
_HEARTBEAT_S = 0.1
_GOODBYES = 100


@dataclass(frozen=True, slots=True)
class ConsumerSnapshot:
    """One consumer now. ``backlog``: owed and not here yet. Latencies are those of the run so far, None if nothing
    came."""

    name: str
    online: int
    members: int
    received: int
    received_per_s: float
    backlog: int
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fleet now. ``phase``: connecting, running, draining or done. Rates are those since the last snapshot."""

    phase: str
    elapsed_s: float
    duration_s: float | None
    devices_online: int
    devices: int
    published: int
    published_per_s: float
    delivered: int
    delivered_per_s: float
    unacknowledged: int
    consumers: tuple[ConsumerSnapshot, ...]


class Fleet:
    """One run of ``scenario`` against the broker at ``url`` (or the scenario's, or localhost).

    Raises ConfigError for recordings that cannot be read. ``run`` may be called once.
    """

    def __init__(self, scenario: Scenario, url: str | Address | None = None) -> None:
        self.scenario = scenario
        url = url or scenario.url or "mqtt://localhost:1883"
        self.address = url if isinstance(url, Address) else parse_address(url)
        self.recordings = {name: read_recording(spec, scenario.folder, name) for name, spec in scenario.replays.items()}
        lengths = [recording.length_s for recording in self.recordings.values()]
        self.duration_s: float = scenario.duration if scenario.duration is not None else max(lengths)
        """How long the run lasts: the scenario's, or its longest recording's."""
        self._accounts: list[Account] = []
        self._consumers: dict[str, list[Consumer]] = {}
        self._devices: dict[str, list[Device]] = {}
        self._players: dict[str, Player] = {}
        self._operator: Operator | None = None
        self._publishers: list[Publisher] = []
        self._phase = "connecting"
        self._stops = 0
        self._stop: asyncio.Event | None = None
        self._ready: asyncio.Event | None = None
        self._last: tuple[float, int, int, list[int]] = (0.0, 0, 0, [])

    @property
    def client_count(self) -> int:
        """How many connections the run holds."""
        return self.scenario.client_count + sum(len(recording.devices) for recording in self.recordings.values())

    def stop(self) -> None:
        """End early: publish no more, then drain and report; called again, do not wait for what is owed either."""
        self._stops += 1
        if self._stop is not None:
            self._stop.set()

    async def run(self, on_progress: Callable[[Snapshot], None] | None = None, progress_s: float = 1.0) -> Report:
        """The whole run. ``on_progress`` gets a snapshot every ``progress_s``. Raises FleetError if it cannot begin."""
        need_files(self.client_count)
        dialer = Dialer(self.address)
        await dialer.probe()
        scenario = self.scenario
        start = datetime.now().astimezone() if scenario.start == "now" else scenario.start
        assert isinstance(start, datetime)
        clock = RealClock(asyncio.get_running_loop())
        run = Run(
            clock=clock,
            ledger=Ledger(scenario.expect.qos0_loss_max),
            dial=dialer,
            seed=scenario.seed,
            epoch_us=round(start.timestamp() * 1e6),
            end_s=self.duration_s if scenario.duration is not None else None,
            username=self.address.username,
            password=None if self.address.password is None else self.address.password.encode(),
        )
        self._stop = asyncio.Event()
        if self._stops:
            self._stop.set()
        try:
            self._build(run)
            cpu, wall = time.process_time(), time.monotonic()
            self._every(clock, _HEARTBEAT_S, lambda: None)
            if on_progress is not None:
                self._every(clock, progress_s, lambda: on_progress(self.snapshot(run)))
            await self._connect(run)
            await self._publish(run)
            spent_s = run.elapsed()
            drained = await self._drain(run, scenario.drain)
            cpu = (time.process_time() - cpu) / (time.monotonic() - wall)
            report = self._report(run, spent_s, drained, Generator(clock.lag, run.send_lag, cpu, _peak_memory_bytes()))
            self._phase = "done"
            if on_progress is not None:
                on_progress(self.snapshot(run))
            return report
        finally:
            await self._close(run)
            clock.close()
            await dialer.close()

    # -- the steps of a run

    def _build(self, run: Run) -> None:
        scenario = self.scenario
        for name, spec in scenario.consumers.items():
            names = [name] if spec.count == 1 else [f"{name}-{index + 1}" for index in range(spec.count)]
            durable = spec.session > 0
            if spec.share is not None:
                accounts = [run.ledger.account(name, spec.wanted, durable=durable, members=names, group=True)] * len(
                    names
                )
                self._accounts.append(accounts[0])
            else:
                accounts = [
                    run.ledger.account(one, spec.wanted, durable=durable, newest_only=spec.newest_only) for one in names
                ]
                self._accounts += accounts
            self._consumers[name] = [
                Consumer(one, spec, account, self._client_id(one), run, self._note_ready)
                for one, account in zip(names, accounts, strict=True)
            ]
        for name, replay in scenario.replays.items():
            self._players[name] = Player(name, replay, self.recordings[name], self._client_id(""), run)
            self._publishers += self._players[name].devices.values()
        index = 0
        for name, profile in scenario.devices.items():
            self._devices[name] = []
            for number in range(profile.count):
                device = device_name(name, number)
                begins_s = index / scenario.connect_rate
                self._devices[name].append(Device(name, profile, device, self._client_id(device), run, begins_s))
                index += 1
            self._publishers += self._devices[name]
        if scenario.commands:
            targets = {name: [device.name for device in devices] for name, devices in self._devices.items()}
            targets = {name: targets[name] for name in {command.to for command in scenario.commands}}
            self._operator = Operator(scenario, targets, self._client_id("operator"), run)
            self._publishers.append(self._operator)

    def _client_id(self, name: str) -> str:
        return f"{self.scenario.name}-{name}"

    async def _connect(self, run: Run) -> None:
        """Consumers subscribe, then those who publish from the first moment connect. Raises FleetError."""
        consumers = [consumer for group in self._consumers.values() for consumer in group]
        old = [consumer.client.options for consumer in consumers if _keeps_session_unasked(consumer.client.options)]
        await forget_sessions(run, old)
        self._ready = asyncio.Event()
        rate = self.scenario.connect_rate
        for index, consumer in enumerate(consumers):
            run.clock.call_at(run.clock.now() + index / rate, consumer.begin)
        within = _READY_S + len(consumers) / rate
        while not self._stops and not all(consumer.ready for consumer in consumers):
            if not await self._wait_or_stopped(self._ready, within):
                raise FleetError(self._not_ready(run, [one.name for one in consumers if not one.ready], within))
            self._ready.clear()
            self._refuse_gone(run)
        early: list[Publisher] = [device for player in self._players.values() for device in player.devices.values()]
        if self._operator is not None:
            early.append(self._operator)
        for index, publisher in enumerate(early):
            run.clock.call_at(run.clock.now() + index / rate, publisher.client.start)
        deadline = run.clock.now() + _READY_S + len(early) / rate
        while not all(publisher.client.online for publisher in early) and not self._stops:
            if run.clock.now() > deadline:
                late = [publisher.name for publisher in early if not publisher.client.online]
                raise FleetError(self._not_ready(run, late, _READY_S))
            await asyncio.sleep(_POLL_S)
            self._refuse_gone(run)

    def _refuse_gone(self, run: Run) -> None:
        for name, reason in run.gone.items():
            raise FleetError(f"{name}: {reason}")

    def _not_ready(self, run: Run, names: list[str], within: float) -> str:
        why = "; ".join(run.disconnects) or "no answer"
        return f"{', '.join(names[:3])} could not connect and subscribe within {within:.0f} s: {why}"

    async def _publish(self, run: Run) -> None:
        clock = run.clock
        run.zero = clock.now()
        self._phase = "running"
        for player in self._players.values():
            player.begin()
        if self._operator is not None:
            self._operator.begin()
        index = 0
        for devices in self._devices.values():
            for device in devices:
                clock.call_at(run.zero + index / self.scenario.connect_rate, self._if_running, device.begin)
                index += 1
        self._schedule_absences(run)
        self._schedule_faults(run)
        assert self._stop is not None
        await self._wait_or_stopped(asyncio.Event(), self.duration_s)

    async def _wait_or_stopped(self, event: asyncio.Event, seconds: float) -> bool:
        """Wait for the event or the fleet's being stopped; False if neither came in time."""
        assert self._stop is not None
        tasks = [asyncio.ensure_future(one.wait()) for one in (event, self._stop)]
        done, pending = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return bool(done)

    def _schedule_absences(self, run: Run) -> None:
        for name, spec in self.scenario.consumers.items():
            for away in spec.offline:
                for consumer in self._consumers[name]:
                    run.clock.call_at(run.zero + away.at, self._if_running, consumer.leave)
                    run.clock.call_at(run.zero + away.at + away.duration, self._if_running, consumer.come_back)

    def _schedule_faults(self, run: Run) -> None:
        for index, fault in enumerate(self.scenario.faults):
            times = enumerate(occasions(fault, self.duration_s))
            self._schedule_next_fault(run, index, times)

    def _schedule_next_fault(self, run: Run, index: int, times: "enumerate[float]") -> None:
        occasion, time_s = next(times, (0, None))
        if time_s is not None:
            run.clock.call_at(run.zero + time_s, self._if_running, self._strike, run, index, occasion, time_s, times)

    def _strike(self, run: Run, index: int, occasion: int, time_s: float, times: "enumerate[float]") -> None:
        fault = self.scenario.faults[index]
        clock = run.clock
        everybody: dict[str, Device | Consumer | Publisher] = {}
        everybody |= {device.name: device for device in self._devices.get(fault.who, [])}
        everybody |= {consumer.name: consumer for consumer in self._consumers.get(fault.who, [])}
        if fault.who in self._players:
            everybody |= {device.name: device for device in self._players[fault.who].devices.values()}
        for name in struck(self.scenario, index, occasion, list(everybody)):
            victim = everybody[name]
            if fault.kind == "burst" and isinstance(victim, Device):
                victim.burst(fault.messages, time_s)
            elif fault.kind == "freeze" and isinstance(victim, Consumer):
                victim.freeze()
                clock.call_at(clock.now() + fault.duration, self._if_running, victim.thaw)
            elif fault.kind == "cut" and fault.duration is None:
                victim.client.cut()
            elif fault.kind == "cut" and fault.duration is not None and victim.client.online:
                victim.client.pause(abrupt=True)
                clock.call_at(clock.now() + fault.duration, self._if_running, victim.client.start)
        self._schedule_next_fault(run, index, times)

    def _if_running(self, action: Callable[..., None], *args: object) -> None:
        if self._phase == "running":
            action(*args)

    async def _drain(self, run: Run, longest_s: float) -> bool:
        """Wait until everything owed has arrived; False if the time was up first.

        What is owed at QoS 0 only is waited for until nothing has come for a second.
        """
        self._phase = "draining"
        run.end_s = run.elapsed()
        for index, publisher in enumerate(self._publishers, 1):
            publisher.finish()
            if index % _GOODBYES == 0:  # thousands at once would be a burst, and a lag, that only the end of a run has
                await asyncio.sleep(0.01)
        for group in self._consumers.values():
            for consumer in group:
                consumer.catch_up()
        deadline = run.clock.now() + longest_s
        seen, since = -1, run.clock.now()
        while run.clock.now() < deadline and self._stops < 2:
            received = sum(account.received for account in self._accounts)
            if received != seen:
                seen, since = received, run.clock.now()
            unacknowledged = any(publisher.client.unacknowledged for publisher in self._publishers)
            if not unacknowledged and all(account.sure_backlog <= 0 for account in self._accounts):
                quiet = run.clock.now() - since > _QUIET_S
                if quiet or all(account.backlog <= 0 for account in self._accounts):
                    return True
            await asyncio.sleep(_POLL_S)
        return False

    async def _close(self, run: Run) -> None:
        consumers = [consumer.client for group in self._consumers.values() for consumer in group]
        clients = [publisher.client for publisher in self._publishers] + consumers
        for client in clients:
            client.stop()
        await forget_sessions(
            run, [one.options for one in clients if _keeps_session_unasked(one.options) and one.connects]
        )
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    # -- numbers

    def _every(self, clock: RealClock, seconds: float, action: Callable[[], None]) -> None:
        def again(due: float) -> None:
            action()
            clock.call_at(due + seconds, again, due + seconds)

        clock.call_at(clock.now() + seconds, again, clock.now() + seconds)

    def _note_ready(self) -> None:
        if self._ready is not None:
            self._ready.set()

    def snapshot(self, run: Run) -> Snapshot:
        """The fleet now."""
        now = run.clock.now()
        delivered = sum(account.received for account in self._accounts)
        then, published_then, delivered_then, received_then = self._last
        passed = max(now - then, 1e-3)
        received = [account.received for account in self._accounts]
        online = {consumer.name: consumer.client.online for group in self._consumers.values() for consumer in group}
        devices = [publisher for publisher in self._publishers if publisher is not self._operator]
        consumers = []
        for index, account in enumerate(self._accounts):
            before = received_then[index] if received_then else 0
            p50, p99 = account.latency.percentiles([50, 99])
            consumers.append(
                ConsumerSnapshot(
                    name=account.name,
                    online=sum(online[member] for member in account.members),
                    members=len(account.members),
                    received=account.received,
                    received_per_s=(account.received - before) / passed,
                    backlog=account.backlog,
                    p50_ms=p50 / 1000 if account.latency.count else None,
                    p99_ms=p99 / 1000 if account.latency.count else None,
                )
            )
        self._last = (now, run.published, delivered, received)
        return Snapshot(
            phase=self._phase,
            elapsed_s=run.elapsed() if self._phase != "connecting" else 0.0,
            duration_s=self.duration_s,
            devices_online=sum(publisher.client.online for publisher in devices),
            devices=len(devices),
            published=run.published,
            published_per_s=(run.published - published_then) / passed,
            delivered=delivered,
            delivered_per_s=(delivered - delivered_then) / passed,
            unacknowledged=sum(publisher.client.unacknowledged for publisher in self._publishers),
            consumers=tuple(consumers),
        )

    def _report(self, run: Run, spent_s: float, drained: bool, generator: Generator) -> Report:
        if self._operator is not None:
            self._operator.settle()
        flows = list(run.ledger.results())
        streams = run.ledger.streams.values()
        return Report(
            scenario=self.scenario.name,
            seed=self.scenario.seed,
            url=str(self.address),
            duration_s=spent_s,
            interrupted=self._stops > 0,
            drained=drained,
            clients=self.client_count,
            published=run.published,
            acknowledged=sum(len(stream.acknowledged) for stream in streams),
            outstanding=sum(len(stream.outstanding()) - stream.refused for stream in streams),
            refused=sum(stream.refused for stream in streams),
            skipped=run.skipped,
            connects=run.connects,
            disconnects=dict(run.disconnects),
            gone=dict(run.gone),
            consumers=consumer_reports(run.ledger, flows),
            flows=flows,
            commands=self._operator.counts if self._operator is not None else {},
            replays={
                name: {
                    "rows": len(player.recording.rows),
                    "devices": len(player.recording.devices),
                    "skipped": player.recording.skipped,
                    "first_error": player.recording.first_error,
                }
                for name, player in self._players.items()
            },
            generator=generator,
        )


def _keeps_session_unasked(options: ClientOptions) -> bool:
    """3.1.1 has no session expiry: what a durable client leaves behind stays until a clean connection removes it."""
    return options.version != MQTT_5_0 and options.session_s > 0


class _Visitor:
    """Connects with a clean session, which makes the broker forget the old one, and leaves."""

    def __init__(self, options: ClientOptions, run: Run) -> None:
        self.done = asyncio.Event()
        self.client: Client = run.client(
            ClientOptions(options.client_id, options.version, username=options.username, password=options.password),
            self,
        )

    def on_online(self, session_present: bool) -> None:
        self.client.stop()
        self.done.set()

    def on_offline(self, reason: str) -> None:
        if reason != "stopped":
            self.client.stop()
        self.done.set()

    def on_gone(self, reason: str) -> None:
        self.done.set()

    def on_subscribed(self, granted: object) -> None:
        """It subscribes to nothing."""

    def on_message(self, message: object) -> bool:
        return True

    def on_written(self, token: object, again: bool) -> None:
        """It publishes nothing."""

    def on_acknowledged(self, token: object, reason: int) -> None:
        """It publishes nothing."""


async def forget_sessions(run: Run, options: list[ClientOptions]) -> None:
    """Make the broker forget the 3.1.1 sessions of these clients; at most 5 s are spent on it."""
    visitors = [_Visitor(one, run) for one in options]
    for visitor in visitors:
        visitor.client.start()
    if visitors:
        await asyncio.wait([asyncio.ensure_future(visitor.done.wait()) for visitor in visitors], timeout=5)


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
