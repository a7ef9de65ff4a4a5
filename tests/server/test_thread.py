"""``BrokerThread``: a broker for programs that are not asynchronous."""

import asyncio
import socket
import threading

import pytest

from tidings.broker import Broker, BrokerError, BrokerThread, Config
from tidings.broker.codec import Decoder, encode
from tidings.broker.codec.packets import MQTT_5_0, Connack, Connect, Disconnect, Packet

GONE = r"not running|stopped"


def broker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tidings-broker"]


def connect(broker: BrokerThread) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", broker.port), timeout=10)
    client.sendall(encode(Connect("one", MQTT_5_0), MQTT_5_0))
    assert isinstance(Decoder(side="client", version=MQTT_5_0).feed(client.recv(4096))[0], Connack)
    return client


def rest(client: socket.socket) -> list[Packet]:
    data = b""
    while piece := client.recv(4096):
        data += piece
    return list(Decoder(side="client", version=MQTT_5_0).feed(data))


def test_it_serves_inside_with_and_its_thread_is_gone_afterwards(config: Config) -> None:
    with BrokerThread(config) as broker:
        assert broker.urls == [f"tcp://127.0.0.1:{broker.port}"]
        with connect(broker):
            assert broker.snapshot().clients_connected == 1
        assert len(broker_threads()) == 1
    assert broker_threads() == []


def test_messages_go_in_and_come_out(config: Config) -> None:
    with BrokerThread(config) as broker:
        broker.publish("a/b", "kept", retain=True, properties={"content_type": "text/plain"})
        with broker.subscribe("a/+", "c") as receive:
            kept = receive(10)
            assert (kept.topic, kept.payload, kept.properties) == ("a/b", b"kept", {"content_type": "text/plain"})
            for qos in (0, 1, 2):
                broker.publish("c", b"%d" % qos, qos)
                assert receive(10).payload == b"%d" % qos
        assert broker.snapshot().stats.messages_received == 4


def test_the_subscription_ends_with_the_block(config: Config) -> None:
    with BrokerThread(config) as broker:
        with broker.subscribe("a"):
            assert broker.snapshot().subscriptions == 1
        assert broker.snapshot().subscriptions == 0


def test_a_receive_that_nothing_arrives_for_says_where_it_waited_and_loses_nothing(config: Config) -> None:
    with BrokerThread(config) as broker, broker.subscribe("a", "b/+") as receive:
        with pytest.raises(TimeoutError, match=r"^no message on a, b/\+ within 0\.01 s$"):
            receive(0.01)
        broker.publish("a", b"later")
        assert receive(10).payload == b"later"


def test_a_receive_without_time_takes_what_is_there(config: Config) -> None:
    with BrokerThread(config) as broker, broker.subscribe("a") as receive:
        broker.publish("a", b"there")
        assert receive(0).payload == b"there"
        with pytest.raises(TimeoutError):
            receive(0)


def test_a_stop_ends_a_receive_that_waits(config: Config) -> None:
    broker = BrokerThread(config)
    broker.start()
    with broker.subscribe("a") as receive:
        stopping = threading.Timer(0.05, broker.stop)
        stopping.start()
        with pytest.raises(BrokerError, match=GONE):
            receive(30)
        stopping.join()


def test_what_is_wrong_is_raised_in_the_caller_and_the_broker_goes_on(config: Config) -> None:
    with BrokerThread(config) as broker:
        with pytest.raises(ValueError, match="topic"):
            broker.publish("a/#")
        with pytest.raises(ValueError, match="qos"):
            broker.publish("a", qos=5)
        with pytest.raises(ValueError, match="wildcard"), broker.subscribe("a#"):
            pass
        with connect(broker):
            pass


def test_a_start_that_fails_raises_and_leaves_no_thread() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = Config(listeners=[f"tcp://127.0.0.1:{taken.getsockname()[1]}"])
        broker = BrokerThread(config)
        with pytest.raises(BrokerError, match="in use"):
            broker.start()
    broker.stop()
    assert broker_threads() == []
    with pytest.raises(BrokerError):
        broker.publish("a")
    with pytest.raises(BrokerError):
        broker.snapshot()


def test_stopping_twice_or_before_a_start_does_no_harm(config: Config) -> None:
    never = BrokerThread(config)
    never.stop()
    with BrokerThread(config) as broker:
        broker.stop()
        broker.stop()
    broker.stop()
    assert broker_threads() == []


def test_a_stopped_broker_says_so(config: Config) -> None:
    with BrokerThread(config) as broker, broker.subscribe("a") as receive:
        broker.stop()
        with pytest.raises(BrokerError, match=GONE):
            broker.publish("a")
        with pytest.raises(BrokerError, match=GONE):
            receive(1)
        with pytest.raises(BrokerError, match=GONE):
            broker.snapshot()


def test_one_that_was_not_started_says_so(config: Config) -> None:
    with pytest.raises(BrokerError, match="not running"):
        BrokerThread(config).publish("a")


def test_a_second_start_is_refused_and_the_first_goes_on(config: Config) -> None:
    with BrokerThread(config) as broker:
        with pytest.raises(BrokerError, match="started before"):
            broker.start()
        with connect(broker):
            pass


def test_a_stop_says_goodbye_to_clients(config: Config) -> None:
    with BrokerThread(config) as broker:
        client = connect(broker)
        broker.stop()
    with client:
        (goodbye,) = rest(client)
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x8B


def test_many_threads_publish_at_once(config: Config) -> None:
    with BrokerThread(config) as broker, broker.subscribe("a/#") as receive:

        def publish(number: int) -> None:
            for count in range(50):
                broker.publish(f"a/{number}", b"%d" % count, 1)

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        received: dict[str, list[bytes]] = {}
        for _ in range(8 * 50):
            message = receive(10)
            received.setdefault(message.topic, []).append(message.payload)
        for thread in threads:
            thread.join()
        assert received == {f"a/{number}": [b"%d" % count for count in range(50)] for number in range(8)}


def test_it_runs_beside_an_event_loop_of_the_program(config: Config) -> None:
    async def main() -> None:
        async with Broker(config) as mine:
            with BrokerThread(config) as other:
                assert mine.port != other.port

    asyncio.run(main())
