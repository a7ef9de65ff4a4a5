"""The command that shows what happens when publishers are faster than the disk, for a few seconds only."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_what_was_acknowledged_beside_a_slow_disk_arrives_once() -> None:
    script = Path(__file__).with_name("behind.py")
    command = [sys.executable, str(script), "--for", "3", "--disk", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost, 0 twice" in done.stdout
