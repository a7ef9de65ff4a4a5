"""The environment variables that stand for options: ``TIDINGS_SUB_TOPIC`` for ``tidings sub --topic``."""

import click


def name_variables(command: click.Command, prefix: str) -> None:
    """Name the variable of each option after the option; click would take Python's name for its value.

    ``prefix`` is the command as typed, ``TIDINGS_fleet``. A variable that an option names itself stays. A group that
    makes its commands when they are asked for calls this for each of them.
    """
    for param in command.params:
        if isinstance(param, click.Option) and param.envvar is None:
            longest = max(param.opts, key=len).lstrip("-")
            param.envvar = f"{prefix}_{longest}".replace("-", "_").upper()
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            name_variables(inner, f"{prefix}_{name}")
