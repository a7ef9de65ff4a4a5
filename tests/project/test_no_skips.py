"""``TIDINGS_REQUIRE_ALL=1``, which .ci/run sets: a test that is left out fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"

TESTS = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip("needs a thing")

@pytest.mark.skipif(True, reason="always")
def test_is_skipped():
    pass

@pytest.mark.xfail(strict=True, reason="known")
def test_fails_as_expected():
    assert False
"""


@pytest.mark.parametrize(
    ("require_all", "outcome"),
    [("1", "1 failed, 1 passed, 1 xfailed, 2 errors"), ("0", "1 passed, 3 skipped, 1 xfailed")],
)
def test_skipped_tests_fail_where_all_are_required(tmp_path: Path, require_all: str, outcome: str) -> None:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-q", "-p", "no:tidings", "-p", "no:asyncio", "--continue-on-collection-errors"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "TIDINGS_REQUIRE_ALL": require_all},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout
    assert done.returncode == int(require_all)
