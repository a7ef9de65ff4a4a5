"""Two files of ``tidings bench --json`` side by side: what became better or worse, and whether that is a regression."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bench_result import METRICS
from .exits import Failure

FORMAT = "tidings-bench/1"


@dataclass(frozen=True)
class Series:
    """One figure of one file, round by round. ``better``: 1 more is better, -1 less is better."""

    title: str
    values: list[float]
    better: int


@dataclass(frozen=True)
class Change:
    """What one figure did between two files. ``percent`` is positive where the new one is better."""

    title: str
    old: float
    new: float
    percent: float
    regression: bool

    def line(self) -> str:
        word = (
            "REGRESSION"
            if self.regression
            else "better"
            if self.percent > 0
            else "worse"
            if self.percent < 0
            else "same"
        )
        return f"{self.title:60} {self.old:12,.3f} {self.new:12,.3f} {self.percent:+7.1f} %  {word}"


def compare_files(old: Path, new: Path, tolerance_percent: float) -> tuple[list[str], int]:
    """One line for each figure that both files hold, and the number of regressions.

    Raises:
        Failure: a file is none of ours, or they have nothing in common.
    """
    before, after = dict(_series(old)), dict(_series(new))
    shared = [key for key in before if key in after]
    if not shared:
        raise Failure(f"{old} and {new} have no scenario with the same settings and brokers in common")
    changes = [_change(before[key], after[key], tolerance_percent) for key in shared]
    return [change.line() for change in changes], sum(change.regression for change in changes)


def _series(path: Path) -> Iterator[tuple[str, Series]]:
    """The headline of each run as ratio to each other broker, or as it is where there is no other; by what it is of."""
    for run in _runs(path):
        metric = METRICS[run["headline"]]
        settings = json.dumps(run["settings"], sort_keys=True)
        first, *others = run["brokers"]
        ratios = [(other, other["ratios"]) for other in others if other["ratios"]]
        for other, values in ratios:
            title = f"{run['title']}: {metric.title}, {first['broker']} / {other['broker']}"
            yield f"{run['scenario']} {settings} / {other['broker']}", Series(title, values, metric.better)
        if not ratios and first["rounds"]:
            values = [measured[run["headline"]] for measured in first["rounds"] if run["headline"] in measured]
            title = f"{run['title']}: {metric.title}, {first['broker']}"
            yield f"{run['scenario']} {settings}", Series(title, values, metric.better)


def _runs(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise Failure(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Failure(f"{path} is not a file that 'tidings bench SCENARIO --json' wrote: its format is not {FORMAT}")
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def _change(old: Series, new: Series, tolerance_percent: float) -> Change:
    before, after = statistics.median(old.values), statistics.median(new.values)
    percent = 100.0 * new.better * (after - before) / before if before else 0.0
    if new.better > 0:
        apart = max(new.values) < min(old.values)
    else:
        apart = min(new.values) > max(old.values)
    return Change(new.title, before, after, percent, apart and percent < -tolerance_percent)
