"""``tidings acl``: the access file of ``tidings broker --access-file``, and why it says yes or no."""

from pathlib import Path

import click

from tidings.broker.access.rules import Action, ClientRules, Decision, read_rules

from .exits import ERROR
from .group import Group
from .options import check_filter

_FILE = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("access"),
    show_default=True,
    help="The access file.",
)


@click.group(cls=Group)
def acl() -> None:
    """Look into an access file, which says who may publish and subscribe where; see docs/security.md."""


@acl.command()
@_FILE
def check(path: Path) -> None:
    """Read the file and say what is wrong with it, one line for each mistake; exit code 1 then."""
    click.echo(f"{path}: {len(read_rules(path))} lines")


@acl.command()
@click.argument("user")
@click.argument("topic")
@click.option("-i", "--client-id", metavar="ID", help="Of the client; what %c stands for.  [default: USER]")
@click.option(
    "--action",
    "actions",
    type=click.Choice([action.value for action in Action]),
    multiple=True,
    help="Only this. Repeatable.  [default: all three, or subscribe for a TOPIC with wildcards]",
)
@_FILE
def explain(user: str, topic: str, client_id: str | None, actions: tuple[str, ...], path: Path) -> int:
    """Say whether USER may publish, subscribe and receive on TOPIC, and which line decides.

    '' as USER is a client without a user name. Exit codes: 0 allowed; 1 something asked about is refused.
    """
    check_filter(topic, "TOPIC")
    wild = "+" in topic or "#" in topic or topic.startswith("$share/")
    wanted = [Action(name) for name in dict.fromkeys(actions)] or ([Action.SUBSCRIBE] if wild else list(Action))
    if wild and wanted != [Action.SUBSCRIBE]:
        raise click.UsageError(f"{topic!r} has wildcards: one can only subscribe to it.")
    rules = read_rules(path)
    client_id = user if client_id is None else client_id
    if not rules.may_be(user, client_id):
        click.echo(f"refused     the client id {client_id!r} fits none of the 'connect as' lines for this user")
        return ERROR
    client = ClientRules(rules, user, client_id)
    decisions = [(action, client.decide(action, topic)) for action in wanted]
    for action, decision in decisions:
        click.echo(f"{action.value:10}{'allowed' if decision.allowed else 'refused'}  {_why(path, decision)}")
    return 0 if all(decision.allowed for _, decision in decisions) else ERROR


def _why(path: Path, decision: Decision) -> str:
    rule = decision.rule
    if rule is None:
        return "no line fits"
    here = f", here {decision.filter}" if decision.filter != rule.filter else ""
    return f"{path}:{rule.line}: {rule.text}{here} (for {' or '.join(map(str, rule.who))})"
