"""What links do while the store keeps them waiting: answers are held in order, and no client fills memory with them."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest

from tidings.broker import Broker, BrokerError, Config
from tidings.broker.codec.packets import Pingreq, Pingresp, Puback, Publish
from tidings.broker.core.ports import PauseReason
from tidings.broker.store.memory import MemoryStore

from ..raw_client import LOOPS, RawClient, links_of, run, soon, until

FLOOD = 1_000  # packets that one write brings


class SlowStore(MemoryStore):
    """Commits at once unless it is ``stuck``."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False

    def write(self, batch: int, changes: list[Any]) -> None:
        super().write(batch, changes)
        asyncio.get_running_loop().call_soon(self.catch_up)

    def catch_up(self) -> None:
        if not self.stuck:
            self.commit()

    def close(self) -> None:
        """What was not committed never will be."""


def serve(store: SlowStore, **options: Any) -> AbstractAsyncContextManager[Broker]:
    settings = {"listeners": ["tcp://127.0.0.1:0"], "sys_interval_s": 0, "stop_timeout_s": 1, **options}
    return Broker(Config.model_validate(settings), store=store)


async def keeper(broker: Broker) -> RawClient:
    """A durable subscriber to ``t``, so that messages on it have to be kept."""
    client = await RawClient.connect(broker.urls[0], "keeper", session_expiry_interval=100)
    await client.subscribe("t", 1)
    return client


@pytest.mark.parametrize("loop", LOOPS)
def test_answers_keep_their_order_while_one_of_them_waits_for_the_store(loop: str) -> None:
    async def main() -> None:
        store = SlowStore()
        async with serve(store) as broker, await keeper(broker), await RawClient.connect(broker.urls[0], "c") as client:
            store.stuck = True
            client.send(
                Pingreq(), Publish("t", b"1", 1, packet_id=7), Pingreq(), Publish("nobody", b"2", 1, packet_id=8)
            )
            await client.expect(Pingresp)
            await until(lambda: bool(store.pending))
            store.stuck = False
            store.catch_up()
            assert (await client.expect(Puback)).packet_id == 7
            await client.expect(Pingresp)
            assert (await client.expect(Puback)).packet_id == 8

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_whose_answers_wait_for_the_store_is_not_read_from_without_bound(loop: str) -> None:
    async def main() -> None:
        store = SlowStore()
        async with (
            serve(store, outbox_high_bytes=4096, outbox_max_bytes=200_000) as broker,
            await keeper(broker),
            await RawClient.connect(broker.urls[0], "flood") as flood,
            await RawClient.connect(broker.urls[0], "other") as other,
        ):
            store.stuck = True
            flood.send(Publish("t", b"1", 1, packet_id=7))
            link = links_of(broker)["flood"]
            pings = 0
            while link.paused is None:
                assert pings < 1_000_000, "it is read from for ever"
                flood.send(*[Pingreq()] * FLOOD)
                pings += FLOOD
                await asyncio.sleep(0)
            assert link.paused is PauseReason.STORE
            other.send(Pingreq())
            await other.expect(Pingresp)
            store.stuck = False
            store.catch_up()
            await flood.expect(Puback)
            for _ in range(pings):
                await flood.expect(Pingresp)
            assert link.paused is None

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_program_that_waits_for_the_store_is_told_when_the_broker_stops_first(loop: str) -> None:
    async def main() -> None:
        store = SlowStore()
        async with serve(store) as broker, await keeper(broker):
            store.stuck = True
            publishing = asyncio.create_task(broker.publish("t", b"1", qos=1))
            await until(lambda: bool(store.pending))
            assert not publishing.done()
            await broker.stop()
            with pytest.raises(BrokerError, match="before it could say"):
                await publishing

    run(main(), loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_internal_error_while_one_client_is_written_to_leaves_the_others_and_the_store_served(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Bug:
        """A transport that fails at what must not fail."""

        def __init__(self, transport: asyncio.Transport) -> None:
            self.transport = transport

        def __getattr__(self, name: str) -> Any:
            return getattr(self.transport, name)

        def write(self, data: bytes) -> None:
            raise RuntimeError("a bug")

    async def main() -> None:
        store = SlowStore()
        async with (
            serve(store) as broker,
            await keeper(broker) as witness,
            await RawClient.connect(broker.urls[0], "victim") as victim,
        ):
            await victim.subscribe("#")
            link = links_of(broker)["victim"]
            link._transport = cast(Any, Bug(cast(Any, link._transport)))
            await soon(broker.publish("t", b"1", qos=1))
            assert (await witness.message()).payload == b"1"
            assert await victim.rest() == []
            assert broker.snapshot().clients_connected == 1

    run(main(), loop)
    assert "RuntimeError: a bug" in caplog.text


@pytest.mark.parametrize("loop", LOOPS)
def test_a_client_that_vanishes_in_the_turn_in_which_it_is_sent_to_hurts_nobody(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serve(SlowStore()) as broker, await RawClient.connect(broker.urls[0], "witness") as witness:
            await witness.subscribe("t")
            for turn in range(50):
                async with await RawClient.connect(broker.urls[0], f"short-{turn}") as client:
                    await client.subscribe("t")
                    client.send(Publish("t", b"%d" % turn))
                    client.abort()
                    for link in list(links_of(broker).values()):
                        if link.connection is not None and link.connection.client_id != "witness":
                            broker_side = link
                            asyncio.get_running_loop().call_soon(broker_side.abort)
                    await broker.publish("t", b"x" * 100)
                await broker.publish("t", b"last")
                while (await witness.message()).payload != b"last":
                    pass

    run(main(), loop)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
