"""The page of ``tidings bench --html``: one self-contained file with tables and plots, no script, nothing to load.

It is drawn from the same data as ``--json`` writes, so that a page can be made of a stored file.
"""

import html
import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

from .bench_result import METRICS

_COLOURS: Final = ("#2563a8", "#c2571a", "#3c8c4d", "#8250a6", "#a08a1a", "#777777")
_WIDTH: Final = 760
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { margin-top: 2.5rem; font-size: 1.2rem; } table { border-collapse: collapse; font-size: .85rem; }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } .wide { overflow-x: auto; } .warn { color: #a11; }
svg { display: block; margin: .8rem 0; } svg text { font: 12px system-ui, sans-serif; fill: #333; }
svg circle { fill: #111; opacity: .7; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } svg text { fill: #ccc; }
  svg circle { fill: #eee; }
  td, th { border-color: #444; } .warn { color: #f88; } }
"""


def page(report: dict[str, Any]) -> str:
    """The whole page for what ``bench_result.as_json`` gave."""
    machine = report["machine"]
    about = f"{machine['system']}, {machine['cores']} cores, Python {machine['python']}"
    return document("tidings bench", about, [_section(run) for run in report["runs"]])


def document(title: str, about: str, sections: Sequence[str]) -> str:
    """A page of its own around these sections."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{''.join(sections)}</body></html>\n"
    )


def _section(run: dict[str, Any]) -> str:
    measured = [broker for broker in run["brokers"] if broker["rounds"]]
    parts = [f"<h2>{html.escape(run['title'])}</h2>"]
    if measured:
        metric = METRICS[run["headline"]]
        bars = [(_name(broker), _values(broker, run["headline"])) for broker in measured]
        parts.append(bar_plot(f"{metric.title}: median of the rounds, each round a dot", bars, metric.form))
        curves = [(_name(broker), [(float(k), v) for k, v in broker["latency_ms"].items()]) for broker in measured]
        parts.append(_latency_plot(curves))
        parts.append(_memory_plot([(_name(broker), broker["memory_mb"][-1]) for broker in measured]))
        parts.append(_table(run, measured))
    for broker in run["brokers"]:
        remarks = [broker["error"], broker["invalid"], *broker["notes"]]
        parts += [f'<p class="warn">{html.escape(f"{_name(broker)}: {remark}")}</p>' for remark in remarks if remark]
    return "".join(parts)


def _name(broker: dict[str, Any]) -> str:
    return f"{broker['broker']} {broker['version']}".strip()


def _values(broker: dict[str, Any], metric: str) -> list[float]:
    return [measured[metric] for measured in broker["rounds"] if metric in measured]


def _table(run: dict[str, Any], measured: list[dict[str, Any]]) -> str:
    names = list(measured[0]["median"])
    rows = []
    for broker in measured:
        cells = [_name(broker)]
        for name in names:
            value = broker["median"][name]
            cells.append("–" if value is None else format(value, METRICS[name].form))
        ratios = broker["ratios"]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})" if ratios else "–")
        rows.append(cells)
    first = run["brokers"][0]["broker"]
    return table_of(["broker", *(METRICS[name].title for name in names), f"{first} / this"], rows)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def bar_plot(title: str, bars: Sequence[tuple[str, Sequence[float]]], form: str, logarithmic: bool = False) -> str:
    """Horizontal bars of medians with a dot for each value; ``form`` is how the median is written."""
    left, top, step, room = 150, 28, 30, _WIDTH - 150 - 110
    values = [value for _, found in bars for value in found if value > 0]
    if not values:
        return ""
    most, least = max(values), min(values)
    low = math.floor(math.log10(least)) if logarithmic else 0

    def x(value: float) -> float:
        if not logarithmic:
            return left + room * value / most
        span = max(1e-9, math.log10(most) - low)
        return left + room * max(0.0, (math.log10(max(value, 10.0**low)) - low) / span)

    scale = " (logarithmic)" if logarithmic else ""
    drawn = [f'<text x="0" y="14">{html.escape(title + scale)}</text>']
    for i, (name, found) in enumerate(bars):
        if not found:
            continue
        y, colour, median = top + i * step, _COLOURS[i % len(_COLOURS)], statistics.median(found)
        drawn.append(f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{html.escape(name)}</text>')
        width = max(1.0, x(median) - left)
        drawn.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="20" fill="{colour}" opacity=".75"/>')
        drawn += [f'<circle cx="{x(value):.1f}" cy="{y + 10}" r="3.5"/>' for value in found]
        drawn.append(f'<text x="{x(max(found)) + 9:.1f}" y="{y + 15}">{format(median, form)}</text>')
    height = top + len(bars) * step
    return _svg(height, drawn)


def _latency_plot(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Latency by percentile, both on logarithmic axes: each step to the right is one nine more."""
    shown = [(name, [(p, ms) for p, ms in points if ms > 0]) for name, points in curves]
    values = [ms for _, points in shown for _, ms in points]
    if not values:
        return ""
    left, top, height, room = 70, 30, 190, _WIDTH - 70 - 150
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)
    nines = max(-math.log10(1 - p / 100) for _, points in shown for p, _ in points)

    def x(percentile: float) -> float:
        return left + room * -math.log10(1 - percentile / 100) / nines

    def y(ms: float) -> float:
        return top + height * (high - math.log10(ms)) / (high - low)

    drawn = ['<text x="0" y="14">latency in ms by percentile (logarithmic)</text>']
    for power in range(low, high + 1):
        line = y(10.0**power)
        drawn.append(f'<line x1="{left}" x2="{left + room}" y1="{line:.1f}" y2="{line:.1f}" stroke="#8884"/>')
        drawn.append(f'<text x="{left - 8}" y="{line + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for percentile, _ in shown[0][1]:
        drawn.append(
            f'<text x="{x(percentile):.1f}" y="{top + height + 18}" text-anchor="middle">{percentile:g}</text>'
        )
    for i, (name, points) in enumerate(shown):
        if not points:
            continue
        drawn += _curve(name, i, [f"{x(p):.1f},{y(ms):.1f}" for p, ms in points], left + room, top)
    return _svg(top + height + 28, drawn)


def _memory_plot(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Resident memory over time, in the last round."""
    points = [point for _, found in curves for point in found]
    if not points:
        return ""
    left, top, height, room = 70, 30, 150, _WIDTH - 70 - 150
    longest, most = max(s for s, _ in points) or 1.0, max(mb for _, mb in points)
    drawn = ['<text x="0" y="14">resident memory in MB over seconds, last round</text>']
    for part in (0.0, 0.5, 1.0):
        y, x = top + height * (1 - part), left + room * part
        drawn.append(f'<line x1="{left}" x2="{left + room}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{most * part:,.0f}</text>')
        drawn.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{longest * part:.1f}</text>')
    for i, (name, found) in enumerate(curves):
        line = [f"{left + room * s / longest:.1f},{top + height * (1 - mb / most):.1f}" for s, mb in found]
        drawn += _curve(name, i, line, left + room, top)
    return _svg(top + height + 28, drawn)


def _curve(name: str, index: int, points: Sequence[str], right: int, top: int) -> list[str]:
    """A line and its entry in the key."""
    colour, y = _COLOURS[index % len(_COLOURS)], top + 20 * index
    return [
        f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<rect x="{right + 16}" y="{y}" width="12" height="12" fill="{colour}"/>',
        f'<text x="{right + 34}" y="{y + 11}">{html.escape(name)}</text>',
    ]


def _svg(height: int, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(drawn)}</svg>'
    )
