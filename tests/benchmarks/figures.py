"""What benchmarks measured, and the floors it is held to."""

from __future__ import annotations

import datetime
import os
import statistics
from pathlib import Path

import click
import msgspec


class Series(msgspec.Struct, kw_only=True):
    """One figure of one subject, a value per round."""

    benchmark: str
    subject: str
    figure: str
    values: list[float]
    median: float = 0.0


class Verdict(msgspec.Struct, kw_only=True):
    """A figure and the limit the project set for it."""

    benchmark: str
    claim: str
    value: float
    limit: float
    #: False: the value must stay below the limit
    at_least: bool
    met: bool


class Report:
    """Collects the rounds of one run of the benchmarks."""

    def __init__(self) -> None:
        self.series: dict[tuple[str, str, str], Series] = {}
        self.verdicts: list[Verdict] = []
        #: what could not be measured here, with the reason
        self.skipped: list[str] = []

    def add(self, benchmark: str, subject: str, figure: str, value: float) -> None:
        """Add the value of one round."""
        series = self.series.setdefault(
            (benchmark, subject, figure),
            Series(benchmark=benchmark, subject=subject, figure=figure, values=[]),
        )
        series.values.append(round(value, 3))
        series.median = statistics.median(series.values)
        click.echo(f"  {benchmark:<14} {subject:<34} {figure:<22} {value:10.2f}")

    def median(self, benchmark: str, subject: str, figure: str) -> float:
        """Return the median over the rounds so far."""
        return self.series[benchmark, subject, figure].median

    def ratio(
        self, benchmark: str, ours: str, rival: str, figure: str, floor: float | None
    ) -> None:
        """Compare one figure of which more is better, round by round; no floor: only told.

        The median of the rounds' ratios: what else the machine does changes from round to round,
        and much less between two subjects of one round.
        """
        if (benchmark, rival, figure) not in self.series:
            return
        value = self.ratio_of_rounds(benchmark, ours, rival, figure)
        self._judge(benchmark, f"{figure}: {ours} / {rival}", value, floor or 0.0, at_least=True)

    def ratio_of_rounds(self, benchmark: str, ours: str, rival: str, figure: str) -> float:
        """Return the median over the rounds of our value by the rival's."""
        pairs = zip(
            self.series[benchmark, ours, figure].values,
            self.series[benchmark, rival, figure].values,
            strict=True,
        )
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def at_most(self, benchmark: str, claim: str, value: float, limit: float) -> None:
        """Hold a value to a limit it must stay below."""
        self._judge(benchmark, claim, value, limit, at_least=False)

    def _judge(
        self, benchmark: str, claim: str, value: float, limit: float, *, at_least: bool
    ) -> None:
        met = value >= limit if at_least else value <= limit
        self.verdicts.append(
            Verdict(
                benchmark=benchmark,
                claim=claim,
                value=round(value, 3),
                limit=limit,
                at_least=at_least,
                met=met,
            )
        )

    def skip(self, what: str, reason: str) -> None:
        """Say that something could not be measured."""
        self.skipped.append(f"{what}: {reason}")
        click.echo(f"  skipped {what}: {reason}")

    @property
    def missed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.met]

    def table(self) -> str:
        """Return everything as Markdown tables."""
        lines = ["| benchmark | subject | figure | median | rounds |", "|---|---|---|---|---|"]
        for each in self.series.values():
            rounds = " ".join(f"{value:g}" for value in each.values)
            lines.append(
                f"| {each.benchmark} | {each.subject} | {each.figure} | {each.median:g} "
                f"| {rounds} |"
            )
        lines += ["", "| benchmark | claim | value | limit | |", "|---|---|---|---|---|"]
        for verdict in self.verdicts:
            limit = f"{'>=' if verdict.at_least else '<='} {verdict.limit:g}"
            told = "met" if verdict.met else "MISSED"
            if verdict.at_least and not verdict.limit:
                limit, told = "", ""
            lines.append(
                f"| {verdict.benchmark} | {verdict.claim} | {verdict.value:.2f} | {limit} "
                f"| {told} |"
            )
        lines += [f"\nskipped: {text}" for text in self.skipped]
        return "\n".join(lines)

    def append_to(self, path: Path, load_average: float) -> None:
        """Append one JSON line per series and verdict; they share the time of the run."""
        run = {
            "run_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "cpus": os.cpu_count(),
            "load_average_before": load_average,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            for each in [*self.series.values(), *self.verdicts]:
                file.write(msgspec.json.encode({**run, **msgspec.to_builtins(each)}) + b"\n")
