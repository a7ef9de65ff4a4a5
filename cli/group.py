"""A group of commands whose ``--help`` shows the first sentence of each one's, whole."""

import click


class Group(click.Group):
    """click's own cuts sentences off that do not fit into a line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(1_000)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
