"""The fixtures that installing tidings gives to other people's tests."""

import pytest

CLIENT = """
import socket

def connects(broker):
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as client:
        client.sendall(bytes.fromhex("100d 0004 4d515454 04 02 0000 0001 61"))
        return client.recv(4) == bytes.fromhex("20020000")
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Somebody's project, with a client of its own."""
    pytester.makepyfile(client=CLIENT)
    pytester.makeini("[pytest]\naddopts = -p no:asyncio\npythonpath = .\nfilterwarnings = error\n")
    return pytester


def test_every_test_that_asks_gets_a_fresh_broker_and_nothing_of_it_stays(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import sys
        import threading

        import pytest
        from client import connects

        def broker_threads():
            return sum(thread.name == "tidings-broker" for thread in threading.enumerate())

        def test_device_reports(tidings_broker):
            with tidings_broker.subscribe("dev/+/temp") as receive:
                assert connects(tidings_broker)
                tidings_broker.publish("dev/7/temp", b"21.5")
                assert receive(timeout_s=5).payload == b"21.5"

        @pytest.mark.parametrize("number", range(50))
        def test_fresh(tidings_broker, number):
            snapshot = tidings_broker.snapshot()
            assert (snapshot.retained_messages, snapshot.clients_connected) == (0, 0)
            tidings_broker.publish("kept", b"x", retain=True)
            assert connects(tidings_broker)
            assert broker_threads() == 1

        def test_fails(tidings_broker):
            assert False

        def test_no_thread_stays():
            assert broker_threads() == 0

        def test_nothing_of_the_command_line_was_imported():
            assert not {name for name in sys.modules if name.startswith(("tidings.cli", "tidings.devices"))}
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=53, failed=1)


def test_overriding_the_configuration_changes_the_broker(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from tidings.broker import BrokerError, Config

        @pytest.fixture
        def tidings_config():
            return Config(listeners=["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"], sys_interval_s=0)

        def test_two_listeners(tidings_broker):
            assert len(set(tidings_broker.urls)) == 2

        class TestInside:
            @pytest.fixture
            def tidings_config(self, tidings_config):
                return tidings_config.model_copy(update={"max_retained_messages": 1})

            def test_bounded(self, tidings_broker):
                tidings_broker.publish("a", b"x", retain=True)
                with pytest.raises(BrokerError, match="no room"):
                    tidings_broker.publish("b", b"x", retain=True)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=2)


def test_the_fixtures_are_listed_with_what_they_are_for(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["tidings_config -- *", "tidings_broker -- *", "*A fresh broker on a free port*"])
