"""Draws docs/scaling.svg from the last run of the benchmark `scaling`:

python -m tests.benchmarks.scaling_plot
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import click
import msgspec

from tests.benchmarks.processes import ROOT
from tests.benchmarks.scaling import (
    CONCURRENCY,
    IDLE_SECONDS,
    PHASES,
    RUNS,
    TASK_SECONDS,
    Run,
)

TARGET: Final = ROOT / "docs" / "scaling.svg"
_WIDTH, _LEFT, _RIGHT, _TOP, _PANEL, _GAP = 860, 58, 150, 34, 130, 48
_COLOURS: Final = {
    "load": "#888",
    "gear": "#9ec5ff",
    "ours": "#1f6feb",
    "full": "#2da44e",
    "celery": "#cf222e",
}

Points = list[tuple[float, float]]


class Line(NamedTuple):
    """One curve and what it is called."""

    label: str
    colour: str
    points: Points


class Panel(NamedTuple):
    """One diagram: curves over the same seconds."""

    title: str
    lines: list[Line]


def arrivals(run: Run) -> Points:
    """Return how many slots the tasks that came would keep busy, for each second."""
    counts: dict[int, int] = {}
    for sent, _, _ in run.tasks.values():
        second = math.floor(sent - run.began)
        counts[second] = counts.get(second, 0) + 1
    last = int(sum(seconds for seconds, _ in PHASES))
    return [(s, counts.get(s, 0) * TASK_SECONDS) for s in range(last)]


def slots(run: Run) -> Points:
    return [(sample.at - run.began, sample.slots) for sample in run.samples]


def worker_slots(run: Run) -> Points:
    """Return the slots there would be with full pools: the second gear alone."""
    return [(s.at - run.began, CONCURRENCY * len(s.pools)) for s in run.samples]


def waits(run: Run) -> Points:
    """Return the longest waiting time among the tasks of each second."""
    longest: dict[int, float] = {}
    for sent, start, _ in run.tasks.values():
        second = math.floor(sent - run.began)
        longest[second] = max(longest.get(second, 0.0), start - sent)
    return sorted(longest.items())


def draw(panels: list[Panel], seconds: float) -> str:
    """Return an SVG document with the panels one below the other."""
    height = _TOP + len(panels) * (_PANEL + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    right = _WIDTH - _RIGHT

    def x(second: float) -> float:
        return _LEFT + (right - _LEFT) * second / seconds

    for number, panel in enumerate(panels):
        top = _TOP + number * (_PANEL + _GAP)
        parts += _panel(panel, top, seconds, x)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, seconds: float, x: Callable[[float], float]) -> Iterable[str]:
    highest = max((value for line in panel.lines for _, value in line.points), default=1) or 1
    step = 10 ** math.floor(math.log10(highest))
    step = next(s for s in (step / 2, step, step * 2, step * 5) if highest / s <= 5)

    def y(value: float) -> float:
        return top + _PANEL * (1 - value / (highest * 1.05))

    yield f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{panel.title}</text>'
    for tick in range(math.floor(highest / step) + 1):
        level = y(tick * step)
        yield f'<path d="M{x(0)} {level:.1f}H{x(seconds)}" stroke="#ddd" fill="none"/>'
        yield f'<text x="{_LEFT - 6}" y="{level + 4:.1f}" text-anchor="end">{tick * step:g}</text>'
    for second in range(0, int(seconds) + 1, 10):
        label = f"{second - IDLE_SECONDS:g} s"
        yield (
            f'<text x="{x(second):.1f}" y="{top + _PANEL + 14}" text-anchor="middle" '
            f'fill="#666" font-size="10">{label}</text>'
        )
    for number, line in enumerate(panel.lines):
        points = " ".join(
            f"{x(second):.1f},{y(value):.1f}" for second, value in line.points if second <= seconds
        )
        yield f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="1.6"/>'
        height = top + 12 + 17 * number
        yield (
            f'<text x="{_WIDTH - _RIGHT + 10}" y="{height}" fill="{line.colour}">'
            f"{line.label}</text>"
        )


@click.command()
def main() -> None:
    """Draw the last run."""
    elastic, full, celery = msgspec.json.decode(RUNS.read_bytes(), type=list[Run])
    load = Line("load", _COLOURS["load"], arrivals(elastic))
    panels = [
        Panel(
            "Slots (second 0 is the step)",
            [
                load,
                Line(f"workers x {CONCURRENCY}", _COLOURS["gear"], worker_slots(elastic)),
                Line("slots", _COLOURS["ours"], slots(elastic)),
            ],
        ),
        Panel(
            "The same, celery --autoscale",
            [load, Line("slots", _COLOURS["celery"], slots(celery))],
        ),
        Panel(
            "Longest waiting time of the tasks sent in each second (s)",
            [
                Line("elastic", _COLOURS["ours"], waits(elastic)),
                Line("full from the start", _COLOURS["full"], waits(full)),
                Line("celery --autoscale", _COLOURS["celery"], waits(celery)),
            ],
        ),
    ]
    TARGET.write_text(draw(panels, sum(seconds for seconds, _ in PHASES)))
    click.echo(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
