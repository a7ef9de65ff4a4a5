"""Nothing is acknowledged before it is flushed: what a broker wrote but did not flush is taken away at each kill."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tidings.devices.crash import CrashPlan, CrashTest
from tidings.devices.crash_books import Verdict

HERE = Path(__file__).parent
TIDINGS = Path(sys.executable).with_name("tidings")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD and /proc/self/fd are Linux's"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not here to build the tap"),
]


@pytest.fixture(scope="module")
def tap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("tap") / "powercut.so"
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "powercut.c", "-ldl"], check=True, timeout=60
    )
    return library


def cut_power(folder: Path, tap: Path, level: str, qos: int, rounds: int) -> Verdict:
    data, disk = folder / "data", folder / "disk"
    wrapper = f"'{sys.executable}' '{HERE / 'powercut.py'}' '{data}' '{disk}' '{tap}'"
    broker = f"'{TIDINGS}' broker --listen tcp://127.0.0.1:{{port}} --data '{data}' --durability {level}"
    plan = CrashPlan(folder, rounds, qos, command=f"{wrapper} {broker}", seed=qos, burst=600, kill_before_s=0.4)
    plan.quiet_s = 10.0 if level == "fsync" else 1.0
    return asyncio.run(CrashTest(plan, lambda number, verdict: None).run())


@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_acknowledged_survives_a_power_cut(tmp_path: Path, tap: Path, qos: int) -> None:
    verdict = cut_power(tmp_path, tap, "fsync", qos, rounds=2)
    assert verdict.acknowledged > 0
    assert not verdict.broken(qos), verdict
    assert (tmp_path / "disk" / "tidings.db-wal").exists(), "the tap saw no flush"


def test_level_os_does_not_promise_that_and_the_tap_can_tell(tmp_path: Path, tap: Path) -> None:
    verdict = cut_power(tmp_path, tap, "os", 1, rounds=1)
    assert verdict.lost > 0
    assert verdict.broken(1)


@pytest.mark.slow
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_acknowledged_survives_many_power_cuts(tmp_path: Path, tap: Path, qos: int) -> None:
    verdict = cut_power(tmp_path, tap, "fsync", qos, rounds=25)
    assert not verdict.broken(qos), verdict
