"""`make compat`: Celery's and kombu's own integration tests, on NATS and on Redis.

Run from the root of the repository as ``python -m tests.compat``. Nothing of the suites is kept in
the repository; they lie in the cache directory, as do the reports.
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from tests.compat import outcomes
from tests.compat.runner import Runner
from tests.compat.selection import CORE, FAIL_ANYWHERE, key_of, left_out
from tests.compat.suites import EDITS, prepare


@click.command()
@click.option("--only", default="", help="Parts of Celery's suite: tasks,canvas,inspect")
@click.option("--keyword", "-k", default="", help="Only tests that match, as pytest's -k.")
@click.option("--ci", is_flag=True, help="The part that CI runs, on NATS alone.")
@click.option(
    "--pool",
    default="prefork",
    type=click.Choice(["prefork", "spawn", "threads", "gevent", "solo"]),
)
@click.option("--shards", default=8, help="Processes at a time; they mostly wait.")
@click.option("--no-redis", is_flag=True, help="Leave the comparison out.")
@click.option("--no-kombu", is_flag=True, help="Leave kombu's suite out.")
@click.option("--cache-dir", default=".compat", type=click.Path(path_type=Path))
def compat(
    only: str,
    keyword: str,
    ci: bool,
    pool: str,
    shards: int,
    no_redis: bool,
    no_kombu: bool,
    cache_dir: Path,
) -> None:
    """Run the suites and compare. Ends with 1 where a test passes on Redis and fails on NATS."""
    # Whoever gives up on a run leaves no server behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cache = cache_dir.resolve()
    runner = Runner(prepare(cache), cache / f"reports-{pool}", pool, shards)
    parts = CORE if ci else [part for part in only.split(",") if part]
    tests = runner.collect(parts, keyword, ci=ci)
    with ThreadPoolExecutor(1) as beside:  # both suites mostly wait
        with_kombu = not no_kombu and (ci or not parts)
        kombu = beside.submit(runner.kombu) if with_kombu else None
        runs = {} if no_redis or ci else {"Redis": runner.celery("redis", tests)}
        runs["NATS"] = runner.celery("nats", tests)
    failed = outcomes.failures(kombu.result()) if kombu else []
    if kombu:
        click.echo(outcomes.table({"NATS": kombu.result()}))
    report(runs, left_out(pool, ci=ci))
    if "Redis" in runs:
        failed += outcomes.regressions(runs["Redis"], runs["NATS"])
    else:
        failed += [t for t in outcomes.failures(runs["NATS"]) if key_of(t) not in FAIL_ANYWHERE]
    if failed:
        click.echo(runner.explain(failed))
        told = "Failed on NATS" if no_redis or ci else "Failed on NATS, and pass on Redis"
        click.echo(f"\n{told}:\n" + "\n".join(failed))
        sys.exit(1)


def report(runs: dict[str, outcomes.Outcomes], left_out: dict[str, str]) -> None:
    """Print what ran, what differs and what was left out, with the reasons."""
    click.echo(outcomes.table(runs))
    if len(runs) > 1:
        click.echo("\nDifferences:\n" + outcomes.table(runs, only_differences=True))
    click.echo("\nLeft out:")
    click.echo("\n".join(f"{test}: {reason}" for test, reason in left_out.items()))
    click.echo("\nChanged in the downloaded copy:")
    click.echo("\n".join(f"{edit.files}: {edit.reason}" for edit in EDITS))
    click.echo("")
    for name, found in runs.items():
        click.echo(outcomes.totals(f"Celery on {name}", found))


if __name__ == "__main__":
    compat()
