"""The command line as README.md and ``--help`` tell of it."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from tidings.cli.main import COMMANDS, tidings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Commands = dict[tuple[str, ...], click.Command]
BLOCK = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*path, name))


@pytest.fixture(scope="module")
def commands() -> Commands:
    """Every command by its path, ("tidings", "fleet", "run")."""
    return dict(walk(tidings, ("tidings",)))


def shell_words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    return list(lexer)


def page_commands(page: Path) -> list[list[str]]:
    """The words of every ``tidings …`` command in a page's shell blocks, each up to a pipe, ``&`` or redirection."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        for line in block.replace("\\\n", " ").splitlines():
            words = shell_words(line.removeprefix("$ "))
            while words:
                end = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
                if words[:1] == ["tidings"]:
                    found.append(words[:end])
                words = words[end + 1 :]
    return found


def check(words: list[str], commands: Commands) -> None:
    """Raise if there is no such command or option."""
    path = tuple(words[:1])
    while len(path) < len(words) and (*path, words[len(path)]) in commands:
        path = (*path, words[len(path)])
    command, rest = commands[path], words[len(path) :]
    if isinstance(command, click.Group):
        assert rest in (["--help"], ["--version"]), f"no such command: {' '.join(words)}"
    context = click.Context(command, info_name=path[-1])
    command.make_parser(context).parse_args(rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path, commands: Commands) -> None:
    for words in page_commands(page):
        check(words, commands)


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_commands_that_print_the_figures_exist_with_their_options(page: str, commands: Commands) -> None:
    lines = re.findall(r"`(tidings bench [^`]+)`", (ROOT / page).read_text())
    assert lines
    for line in lines:
        check(shell_words(line), commands)


@pytest.mark.parametrize("line", ["tidings nothing", "tidings", "tidings broker --nothing", "tidings fleet nothing"])
def test_a_wrong_command_in_the_readme_would_be_found(commands: Commands, line: str) -> None:
    with pytest.raises((AssertionError, click.NoSuchOption)):
        check(line.split(), commands)


def test_two_lines_of_the_readme_do_everything_from_a_bare_python() -> None:
    block = README.partition("<!-- set-up -->\n")[2]
    lines = BLOCK.match(block)
    assert lines is not None
    demo, tests = lines[1].splitlines()
    for line in (demo, tests):
        assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert demo.endswith(".venv/bin/tidings demo")
    assert tests.endswith(".venv/bin/pytest")


def test_every_command_and_option_has_help(commands: Commands) -> None:
    for path, command in commands.items():
        assert command.help, path
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                assert param.help, (path, param.opts)


def test_the_environment_variable_of_an_option_has_its_name(commands: Commands) -> None:
    for path, command in commands.items():
        for param in command.params:
            if len(path) > 1 and isinstance(param, click.Option) and param.opts != ["--help"]:
                longest = max(param.opts, key=len).lstrip("-").replace("-", "_")
                variables = [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or [])
                assert "_".join([*path, longest]).replace("-", "_").upper() in variables, (path, param.opts, variables)


def test_the_overview_names_the_commands_as_they_name_themselves() -> None:
    for name, row in COMMANDS.items():
        assert getattr(import_module(row.module), row.command).name == name


def test_ci_reads_the_test_line_from_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "run_readme_line 2" in script
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_an_overview_shows_whole_sentences(commands: Commands) -> None:
    for path, command in commands.items():
        if isinstance(command, click.Group):
            assert "..." not in command.get_help(click.Context(command)).partition("Commands:")[2], path
