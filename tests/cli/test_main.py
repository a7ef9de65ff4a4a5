"""The command group: lazy, and the one place where failures become a line and an exit code."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from tidings.broker.errors import ConfigError
from tidings.cli import main as module
from tidings.cli.exits import Failure


def test_help_lists_every_command_and_imports_none() -> None:
    program = "import sys; from tidings.cli.main import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed, loaded = done.stdout.rsplit("\n", 2)[0], done.stdout.splitlines()[-1].split()
    assert all(f"  {name}" in listed and row.help in listed for name, row in module.COMMANDS.items())
    assert not [name for name in loaded if name in {row.module for row in module.COMMANDS.values()}]


@pytest.mark.parametrize("command", ["pub", "sub"])
def test_pub_and_sub_load_nothing_of_the_broker(command: str) -> None:
    program = f"import sys; from tidings.cli.main import main; main(['{command}', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert f"tidings.cli.{command}" in loaded
    assert not {"tidings.broker", "pydantic", "uvloop", "rich", "yaml", "amqtt"}.intersection(loaded)


def test_the_version_is_the_one_of_the_distribution() -> None:
    program = Path(sys.executable).with_name("tidings")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tidings ")


def test_an_unknown_command_is_wrong_usage_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert module.main(["nonsense"]) == 2
    assert capfd.readouterr().err == "Error: No such command 'nonsense'; see 'tidings --help'\n"


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (Failure("no luck"), 1, "Error: no luck\n"),
        (Failure("refused", 135), 135, "Error: refused\n"),
        (Failure("", 27), 27, ""),
        (click.UsageError("wrong."), 2, "Error: wrong; see 'tidings x --help'\n"),
        (FileNotFoundError(2, "No such file", "/x"), 1, "Error: No such file (/x)\n"),
        (ConnectionRefusedError("nobody there"), 1, "Error: nobody there\n"),
        (ConfigError("line 3: port"), 1, "Error: line 3: port\n"),
        (KeyboardInterrupt(), 130, "Interrupted\n"),
        (click.Abort(), 130, "Interrupted\n"),
    ],
)
def test_expected_errors_are_one_line_and_an_exit_code(
    raised: BaseException, code: int, line: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("x")
    def command() -> None:
        raise raised

    def get_command(self: Any, ctx: Any, name: str) -> click.Command:
        return command

    monkeypatch.setattr(module.LazyGroup, "get_command", get_command)
    assert module.main(["x"]) == code
    captured = capfd.readouterr()
    assert captured.err.lstrip("\n") == line
    assert captured.out == ""


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command("x")
    def command() -> None:
        raise LookupError("a bug")

    def get_command(self: Any, ctx: Any, name: str) -> click.Command:
        return command

    monkeypatch.setattr(module.LazyGroup, "get_command", get_command)
    with pytest.raises(LookupError):
        module.main(["x"])


def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    program = Path(sys.executable).with_name("tidings")
    shell = f"'{program}' --help | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_sub_asks_for_a_policy_under_the_name_that_the_broker_knows() -> None:
    from tidings.broker.policy import PROPERTY
    from tidings.cli.sub import POLICY_PROPERTY

    assert POLICY_PROPERTY == PROPERTY
