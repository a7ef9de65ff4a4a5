"""Normative statements of MQTT against the labels in our source and tests.

Reads files only: the tests are parsed, never imported, so a broken test module cannot hide its marks. Run as a program
it prints the table for README.md and the server statements that no test shows yet.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATEMENTS = ROOT / "tests" / "conformance" / "statements.json"
README = ROOT / "README.md"
SOURCES = ("broker", "devices", "cli")
BEGIN, END = "<!-- conformance -->", "<!-- /conformance -->"
VERSIONS = ("3.1.1", "5.0")
PARTIES = ("server", "client", "both")

LABEL = re.compile(r"MQTT-\d+(?:\.\d+)*-\d+")
# "5.0 [MQTT-3.1.2-22]"; a list, "5.0 [MQTT-3.1.2-22], [MQTT-3.1.2-23] and [MQTT-3.1.2-25]", names its version once
CITATION = re.compile(rf"(\d(?:\.\d)+) (\[{LABEL.pattern}\](?:(?:,| and| or| to) \[{LABEL.pattern}\])*)")
ANY_LABEL = re.compile(r"MQTT-\d[\d.-]*")


@dataclass(frozen=True)
class Statement:
    """One normative statement. ``untestable`` is why no test can show it, empty if one can."""

    version: str
    id: str
    party: str
    text: str
    untestable: str = ""

    @property
    def clause(self) -> str:
        """The name that tests use: ``5.0 MQTT-3.1.2-22``."""
        return f"{self.version} {self.id}"

    @property
    def for_server(self) -> bool:
        return self.party != "client"

    @property
    def order(self) -> tuple[str, list[int]]:
        return self.version, [int(number) for number in re.findall(r"\d+", self.id)]


def statements() -> list[Statement]:
    return [Statement(**row) for row in json.loads(STATEMENTS.read_text(encoding="utf-8"))]


def is_clause_mark(function: ast.expr) -> bool:
    """``pytest.mark.clause``, or ``clause`` in a file that abbreviates it for its tables of cases."""
    return ast.unparse(function) in {"pytest.mark.clause", "clause"}


def marks() -> Iterator[tuple[str, str]]:
    """Yield (where, clause) for every clause mark in the tests; a mark that is no plain string yields its source."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and is_clause_mark(node.func):
                for argument in node.args:
                    where = f"{path.relative_to(ROOT)}:{argument.lineno}"
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        yield where, argument.value
                    else:
                        yield where, ast.unparse(argument)


def citations() -> Iterator[tuple[str, str]]:
    """Yield (where, clause) for every label in the source, one without a version or otherwise wrong as it stands."""
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                where = f"{path.relative_to(ROOT)}:{number}"
                for version, labels in CITATION.findall(line):
                    for label in LABEL.findall(labels):
                        yield where, f"{version} {label}"
                for label in ANY_LABEL.findall(CITATION.sub("", line)):
                    yield where, label


def clauses_shown() -> set[str]:
    return {clause for _, clause in marks()}


def table() -> str:
    """The counts as README.md shows them."""
    shown = clauses_shown()
    lines = [
        "| MQTT | normative statements | that bind a server | shown by a test | not testable, with a reason |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for version in VERSIONS:
        every = [statement for statement in statements() if statement.version == version]
        server = [statement for statement in every if statement.for_server]
        with_test = sum(statement.clause in shown for statement in server)
        with_reason = sum(bool(statement.untestable) for statement in server)
        lines.append(f"| {version} | {len(every)} | {len(server)} | {with_test} | {with_reason} |")
    return "\n".join(lines)


def untested() -> list[Statement]:
    shown = clauses_shown()
    return [one for one in statements() if one.for_server and not one.untestable and one.clause not in shown]


def test_statements_are_complete_unique_and_sorted() -> None:
    every = statements()
    # 141 and 251: the rows of appendix B of the two standards.
    assert {version: sum(one.version == version for one in every) for version in VERSIONS} == {"3.1.1": 141, "5.0": 251}
    assert len({one.clause for one in every}) == len(every)
    assert every == sorted(every, key=lambda one: one.order)
    assert all(one.party in PARTIES and LABEL.fullmatch(one.id) and one.text for one in every)


def test_statements_file_has_one_statement_a_line() -> None:
    rows = json.loads(STATEMENTS.read_text(encoding="utf-8"))
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    assert STATEMENTS.read_text(encoding="utf-8") == f"[\n{lines}\n]\n"


def test_clauses_marked_in_tests_exist() -> None:
    known = {one.clause for one in statements()}
    unknown = [f"{where}: {clause!r} is no statement" for where, clause in marks() if clause not in known]
    assert not unknown, "\n".join(unknown)


def test_clauses_cited_in_source_exist_and_name_their_version() -> None:
    known = {one.clause for one in statements()}
    unknown = [
        f"{where}: {clause!r} is no statement; write `5.0 [MQTT-3.1.2-22]` with the version"
        for where, clause in citations()
        if clause not in known
    ]
    assert not unknown, "\n".join(unknown)


def test_every_server_statement_has_a_test_or_a_reason() -> None:
    missing = [f"{one.clause}: {one.text}" for one in untested()]
    assert not missing, f"{len(missing)} server statements have neither a test nor a reason:\n" + "\n".join(missing)


def test_reasons_stand_only_where_there_is_no_test() -> None:
    shown = clauses_shown()
    stale = [f"{one.clause}: {one.untestable}" for one in statements() if one.untestable and one.clause in shown]
    assert not stale, "these have a test, so remove the reason:\n" + "\n".join(stale)


def test_readme_shows_the_counts() -> None:
    text = README.read_text(encoding="utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert shown == table(), f"README.md needs, between {BEGIN} and {END}:\n\n{table()}\n"


if __name__ == "__main__":
    print(table())
    print(f"\n{len(untested())} server statements not yet tested")
    for missing in untested():
        print(f"{missing.clause:24} {missing.party:6} {missing.text}")
