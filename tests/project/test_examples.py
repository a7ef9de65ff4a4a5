"""What README.md and docs/ print as programs, tests and configuration: it runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tidings.broker import Config
from tidings.broker.access.rules import parse_rules

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DEVICE = """\
from paho.mqtt import publish

class my_device:
    def connect(host, port):
        publish.single("dev/7/temp", "21.5", hostname=host, port=port)
"""


def blocks(kind: str, *pages: Path) -> list[str]:
    """The code blocks of a kind, of all pages unless some are named."""
    pattern = re.compile(rf"^```{kind}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [block for page in pages or PAGES for block in pattern.findall(page.read_text())]


def test_programs_run_and_tests_pass(pytester: pytest.Pytester) -> None:
    for block in blocks("python"):
        if "def test_" in block:
            pytester.makepyfile(DEVICE + "\n" + block)
            pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=block.count("def test_"))
        else:
            command = [sys.executable, "-W", "error", "-c", block]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            if block in blocks("python", ROOT / "README.md"):
                assert done.stdout.splitlines()[1:] == ["dev/7/temp 21.5"]


def test_configurations_are_understood() -> None:
    found = blocks("yaml")
    assert len(found) >= 3
    for block in found:
        Config.model_validate(yaml.safe_load(block))


def test_access_files_are_understood() -> None:
    found = blocks("text")
    assert found
    for block in found:
        assert len(parse_rules(block, "access")) > 3
