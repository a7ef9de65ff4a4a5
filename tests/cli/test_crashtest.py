"""``tidings crashtest`` as a user runs it, against real brokers that are really killed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TIDINGS = Path(sys.executable).with_name("tidings")


def crashtest(*args: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the JSON lines, and what stderr had."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
    done = subprocess.run(
        [str(TIDINGS), "crashtest", "--json", *args], capture_output=True, text=True, timeout=600, env=environment
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("qos", ["1", "2"])
def test_three_kills_cost_nothing(qos: str) -> None:
    code, lines, err = crashtest("--rounds", "3", "--qos", qos)
    assert (code, err) == (0, ""), lines
    assert [line["round"] for line in lines[:-1]] == [1, 2, 3]
    total = lines[-1]["total"]
    assert total["acknowledged"] > 0
    assert total["delivered"] >= 4 * total["acknowledged"]
    assert total["lost"] == total["reordered"] == total["retained_gone_back"] == total["sessions_lost"] == 0
    assert qos == "1" or total["duplicated"] == 0


@pytest.mark.slow
def test_a_broker_that_keeps_nothing_is_found_out() -> None:
    code, lines, _ = crashtest("--rounds", "1", "--level", "memory")
    assert code == 1
    assert lines[-1]["total"]["lost"] > 0
    assert lines[-1]["total"]["sessions_lost"] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="mosquitto is not installed")
def test_another_broker_is_tested_by_its_command_line(tmp_path: Path) -> None:
    config = tmp_path / "mosquitto.conf"
    config.write_text("allow_anonymous true\n")
    code, lines, _ = crashtest("--rounds", "1", "--command", f"mosquitto -c {config} -p {{port}}")
    assert code == 1
    assert lines[-1]["total"]["acknowledged"] > 0


def test_a_broker_that_does_not_start_is_one_line_on_stderr() -> None:
    code, lines, err = crashtest("--command", f"'{sys.executable}' -c 'import sys; sys.exit(\"no port {{port}}\")'")
    assert (code, lines) == (1, [])
    assert err.startswith("Error: the broker ended by itself with 1: no port ")


def test_a_program_that_is_not_there_is_named() -> None:
    code, _, err = crashtest("--command", "/nowhere/broker -p {port}")
    assert code == 1
    assert err == "Error: cannot run /nowhere/broker: No such file or directory\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("qos", ["1", "2"])
def test_a_hundred_kills_cost_nothing(qos: str) -> None:
    code, lines, _ = crashtest("--rounds", "100", "--qos", qos, "--seed", "100")
    assert code == 0, [line for line in lines if line.get("lost") or line.get("reordered")]
