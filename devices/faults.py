"""When faults happen and to whom: a timetable that follows from the scenario and its seed alone."""

from collections.abc import Iterator, Sequence

from .scenario import Fault, Scenario
from .streams import stream_key, uniform


def occasions(fault: Fault, end_s: float | None) -> Iterator[float]:
    """The times of a fault, in seconds since the start, before ``end_s``. Endless if it repeats and ``end_s`` is
    None."""
    time_s = fault.every if fault.at is None else fault.at
    assert time_s is not None
    while end_s is None or time_s < end_s:
        yield time_s
        if fault.every is None:
            return
        time_s += fault.every


def struck(scenario: Scenario, fault_index: int, occasion: int, names: Sequence[str]) -> list[str]:
    """Which of ``names`` the fault strikes this time: its share of them, at least one, drawn from the seed."""
    fault = scenario.faults[fault_index]
    if fault.share == 1.0:
        return list(names)
    key = stream_key(scenario.seed, "fault", str(fault_index), str(occasion))
    ranked = sorted(names, key=lambda name: uniform(stream_key(key, name), 0))
    return sorted(ranked[: max(1, round(fault.share * len(names)))])
