"""Runs benchmarks side by side with their rivals: `python -m tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import click

from tests.benchmarks import (
    backlog,
    balance,
    celery_level,
    http_front,
    publish_many,
    scaling_traces,
)
from tests.benchmarks.figures import Report
from tests.benchmarks.processes import ROOT
from tests.support.debian import Missing

BENCHMARKS = {
    "submission": http_front.submission,
    "service": http_front.service,
    **celery_level.BENCHMARKS,
    "backlog": backlog.backlog,
    "publish-many": publish_many.publish_many,
    "balance": balance.balance,
    **scaling_traces.BENCHMARKS,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHMARKS)))
@click.option("--rounds", default=3, show_default=True, help="Rounds of each; medians are told.")
@click.option(
    "--results",
    type=click.Path(path_type=Path, dir_okay=False),
    default=ROOT / "build" / "benchmarks.jsonl",
    help="File to which the figures are appended as JSON lines.",
)
def main(names: tuple[str, ...], rounds: int, results: Path) -> None:
    """Measure NAMES, or everything; exit status 1 where a floor is missed."""
    # Whoever ends us ends what we started as well.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    report, load_average = Report(), os.getloadavg()[0]
    click.echo(f"{os.cpu_count()} CPUs, load average {load_average:.2f}")
    for name in names or BENCHMARKS:
        click.echo(f"{name}: {BENCHMARKS[name].__doc__}")
        with tempfile.TemporaryDirectory(prefix="bench-") as directory:
            try:
                BENCHMARKS[name](report, Path(directory), rounds)
            except Missing as error:
                report.skip(name, str(error))
    click.echo(f"\n{report.table()}")
    report.append_to(results, load_average)
    sys.exit(1 if report.missed else 0)


main()
