"""Each contract on imports in pyproject.toml notices a module that breaks it. (test_source.py: none does.)"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("broker", "devices", "cli")
VIOLATIONS = {
    "cli over devices over broker": ("broker/errors.py", "import tidings.devices.clock"),
    "inside the broker imports point downwards": ("broker/store/memory.py", "from ..transport import link"),
    "core and codec are told the time": ("broker/core/retained.py", "import time"),
    "devices use the broker's codec": ("devices/waves.py", "import tidings.broker.core.engine"),
    "the command line does not reach into the broker": ("cli/exits.py", "import tidings.broker.transport.link"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source under its import names, with the contracts."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "node_modules", "*.so")
        shutil.copytree(ROOT / folder, tmp_path / "tidings" / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(copy: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter", reason="needs import-linter, which the extra 'dev' installs")
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def broken(output: str) -> set[str]:
    return {line.removesuffix("BROKEN").strip() for line in output.splitlines() if line.endswith("BROKEN")}


def test_every_contract_notices_a_violation(copy: Path) -> None:
    for path, statement in VIOLATIONS.values():
        with (copy / "tidings" / path).open("a") as source:
            source.write(f"\n{statement}\n")
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    found = broken(result.stdout)
    for name in VIOLATIONS:
        assert any(line.startswith(name) for line in found), f"{name}: not in {found}"


def test_a_new_module_of_the_broker_must_find_its_place(copy: Path) -> None:
    (copy / "tidings" / "broker" / "sidecar.py").write_text('"""Nobody said where this belongs."""\n')
    assert broken(lint(copy).stdout) == {
        "inside the broker imports point downwards, and adapters do not know one another"
    }
